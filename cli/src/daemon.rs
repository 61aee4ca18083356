//! The daemons: from arguments to a configuration, a runtime and logs.

use std::str::FromStr;

use dunlin_agent::{Network, SimulatedHost};
use dunlin_model::capabilities::DriverName;
use dunlin_model::{ControllerId, Invalid, Level, Name, Secret};
use dunlin_pki::Clock;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::args::{AgentArgs, DaemonArgs, DriverArg, LogFormat};
use crate::client::endpoint;
use crate::failure::{Failure, chain};
use crate::trace::{Sender, Traces};
use crate::verbs::vm_flags::once;

/// Threads of a controller: one for the API and sessions, one so that raft is never behind them.
const CONTROLLER_THREADS: usize = 2;
/// Threads for blocking work of an agent: copies of images, one `qemu-img` each. More would only fight over the disk.
const AGENT_BLOCKING_THREADS_MAX: usize = 8;
/// Stack of an agent's blocking thread; they run shallow code, and resident memory counts.
const AGENT_STACK_BYTES: usize = 512 << 10;

/// The libvirt that a host has when nobody says which.
const LIBVIRT_URI: &str = "qemu:///system";

/// What is logged when nobody asks for anything else: what we say ourselves. openraft tells every missed heartbeat as an
/// error, and what matters of it is told by `controller/src/raft`; the others have nothing to say that their callers do
/// not. `RUST_LOG=debug` keeps them quiet too; `RUST_LOG=openraft=info` asks for one of them.
const LOGS: &str = "info,openraft=off,opentelemetry-otlp=off,sled=warn,h2=warn,hyper=warn,hyper_util=warn,tonic=warn,tower=warn,reqwest=warn,rustls=warn";

/// One controller of the cluster, as typed: `ID=API_ADDRESS/RAFT_ADDRESS`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MemberArg {
    pub(crate) id: ControllerId,
    pub(crate) api: String,
    pub(crate) raft: String,
}

impl FromStr for MemberArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is not ID=API_ADDRESS/RAFT_ADDRESS, as in 1=10.0.0.1:7400/10.0.0.1:7401");
        let (id, addresses) = text.split_once('=').ok_or_else(wrong)?;
        let (api, raft) = addresses.split_once('/').ok_or_else(wrong)?;
        let id = id.parse().ok().filter(|id| *id > 0).ok_or_else(wrong)?;
        if [api, raft].iter().any(|address| !address.contains(':')) {
            return Err(wrong());
        }
        Ok(Self { id: ControllerId(id), api: api.to_owned(), raft: raft.to_owned() })
    }
}

