//! A controller that is told by the test what to say, and writes down what it hears.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dunlin_model::desired::{ActOrder, Assignment, DesiredSet};
use dunlin_model::observed::{ActReport, ObservedVm};
use dunlin_model::{ErrorCode, HostId, Revision, TaskId, VmId};
use dunlin_proto::v1::agent_gate_server::{AgentGate, AgentGateServer};
use dunlin_proto::v1::fleet_server::FleetServer;
use dunlin_proto::v1::from_agent::Message as Up;
use dunlin_proto::v1::to_agent::Message as Down;
use dunlin_proto::{Fault, v1};
use futures_util::Stream;
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

use super::blobs::Blobs;

/// How long anything may take before the test fails.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

pub(super) const TOKEN: &str = "once-only";
pub(super) const CLUSTER: &str = "00000000-0000-0000-0000-0000000000c1";

/// What one host has reported, as the leader would hold it.
#[derive(Clone, Debug, Default)]
pub(super) struct Heard {
    pub(super) vms: BTreeMap<VmId, ObservedVm>,
    pub(super) gone: Vec<VmId>,
    pub(super) acts: BTreeMap<TaskId, ActReport>,
    pub(super) generation: u64,
    pub(super) completes: u32,
    /// Generation in the first report of the last session.
    pub(super) resumed_at: u64,
    pub(super) pongs: u64,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) hosts: BTreeMap<HostId, Heard>,
    pub(super) lines: BTreeMap<HostId, mpsc::Sender<Result<v1::ToAgent, Status>>>,
    pub(super) joins: Vec<v1::JoinRequest>,
    pub(super) hellos: Vec<v1::Hello>,
    /// Says Redirect to this instead of Welcome.
    pub(super) redirect: Option<String>,
    /// Says Goodbye unauthenticated to everybody.
    pub(super) dismisses: bool,
    /// Answers of Join that get lost on the way.
    pub(super) lose_answers: u32,
    pub(super) tunnels: BTreeMap<String, (String, Vec<u8>, bool)>,
    pub(super) to_tunnels: BTreeMap<String, mpsc::Sender<Result<v1::TunnelChunk, Status>>>,
    pub(super) blobs: Blobs,
    sessions: u64,
}

#[derive(Debug, Default)]
struct Server(Mutex<Option<tokio::runtime::Runtime>>);

impl Drop for Server {
    fn drop(&mut self) {
        // A runtime may not be waited for where others run.
        self.0.lock().unwrap().take().into_iter().for_each(tokio::runtime::Runtime::shutdown_background);
    }
}

#[derive(Clone, Debug)]
pub(super) struct Fake {
    pub(super) endpoint: String,
    pub(super) state: Arc<Mutex<State>>,
    changed: Arc<watch::Sender<u64>>,
    /// A runtime of its own, so that it can die with every connection.
    server: Arc<Server>,
}

impl Fake {
    pub(super) async fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let changed = Arc::new(watch::channel(0).0);
        let fake = Self { endpoint, state: Arc::default(), changed, server: Arc::default() };
        let serving = fake.clone();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let server = tonic::transport::Server::builder()
                .add_service(AgentGateServer::new(serving.clone()))
                .add_service(FleetServer::new(serving));
            server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
        });
        *fake.server.0.lock().unwrap() = Some(runtime);
        fake
    }

    /// Dies at once, with every connection.
    pub(super) fn kill(&self) {
        self.server.0.lock().unwrap().take().unwrap().shutdown_background();
    }

    /// Forgets what the agent of a host said that was killed, and its session.
    pub(super) fn lost(&self, host: HostId) {
        self.with(|state| {
            state.lines.remove(&host);
            if let Some(heard) = state.hosts.get_mut(&host) {
                *heard = Heard { completes: heard.completes, ..Heard::default() };
            }
        });
    }

    pub(super) fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        let seen = look(&mut self.state.lock().unwrap());
        self.changed.send_modify(|count| *count += 1);
        seen
    }

    /// Waits until `what` is there.
    pub(super) async fn until<T>(&self, what: &str, mut found: impl FnMut(&mut State) -> Option<T>) -> T {
        let mut changes = self.changed.subscribe();
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            if let Some(found) = found(&mut self.state.lock().unwrap()) {
                return found;
            }
            if tokio::time::timeout_at(deadline, changes.changed()).await.is_err() {
                panic!("never seen: {what}; last seen: {:#?}", self.state.lock().unwrap().hosts);
            }
        }
    }

    /// Waits until `host` reports `vm` in a way that `fits`.
    pub(super) async fn sees(
        &self,
        what: &str,
        host: HostId,
        vm: VmId,
        fits: impl Fn(&ObservedVm) -> bool,
    ) -> ObservedVm {
        self.until(what, |state| {
            state.hosts.get(&host)?.vms.get(&vm).filter(|observed| fits(observed)).cloned()
        })
        .await
    }

    /// Waits until `host` has nothing of `vm`.
    pub(super) async fn sees_gone(&self, host: HostId, vm: VmId) {
        self.until("gone", |state| state.hosts.get(&host).filter(|heard| heard.gone.contains(&vm)).map(drop))
            .await;
    }

    /// Sends a message down, to a host that has a session.
    pub(super) async fn say(&self, host: HostId, message: Down) {
        let line = self.until("a session", |state| state.lines.get(&host).cloned()).await;
        line.send(Ok(v1::ToAgent { message: Some(message) })).await.unwrap();
    }

    /// Sends a desired set down.
    pub(super) async fn tell(
        &self,
        host: HostId,
        generation: u64,
        assignments: &[Assignment],
        acts: &[ActOrder],
    ) {
        let set = DesiredSet {
            host,
            generation: Revision(generation),
            assignments: assignments.to_vec(),
            acts: acts.to_vec(),
            images: BTreeMap::new(),
        };
        self.say(host, Down::Desired(set.into())).await;
    }

    fn take(&self, host: HostId, message: Up) {
        self.with(|state| {
            let heard = state.hosts.entry(host).or_default();
            match message {
                Up::Report(report) => {
                    if report.complete {
                        let completes = heard.completes + 1;
                        let (resumed_at, pongs) = (report.generation, heard.pongs);
                        *heard = Heard { completes, resumed_at, pongs, ..Heard::default() };
                    }
                    heard.generation = report.generation;
                    for vm in report.vms {
                        let vm = ObservedVm::try_from(vm).unwrap();
                        heard.gone.retain(|gone| *gone != vm.vm);
                        heard.vms.insert(vm.vm, vm);
                    }
                    for vm in report.gone {
                        let vm = vm.parse().unwrap();
                        heard.vms.remove(&vm);
                        heard.gone.push(vm);
                    }
                    for act in report.acts {
                        let act = ActReport::try_from(act).unwrap();
                        heard.acts.insert(act.task, act);
                    }
                }
                Up::Pong(pong) => heard.pongs = pong.nonce,
                Up::Samples(_) | Up::Capabilities(_) => {}
                Up::Hello(_) => panic!("a second Hello"),
            }
        });
    }
}

