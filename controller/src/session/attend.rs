//! One session, from its first message to its end.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dunlin_model::capabilities::HostCapabilities;
use dunlin_model::desired::DesiredSet;
use dunlin_model::host::HostPhase;
use dunlin_model::observed::Sample;
use dunlin_model::{ErrorCode, Revision};
use dunlin_proto::v1::{from_agent, to_agent};
use dunlin_proto::{Fault, Wire as _, read, v1};
use dunlin_state::Command;
use futures_util::FutureExt as _;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tonic::Streaming;
use tracing::Instrument as _;
use uuid::Uuid;

use super::TO_AGENT_MAX;
use super::hello::{Closed, Opened, admit, too_old};
use super::seats::ToAgentSender;
use crate::api::authorities;
use crate::fleet::View;
use crate::node::Node;
use crate::reconcile::{Report, is_news};
use crate::trust::Peer;
use crate::{clock, metrics, mint};

/// How often an agent is asked for a sign of life.
const PING_EVERY: Duration = Duration::from_secs(2);
/// An agent that says nothing for so long is gone, whatever TCP believes: five pings.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// Least time between two desired sets: changes that come together are told together.
const DESIRED_PAUSE: Duration = Duration::from_millis(5);
/// How long a desired set waits for an agent that has not taken in what it was told before.
const CROWDED_PAUSE: Duration = Duration::from_millis(50);
/// How long a session that is to be redirected waits for the new leader to be known: an election. Then the agent
/// looks for itself.
const SUCCESSOR_WAIT: Duration = Duration::from_secs(1);
/// How long the last message may take to leave.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a session ended.
#[derive(Debug)]
enum End {
    /// The connection broke, or the agent fell silent.
    Gone(&'static str),
    /// This controller no longer leads, or stops.
    Moved,
    /// The agent is told why.
    Dismissed(Fault),
}

impl End {
    /// For the metrics.
    const fn word(&self) -> &'static str {
        match self {
            Self::Gone(_) => "gone",
            Self::Moved => "moved",
            Self::Dismissed(_) => "dismissed",
        }
    }
}

/// Holds one session.
pub(super) async fn attend(
    node: Arc<Node>,
    mut from_agent: Streaming<v1::FromAgent>,
    to_agent: ToAgentSender,
    address: Option<SocketAddr>,
    peer: Peer,
) {
    match admit(&node, &mut from_agent, to_agent.clone(), address, peer).await {
        Ok(opened) => {
            let span = tracing::info_span!("session", host = %opened.host, session = opened.session);
            hold(&node, opened, from_agent, &to_agent).instrument(span).await;
        }
        Err(Closed::Elsewhere) => redirect(&node, &to_agent).await,
        Err(Closed::Refused(fault)) => {
            tracing::warn!(?address, code = %fault.code, message = fault.message, "an agent was refused");
            farewell(&to_agent, goodbye(&fault)).await;
        }
        Err(Closed::Gone) => tracing::debug!(?address, "a stream ended before its Hello"),
    }
}

async fn hold(node: &Node, opened: Opened, from_agent: Streaming<v1::FromAgent>, to_agent: &ToAgentSender) {
    tracing::info!("open");
    metrics::SESSION_OPENED.inc();
    let welcome = v1::Welcome { session: opened.session, controllers: endpoints(node) };
    let end = if say(to_agent, to_agent::Message::Welcome(welcome)) {
        let mut session = Session::new(node, &opened, from_agent, to_agent);
        session.converse().await
    } else {
        End::Gone("its stream was closed")
    };
    metrics::SESSION_ENDED.inc(&[end.word()]);
    node.sessions.leave(opened.host, &opened.seat);
    node.board.close(opened.host, opened.session);
    match end {
        End::Gone(why) => tracing::info!(why, "ended"),
        End::Moved => {
            tracing::info!("ended: this controller no longer leads, or stops");
            redirect(node, to_agent).await;
        }
        End::Dismissed(fault) => {
            tracing::warn!(code = %fault.code, message = fault.message, "ended");
            farewell(to_agent, goodbye(&fault)).await;
        }
    }
}

