//! Verbs of the context file.

use std::path::Path;

use dunlin_model::Invalid;

use crate::args::{ContextVerb, Format};
use crate::client::endpoint;
use crate::context::Contexts;
use crate::failure::Failure;
use crate::output;

pub(crate) fn run(verb: ContextVerb, path: &Path, format: Format) -> Result<(), Failure> {
    let mut contexts = Contexts::read(path)?;
    match verb {
        ContextVerb::List => return list(&contexts, format),
        ContextVerb::Set { name, endpoints } => {
            if name.is_empty() || name.chars().any(char::is_whitespace) {
                let problem = format!("{name:?} is no name for a context");
                return Err(Invalid::new("NAME", problem, "text without spaces").into());
            }
            let endpoints = endpoints.iter().map(|text| endpoint(text)).collect::<Result<_, Invalid>>()?;
            contexts.set(&name, endpoints);
        }
        ContextVerb::Use { name } => contexts.select(&name)?,
    }
    contexts.write(path)?;
    Ok(())
}

fn list(contexts: &Contexts, format: Format) -> Result<(), Failure> {
    match format {
        Format::Json => {
            output::line(&serde_json::to_string_pretty(contexts).expect("a map of strings is JSON"))
        }
        Format::Yaml => output::line(&serde_norway::to_string(contexts).expect("a map of strings is YAML")),
        Format::Table | Format::Wide => contexts.contexts.iter().try_for_each(|(name, context)| {
            let mark = if contexts.current.as_deref() == Some(name) { "*" } else { " " };
            output::line(&format!("{mark} {name}  {}", context.endpoints.join(",")))
        }),
    }
}
