//! A whole fleet on this machine: what `up` starts and `down` takes away. Controllers and agents are ordinary processes of
//! this very binary; as root each agent gets a network namespace of its own, else an address of the loopback net.

mod namespace;
mod process;
mod record;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dunlin_model::host::HostPhase;
use dunlin_model::{ControllerId, Kind, Object};
use dunlin_pki::{Clock, Keyring, Trust, read_roots};
use dunlin_proto::v1;
use tokio::time::Instant;

use self::process::Daemon;
use self::record::FleetRecord;
use crate::args::{DownArgs, Namespaces, UpArgs};
use crate::client::{Fleet, idempotency_key};
use crate::context::Contexts;
use crate::failure::Failure;
use crate::identity::Files;
use crate::output;
use crate::verbs::enrol;

/// Until every controller and agent must be there: starts take a second, a cold and busy machine many.
const UP_TIMEOUT: Duration = Duration::from_secs(60);
/// Between looks at what is not there yet.
const LOOK_PAUSE: Duration = Duration::from_millis(100);
/// A token for an agent that starts right now.
const TOKEN_TTL_S: u64 = 600;
/// Name of the context that `up` makes.
const CONTEXT: &str = "local";

/// Starts what is not running yet, waits until all hosts are up, and makes it the current context.
pub(crate) async fn up(args: UpArgs, contexts: &Path) -> Result<(), Failure> {
    if args.controllers.is_multiple_of(2) {
        let problem =
            format!("{} controllers have no better quorum than {}", args.controllers, args.controllers - 1);
        return Err(dunlin_model::Invalid::new("--controllers", problem, "1, 3 or 5").into());
    }
    let dir = absolute(&args.dir)?;
    let plan = match FleetRecord::read(&dir)? {
        Some(known) => {
            tell_difference(&known, &args, &dir);
            known
        }
        None => plan(&args, &dir)?,
    };
    std::fs::create_dir_all(&dir).map_err(Failure::io(format!("making {}", dir.display())))?;
    // Written before anything is made, so that `down` finds whatever a broken-off `up` has left.
    plan.write(&dir)?;
    if plan.namespaces {
        namespace::make(&plan)?;
    }
    let mut daemons = Vec::new();
    identities(&plan, &dir)?;
    for id in 1..=plan.controllers {
        let daemon = controller(&plan, &dir, id)?;
        if daemon.start()? {
            output::remark(&format!("controller {id} started: https://{}", plan.api_address(id)));
        }
        daemons.push(daemon);
    }
    let endpoints: Vec<_> =
        (1..=plan.controllers).map(|id| format!("https://{}", plan.api_address(id))).collect();
    // On this machine nobody has to prove more than who runs it.
    let sockets: Vec<_> = (1..=plan.controllers).map(|id| enrol::socket(&data(&dir, id))).collect();
    let near = Fleet::new(&sockets, None)?;
    answering(&near, &daemons).await?;
    let keyring = admin(&near, &dir, contexts).await?;
    let mut known = Contexts::read(contexts)?;
    known.set(CONTEXT, endpoints.clone());
    known.write(contexts)?;
    let fleet = Fleet::new(&endpoints, Some(&keyring))?;
    for number in 1..=plan.hosts {
        let mut daemon = agent(&plan, &dir, number)?;
        if !dir.join(format!("host-{number}/data/identity.pem")).exists() {
            daemon.token = Some(token(&fleet).await?);
        }
        if daemon.start()? {
            output::remark(&format!("host host-{number} started: address {}", plan.host_address(number)));
        }
        daemons.push(daemon);
    }
    hosts_up(&fleet, usize::from(plan.hosts), &daemons).await?;
    output::remark(&format!(
        "{} controllers and {} hosts are up; stop them with `dunlin down`",
        plan.controllers, plan.hosts
    ));
    Ok(())
}