struct Session<'a> {
    node: &'a Node,
    opened: &'a Opened,
    from_agent: Streaming<v1::FromAgent>,
    to_agent: &'a ToAgentSender,
    views: watch::Receiver<View>,
    /// What the host says of itself. The state has as much of it as its level allows.
    capabilities: HostCapabilities,
    /// What the host was last told.
    told: Option<DesiredSet>,
    /// The authorities it was last told of, by their epoch.
    trusted: Option<u64>,
    /// The ping sent last, and when.
    pinged: Option<(u64, Instant)>,
    /// The threads it was last told of.
    threads: BTreeMap<Uuid, String>,
    /// The host reported something that may change what it is to be told.
    reported: bool,
}

impl<'a> Session<'a> {
    fn new(
        node: &'a Node,
        opened: &'a Opened,
        from_agent: Streaming<v1::FromAgent>,
        to_agent: &'a ToAgentSender,
    ) -> Self {
        let views = node.replica.watch();
        let threads = BTreeMap::new();
        Self {
            node,
            opened,
            from_agent,
            to_agent,
            views,
            capabilities: opened.capabilities.clone(),
            told: None,
            trusted: None,
            pinged: None,
            threads,
            reported: false,
        }
    }

    async fn converse(&mut self) -> End {
        let mut pings = interval(PING_EVERY);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut leadership = self.node.replica.leadership();
        let mut replaced = self.opened.seat.replaced.subscribe();
        let term = self.opened.term;
        let lost = leadership.wait_for(|now| !now.is_me || now.term != term).map(drop);
        let replaced = replaced.wait_for(|replaced| *replaced).map(drop);
        tokio::pin!(lost, replaced);
        let mut tell_at = Some(Instant::now());
        loop {
            tokio::select! {
                () = &mut lost => return End::Moved,
                () = self.node.closing.cancelled() => return End::Moved,
                () = &mut replaced => return End::Dismissed(taken_over()),
                message = self.from_agent.message() => match message {
                    Ok(Some(message)) => {
                        self.opened.seat.heard.send_replace(Instant::now());
                        if let Err(end) = self.take(message).await {
                            return end;
                        }
                    }
                    Ok(None) => return End::Gone("the agent closed it"),
                    Err(_) => return End::Gone("the connection broke"),
                },
                changed = self.views.changed() => {
                    if changed.is_err() {
                        return End::Moved;
                    }
                    self.store_capabilities().await;
                    tell_at = tell_at.or_else(|| Some(Instant::now() + DESIRED_PAUSE));
                }
                () = until(tell_at) => {
                    tell_at = None;
                    if self.to_agent.capacity() < TO_AGENT_MAX / 2 {
                        // Only the newest set counts: it waits for its turn instead of queueing behind older ones.
                        tell_at = Some(Instant::now() + CROWDED_PAUSE);
                    } else if let Err(end) = self.tell_desired() {
                        return end;
                    }
                }
                _ = pings.tick() => {
                    if self.opened.seat.heard.borrow().elapsed() > SILENCE_MAX {
                        return End::Gone("the agent fell silent");
                    }
                    // A full queue shows in the silence that follows.
                    let nonce = mint::nonce();
                    self.pinged = Some((nonce, Instant::now()));
                    say(self.to_agent, to_agent::Message::Ping(v1::Ping { nonce }));
                    // Some of what a host is told depends on how long it lasts.
                    self.reported = true;
                }
            }
            if std::mem::take(&mut self.reported) {
                tell_at = tell_at.or_else(|| Some(Instant::now() + DESIRED_PAUSE));
            }
        }
    }

