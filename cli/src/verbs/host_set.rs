//! `host set`: where a host stands, whom it refuses, and what it has that others have not.

use clap::Args;
use dunlin_model::host::Host;
use dunlin_model::{Invalid, Kind, Name, Object};

use super::rule_flag::resource;
use super::{Session, host};
use crate::args::key_value;
use crate::failure::Failure;
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct HostSetArgs {
    name: String,
    /// Rack it stands in; none to forget it
    #[arg(long)]
    rack: Option<String>,
    /// Zone it stands in; none to forget it
    #[arg(long)]
    zone: Option<String>,
    /// Take only VMs that tolerate this
    #[arg(long = "taint", value_name = "KEY=VALUE", value_parser = key_value)]
    taints: Vec<(String, String)>,
    /// Remove a taint
    #[arg(long = "untaint", value_name = "KEY")]
    untaint: Vec<String>,
    /// Say how many devices or licences of a kind it has; 0 for none any more
    #[arg(long = "resource", value_name = "KIND/NAME=COUNT", value_parser = resource)]
    resources: Vec<(String, u64)>,
    /// Set a label
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = key_value)]
    labels: Vec<(String, String)>,
    /// Remove a label
    #[arg(long = "unlabel", value_name = "KEY")]
    unlabel: Vec<String>,
}

pub(crate) async fn run(session: &Session, args: HostSetArgs) -> Result<(), Failure> {
    let (rack, zone) = (place("--rack", args.rack.as_deref())?, place("--zone", args.zone.as_deref())?);
    let edit = |object: &mut Object| {
        let Object::Host(Host { metadata, spec, .. }) = object else { return };
        if let Some(rack) = &rack {
            spec.rack.clone_from(rack);
        }
        if let Some(zone) = &zone {
            spec.zone.clone_from(zone);
        }
        spec.taints.retain(|key, _| !args.untaint.contains(key));
        spec.taints.extend(args.taints.iter().cloned());
        spec.resources.extend(args.resources.iter().cloned());
        spec.resources.retain(|_, count| *count > 0);
        metadata.labels.retain(|key, _| !args.unlabel.contains(key));
        metadata.labels.extend(args.labels.iter().cloned());
    };
    output::done(session.format, "changed", &host::update(session, Kind::Host, &args.name, edit).await?)
}

/// What was said of a place: nothing, that there is none, or its name.
fn place(flag: &str, text: Option<&str>) -> Result<Option<Option<Name>>, Invalid> {
    match text {
        None => Ok(None),
        Some("none") => Ok(Some(None)),
        Some(text) => {
            let name = text.parse().map_err(|e: Invalid| Invalid::new(flag, e.problem, e.allowed))?;
            Ok(Some(Some(name)))
        }
    }
}
