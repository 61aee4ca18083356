//! A VM's console, from a client to the agent of its host.
//!
//! ```text
//!  client ==Console==> this controller ==Console==> the leader ==OpenTunnel over the session==> agent
//!                                                       ^======Tunnel, dialled by the agent=======|
//! ```
//! Each side's bytes flow at the pace of the other: nothing is queued here beyond one chunk and HTTP/2's own windows.

use std::sync::Arc;
use std::time::Duration;

use dunlin_model::rights::Verb;
use dunlin_model::vm::Vm;
use dunlin_model::{ErrorCode, HostId, Invalid, Kind, Object, VmId};
use dunlin_proto::{Fault, v1};
use dunlin_state::State;
use dunlin_state::rights::Scope;
use futures_util::{Stream, StreamExt as _};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status, Streaming};

use super::call::Call;
use super::peers::fleet;
use super::{Streamed, cut_short, reads};
use crate::audit::Entry;
use crate::node::Node;
use crate::rights::{self, Caller};

/// How long an agent may take to dial: it is told over an open session and dials within its own network.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to wait for a leader, when none is known: an election.
const LEADER_WAIT: Duration = Duration::from_secs(3);

/// How long the host that a VM has left may take to pass on what it still has of a followed log.
const MOVED_GRACE: Duration = Duration::from_secs(3);

type Chunks = Streaming<v1::ConsoleChunk>;

/// Connects a client's stream with the VM its first chunk names.
pub(super) async fn open(
    node: &Arc<Node>,
    call: &Call,
    mut client: Chunks,
) -> Result<Streamed<v1::ConsoleChunk>, Fault> {
    let first = call.within(async { Ok(client.message().await?) }).await?;
    let first = first.ok_or_else(|| cut_short("it named a VM"))?;
    let ask = first.open.clone();
    let ask =
        ask.ok_or_else(|| Invalid::new("open", "is missing in the first chunk", "the VM and the mode"))?;
    let mut leadership = node.replica.leadership();
    // No leader within the wait is told below, by whoever is asked for one.
    let _ = tokio::time::timeout(LEADER_WAIT, leadership.wait_for(|now| now.leader.is_some())).await;
    if node.leading().is_some() {
        return connect(node, &call.caller, &ask, client).await;
    }
    match node.leader_endpoint().filter(|_| !call.forwarded) {
        Some(endpoint) => pass_on(node, call, &endpoint, first, client).await,
        None => Err(Fault::new(ErrorCode::NotLeader, "the leader that consoles go through is not known")),
    }
}

async fn pass_on(
    node: &Node,
    call: &Call,
    endpoint: &str,
    first: v1::ConsoleChunk,
    client: Chunks,
) -> Result<Streamed<v1::ConsoleChunk>, Fault> {
    // When the client breaks off, its answer stream is dropped here, and with it the call to the leader.
    let rest = client.filter_map(|chunk| async { chunk.ok() });
    let mut request = Request::new(futures_util::stream::iter([first]).chain(rest));
    call.mark(request.metadata_mut());
    let answer = fleet(node.peers.channel(endpoint)?).console(request).await?;
    Ok(Box::pin(answer.into_inner()))
}

async fn connect(
    node: &Arc<Node>,
    caller: &Caller,
    ask: &v1::ConsoleOpen,
    client: Chunks,
) -> Result<Streamed<v1::ConsoleChunk>, Fault> {
    if v1::ConsoleMode::try_from(ask.mode).is_err() {
        return Err(Invalid::new("open.mode", ask.mode.to_string(), "a console mode").into());
    }
    let view = node.replica.read();
    let vm = listener(node, caller, &view, &ask.vm)?;
    let host = host_of(vm)?;
    let host_name = view.host(host).map_or_else(|| host.to_string(), |host| host.metadata.name.to_string());
    let (tunnel, dialled) = node.tunnels.expect_dial();
    let places = ask.places.clone();
    let order = v1::OpenTunnel { tunnel, vm_uid: vm.metadata.uid.to_string(), mode: ask.mode, places };
    if !node.sessions.tell(host, v1::to_agent::Message::OpenTunnel(order)) {
        let message = format!("the agent of host {host_name} holds no session");
        return Err(Fault::new(ErrorCode::Unavailable, message));
    }
    let dialled = tokio::time::timeout(DIAL_TIMEOUT, dialled.dialled()).await;
    let no_dial =
        || Fault::new(ErrorCode::Unavailable, format!("the agent of host {host_name} did not dial back"));
    let dialled = dialled.ok().flatten().ok_or_else(no_dial)?;
    if !dialled.error.is_empty() {
        return Err(Fault::new(ErrorCode::WrongState, dialled.error));
    }
    // Either stream takes the other with it when it is dropped.
    let over = CancellationToken::new();
    let to_agent = Box::pin(to_agent(client, over.clone()));
    if dialled.to_agent.send(to_agent).is_err() {
        return Err(no_dial());
    }
    if ask.mode() == v1::ConsoleMode::LogFollow {
        tokio::spawn(until_moved(Arc::clone(node), vm.metadata.uid, host, over.clone()));
    }
    let first = v1::ConsoleChunk { data: dialled.data, ..v1::ConsoleChunk::default() };
    let first = futures_util::stream::iter([Ok(first)]);
    Ok(Box::pin(first.chain(to_client(dialled.from_agent, over))))
}