    async fn take(&mut self, message: v1::FromAgent) -> Result<(), End> {
        metrics::SESSION_MESSAGES.inc(&[word(message.message.as_ref())]);
        let nonsense = |e: dunlin_model::Invalid| End::Dismissed(e.into());
        match message.message {
            Some(from_agent::Message::Report(report)) => {
                let _timed = metrics::SESSION_REPORT.time();
                let report = Report {
                    complete: report.complete,
                    vms: read(report.vms, "vms").map_err(nonsense)?,
                    gone: read(report.gone, "gone").map_err(nonsense)?,
                    acts: read(report.acts, "acts").map_err(nonsense)?,
                    taken: Revision(report.generation),
                };
                self.reported |= self.node.board.take_in(self.opened.host, self.opened.session, report);
            }
            Some(from_agent::Message::Capabilities(capabilities)) => {
                self.capabilities = read(Some(capabilities), "capabilities").map_err(nonsense)?;
                self.store_capabilities().await;
            }
            Some(from_agent::Message::Hello(_)) => {
                let fault = Fault::new(ErrorCode::InvalidArgument, "Hello is only the first message");
                return Err(End::Dismissed(fault));
            }
            Some(from_agent::Message::Samples(taken)) => {
                let samples: Vec<Sample> = read(taken.samples, "samples").map_err(nonsense)?;
                // While a guest moves, both hosts measure it; the one it belongs to counts.
                let (view, host) = (self.node.replica.read(), self.opened.host);
                let own = samples.into_iter().filter_map(|sample| {
                    let vm = view.vm(sample.vm).filter(|vm| vm.status.host == Some(host))?;
                    Some((sample, u64::from(vm.spec.cpus) * 1_000))
                });
                self.node.board.measured(host, taken.at_ms, &own.collect::<Vec<_>>());
            }
            Some(from_agent::Message::Unmanaged(told)) => {
                let vms = read(told.vms, "unmanaged").map_err(nonsense)?;
                self.node.board.unmanaged(self.opened.host, self.opened.session, vms);
            }
            Some(from_agent::Message::Pong(pong)) => self.compare_clocks(pong),
            // An empty message is of a newer agent; it is a sign of life.
            None => {}
        }
        Ok(())
    }

    /// When the state has not what the host says, as far as the level allows it: news, or a level that was raised.
    async fn store_capabilities(&self) {
        let Opened { host, session, term, .. } = *self.opened;
        let view = self.node.replica.read();
        let Some(stored) = view.host(host).filter(|host| host.status.session == session) else { return };
        let capabilities = self.capabilities.clone().at(view.level());
        if stored.status.capabilities == capabilities {
            return;
        }
        let command = Command::SetCapabilities { host, session, capabilities };
        if let Err(error) = self.node.replica.propose_in_term(term, &command).await {
            tracing::debug!(%error, "capabilities were not stored");
        }
    }

    /// By the ping that was sent last, when the agent says what time it has.
    fn compare_clocks(&mut self, pong: v1::Pong) {
        let Some((_, sent)) = self.pinged.filter(|(nonce, _)| *nonce == pong.nonce && pong.now_ms > 0) else {
            return;
        };
        let round_trip_ms = u64::try_from(sent.elapsed().as_millis()).unwrap_or(u64::MAX);
        let signed = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
        let then = signed(clock::now().0).saturating_sub(signed(round_trip_ms / 2));
        let ahead_ms = signed(pong.now_ms).saturating_sub(then);
        self.opened.seat.clock.send_replace(Some((ahead_ms, round_trip_ms)));
    }

