//! Verbs of the context file.

use std::path::Path;

use dunlin_model::{ErrorCode, Invalid};
use dunlin_proto::Fault;
use serde_json::json;

use super::{Surroundings, enrol, open};
use crate::args::{ContextVerb, Format};
use crate::client::endpoint;
use crate::context::{Contexts, check_name};
use crate::failure::Failure;
use crate::identity::{Files, who};
use crate::output;

pub(crate) async fn run(verb: ContextVerb, around: &Surroundings, format: Format) -> Result<(), Failure> {
    let path = around.contexts.as_path();
    let mut contexts = Contexts::read(path)?;
    match verb {
        ContextVerb::List => return list(&contexts.without_tokens(), path, format),
        ContextVerb::Show => return show(&contexts, path, format),
        ContextVerb::Join(args) => return enrol::join(args, path).await,
        ContextVerb::Renew => {
            let session = open(&[], None, around, format)?;
            let nobody = || Fault::new(ErrorCode::Unauthenticated, "the context has no certificate to renew");
            let (_, files) = session.own.as_ref().ok_or_else(nobody)?;
            return enrol::renew(&session.fleet, files).await;
        }
        ContextVerb::Set { name, endpoints } => {
            check_name(&name)?;
            let endpoints = endpoints.iter().map(|text| endpoint(text)).collect::<Result<_, Invalid>>()?;
            contexts.set(&name, endpoints);
        }
        ContextVerb::Use { name } => contexts.select(&name)?,
    }
    contexts.write(path)?;
    Ok(())
}

/// Who one is in a context, and until when.
fn identity(path: &Path, name: &str) -> Result<Option<(String, String)>, Failure> {
    let keyring = Files::of(path, name).open()?;
    let found = keyring.and_then(|keyring| who(&keyring));
    Ok(found.map(|(identity, expires)| (identity.to_string(), expires.to_string())))
}

fn show(contexts: &Contexts, path: &Path, format: Format) -> Result<(), Failure> {
    let endpoints = contexts.endpoints(None)?;
    let name = contexts.current.clone().unwrap_or_default();
    let (identity, expires) = identity(path, &name)?.unzip();
    match format {
        Format::Json | Format::Yaml => {
            let told =
                json!({"name": name, "endpoints": endpoints, "identity": identity, "expires": expires});
            output::value(format, &told)
        }
        Format::Table | Format::Wide => {
            output::line(&format!("context    {name}"))?;
            output::line(&format!("endpoints  {}", endpoints.join(",")))?;
            output::line(&format!("identity   {}", identity.as_deref().unwrap_or("nobody")))?;
            if let Some(user) = contexts.contexts.get(&name).and_then(|context| context.user.as_ref()) {
                output::line(&format!("logged in  {user}"))?;
            }
            expires.map_or(Ok(()), |expires| output::line(&format!("expires    {expires}")))
        }
    }
}

fn list(contexts: &Contexts, path: &Path, format: Format) -> Result<(), Failure> {
    match format {
        Format::Json => {
            output::line(&serde_json::to_string_pretty(contexts).expect("a map of strings is JSON"))
        }
        Format::Yaml => output::line(&serde_norway::to_string(contexts).expect("a map of strings is YAML")),
        Format::Table | Format::Wide => contexts.contexts.iter().try_for_each(|(name, context)| {
            let mark = if contexts.current.as_deref() == Some(name) { "*" } else { " " };
            let shown = identity(path, name)?.map(|(identity, _)| identity);
            let who = context.user.clone().or(shown).unwrap_or_else(|| "nobody".to_owned());
            output::line(&format!("{mark} {name}  {who}  {}", context.endpoints.join(",")))
        }),
    }
}
