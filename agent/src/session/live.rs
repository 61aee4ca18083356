//! A session while it lives: reports go up as soon as they are true, desired sets come down and wake the workers.

use std::sync::Arc;
use std::time::Duration;

use dunlin_model::capabilities::HostCapabilities;
use dunlin_model::desired::DesiredSet;
use dunlin_model::{ErrorCode, HostId};
use dunlin_pki::KeyPair;
use dunlin_proto::v1::from_agent::Message as Up;
use dunlin_proto::v1::to_agent::Message as Down;
use dunlin_proto::{Fault, v1};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};
use tonic::transport::Channel;

use super::{Agent, End, Opened, fault_of};
use crate::converge::board::{Changes, Sent};
use crate::host::Host;
use crate::keys::{self, Keys, KeysError};
use crate::{capabilities, metrics};

/// VMs in one report: 256 of less than 1 KiB each.
pub(crate) const REPORT_VMS_MAX: usize = 256;

/// A leader that says nothing for so long hangs: it asks for a sign of life every 2 s.
const SILENCE_MAX: Duration = Duration::from_secs(7);

/// How often it is looked whether the certificate is due: it has a week left by then.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(60);

/// How often the host is looked over for capabilities that have changed: disks fill up in minutes, not in seconds.
const CAPABILITIES_INTERVAL: Duration = Duration::from_secs(30);

impl Agent {
    /// Lives the session until it ends.
    pub(super) async fn live(&mut self, opened: Opened) -> End {
        let Opened { outgoing, mut incoming, welcome, endpoint, channel } = opened;
        self.host.line.replace(&welcome.controllers);
        if let Err(error) = self.identity.remember(&welcome.controllers) {
            tracing::warn!(%error, "the list of controllers was not kept");
        }
        let mut heard = Instant::now();
        let uplink = uplink(self, &outgoing);
        tokio::pin!(uplink);
        let mut renewals = interval(RENEWAL_INTERVAL);
        renewals.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let message = tokio::select! {
                message = timeout_at(heard + SILENCE_MAX, incoming.message()) => message,
                end = &mut uplink => return end,
                _ = renewals.tick() => {
                    self.renew_when_due(&channel);
                    continue;
                }
            };
            let message = match message {
                Err(_) => return broken(ErrorCode::Deadline, "the leader fell silent"),
                Ok(Err(status)) => return End::Broken(status.into()),
                Ok(Ok(None)) => return broken(ErrorCode::Unavailable, "the leader closed the stream"),
                Ok(Ok(Some(message))) => message.message,
            };
            heard = Instant::now();
            match message {
                Some(Down::Desired(set)) => take_in(&self.host, self.identity.host, set),
                Some(Down::Ping(ping)) => {
                    // When the queue is full, what is in it is the sign of life.
                    let pong = Up::Pong(v1::Pong { nonce: ping.nonce, now_ms: self.host.now_ms() });
                    let _ = outgoing.try_send(v1::FromAgent { message: Some(pong) });
                }
                Some(Down::OpenTunnel(asked)) => self.tunnels.open(&self.host, endpoint.clone(), asked),
                Some(Down::Redirect(redirect)) => return End::Redirect(redirect.leader),
                Some(Down::Goodbye(goodbye)) => return End::Goodbye(fault_of(goodbye)),
                Some(Down::Trust(trust)) => {
                    if let Err(error) = self.identity.keys.believe(&trust.authorities) {
                        tracing::error!(%error, "the cluster's authorities could not be taken over");
                    }
                    self.renew_when_due(&channel);
                }
                Some(Down::Threads(threads)) => self.host.board.follow(threads.ids),
                // A second Welcome, or a message of a newer controller, changes nothing.
                Some(Down::Welcome(_)) | None => {}
            }
        }
    }

    /// Gets another certificate when it is time, over the connection that is open, while the session goes on: the next
    /// connection shows it.
    fn renew_when_due(&self, channel: &Channel) {
        let keys = Arc::clone(&self.identity.keys);
        metrics::CERTIFICATE.set(keys.expires().map_or(0, |expires| expires.0 / 1000));
        if !keys.is_due() {
            return;
        }
        let channel = channel.clone();
        self.host.spawn(async move {
            // One at a time; whoever finds one under way leaves it to that.
            let Ok(_only) = keys.renewing.try_lock() else { return };
            if !keys.is_due() {
                return;
            }
            match renew(&keys, channel).await {
                Ok(()) => tracing::info!("renewed the certificate of this host"),
                Err(fault) => tracing::warn!(%fault, "the certificate of this host is not renewed yet"),
            }
        });
    }
}

