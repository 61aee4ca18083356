//! Verbs of the cluster, and tokens.

use clap::Args;
use dunlin_model::cluster::{BalanceMode, ClusterSpec, PlacementPolicy};
use dunlin_model::{Invalid, Kind, Object, Timestamp};
use dunlin_proto::{Wire as _, v1};
use serde_json::json;

use super::vm_flags::{VmFlags, once, set, word};
use super::{Session, controller, host, vm_create};
use crate::args::{ClusterVerb, Format, TokenVerb, key_value, whole};
use crate::client::{Listed, idempotency_key};
use crate::failure::Failure;
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct ClusterSetArgs {
    /// Where new VMs go: spread, pack or power_saving
    #[arg(long)]
    placement: Option<String>,
    /// What a score counts in place of what the policy says, 0 to 100; `none` goes back. `cluster policy` lists them
    #[arg(long = "weight", value_name = "SCORE=WEIGHT", value_parser = key_value)]
    weights: Vec<(String, String)>,
    /// Filters that are not asked, in place of those set before; none for none
    #[arg(long, value_name = "FILTER", value_delimiter = ',')]
    without: Option<Vec<String>>,
    /// vCPUs promised per real CPU, percent
    #[arg(long, allow_negative_numbers = true, value_parser = whole::<u32>("100 to 10000"))]
    cpu_overcommit_percent: Option<u32>,
    /// Memory promised per real memory, percent
    #[arg(long, allow_negative_numbers = true, value_parser = whole::<u32>("100 to 1000"))]
    mem_overcommit_percent: Option<u32>,
    /// Memory kept back on each host, MiB
    #[arg(long, allow_negative_numbers = true, value_parser = whole::<u64>("0 to 1048576"))]
    host_reserve_mib: Option<u64>,
    /// Migrations one host may take part in at once
    #[arg(long, allow_negative_numbers = true, value_parser = whole::<u32>("1 to 64"))]
    migrations_per_host: Option<u32>,
    /// Migrations that may run at once in the whole fleet
    #[arg(long, allow_negative_numbers = true, value_parser = whole::<u32>("1 to 4096"))]
    migrations_per_fleet: Option<u32>,
    /// Hosts that may fail and still leave room for their VMs elsewhere
    #[arg(long, allow_negative_numbers = true, value_parser = whole::<u32>("0 to 64"))]
    spare_hosts: Option<u32>,
    /// What the balancer may do: off, recommend or auto
    #[arg(long)]
    balance: Option<String>,
    /// How small a gain is worth a move, 1 to 5
    #[arg(long, allow_negative_numbers = true, value_parser = whole::<u32>("1 to 5"))]
    balance_level: Option<u32>,
}

/// `cluster capacity`.
#[derive(Debug, Args)]
pub(crate) struct CapacityArgs {
    #[command(flatten)]
    flags: VmFlags,
    /// Hosts that may fail at once: does every VM find a place elsewhere?
    #[arg(long, default_value_t = 1, allow_negative_numbers = true, value_parser = whole::<u32>("0 to 16"))]
    failures: u32,
}

pub(crate) async fn run(session: &Session, verb: ClusterVerb) -> Result<(), Failure> {
    if let ClusterVerb::Upgrade { to, force, dry_run } = verb {
        let call = async |mut client: controller::Client| {
            client.upgrade(v1::UpgradeRequest { force, dry_run, to: to.unwrap_or(0) }).await
        };
        return controller::follow(session.fleet.operate(call).await?).await;
    }
    let Listed { revision, objects: clusters, .. } = session.fleet.list(Kind::Cluster, false).await?;
    let Some(cluster) = clusters.first() else {
        return Err(Failure::Local("the cluster is not founded yet".into()));
    };
    match verb {
        ClusterVerb::Show if matches!(session.format, Format::Table | Format::Wide) => {
            let around = output::Surroundings::at_this_moment();
            output::list(session.format, revision, &clusters, &around)
        }
        ClusterVerb::Upgrade { .. } => Ok(()),
        ClusterVerb::Show => output::object(session.format, cluster),
        ClusterVerb::Set(args) => {
            let change = args.change()?;
            let edit = |object: &mut Object| {
                let Object::Cluster(cluster) = object else { return };
                change(&mut cluster.spec);
            };
            let name = cluster.name().to_string();
            output::done(session.format, "changed", &host::update(session, Kind::Cluster, &name, edit).await?)
        }
        ClusterVerb::Policy => {
            let Object::Cluster(cluster) = cluster else {
                return Err(Failure::Local("the fleet answered with another kind".into()));
            };
            policy(session.format, &cluster.spec)
        }
        ClusterVerb::Capacity(args) => capacity(session, *args).await,
    }
}