/// Runs a controller until it is told to stop.
pub(crate) fn controller(
    args: DaemonArgs,
    logs: Option<&str>,
    collector: Option<&str>,
) -> Result<(), Failure> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(CONTROLLER_THREADS).enable_all().build();
    let runtime = runtime.map_err(Failure::io("starting the runtime"))?;
    let sender = Sender { service: "dunlin-controller", instance: args.id.to_string(), root: None };
    let collector = collector.map(|endpoint| (endpoint, sender));
    let json = args.log_json || args.log_format == LogFormat::Json;
    let traces = runtime.block_on(async { begin(json, args.own_session, logs, collector) })?;
    // The log holds the key of the cluster's authority: nothing a controller writes is anybody else's to read.
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    let me = args.members.iter().find(|member| member.id.0 == args.id).cloned().ok_or_else(|| {
        let problem = format!("controller {} itself is not among them", args.id);
        Invalid::new("--member", problem, format!("one for every controller, as in --member {}=...", args.id))
    })?;
    let mut seen = std::collections::BTreeSet::new();
    if let Some(twice) = args.members.iter().find(|member| !seen.insert(member.id)) {
        let problem = format!("controller {} is given twice", twice.id);
        return Err(Invalid::new("--member", problem, "one for every controller").into());
    }
    let others = args.members.iter().filter(|member| member.id != me.id);
    if args.join && args.members.len() > 1 {
        let problem = "is given beside --join, which learns of the others from them";
        return Err(Invalid::new("--member", problem, "this controller's own alone").into());
    }
    let config = dunlin_controller::Config {
        id: me.id,
        data_dir: args.data_dir,
        api_listen: args.listen,
        api_endpoint: format!("https://{}", me.api),
        raft_listen: args.raft_listen,
        raft_endpoint: me.raft,
        peers: others
            .map(|member| dunlin_controller::Peer {
                id: member.id,
                api_endpoint: format!("https://{}", member.api),
                raft_endpoint: member.raft.clone(),
            })
            .collect(),
        cluster_name: args.cluster,
        // Who comes with a token joins a cluster that is there.
        init: if args.join || args.token.is_some() {
            Vec::new()
        } else {
            args.members.iter().map(|member| member.id).collect()
        },
        token: args.token.map(Secret::new),
        join_at: args.controllers.iter().map(|text| endpoint(text)).collect::<Result<_, Invalid>>()?,
        clock: Clock::system(),
        provider: args.oidc_issuer.zip(args.oidc_client_id).map(|(issuer, client_id)| {
            dunlin_controller::ProviderConfig {
                issuer,
                client_id,
                scope: args.oidc_scope,
                name_claim: args.oidc_name_claim,
                groups_claim: args.oidc_groups_claim,
            }
        }),
        timers: dunlin_controller::raft::Timers::default(),
        snapshots: dunlin_controller::raft::SnapshotPolicy::default(),
        level: Level(args.level),
    };
    runtime.block_on(async {
        let stop = on_signal()?;
        let done = dunlin_controller::run(config, stop.cancelled_owned()).await;
        end(traces).await;
        done.map_err(|e| Failure::Local(format!("controller: {}", chain(&e))))
    })
}

/// Runs an agent until it is told to stop. Its guests go on.
pub(crate) fn agent(args: AgentArgs, logs: Option<&str>, collector: Option<&str>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(AGENT_BLOCKING_THREADS_MAX)
        .thread_stack_size(AGENT_STACK_BYTES)
        .build();
    let runtime = runtime.map_err(Failure::io("starting the runtime"))?;
    let name = match args.name {
        Some(name) => name,
        None => node_name()?,
    };
    let sender = Sender { service: "dunlin-agent", instance: name.to_string(), root: None };
    let collector = collector.map(|endpoint| (endpoint, sender));
    let json = args.log_json || args.log_format == LogFormat::Json;
    let traces = runtime.block_on(async { begin(json, args.own_session, logs, collector) })?;
    let config = dunlin_agent::Config {
        data_dir: args.data_dir,
        controllers: args.controllers.iter().map(|text| endpoint(text)).collect::<Result<_, Invalid>>()?,
        token: args.token.map(Secret::new),
        name,
        labels: once("--label", &args.labels)?,
        address: args.address.to_string(),
        qemu: args.drivers.contains(&DriverArg::Qemu),
        libvirt: args
            .libvirt_uri
            .or_else(|| args.drivers.contains(&DriverArg::Libvirt).then(|| LIBVIRT_URI.to_owned())),
        libvirt_peer: args.libvirt_peer_uri,
        lxc: args.drivers.contains(&DriverArg::Lxc),
        uml: args.drivers.contains(&DriverArg::Uml),
        test: args
            .drivers
            .contains(&DriverArg::Test)
            .then_some(SimulatedHost { cpus: args.sim_cpus, mem_mib: args.sim_mem_mib }),
        image_cache_mib: args.image_cache_mib,
        metrics_listen: args.metrics_listen,
        level: Level(args.level),
        networks: args.networks.iter().map(network).collect::<Result<_, _>>()?,
    };
    runtime.block_on(async {
        let stop = on_signal()?;
        let done = dunlin_agent::run(config, stop.cancelled_owned()).await;
        end(traces).await;
        done.map_err(|e| Failure::Local(format!("agent: {}", chain(&e))))
    })
}

