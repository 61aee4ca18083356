//! An agent without a hypervisor: it joins, holds its session, follows redirects, and reports every VM it is told to
//! run as running at once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dunlin_model::Level;
use dunlin_model::capabilities::{
    Accel, AccelProbe, DriverCapabilities, DriverName, DriverPower, HostCapabilities,
};
use dunlin_model::desired::{DesiredSet, Role};
use dunlin_model::observed::{EndCause, ObservedVm, Process};
use dunlin_model::vm::Power;
use dunlin_model::{HostId, Timestamp, VmId};
use dunlin_pki::{Clock, JoinToken, KeyPair, Keyring, Ring, Shown, Trust, pem_certificates};
use dunlin_proto::v1::agent_gate_client::AgentGateClient;
use dunlin_proto::v1::identities_client::IdentitiesClient;
use dunlin_proto::v1::{from_agent, to_agent};
use dunlin_proto::{Wire as _, read, v1};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use crate::mint;

/// What an agent knows of itself.
#[derive(Clone, Debug)]
pub(crate) struct FakeAgent {
    /// The highest feature level it reads.
    pub(crate) level: Level,
    pub(crate) cluster_uid: String,
    pub(crate) host: HostId,
    /// What it shows and believes.
    pub(crate) keyring: Arc<Keyring>,
    pub(crate) instance: String,
    pub(crate) controllers: Vec<String>,
    /// What it was told last, and the sessions it held, each with the endpoint.
    pub(crate) seen: Arc<Mutex<Seen>>,
}

#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) desired: Option<DesiredSet>,
    pub(crate) sessions: Vec<(u64, String)>,
    pub(crate) redirects: u32,
    pub(crate) goodbye: Option<v1::Goodbye>,
    pub(crate) authorities: String,
}

/// One stream.
pub(crate) struct Link {
    pub(crate) to: mpsc::Sender<v1::FromAgent>,
    pub(crate) from: Streaming<v1::ToAgent>,
}

fn channel(keyring: &Arc<Keyring>, endpoint: &str) -> Channel {
    let endpoint = Endpoint::from_shared(endpoint.to_owned()).unwrap();
    endpoint.connect_timeout(Duration::from_secs(1)).connect_with_connector_lazy(keyring.dialer())
}

fn gate(keyring: &Arc<Keyring>, endpoint: &str) -> AgentGateClient<Channel> {
    AgentGateClient::new(channel(keyring, endpoint))
}

pub(crate) fn capabilities() -> HostCapabilities {
    let accel = AccelProbe { accel: Accel::Simulated, usable: true, evidence: "nothing runs".into() };
    let driver = DriverCapabilities {
        name: DriverName::Test,
        version: "0".into(),
        accels: vec![accel],
        machines: ["q35".to_owned(), "pc".to_owned(), "microvm".to_owned()].into(),
        powers: [DriverPower::Pause, DriverPower::Migrate, DriverPower::Console, DriverPower::HotPlug].into(),
        ..DriverCapabilities::default()
    };
    HostCapabilities {
        arch: "x86_64".into(),
        cpus: 8,
        mem_mib: 16_384,
        disk_free_mib: 100_000,
        drivers: vec![driver],
        ..HostCapabilities::default()
    }
}

/// Trades a token for a certificate, at a controller that is known by the token alone.
pub(crate) async fn join(
    endpoint: &str,
    token: &str,
    request: v1::JoinRequest,
) -> Result<v1::Credentials, tonic::Status> {
    let token: JoinToken = token.parse().unwrap();
    let ring = Ring { shown: None, trust: Trust::Pinned(token.fingerprint), beside: Vec::new() };
    let keyring = Keyring::new(ring, Clock::system()).unwrap();
    let request = v1::JoinRequest { token: token.secret.expose().to_owned(), ..request };
    let answer = IdentitiesClient::new(channel(&keyring, endpoint)).join(request).await?;
    Ok(answer.into_inner())
}

