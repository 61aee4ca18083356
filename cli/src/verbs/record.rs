//! Verbs of migrations and tasks.

use dunlin_model::Kind;
use dunlin_proto::v1;

use super::{Session, listing};
use crate::args::RecordVerb;
use crate::client::{Change, idempotency_key};
use crate::failure::Failure;
use crate::wait::{self, Verdict};
use crate::{output, verbs::host};

pub(crate) async fn run(session: &Session, kind: Kind, verb: RecordVerb) -> Result<(), Failure> {
    match verb {
        RecordVerb::List(args) => listing::run(session, kind, &args).await,
        RecordVerb::Show { name } => host::show(session, kind, &name).await,
        RecordVerb::Cancel { name, wait } => {
            let request = v1::CancelRequest {
                idempotency_key: idempotency_key(),
                kind: v1::Kind::from(kind).into(),
                name,
                dry_run: false,
            };
            let object =
                session.fleet.object(async |mut client| client.cancel(request.clone()).await).await?;
            if !wait.wait {
                return output::done(session.format, "asked to end", &object);
            }
            let ended = wait::until(&session.fleet, wait, object, ended).await?;
            output::done(session.format, "ended", &ended)
        }
    }
}

/// Waits for the end, whichever it is.
fn ended(change: &Change) -> Verdict {
    for judge in [wait::task_done, wait::migration_done] {
        if !matches!(judge(change), Verdict::Missed(why) if why.starts_with("the fleet answered")) {
            return match judge(change) {
                Verdict::Missed(_) => Verdict::Reached,
                other => other,
            };
        }
    }
    Verdict::Missed("is neither a task nor a migration".to_owned())
}