#[tonic::async_trait]
impl AgentGate for Fake {
    type SessionStream = ReceiverStream<Result<v1::ToAgent, Status>>;
    type TunnelStream = Pin<Box<dyn Stream<Item = Result<v1::TunnelChunk, Status>> + Send>>;

    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        let request = request.into_inner();
        if request.token != TOKEN {
            return Err(Fault::new(ErrorCode::Unauthenticated, "the token is unknown").into());
        }
        self.with(|state| {
            if state.joins.iter().any(|join| join.host_uid != request.host_uid && join.name == request.name) {
                return Err(Fault::new(ErrorCode::AlreadyExists, "there is a host of that name").into());
            }
            state.joins.push(request.clone());
            if state.lose_answers > 0 {
                state.lose_answers -= 1;
                return Err(Status::unavailable("the answer is lost"));
            }
            Ok(Response::new(v1::JoinResponse {
                cluster_uid: CLUSTER.to_owned(),
                host_uid: request.host_uid,
                controllers: vec![self.endpoint.clone()],
            }))
        })
    }

    async fn session(
        &self,
        request: Request<Streaming<v1::FromAgent>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut from_agent = request.into_inner();
        let (line, answers) = mpsc::channel(64);
        let fake = self.clone();
        tokio::spawn(async move {
            let Ok(Some(v1::FromAgent { message: Some(Up::Hello(hello)) })) = from_agent.message().await
            else {
                return;
            };
            let host: HostId = hello.host_uid.parse().unwrap();
            let answer = fake.with(|state| {
                state.hellos.push(hello);
                if state.dismisses {
                    let code = ErrorCode::Unauthenticated.to_string();
                    return Down::Goodbye(v1::Goodbye { code, message: "no such host".to_owned() });
                }
                if let Some(leader) = state.redirect.clone() {
                    return Down::Redirect(v1::Redirect { leader });
                }
                state.sessions += 1;
                Down::Welcome(v1::Welcome { session: state.sessions, controllers: Vec::new() })
            });
            let welcome = matches!(answer, Down::Welcome(_));
            line.send(Ok(v1::ToAgent { message: Some(answer) })).await.unwrap();
            if !welcome {
                return;
            }
            fake.with(|state| state.lines.insert(host, line.clone()));
            while let Ok(Some(message)) = from_agent.message().await {
                fake.take(host, message.message.unwrap());
            }
            fake.with(|state| state.lines.retain(|_, other| !other.same_channel(&line)));
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn tunnel(
        &self,
        request: Request<Streaming<v1::TunnelChunk>>,
    ) -> Result<Response<Self::TunnelStream>, Status> {
        let mut from_agent = request.into_inner();
        let first = from_agent.message().await?.unwrap();
        let (line, answers) = mpsc::channel(4);
        let fake = self.clone();
        fake.with(|state| {
            state.tunnels.insert(first.tunnel.clone(), (first.error, first.data, false));
            state.to_tunnels.insert(first.tunnel.clone(), line);
        });
        tokio::spawn(async move {
            while let Ok(Some(chunk)) = from_agent.message().await {
                fake.with(|state| state.tunnels.get_mut(&first.tunnel).unwrap().1.extend(chunk.data));
            }
            fake.with(|state| state.tunnels.get_mut(&first.tunnel).unwrap().2 = true);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers).map(|chunk| chunk))))
    }
}