/// What was given for a key, as it is shown.
pub(crate) fn given(key: &KeyPair, answer: v1::Credentials) -> Arc<Keyring> {
    let (issued, expires) = (Timestamp(answer.issued_ms), Timestamp(answer.expires_ms));
    let shown = Shown { key: key.to_pem(), certificate: answer.certificate, issued, expires };
    let roots = pem_certificates(&answer.authorities).unwrap();
    let ring = Ring { shown: Some(shown), trust: Trust::Roots(roots), beside: Vec::new() };
    Keyring::new(ring, Clock::system()).unwrap()
}

impl FakeAgent {
    pub(crate) async fn join(endpoint: &str, token: &str, name: &str) -> Self {
        let (host, key) = (HostId(mint::uuid()), KeyPair::generate().unwrap());
        let request = v1::JoinRequest {
            role: dunlin_model::Role::Host.to_wire(),
            name: name.into(),
            host_uid: host.to_string(),
            public_key: key.public().as_bytes().to_vec(),
            ..v1::JoinRequest::default()
        };
        let answer = join(endpoint, token, request).await.unwrap();
        Self {
            cluster_uid: answer.cluster_uid.clone(),
            host,
            controllers: answer.controllers.clone(),
            keyring: given(&key, answer),
            instance: mint::secret(),
            level: Level::NEWEST,
            seen: Arc::default(),
        }
    }

    /// Opens a stream and says Hello.
    pub(crate) async fn hello(&self, endpoint: &str) -> Result<Link, tonic::Status> {
        let (to, stream) = mpsc::channel(64);
        let hello = v1::Hello {
            cluster_uid: self.cluster_uid.clone(),
            host_uid: self.host.to_string(),
            instance: self.instance.clone(),
            agent_version: "fake".into(),
            capabilities: Some(capabilities().to_wire()),
            level: self.level.0,
        };
        to.send(v1::FromAgent { message: Some(from_agent::Message::Hello(hello)) }).await.unwrap();
        let from = gate(&self.keyring, endpoint).session(ReceiverStream::new(stream)).await?.into_inner();
        Ok(Link { to, from })
    }

    /// Plays the agent until the task is aborted.
    pub(crate) async fn live(self) {
        let mut next = 0;
        let mut endpoint = self.controllers[0].clone();
        loop {
            if let Ok(link) = self.hello(&endpoint).await
                && let Some(leader) = self.converse(link, &endpoint).await
            {
                endpoint = leader;
                continue;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            next = (next + 1) % self.controllers.len();
            endpoint.clone_from(&self.controllers[next]);
        }
    }

    /// Until the stream ends; returns where it was redirected to.
    async fn converse(&self, mut link: Link, endpoint: &str) -> Option<String> {
        let mut reported: BTreeMap<VmId, ObservedVm> = BTreeMap::new();
        while let Ok(Some(v1::ToAgent { message: Some(message) })) = link.from.message().await {
            match message {
                to_agent::Message::Welcome(welcome) => {
                    self.seen.lock().unwrap().sessions.push((welcome.session, endpoint.to_owned()));
                    let kept = self.seen.lock().unwrap().desired.clone();
                    if let Some(kept) = kept {
                        reported = outcome(&kept, &reported);
                    }
                    link.report(true, reported.values().cloned().collect(), Vec::new(), 0).await;
                }
                to_agent::Message::Desired(desired) => {
                    let desired: DesiredSet = read(desired, "desired").unwrap();
                    let now = outcome(&desired, &reported);
                    let gone = reported.keys().filter(|vm| !now.contains_key(vm)).copied().collect();
                    let changed =
                        now.values().filter(|vm| reported.get(&vm.vm) != Some(vm)).cloned().collect();
                    let generation = desired.generation.0;
                    self.seen.lock().unwrap().desired = Some(desired);
                    reported = now;
                    link.report(false, changed, gone, generation).await;
                }
                to_agent::Message::Ping(ping) => link.pong(ping.nonce).await,
                to_agent::Message::Threads(_) => {}
                to_agent::Message::Redirect(redirect) => {
                    self.seen.lock().unwrap().redirects += 1;
                    return Some(redirect.leader).filter(|leader| !leader.is_empty());
                }
                to_agent::Message::Goodbye(goodbye) => {
                    self.seen.lock().unwrap().goodbye = Some(goodbye);
                    return None;
                }
                to_agent::Message::Trust(trust) => {
                    self.seen.lock().unwrap().authorities = trust.authorities;
                }
                to_agent::Message::OpenTunnel(order) => {
                    tokio::spawn(echo(Arc::clone(&self.keyring), endpoint.to_owned(), order));
                }
            }
        }
        None
    }
}

impl Link {
    pub(crate) async fn report(
        &self,
        complete: bool,
        vms: Vec<ObservedVm>,
        gone: Vec<VmId>,
        generation: u64,
    ) {
        let report =
            v1::Report { complete, vms: vms.to_wire(), gone: gone.to_wire(), acts: Vec::new(), generation };
        // The controller may have ended the stream; that shows when it is read.
        let _ = self.to.send(v1::FromAgent { message: Some(from_agent::Message::Report(report)) }).await;
    }

