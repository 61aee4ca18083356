//! `get`: objects of any kind, one or all.

use clap::Args;
use dunlin_model::{Invalid, Kind, Revision};
use dunlin_proto::document;

use super::{Session, listing};
use crate::args::{Format, ListArgs};
use crate::failure::Failure;
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// vm, host, image, cluster, migration, task, event or recommendation; the plural is taken too
    #[arg(value_parser = kind)]
    kind: Kind,
    /// One object by its name; all of them when it is not said
    name: Option<String>,
    #[command(flatten)]
    list: ListArgs,
}

pub(crate) async fn run(session: &Session, args: GetArgs) -> Result<(), Failure> {
    let Some(name) = args.name else { return listing::run(session, args.kind, &args.list).await };
    let object = session.fleet.get(args.kind, &name).await?;
    match session.format {
        Format::Json | Format::Yaml => output::object(session.format, &object),
        Format::Table | Format::Wide => {
            let around = listing::surroundings(session, args.kind).await?;
            output::list(session.format, Revision(0), &[object], &around)
        }
    }
}

fn kind(text: &str) -> Result<Kind, String> {
    let singular = text.strip_suffix('s').unwrap_or(text);
    singular.parse().map_err(|_: Invalid| {
        let known = Kind::ALL.map(|kind| kind.to_string().to_lowercase());
        format!("{text:?} is no kind; allowed: {}", document::choices(text, &known))
    })
}