/// The VM, when the caller may talk to it. One that he does not see is not there.
fn listener<'a>(node: &Node, caller: &Caller, state: &'a State, name: &str) -> Result<&'a Vm, Fault> {
    let grants = reads::reader(node, caller, state, Kind::Vm, name)?;
    let found = reads::find(state, Kind::Vm, name).map_err(|fault| rights::hide(fault, &grants))?;
    let Object::Vm(vm) = &**found else {
        return Err(Fault::new(ErrorCode::Internal, "a VM's name names another kind"));
    };
    if !grants.sees(state, found) {
        let fault = Fault::new(ErrorCode::NotFound, format!("no vm is called {name:?}"));
        let entry = Entry::of(caller, Verb::Console.as_str()).about("Vm", name, None);
        return Err(rights::refuse(node, entry, fault));
    }
    let project = &vm.spec.project;
    rights::authorise(node, caller, state, (Verb::Console, Kind::Vm, Scope::Project(project)), name)?;
    Ok(vm)
}

/// Ends a followed log when its VM has been elsewhere for a while. The host it has left ends it before that, once
/// everything is read; one that is cut off cannot.
async fn until_moved(node: Arc<Node>, vm: VmId, host: HostId, over: CancellationToken) {
    let mut views = node.replica.watch();
    let moved = async {
        loop {
            let here = views.borrow_and_update().vm(vm).is_some_and(|vm| host_of(vm).ok() == Some(host));
            if !here || views.changed().await.is_err() {
                tokio::time::sleep(MOVED_GRACE).await;
                return;
            }
        }
    };
    if over.run_until_cancelled(moved).await.is_some() {
        over.cancel();
    }
}

/// Where a VM's console is, or its kept log.
fn host_of(vm: &Vm) -> Result<HostId, Fault> {
    let saved = vm.status.saved.as_ref().map(|saved| saved.host);
    let last = vm.status.last_host;
    vm.status.host.or(last).or(saved).or(vm.status.volumes_on).ok_or_else(|| {
        let message = format!("VM {} is {} and on no host", vm.metadata.name, vm.status.phase);
        Fault::new(ErrorCode::WrongState, message)
    })
}

/// The client's bytes. Its end does not end the tunnel: a client that only reads has nothing to send.
fn to_agent(
    client: Chunks,
    over: CancellationToken,
) -> impl Stream<Item = Result<v1::TunnelChunk, Status>> + Send + 'static {
    let guard = over.clone().drop_guard();
    futures_util::stream::unfold((Some(client), over, guard), |(mut client, over, guard)| async move {
        if let Some(open) = &mut client {
            let next = tokio::select! {
                next = open.message() => next,
                () = over.cancelled() => return None,
            };
            match next {
                Ok(Some(chunk)) => {
                    let chunk = v1::TunnelChunk { data: chunk.data, ..v1::TunnelChunk::default() };
                    return Some((Ok(chunk), (client, over, guard)));
                }
                Ok(None) => {}
                Err(_) => return None,
            }
        }
        over.cancelled().await;
        None
    })
}

/// The agent's bytes.
fn to_client(
    agent: Streaming<v1::TunnelChunk>,
    over: CancellationToken,
) -> impl Stream<Item = Result<v1::ConsoleChunk, Status>> + Send + 'static {
    let guard = over.clone().drop_guard();
    futures_util::stream::unfold(Some((agent, over, guard)), |state| async move {
        let (mut agent, over, guard) = state?;
        let next = tokio::select! {
            next = agent.message() => next,
            () = over.cancelled() => return None,
        };
        match next {
            Ok(Some(chunk)) if !chunk.error.is_empty() => {
                Some((Err(Fault::new(ErrorCode::WrongState, chunk.error).into()), None))
            }
            Ok(Some(chunk)) => {
                let chunk = v1::ConsoleChunk { open: None, data: chunk.data, place: chunk.place };
                Some((Ok(chunk), Some((agent, over, guard))))
            }
            Ok(None) => None,
            Err(status) => Some((Err(Fault::from(status).into()), None)),
        }
    })
}