/// Stops every process of the fleet, guests too, and removes its namespaces and files.
pub(crate) fn down(args: &DownArgs, contexts: &Path) -> Result<(), Failure> {
    let dir = absolute(&args.dir)?;
    let Some(plan) = FleetRecord::read(&dir)? else {
        output::remark(&format!("there is no fleet in {}", dir.display()));
        return Ok(());
    };
    // Agents first: one that lives would start again what dies.
    let stopped = process::stop_all(&dir)?;
    if plan.namespaces {
        namespace::remove(&plan)?;
    }
    std::fs::remove_dir_all(&dir).map_err(Failure::io(format!("removing {}", dir.display())))?;
    let mut known = Contexts::read(contexts)?;
    Files::of(contexts, CONTEXT).remove();
    if known.contexts.remove(CONTEXT).is_some() {
        known.current = known.current.filter(|name| name != CONTEXT);
        known.write(contexts)?;
    }
    output::remark(&format!("stopped {stopped} processes, removed {}", dir.display()));
    Ok(())
}

fn data(dir: &Path, id: u8) -> PathBuf {
    dir.join(format!("controller-{id}/data"))
}

/// Gives the controllers their identities, before they run for the first time.
fn identities(plan: &FleetRecord, dir: &Path) -> Result<(), Failure> {
    if data(dir, 1).join("tls/identity.pem").exists() {
        return Ok(());
    }
    let ids = (1..=plan.controllers).map(|id| ControllerId(u64::from(id)));
    let hosts = ids.map(|id| (id, plan.controller_host())).collect();
    let bundles = dunlin_controller::bundle(Clock::system().now(), &hosts)?;
    // The first one last: with it they are whole.
    for (id, bundle) in bundles.iter().rev() {
        bundle.write(&dir.join(format!("controller-{id}/data/tls")))?;
    }
    Ok(())
}

/// Who the user is to this fleet: as before, or enrolled now.
async fn admin(near: &Fleet, dir: &Path, contexts: &Path) -> Result<Arc<Keyring>, Failure> {
    let files = Files::of(contexts, CONTEXT);
    let ours = read_roots(&data(dir, 1).join("tls/ca.pem"))?.map(Trust::Roots);
    if let Some(keyring) = files.open()?.filter(|keyring| Some(keyring.ring().trust) == ours) {
        return Ok(keyring);
    }
    let name = "admin".parse().expect("a word is a name");
    enrol::enroll(near, name, contexts, CONTEXT).await?;
    files.open()?.ok_or_else(|| Failure::Local("the identity that was just written is not there".into()))
}

/// A fleet that exists is started as it was; what was asked for beside that is not passed over in silence.
fn tell_difference(known: &FleetRecord, args: &UpArgs, dir: &Path) {
    let (controllers, hosts, port) = (known.controllers, known.hosts, known.port);
    if (controllers, hosts, port) != (args.controllers, args.hosts, args.port) {
        output::remark(&format!(
            "{} has a fleet of {controllers} controllers and {hosts} hosts from port {port} on: it is started as it was; \
             for another one run `dunlin down` first, or give another --dir",
            dir.display()
        ));
    }
}

fn plan(args: &UpArgs, dir: &Path) -> Result<FleetRecord, Failure> {
    let root = rustix::process::geteuid().is_root();
    if args.namespaces == Namespaces::Always && !root {
        return Err(Failure::Local("--namespaces always needs root".into()));
    }
    let parts: Vec<_> = args.subnet.split('.').map(str::parse::<u8>).collect();
    if parts.len() != 3 || parts.iter().any(Result::is_err) {
        let problem = format!("{:?} are not three numbers", args.subnet);
        return Err(dunlin_model::Invalid::new("--subnet", problem, "as in 10.77.0").into());
    }
    let ports = u16::from(args.controllers) * 2;
    if args.port == 0 || args.port.checked_add(ports - 1).is_none() {
        let (last, problem) =
            (u16::MAX - ports + 1, format!("{} leaves no room for {ports} ports", args.port));
        return Err(dunlin_model::Invalid::new("--port", problem, format!("1 to {last}")).into());
    }
    Ok(FleetRecord {
        version: record::VERSION,
        controllers: args.controllers,
        hosts: args.hosts,
        port: args.port,
        namespaces: root && args.namespaces != Namespaces::Never,
        subnet: args.subnet.clone(),
        tag: record::tag(dir),
        drivers: args.drivers.iter().map(|driver| crate::daemon::driver_name(*driver)).collect(),
    })
}

