//! Verbs of the cluster, and tokens.

use dunlin_model::cluster::PlacementPolicy;
use dunlin_model::{Invalid, Kind, Object, Timestamp};
use dunlin_proto::v1;
use serde_json::json;

use super::{Session, host};
use crate::args::{ClusterVerb, Format, TokenVerb};
use crate::client::idempotency_key;
use crate::failure::Failure;
use crate::output;

pub(crate) async fn run(session: &Session, verb: ClusterVerb) -> Result<(), Failure> {
    let (revision, clusters) = session.fleet.list(Kind::Cluster, &[], false).await?;
    let Some(cluster) = clusters.first() else {
        return Err(Failure::Local("the cluster is not founded yet".into()));
    };
    match verb {
        ClusterVerb::Show if matches!(session.format, Format::Table | Format::Wide) => {
            let around = output::Surroundings::at_this_moment();
            output::list(session.format, revision, &clusters, &around)
        }
        ClusterVerb::Show => output::object(session.format, cluster),
        ClusterVerb::Set { placement, cpu_overcommit_percent, host_reserve_mib, migrations_per_host } => {
            let placement = placement.as_deref().map(policy).transpose()?;
            let numbers =
                [cpu_overcommit_percent.is_some(), host_reserve_mib.is_some(), migrations_per_host.is_some()];
            if placement.is_none() && !numbers.contains(&true) {
                let allowed =
                    "--placement, --cpu-overcommit-percent, --host-reserve-mib or --migrations-per-host";
                return Err(Invalid::new("cluster set", "nothing to change was given", allowed).into());
            }
            let edit = |object: &mut Object| {
                let Object::Cluster(cluster) = object else { return };
                let spec = &mut cluster.spec;
                spec.placement = placement.unwrap_or(spec.placement);
                spec.cpu_overcommit_percent = cpu_overcommit_percent.unwrap_or(spec.cpu_overcommit_percent);
                spec.host_reserve_mib = host_reserve_mib.unwrap_or(spec.host_reserve_mib);
                spec.migrations_per_host = migrations_per_host.unwrap_or(spec.migrations_per_host);
            };
            let name = cluster.name().to_string();
            output::done(session.format, "changed", &host::update(session, Kind::Cluster, &name, edit).await?)
        }
    }
}

fn policy(text: &str) -> Result<PlacementPolicy, Invalid> {
    match text {
        "spread" => Ok(PlacementPolicy::Spread),
        "pack" => Ok(PlacementPolicy::Pack),
        _ => Err(Invalid::new("--placement", format!("{text:?} is no policy"), "spread or pack")),
    }
}

pub(crate) async fn token(session: &Session, verb: TokenVerb) -> Result<(), Failure> {
    let TokenVerb::Create { ttl_s } = verb;
    let request = v1::CreateTokenRequest { idempotency_key: idempotency_key(), ttl_s };
    let made = session.fleet.call(async |mut client| client.create_token(request.clone()).await).await?;
    match session.format {
        Format::Table | Format::Wide => output::line(&made.token),
        Format::Json | Format::Yaml => {
            let told = json!({"token": made.token, "expires": Timestamp(made.expires_ms)});
            output::line(&serde_json::to_string_pretty(&told).expect("a JSON value is JSON"))
        }
    }
}