    /// Tells the host what it should be doing, when that has changed since it was last told.
    fn tell_desired(&mut self) -> Result<(), End> {
        let view = self.views.borrow_and_update().clone();
        let host = self.opened.host;
        if view.host(host).is_some()
            && !view.trust().admits(&self.opened.peer.identity, self.opened.peer.serial)
        {
            let message = format!("the certificate of host {host} was revoked");
            return Err(End::Dismissed(Fault::new(ErrorCode::Unauthenticated, message)));
        }
        match view.host(host).map(|host| (host.status.session, host.status.phase)) {
            None => {
                let message = format!("host {host} was removed from the cluster");
                return Err(End::Dismissed(Fault::new(ErrorCode::Unauthenticated, message)));
            }
            Some((session, _)) if session != self.opened.session => return Err(End::Dismissed(taken_over())),
            // Given up although it is held. The agent opens another one, and with it the host is Up again.
            Some((_, HostPhase::Down)) => return Err(End::Gone("the host counts as down")),
            Some(_) => {}
        }
        if self.opened.seat.level < view.level() {
            return Err(End::Dismissed(too_old("", self.opened.seat.level, view.level())));
        }
        if self.trusted != Some(view.trust().epoch()) {
            let trust = v1::Trust { authorities: authorities(view.trust()) };
            if !say(self.to_agent, to_agent::Message::Trust(trust)) {
                return Err(End::Gone("the agent does not take in what it is told"));
            }
            self.trusted = Some(view.trust().epoch());
        }
        let Some(desired) = self.node.board.desired_set(&view, host) else { return Ok(()) };
        if self.told.as_ref().is_some_and(|told| !is_news(&view, told, &desired)) {
            return Ok(());
        }
        tracing::debug!(generation = %desired.generation, assignments = desired.assignments.len(), "tells");
        let threads = self.node.threads.of(&view, &desired);
        let fresh = threads.iter().filter(|(uid, id)| self.threads.get(uid) != Some(id));
        let ids: BTreeMap<_, _> = fresh.map(|(uid, id)| (uid.to_string(), id.clone())).collect();
        // In front of what they are about. One that finds no room is missed in a log, and nowhere else.
        if !ids.is_empty() && say(self.to_agent, to_agent::Message::Threads(v1::Threads { ids })) {
            self.threads = threads;
        }
        if !say(self.to_agent, to_agent::Message::Desired(desired.clone().to_wire())) {
            return Err(End::Gone("the agent does not take in what it is told"));
        }
        metrics::SESSION_TOLD.inc();
        self.told = Some(desired);
        Ok(())
    }
}

/// A message's name, for the metrics.
const fn word(message: Option<&from_agent::Message>) -> &'static str {
    match message {
        Some(from_agent::Message::Hello(_)) => "hello",
        Some(from_agent::Message::Report(_)) => "report",
        Some(from_agent::Message::Samples(_)) => "samples",
        Some(from_agent::Message::Pong(_)) => "pong",
        Some(from_agent::Message::Capabilities(_)) => "capabilities",
        Some(from_agent::Message::Unmanaged(_)) => "unmanaged",
        None => "unknown",
    }
}

/// Where the controllers are, for agents.
fn endpoints(node: &Node) -> Vec<String> {
    node.controllers().into_iter().map(|controller| controller.endpoint).collect()
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn taken_over() -> Fault {
    Fault::new(ErrorCode::AlreadyExists, "a newer session of this host has taken its place")
}

fn say(to_agent: &ToAgentSender, message: to_agent::Message) -> bool {
    to_agent.try_send(Ok(v1::ToAgent { message: Some(message) })).is_ok()
}

fn goodbye(fault: &Fault) -> to_agent::Message {
    to_agent::Message::Goodbye(v1::Goodbye { code: fault.code.to_string(), message: fault.message.clone() })
}

async fn farewell(to_agent: &ToAgentSender, message: to_agent::Message) {
    let message = v1::ToAgent { message: Some(message) };
    if to_agent.send_timeout(Ok(message), FAREWELL_TIMEOUT).await.is_err() {
        tracing::debug!("the agent went before it could be told why");
    }
}

async fn redirect(node: &Node, to_agent: &ToAgentSender) {
    let mut leadership = node.replica.leadership();
    let this = node.config.id;
    let leads = leadership.wait_for(|now| now.is_me || now.leader.as_ref().is_some_and(|is| is.id != this));
    let successor = tokio::select! {
        found = tokio::time::timeout(SUCCESSOR_WAIT, leads) => found.is_ok_and(|found| found.is_ok()),
        () = node.closing.cancelled() => false,
    };
    let leader = if successor { node.leader_endpoint().unwrap_or_default() } else { String::new() };
    farewell(to_agent, to_agent::Message::Redirect(v1::Redirect { leader })).await;
}