    pub(crate) async fn pong(&self, nonce: u64) {
        let pong = v1::Pong { nonce, now_ms: crate::clock::now().0 };
        let _ = self.to.send(v1::FromAgent { message: Some(from_agent::Message::Pong(pong)) }).await;
    }

    /// The next message that is neither a ping, which is answered, nor news of authorities.
    pub(crate) async fn next(&mut self) -> Option<to_agent::Message> {
        while let Ok(Some(v1::ToAgent { message: Some(message) })) = self.from.message().await {
            match message {
                to_agent::Message::Ping(ping) => self.pong(ping.nonce).await,
                to_agent::Message::Trust(_) | to_agent::Message::Threads(_) => {}
                other => return Some(other),
            }
        }
        None
    }
}

/// What becomes of a desired set on a host where everything works at once.
fn outcome(desired: &DesiredSet, before: &BTreeMap<VmId, ObservedVm>) -> BTreeMap<VmId, ObservedVm> {
    let mut now = before.clone();
    for assignment in &desired.assignments {
        let process = match &assignment.role {
            Role::Run { power: Power::Paused, .. } | Role::Adopt { power: Power::Paused } => Process::Paused,
            Role::Run { .. } | Role::Adopt { .. } => Process::Running,
            Role::Discard { .. } | Role::Release => {
                now.remove(&assignment.vm);
                continue;
            }
            Role::Hold if before.contains_key(&assignment.vm) => {
                Process::Ended { cause: EndCause::Told, message: String::new(), ever_ran: true }
            }
            _ => continue,
        };
        let vm = ObservedVm {
            vm: assignment.vm,
            name: assignment.name.clone(),
            incarnation: assignment.incarnation,
            process,
            has_volumes: false,
            pid: Some(1),
            vnc: None,
            saved: None,
            disk_bytes: BTreeMap::new(),
            built: None,
            resumed_at_ms: None,
            receive: None,
            send: None,
        };
        now.insert(assignment.vm, vm);
    }
    now
}

/// A console that gives back what it is sent, in upper case.
async fn echo(keyring: Arc<Keyring>, endpoint: String, order: v1::OpenTunnel) {
    let (to, stream) = mpsc::channel(4);
    let hello = v1::TunnelChunk { tunnel: order.tunnel, data: b"login: ".to_vec(), ..Default::default() };
    to.send(hello).await.unwrap();
    let Ok(answer) = gate(&keyring, &endpoint).tunnel(ReceiverStream::new(stream)).await else { return };
    let mut from = answer.into_inner();
    while let Ok(Some(chunk)) = from.message().await {
        let data = chunk.data.to_ascii_uppercase();
        if to.send(v1::TunnelChunk { data, ..v1::TunnelChunk::default() }).await.is_err() {
            return;
        }
    }
}
