//! Who sits where: at most one session per host, and the news that a rival may need.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use dunlin_model::{HostId, Level};
use dunlin_proto::v1::to_agent::Message;
use dunlin_proto::v1::{Ping, ToAgent};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tonic::Status;

use crate::mint;

/// How long the agent of an older session has to answer before a newer one takes its place: many times a round trip.
const RIVAL_TIMEOUT: Duration = Duration::from_secs(1);

/// What goes to an agent.
pub(super) type ToAgentSender = mpsc::Sender<Result<ToAgent, Status>>;

/// One session's place.
#[derive(Clone, Debug)]
pub(super) struct Seat {
    /// Tells this seat from a later one of the same host.
    pub(super) number: u64,
    /// Which process of the agent.
    pub(super) instance: String,
    pub(super) address: Option<SocketAddr>,
    /// The highest feature level its agent reads.
    pub(super) level: Level,
    /// How far its clock is ahead, and how long the question took there and back, ms.
    pub(super) clock: watch::Sender<Option<(i64, u64)>>,
    pub(super) to_agent: ToAgentSender,
    /// When its agent was last heard.
    pub(super) heard: watch::Sender<Instant>,
    /// Set when another session has taken its place.
    pub(super) replaced: watch::Sender<bool>,
}

/// What a session shows of its agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AgentSeen {
    /// The highest feature level it reads.
    pub(crate) level: Level,
    /// How far its clock is ahead, ms, give or take half of the way there and back. None until it has said.
    pub(crate) ahead_ms: Option<i64>,
    pub(crate) round_trip_ms: u64,
    pub(crate) silent_ms: u64,
}

/// The sessions that end at this controller.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    seats: Mutex<BTreeMap<HostId, Seat>>,
    numbers: AtomicU64,
}

impl Sessions {
    pub(super) fn seat(
        &self,
        instance: String,
        address: Option<SocketAddr>,
        level: Level,
        to_agent: ToAgentSender,
    ) -> Seat {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let (heard, replaced) = (watch::Sender::new(Instant::now()), watch::Sender::new(false));
        let clock = watch::Sender::new(None);
        Seat { number, instance, address, level, clock, to_agent, heard, replaced }
    }

    /// Takes the host's place. Refused, with the one who has it, when another process of the same identity is alive.
    pub(super) async fn claim(&self, host: HostId, seat: &Seat) -> Result<(), Seat> {
        loop {
            let rival = {
                let mut seats = self.lock();
                match seats.get(&host) {
                    Some(rival) if rival.instance != seat.instance && !*rival.replaced.borrow() => {
                        rival.clone()
                    }
                    _ => {
                        if let Some(older) = seats.insert(host, seat.clone()) {
                            older.replaced.send_replace(true);
                        }
                        return Ok(());
                    }
                }
            };
            if answers(&rival).await {
                return Err(rival);
            }
            tracing::warn!(host = %host, address = ?rival.address, "an older session does not answer; replaced");
            rival.replaced.send_replace(true);
        }
    }

    /// Gives the place up, unless another has it.
    pub(super) fn leave(&self, host: HostId, seat: &Seat) {
        let mut seats = self.lock();
        if seats.get(&host).is_some_and(|now| now.number == seat.number) {
            seats.remove(&host);
        }
    }

    /// Every agent, as its session shows it.
    pub(crate) fn seen(&self) -> BTreeMap<HostId, AgentSeen> {
        let seen = |seat: &Seat| {
            let clock = *seat.clock.borrow();
            let silent_ms = u64::try_from(seat.heard.borrow().elapsed().as_millis()).unwrap_or(u64::MAX);
            AgentSeen {
                level: seat.level,
                ahead_ms: clock.map(|(ahead_ms, _)| ahead_ms),
                round_trip_ms: clock.map_or(0, |(_, round_trip_ms)| round_trip_ms),
                silent_ms,
            }
        };
        self.lock().iter().map(|(host, seat)| (*host, seen(seat))).collect()
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.lock().len()
    }

    /// Sends something to a host's agent, when it holds a session and takes it in.
    pub(crate) fn tell(&self, host: HostId, message: Message) -> bool {
        let seat = self.lock().get(&host).cloned();
        seat.is_some_and(|seat| seat.to_agent.try_send(Ok(ToAgent { message: Some(message) })).is_ok())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<HostId, Seat>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Does the agent of that seat still say anything when it is asked?
async fn answers(seat: &Seat) -> bool {
    let mut heard = seat.heard.subscribe();
    heard.mark_unchanged();
    let ping = ToAgent { message: Some(Message::Ping(Ping { nonce: mint::nonce() })) };
    // A full queue is no answer either; its session may still be heard within the wait.
    let _ = seat.to_agent.try_send(Ok(ping));
    tokio::select! {
        heard = tokio::time::timeout(RIVAL_TIMEOUT, heard.changed()) => matches!(heard, Ok(Ok(()))),
        () = seat.to_agent.closed() => false,
    }
}
