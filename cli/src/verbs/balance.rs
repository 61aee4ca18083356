//! Verbs of balancing.

use clap::Subcommand;
use dunlin_model::migration::MigrationCause;
use dunlin_model::{Kind, Object};
use dunlin_proto::v1;

use super::{Session, listing};
use crate::args::{Format, ListArgs, whole};
use crate::client::{Listed, idempotency_key};
use crate::failure::Failure;
use crate::output;

#[derive(Debug, Subcommand)]
pub(crate) enum BalanceVerb {
    /// Say what the balancer would move now, or why nothing is worth a move
    Plan {
        /// How small a gain is worth a move, 1 to 5; the cluster's own when not said
        #[arg(long, allow_negative_numbers = true, value_parser = whole::<u32>("1 to 5"))]
        level: Option<u32>,
        /// Empty hosts, so that they can be switched off, rather than level the load
        #[arg(long)]
        consolidate: bool,
    },
    /// Approve recommendations; without names, plan now and begin every move
    Apply {
        names: Vec<String>,
        /// How small a gain is worth a move, 1 to 5; the cluster's own when not said
        #[arg(long, conflicts_with = "names", allow_negative_numbers = true, value_parser = whole::<u32>("1 to 5"))]
        level: Option<u32>,
        /// Empty hosts, so that they can be switched off, rather than level the load
        #[arg(long, conflicts_with = "names")]
        consolidate: bool,
    },
    /// Dismiss recommendations: the same moves are not recommended again for an hour
    Dismiss {
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// List recommendations
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// List the moves that were made to level the load: why, what was predicted and what came of it
    History,
}

pub(crate) async fn run(session: &Session, verb: BalanceVerb) -> Result<(), Failure> {
    match verb {
        BalanceVerb::Plan { level, consolidate } => {
            let request = v1::PlanBalanceRequest { level, consolidate };
            let plan = session.fleet.advise(async |mut client| client.plan_balance(request).await).await?;
            output::advice::balance(session.format, &plan.try_into()?)
        }
        BalanceVerb::Apply { names, level, consolidate } if names.is_empty() => {
            apply(session, level, consolidate).await
        }
        BalanceVerb::Apply { names, .. } => decide(session, names, true).await,
        BalanceVerb::Dismiss { names } => decide(session, names, false).await,
        BalanceVerb::List(args) => listing::run(session, Kind::Recommendation, &args).await,
        BalanceVerb::History => history(session).await,
    }
}

async fn apply(session: &Session, level: Option<u32>, consolidate: bool) -> Result<(), Failure> {
    let request = v1::ApplyBalanceRequest { idempotency_key: idempotency_key(), level, consolidate };
    let made = session.fleet.advise(async |mut client| client.apply_balance(request.clone()).await).await?;
    let plan = made.plan.ok_or_else(|| Failure::Local("the fleet answered without a plan".into()))?;
    output::advice::balance(session.format, &plan.try_into()?)?;
    if let (Format::Table | Format::Wide, count @ 1..) = (session.format, made.migrations.len()) {
        output::remark(&format!("{count} migrations begun; follow them with: dunlin migration list --watch"));
    }
    Ok(())
}

async fn decide(session: &Session, names: Vec<String>, approve: bool) -> Result<(), Failure> {
    for name in names {
        let request = v1::DecideRequest { idempotency_key: idempotency_key(), name, approve, dry_run: false };
        let decided = session.fleet.object(async |mut client| client.decide(request.clone()).await).await?;
        output::done(session.format, if approve { "approved" } else { "dismissed" }, &decided)?;
    }
    Ok(())
}

async fn history(session: &Session) -> Result<(), Failure> {
    let around = listing::surroundings(session, Kind::Migration).await?;
    let Listed { revision, objects: mut items, .. } = session.fleet.list(Kind::Migration, false).await?;
    items.retain(|item| matches!(item, Object::Migration(m) if m.spec.cause == MigrationCause::Balance));
    items.sort_by_key(|item| match item {
        Object::Migration(migration) => migration.metadata.created,
        _ => dunlin_model::Timestamp(0),
    });
    match session.format {
        Format::Table | Format::Wide => {
            output::line(&output::table::history(&items, session.format == Format::Wide, &around))
        }
        Format::Json | Format::Yaml => output::list(session.format, revision, &items, &around),
    }
}
