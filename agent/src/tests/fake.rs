//! A controller that is told by the test what to say, and writes down what it hears.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use dunlin_model::desired::{ActOrder, Assignment, DesiredSet};
use dunlin_model::identity::Authority;
use dunlin_model::observed::{ActReport, ObservedVm};
use dunlin_model::{
    ControllerId, ErrorCode, HostId, Identity, Revision, Role, Secret, TaskId, Timestamp, VmId,
};
use dunlin_pki::{
    CertificateDer, Clock, Dialer, Grant, JoinToken, KeyPair, Keyring, PublicKey, Ring, Shown, Trust,
    fingerprint, pem_certificates, sign,
};
use dunlin_proto::v1::agent_gate_server::{AgentGate, AgentGateServer};
use dunlin_proto::v1::fleet_server::FleetServer;
use dunlin_proto::v1::from_agent::Message as Up;
use dunlin_proto::v1::identities_server::{Identities, IdentitiesServer};
use dunlin_proto::v1::to_agent::Message as Down;
use dunlin_proto::{Fault, v1};
use futures_util::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::blobs::Blobs;

/// How long anything may take before the test fails.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// The secret of the one token that is taken.
const SECRET: &str = "0ce0ce0ce0ce0ce0ce0ce0ce0ce0ce0ce0ce0ce0ce0ce0ce0ce0ce0ce0ce0ce0";

/// The authority of every controller that is played in this process.
fn authority() -> &'static Authority {
    static MADE: OnceLock<Authority> = OnceLock::new();
    MADE.get_or_init(|| dunlin_pki::make(Clock::system().now()).unwrap())
}

fn roots() -> Vec<CertificateDer<'static>> {
    pem_certificates(&authority().certificate).unwrap()
}

fn certificate(identity: Identity, key: &PublicKey, issued: Timestamp, expires: Timestamp) -> String {
    sign(authority(), key, &Grant { identity, serial: 1, issued, expires, names: Vec::new() }).unwrap()
}

fn ring(identity: Identity) -> Ring {
    let key = KeyPair::generate().unwrap();
    let issued = Clock::system().now();
    let expires = Timestamp(issued.0 + 3_600_000);
    let certificate = certificate(identity, &key.public(), issued, expires);
    let shown = Shown { key: key.to_pem(), certificate, issued, expires };
    Ring { shown: Some(shown), trust: Trust::Roots(roots()), beside: roots() }
}

/// A token that is taken, or one with another secret.
pub(super) fn token(secret: &str) -> Secret {
    let secret = if secret.is_empty() { SECRET } else { secret };
    let fingerprint = fingerprint(&roots()[0]);
    Secret::new(JoinToken { role: Role::Host, secret: Secret::new(secret), fingerprint }.text())
}

/// Dials as some host would that has joined.
pub(crate) fn dialer() -> Dialer {
    let host = Identity::Host(HostId(uuid::Uuid::from_u128(99)));
    Keyring::new(ring(host), Clock::system()).unwrap().dialer()
}

/// A connection with TLS, as tonic takes it.
struct Secured(tokio_rustls::server::TlsStream<tokio::net::TcpStream>);