impl ClusterSetArgs {
    /// What is to change, once everything typed has been read.
    fn change(self) -> Result<impl Fn(&mut ClusterSpec), Invalid> {
        self.refuse_nothing()?;
        let placement: Option<PlacementPolicy> =
            word("--placement", self.placement.as_deref(), "spread, pack or power_saving")?;
        let mode: Option<BalanceMode> = word("--balance", self.balance.as_deref(), "off, recommend or auto")?;
        let weights = self.weights.iter().map(|(name, text)| match text.as_str() {
            "none" => Ok((name.clone(), None)),
            text => {
                let wrong =
                    |_| Invalid::new("--weight", format!("{text:?} is no weight"), "0 to 100, or none");
                text.parse::<u32>().map(|weight| (name.clone(), Some(weight))).map_err(wrong)
            }
        });
        let weights = weights.collect::<Result<Vec<_>, _>>()?;
        Ok(move |spec: &mut ClusterSpec| {
            set(&mut spec.placement, placement);
            for (name, weight) in &weights {
                match weight {
                    Some(weight) => drop(spec.weights.insert(name.clone(), *weight)),
                    None => drop(spec.weights.remove(name)),
                }
            }
            if let Some(without) = &self.without {
                spec.without = without.iter().filter(|name| *name != "none").cloned().collect();
            }
            set(&mut spec.cpu_overcommit_percent, self.cpu_overcommit_percent);
            set(&mut spec.mem_overcommit_percent, self.mem_overcommit_percent);
            set(&mut spec.host_reserve_mib, self.host_reserve_mib);
            set(&mut spec.migrations_per_host, self.migrations_per_host);
            set(&mut spec.migrations_per_fleet, self.migrations_per_fleet);
            set(&mut spec.spare_hosts, self.spare_hosts);
            set(&mut spec.balance.mode, mode);
            set(&mut spec.balance.level, self.balance_level);
        })
    }
}

impl ClusterSetArgs {
    fn refuse_nothing(&self) -> Result<(), Invalid> {
        let numbers = [
            self.cpu_overcommit_percent,
            self.mem_overcommit_percent,
            self.migrations_per_host,
            self.migrations_per_fleet,
            self.spare_hosts,
            self.balance_level,
        ];
        let words = [&self.placement, &self.balance];
        let given = numbers.iter().any(Option::is_some)
            || words.into_iter().any(Option::is_some)
            || self.host_reserve_mib.is_some()
            || self.without.is_some()
            || !self.weights.is_empty();
        if given {
            return Ok(());
        }
        let allowed = "one flag or more; `dunlin cluster set --help` lists them";
        Err(Invalid::new("cluster set", "nothing to change was given", allowed))
    }
}

/// The policy in force: every score with what it counts, every filter that may be left out.
fn policy(format: Format, spec: &ClusterSpec) -> Result<(), Failure> {
    let policy = dunlin_scheduler::Policy::from(spec);
    match format {
        Format::Json | Format::Yaml => output::value(format, &policy),
        Format::Table | Format::Wide => {
            let mut text = format!("policy {}\n", policy.name);
            for term in dunlin_scheduler::policy::TERMS {
                text.push_str(&format!("score {} counts {}\n", term.name(), policy.weight(*term)));
            }
            for reason in dunlin_scheduler::filter::OPTIONAL {
                let asked = if policy.without.contains(reason) { "is not asked" } else { "is asked" };
                text.push_str(&format!("filter {reason:?} {asked}\n"));
            }
            output::line(&text)
        }
    }
}

async fn capacity(session: &Session, args: CapacityArgs) -> Result<(), Failure> {
    let spec = args.flags.spec()?;
    spec.validate()?;
    let labels = once("--label", &args.flags.labels)?;
    let flavour = vm_create::unnamed("flavour", labels, spec)?;
    let request = v1::CapacityRequest { vm: Some(flavour.into()), failures: args.failures };
    let told = session.fleet.advise(async |mut client| client.count_capacity(request.clone()).await).await?;
    output::advice::capacity(session.format, &told.try_into()?)
}

pub(crate) async fn token(session: &Session, verb: TokenVerb) -> Result<(), Failure> {
    let TokenVerb::Create { ttl_s, role } = verb;
    let (idempotency_key, role) = (idempotency_key(), role.to_wire());
    let request =
        v1::CreateTokenRequest { idempotency_key, ttl_s, role, ..v1::CreateTokenRequest::default() };
    let made = session.fleet.call(async |mut client| client.create_token(request.clone()).await).await?;
    match session.format {
        Format::Table | Format::Wide => output::line(&made.token),
        Format::Json | Format::Yaml => {
            let told = json!({"token": made.token, "expires": Timestamp(made.expires_ms)});
            output::line(&serde_json::to_string_pretty(&told).expect("a JSON value is JSON"))
        }
    }
}