/// Takes in what the leader wants of this host; what cannot be read, or is not for it, changes nothing.
pub(crate) fn take_in(host: &Arc<Host>, id: HostId, set: v1::DesiredSet) {
    let set: DesiredSet = match set.try_into() {
        Ok(set) => set,
        Err(refusal) => {
            tracing::error!(%refusal, "a desired set could not be read and was not taken in");
            return;
        }
    };
    let generation = set.generation;
    match host.board.take_in(set, id) {
        Ok(vms) => {
            metrics::DESIRED.inc();
            tracing::debug!(%generation, vms = vms.len(), "a desired set was taken in");
            vms.into_iter().for_each(|vm| host.wake(vm));
        }
        Err(refusal) => tracing::error!(%refusal, "a desired set was refused"),
    }
}

async fn renew(keys: &Keys, channel: Channel) -> Result<(), Fault> {
    let key = KeyPair::generate().map_err(KeysError::from)?;
    let asked = v1::RenewRequest { public_key: key.public().as_bytes().to_vec() };
    let given = v1::identities_client::IdentitiesClient::new(channel).renew(asked).await?.into_inner();
    keys.believe(&given.authorities)?;
    keys.show(keys::shown(&key, given.certificate, given.issued_ms, given.expires_ms))?;
    Ok(())
}

/// Sends everything there is, then whatever changes, samples and capabilities.
async fn uplink(agent: &Agent, outgoing: &mpsc::Sender<v1::FromAgent>) -> End {
    let host = &agent.host;
    let mut sent = Sent::default();
    let mut told = capabilities::look(host);
    let (mut measured, mut probes) = (host.measured.subscribe(), host.probes.subscribe());
    let mut unmanaged = host.unmanaged.subscribe();
    // Told once in every session.
    unmanaged.mark_changed();
    let mut looks = interval(CAPABILITIES_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let closed = || broken(ErrorCode::Unavailable, "the stream to the leader is closed");
    let mut next = Some(Up::Report(report(host.board.everything(&mut sent), true)));
    loop {
        if let Some(message) = next.take()
            && outgoing.send(v1::FromAgent { message: Some(message) }).await.is_err()
        {
            return closed();
        }
        next = tokio::select! {
            () = host.board.changed() => {
                // Room first, content then: what happens while the line is slow is told as one.
                let Ok(room) = outgoing.reserve().await else { return closed() };
                let changes = host.board.changes(&mut sent, REPORT_VMS_MAX);
                if !changes.is_empty() {
                    room.send(v1::FromAgent { message: Some(Up::Report(report(changes, false))) });
                }
                None
            }
            Ok(()) = measured.changed() => {
                let (at_ms, samples) = measured.borrow_and_update().clone();
                let samples: Vec<v1::Sample> = samples.into_iter().map(Into::into).collect();
                (!samples.is_empty()).then_some(Up::Samples(v1::Samples { samples, at_ms }))
            }
            Ok(()) = unmanaged.changed() => {
                let vms = unmanaged.borrow_and_update().iter().cloned().map(Into::into).collect();
                Some(Up::Unmanaged(v1::UnmanagedVms { vms }))
            }
            Ok(()) = probes.changed() => other_capabilities(host, &mut told),
            _ = looks.tick() => other_capabilities(host, &mut told),
        };
    }
}

fn other_capabilities(host: &Host, told: &mut HostCapabilities) -> Option<Up> {
    let now = capabilities::look(host);
    (now != *told).then(|| {
        told.clone_from(&now);
        Up::Capabilities(now.into())
    })
}

/// A report as it crosses the wire.
pub(crate) fn report(changes: Changes, complete: bool) -> v1::Report {
    metrics::REPORTS.inc();
    v1::Report {
        complete,
        vms: changes.vms.into_iter().map(Into::into).collect(),
        gone: changes.gone.into_iter().map(|vm| vm.to_string()).collect(),
        acts: changes.acts.into_iter().map(Into::into).collect(),
        generation: changes.generation.0,
    }
}

fn broken(code: ErrorCode, message: &str) -> End {
    End::Broken(Fault::new(code, message))
}