fn controller(plan: &FleetRecord, dir: &Path, id: u8) -> Result<Daemon, Failure> {
    let mut words = vec!["controller".to_owned(), "--own-session".to_owned()];
    let mut say = |flag: &str, value: String| words.extend([flag.to_owned(), value]);
    say("--id", id.to_string());
    say("--data-dir", dir.join(format!("controller-{id}/data")).display().to_string());
    say("--listen", plan.api_address(id));
    say("--raft-listen", plan.raft_address(id));
    for member in 1..=plan.controllers {
        say("--member", format!("{member}={}/{}", plan.api_address(member), plan.raft_address(member)));
    }
    Daemon::new(dir.join(format!("controller-{id}")), words, None)
}

fn agent(plan: &FleetRecord, dir: &Path, number: u8) -> Result<Daemon, Failure> {
    let mut words = vec!["agent".to_owned(), "--own-session".to_owned()];
    let mut say = |flag: &str, value: String| words.extend([flag.to_owned(), value]);
    say("--data-dir", dir.join(format!("host-{number}/data")).display().to_string());
    say("--name", format!("host-{number}"));
    say("--address", plan.host_address(number));
    let drivers: Vec<_> = plan.drivers.iter().map(ToString::to_string).collect();
    say("--driver", drivers.join(","));
    for id in 1..=plan.controllers {
        say("--controller", format!("https://{}", plan.api_address(id)));
    }
    let namespace = plan.namespaces.then(|| plan.namespace(number));
    Daemon::new(dir.join(format!("host-{number}")), words, namespace)
}

async fn answering(fleet: &Fleet, daemons: &[Daemon]) -> Result<(), Failure> {
    let deadline = Instant::now() + UP_TIMEOUT;
    loop {
        daemons.iter().try_for_each(Daemon::check)?;
        match fleet.list(Kind::Cluster, false).await {
            Ok(found) if !found.objects.is_empty() => return Ok(()),
            Err(fault) if !fault.code.retryable() || Instant::now() > deadline => return Err(fault.into()),
            _ => tokio::time::sleep(LOOK_PAUSE).await,
        }
    }
}

async fn token(fleet: &Fleet) -> Result<String, Failure> {
    let request = v1::CreateTokenRequest {
        idempotency_key: idempotency_key(),
        ttl_s: TOKEN_TTL_S,
        ..v1::CreateTokenRequest::default()
    };
    Ok(fleet.call(async |mut client| client.create_token(request.clone()).await).await?.token)
}

async fn hosts_up(fleet: &Fleet, wanted: usize, daemons: &[Daemon]) -> Result<(), Failure> {
    let deadline = Instant::now() + UP_TIMEOUT;
    loop {
        daemons.iter().try_for_each(Daemon::check)?;
        let hosts = fleet.list(Kind::Host, false).await?.objects;
        let up =
            |object: &&Object| matches!(object, Object::Host(host) if host.status.phase == HostPhase::Up);
        let count = hosts.iter().filter(up).count();
        if count >= wanted {
            return Ok(());
        }
        if Instant::now() > deadline {
            let why = format!(
                "only {count} of {wanted} hosts came up within {UP_TIMEOUT:?}; their logs are in the fleet's folder"
            );
            return Err(Failure::Local(why));
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

fn absolute(dir: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(dir).map_err(Failure::io(format!("finding {}", dir.display())))
}
