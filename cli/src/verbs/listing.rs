//! `list` of every kind, and `list --watch`.

use dunlin_model::selector::{FieldSelector, LabelSelector};
use dunlin_model::{ErrorCode, Kind, Object};
use dunlin_proto::v1;

use super::Session;
use crate::args::{Format, ListArgs};
use crate::client::Listed;
use crate::failure::Failure;
use crate::output::{self, Surroundings};

/// Lists, and with `--watch` goes on listing changes until it is interrupted.
pub(crate) async fn run(session: &Session, kind: Kind, args: &ListArgs) -> Result<(), Failure> {
    let around = surroundings(session, kind).await?;
    let ask = ask(kind, args)?;
    let Listed { revision, objects: items, more } = session.fleet.select(ask.clone()).await?;
    // A watch of JSON prints one object a line from the start, so that a reader needs one parser only.
    if args.watch && session.format == Format::Json {
        items.iter().try_for_each(print_json)?;
    } else {
        output::list(session.format, revision, &items, &around)?;
    }
    if !args.watch {
        if more {
            output::remark(&format!("there are more than {}", items.len()));
        }
        return Ok(());
    }
    let (labels, fields) =
        (LabelSelector::parse(&args.selector)?, FieldSelector::parse(kind, &args.field_selector)?);
    let mut after = revision;
    loop {
        let mut watch = session.fleet.watch(&[kind], after, "").await?;
        loop {
            let change = match watch.next().await {
                Ok(change) => change,
                Err(fault) if fault.code == ErrorCode::Compacted => break,
                Err(fault) => return Err(fault.into()),
            };
            // A resumed watch may repeat what was seen.
            let matches = labels.matches(change.object.labels())
                && (fields.is_any() || fields.matches(&output::value_of(&change.object)));
            if matches && change.object.revision() > after {
                show(session, &change.object, change.deleted, &around)?;
            }
        }
        after = session.fleet.select(v1::ListRequest { limit: 1, ..ask.clone() }).await?.revision;
        output::remark("the history was cut; watching from now on");
    }
}

/// What is typed, as a request. What cannot be read is refused before anything is asked.
fn ask(kind: Kind, args: &ListArgs) -> Result<v1::ListRequest, Failure> {
    LabelSelector::parse(&args.selector)?;
    FieldSelector::parse(kind, &args.field_selector)?;
    let consistency = if args.stale { v1::Consistency::Stale } else { v1::Consistency::Linearizable };
    Ok(v1::ListRequest {
        kind: v1::Kind::from(kind).into(),
        consistency: consistency.into(),
        label_selector: args.selector.clone(),
        field_selector: args.field_selector.clone(),
        limit: args.limit,
        ..v1::ListRequest::default()
    })
}

/// What the table of `kind` needs beside its objects.
pub(crate) async fn surroundings(session: &Session, kind: Kind) -> Result<Surroundings, Failure> {
    let mut around = Surroundings::at_this_moment();
    if kind == Kind::Migration {
        let hosts = session.fleet.list(Kind::Host, true).await?.objects;
        around.hosts = hosts.iter().map(|host| (host.uid(), host.name().to_string())).collect();
    }
    Ok(around)
}

fn show(session: &Session, object: &Object, deleted: bool, around: &Surroundings) -> Result<(), Failure> {
    match session.format {
        Format::Json => print_json(object),
        Format::Yaml => output::line("---").and_then(|()| output::object(Format::Yaml, object)),
        Format::Table | Format::Wide => {
            let now = Surroundings { hosts: around.hosts.clone(), ..Surroundings::at_this_moment() };
            let cells = output::table::row(object, session.format == Format::Wide, &now).join("  ");
            output::line(&if deleted { format!("{cells}  (deleted)") } else { cells })
        }
    }
}

fn print_json(object: &Object) -> Result<(), Failure> {
    output::line(&serde_json::to_string(object).expect("objects have string keys"))
}