pub(crate) fn driver_name(driver: DriverArg) -> DriverName {
    match driver {
        DriverArg::Qemu => DriverName::Qemu,
        DriverArg::Test => DriverName::Test,
        DriverArg::Libvirt => DriverName::Libvirt,
        DriverArg::Lxc => DriverName::Lxc,
        DriverArg::Uml => DriverName::Uml,
    }
}

/// `user` or `bridge:INTERFACE` behind a name.
fn network((name, kind): &(String, String)) -> Result<(Name, Network), Invalid> {
    let network = match kind.split_once(':') {
        None if kind == "user" => Network::User,
        Some(("bridge", interface)) if !interface.is_empty() => Network::Bridge(interface.to_owned()),
        _ => {
            return Err(Invalid::new(
                "--network",
                format!("{kind:?} is no kind"),
                "user or bridge:INTERFACE",
            ));
        }
    };
    Ok((name.parse()?, network))
}

fn node_name() -> Result<Name, Failure> {
    let uname = rustix::system::uname();
    Ok(uname.nodename().to_string_lossy().parse()?)
}

/// Logs to standard error, as told by `RUST_LOG`; in a session of its own when `up` started it, so that neither a
/// closed terminal nor Ctrl-C in it ends the fleet. Spans go to a collector, when there is one, whatever is logged.
fn begin(
    json: bool,
    own_session: bool,
    asked: Option<&str>,
    collector: Option<(&str, Sender)>,
) -> Result<Option<Traces>, Failure> {
    if own_session {
        // Fails only for a process that leads its group already, and then there is nothing to leave.
        let _ = rustix::process::setsid();
    }
    let filter = log_filter(asked)?;
    let begun = collector.map(|(endpoint, sender)| Traces::begin(endpoint, sender)).transpose()?;
    let (traces, spans) = begun.unzip();
    let logs = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let logs = if json { logs.json().boxed() } else { logs.with_ansi(false).boxed() };
    tracing_subscriber::registry().with(spans).with(logs.with_filter(filter)).init();
    Ok(traces)
}

async fn end(traces: Option<Traces>) {
    if let Some(traces) = traces {
        traces.end().await;
    }
}

/// What is logged, with what the environment asks for laid over it.
fn log_filter(asked: Option<&str>) -> Result<EnvFilter, Invalid> {
    let asked = asked.unwrap_or_default();
    EnvFilter::try_new(format!("{LOGS},{asked}")).map_err(|e| {
        Invalid::new("RUST_LOG", format!("{asked:?}: {e}"), "as in debug, or in info,openraft=warn")
    })
}

/// Cancelled by SIGTERM or SIGINT.
fn on_signal() -> Result<CancellationToken, Failure> {
    let stop = CancellationToken::new();
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind).map_err(Failure::io("listening for signals"))?;
        let stop = stop.clone();
        tokio::spawn(async move {
            signals.recv().await;
            stop.cancel();
        });
    }
    Ok(stop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Others' logs are off unless they are asked for by name; a filter that cannot be read is refused, not ignored.
    #[test]
    fn logs_are_ours() {
        let shown = |asked| log_filter(asked).map(|filter| filter.to_string());
        for asked in [None, Some(""), Some("debug")] {
            assert!(shown(asked).unwrap().contains("openraft=off"), "{asked:?}");
        }
        let debug = shown(Some("debug")).unwrap();
        assert!(debug.split(',').any(|part| part == "debug") && !debug.contains("info"), "{debug}");
        let raft = shown(Some("openraft=info")).unwrap();
        assert!(raft.contains("openraft=info") && !raft.contains("openraft=off"), "{raft}");
        assert!(log_filter(Some("openraft=loud")).unwrap_err().to_string().starts_with("RUST_LOG: "));
    }
}