impl tonic::transport::server::Connected for Secured {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl AsyncRead for Secured {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Secured {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
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
    /// Certificates are given as if half of their life were over.
    pub(super) stale: bool,
    /// Keys that certificates were renewed for.
    pub(super) renewals: Vec<Vec<u8>>,
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
        let endpoint = format!("https://{}", listener.local_addr().unwrap());
        let changed = Arc::new(watch::channel(0).0);
        let fake = Self { endpoint, state: Arc::default(), changed, server: Arc::default() };
        let serving = fake.clone();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let (done, secured) = mpsc::channel(16);
            tokio::spawn(async move {
                let one = ring(Identity::Controller(ControllerId(1)));
                let acceptor = tokio_rustls::TlsAcceptor::from(dunlin_pki::acceptor(&one, None).unwrap());
                while let Ok((stream, _)) = listener.accept().await {
                    let (acceptor, done) = (acceptor.clone(), done.clone());
                    tokio::spawn(async move {
                        if let Ok(stream) = acceptor.accept(stream).await {
                            let _ = done.send(Ok::<_, io::Error>(Secured(stream))).await;
                        }
                    });
                }
            });
            let server = tonic::transport::Server::builder()
                .add_service(AgentGateServer::new(serving.clone()))
                .add_service(IdentitiesServer::new(serving.clone()))
                .add_service(FleetServer::new(serving));
            server.serve_with_incoming(ReceiverStream::new(secured)).await.unwrap();
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
                Up::Samples(_) | Up::Capabilities(_) | Up::Unmanaged(_) => {}
                Up::Hello(_) => panic!("a second Hello"),
            }
        });
    }
}

impl Fake {
    fn credentials(&self, identity: Identity, key: &[u8]) -> v1::Credentials {
        let now = Clock::system().now().0;
        let past = if self.state.lock().unwrap().stale { 3_600_000 } else { 0 };
        let (issued, expires) = (Timestamp(now - past), Timestamp(now + 3_600_000));
        let key = PublicKey::parse(key).unwrap();
        v1::Credentials {
            identity: identity.to_string(),
            certificate: certificate(identity, &key, issued, expires),
            issued_ms: issued.0,
            expires_ms: expires.0,
            authorities: authority().certificate.clone(),
            cluster_uid: CLUSTER.to_owned(),
            controllers: vec![self.endpoint.clone()],
        }
    }
}

#[tonic::async_trait]
impl Identities for Fake {
    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::Credentials>, Status> {
        let request = request.into_inner();
        if request.token != SECRET {
            return Err(Fault::new(ErrorCode::Unauthenticated, "the token is unknown").into());
        }
        self.with(|state| {
            if state.joins.iter().any(|join| join.host_uid != request.host_uid && join.name == request.name) {
                return Err(Status::from(Fault::new(
                    ErrorCode::AlreadyExists,
                    "there is a host of that name",
                )));
            }
            state.joins.push(request.clone());
            if state.lose_answers > 0 {
                state.lose_answers -= 1;
                return Err(Status::unavailable("the answer is lost"));
            }
            Ok(())
        })?;
        let identity = Identity::Host(request.host_uid.parse().unwrap());
        Ok(Response::new(self.credentials(identity, &request.public_key)))
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::Credentials>, Status> {
        let key = request.into_inner().public_key;
        let host = self.with(|state| {
            state.stale = false;
            state.renewals.push(key.clone());
            state.joins[0].host_uid.parse().unwrap()
        });
        Ok(Response::new(self.credentials(Identity::Host(host), &key)))
    }

    async fn who_am_i(&self, _: Request<v1::WhoAmIRequest>) -> Result<Response<v1::WhoAmIResponse>, Status> {
        Err(Status::unimplemented("no agent asks for this"))
    }

    async fn revoke(&self, _: Request<v1::RevokeRequest>) -> Result<Response<v1::RevokeResponse>, Status> {
        Err(Status::unimplemented("no agent asks for this"))
    }

    async fn show_authorities(
        &self,
        _: Request<v1::ShowAuthoritiesRequest>,
    ) -> Result<Response<v1::Authorities>, Status> {
        Err(Status::unimplemented("no agent asks for this"))
    }

    async fn rotate(&self, _: Request<v1::RotateRequest>) -> Result<Response<v1::Authorities>, Status> {
        Err(Status::unimplemented("no agent asks for this"))
    }
}

#[tonic::async_trait]
impl AgentGate for Fake {
    type SessionStream = ReceiverStream<Result<v1::ToAgent, Status>>;
    type TunnelStream = Pin<Box<dyn Stream<Item = Result<v1::TunnelChunk, Status>> + Send>>;

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
