//! The connection to the daemon, kept up for as long as the driver is there, and what is heard over it.
//!
//! ```text
//!  connect --> register for events --> look at every guest --> Up: events --> look at that guest
//!     ^                                                         |
//!     +---- wait, or somebody asks <---------- Down <-----------+ the daemon ends: guests go on, nothing is told of them
//! ```

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dunlin_model::VmId;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::client::{Client, ClientError, ClientResult};
use super::moves::Moves;
use super::offers::{Offers, offers};
use super::wire::calls::{DomainDestroy, DomainGetState, DomainGetXml, RegisterDomainEvent};
use super::wire::events::{EVENTS, Event, lifecycle};
use super::wire::fault::NO_DOMAIN;
use super::wire::types::Domain;
use super::{LibvirtConfig, console, fail, failed};
use crate::error::DriverErrorKind;
use crate::hypervisor::{DriverResult, Presence};
use crate::libvirt::guests::{Guests, state};

/// Between two attempts to connect, when nobody asks.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// How long a verb waits for a connection. A restart of libvirtd takes a second or two, its first look at a QEMU four.
const LINK_PATIENCE: Duration = Duration::from_secs(45);

/// From nothing to a connection over which every guest was looked at: thousands of calls of a millisecond each.
const UP_MAX: Duration = Duration::from_secs(90);
/// Why there is none before the first attempt has ended.
const CONNECTING: &str = "not connected yet";

/// How the connection stands.
#[derive(Clone, Debug)]
pub(super) enum Link {
    /// After so many attempts: why not.
    Down(u64, String),
    /// Connected, and what is at the other end.
    Up(Client, Arc<Offers>),
}

/// What all of the driver shares.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) config: LibvirtConfig,
    pub(super) guests: Arc<Guests>,
    pub(super) link: watch::Sender<Link>,
    pub(super) presence: watch::Sender<Presence>,
    pub(super) moves: Moves,
    kick: Notify,
}

impl Site {
    pub(super) fn new(config: LibvirtConfig, guests: Guests) -> Self {
        let link = watch::Sender::new(Link::Down(0, CONNECTING.to_owned()));
        let presence = watch::Sender::new(Presence::Away(format!("{}: {CONNECTING}", config.uri_text)));
        let (guests, moves, kick) = (Arc::new(guests), Moves::default(), Notify::new());
        Self { config, guests, link, presence, moves, kick }
    }

    /// The connection, once there is one.
    pub(super) async fn connected(&self, verb: &'static str) -> DriverResult<(Client, Arc<Offers>)> {
        let mut link = self.link.subscribe();
        let first = match &*link.borrow() {
            Link::Down(attempt, _) => Some(*attempt),
            Link::Up(..) => None,
        };
        if first.is_some() {
            self.kick.notify_one();
        }
        // The next attempt counts: the one under way may have begun before the daemon was back.
        let settled = |link: &Link| match link {
            Link::Up(client, _) => !client.is_closed(),
            Link::Down(attempt, _) => first.is_some_and(|first| *attempt > first + 1),
        };
        let words = match timeout(LINK_PATIENCE, link.wait_for(settled)).await {
            Ok(Ok(found)) => match &*found {
                Link::Up(client, offers) => return Ok((client.clone(), Arc::clone(offers))),
                Link::Down(_, words) => words.clone(),
            },
            Ok(Err(_)) => "the driver is closed".to_owned(),
            Err(_) => format!("no connection within {} s", LINK_PATIENCE.as_secs()),
        };
        Err(fail(verb, DriverErrorKind::Transient, words))
    }

    pub(super) async fn client(&self, verb: &'static str) -> DriverResult<Client> {
        Ok(self.connected(verb).await?.0)
    }

    /// Looks at a guest, and tells what is new.
    pub(super) async fn look(&self, client: &Client, vm: VmId, verb: &'static str) -> DriverResult<()> {
        let ticket = self.guests.ticket();
        let asked = client.call(&DomainGetState { domain: domain(vm), flags: 0 }).await;
        let found = match asked {
            Ok(found) => Some(found),
            Err(error) if error.is(NO_DOMAIN) => None,
            Err(error) => return Err(failed(verb, &error)),
        };
        if found.as_ref().is_some_and(|found| found.state != state::SHUTOFF) {
            self.look_closer(client, vm).await;
        }
        self.guests.take_in(vm, ticket, found).await
    }

    /// What a process has beside its state; it keeps it for life.
    async fn look_closer(&self, client: &Client, vm: VmId) {
        let (Some(record), Some(seen)) = (self.guests.record(vm), self.guests.seen(vm)) else { return };
        if record.ended.is_some() {
            return;
        }
        if seen.pid.is_none() && self.config.is_local() {
            let sockets = self.config.uri.sockets();
            let pid = tokio::task::spawn_blocking(move || qemu_of(vm, &sockets)).await.ok().flatten();
            self.guests.note(vm, |seen| seen.pid = pid);
        }
        if seen.vnc.is_none() && record.has_display {
            let xml = client.call(&DomainGetXml { domain: domain(vm), flags: 0 }).await.unwrap_or_default();
            let vnc = super::launch::display_of(&xml);
            self.guests.note(vm, |seen| seen.vnc = vnc);
        }
    }

    /// Looks at every guest.
    pub(super) async fn look_at_all(&self, client: &Client, verb: &'static str) -> DriverResult<()> {
        for vm in self.guests.all() {
            if self.guests.record(vm).is_some_and(|record| record.started && record.ended.is_none()) {
                self.look(client, vm, verb).await?;
            }
            self.guests.tell(vm);
        }
        Ok(())
    }
}

/// Keeps the connection up. Ends when it is aborted.
pub(super) async fn keep(site: Arc<Site>) {
    let mut attempt = 0;
    let mut trouble = String::new();
    loop {
        attempt += 1;
        let why = match once(&site).await {
            Ok(()) => "the connection has ended".to_owned(),
            Err(error) => error.to_string(),
        };
        if why != trouble {
            tracing::warn!(uri = %site.config.uri_text, %why, "no connection to libvirt");
            trouble.clone_from(&why);
        }
        let away = Presence::Away(format!("{}: {why}", site.config.uri_text));
        site.link.send_replace(Link::Down(attempt, why));
        site.presence.send_if_modified(|presence| {
            *presence != away && {
                *presence = away;
                true
            }
        });
        tokio::select! {
            () = sleep(RETRY_AFTER) => {}
            () = site.kick.notified() => {}
        }
    }
}

async fn once(site: &Arc<Site>) -> ClientResult<()> {
    let late = ClientError::Deadline { call: "CONNECT_OPEN", limit: UP_MAX };
    let (client, offers, mut events) = timeout(UP_MAX, connect(site)).await.unwrap_or(Err(late))?;
    site.link.send_replace(Link::Up(client.clone(), offers));
    site.presence.send_replace(Presence::Here);
    loop {
        match events.recv().await {
            Ok(event) => hear(site, &client, &event).await,
            Err(RecvError::Lagged(_)) => site.look_at_all(&client, "list").await.map_err(|e| gone(&e))?,
            Err(RecvError::Closed) => return Ok(()),
        }
    }
}

fn gone(error: &crate::DriverError) -> ClientError {
    ClientError::Gone(error.to_string())
}

/// A connection over which every guest was looked at.
async fn connect(site: &Arc<Site>) -> ClientResult<(Client, Arc<Offers>, Receiver<Event>)> {
    let (client, events) = Client::open(&site.config.uri, site.config.login.as_ref()).await?;
    let offers = Arc::new(offers(&client, &site.config).await?);
    for (_, event) in EVENTS {
        match client.call(&RegisterDomainEvent { event: *event, domain: None }).await {
            Err(error) if error.fault().is_none() => return Err(error),
            // A driver without that event has nothing to tell of it.
            _ => {}
        }
    }
    site.look_at_all(&client, "list").await.map_err(|e| gone(&e))?;
    console::serve_all(site, &offers);
    Ok((client, offers, events))
}

async fn hear(site: &Arc<Site>, client: &Client, event: &Event) {
    let vm = VmId(Uuid::from_bytes(event.domain().uuid));
    let Some(record) = site.guests.record(vm) else { return };
    if record.ended.is_some() && record.incoming.is_some() {
        // It was let go of, and the source had its word with the daemon all the same. Nobody is to run it.
        let _ = client.call(&DomainDestroy { domain: domain(vm) }).await;
        return;
    }
    let done = async {
        if let Event::Reboot(_) = event {
            site.guests
                .amend(vm, "list", |record| record.reboots += u32::from(record.ended.is_none()))
                .await?;
        }
        if let Event::Lifecycle(told) = event
            && told.event == lifecycle::SUSPENDED
        {
            site.guests.note(vm, |seen| seen.stopped_at_ms = Some(super::verbs::now_ms()));
        }
        site.look(client, vm, "list").await
    };
    if let Err(error) = done.await {
        tracing::warn!(%vm, %error, "an event of libvirt could not be followed up");
    }
}

/// A reference to a VM's domain. libvirt finds it by its UUID alone.
pub(super) fn domain(vm: VmId) -> Domain {
    Domain { name: String::new(), uuid: *vm.0.as_bytes(), id: -1 }
}

/// The QEMU process that carries this UUID and shares its network with the daemon: beside a migration between two daemons
/// of one machine there are two with it.
fn qemu_of(vm: VmId, sockets: &[PathBuf]) -> Option<u32> {
    let network = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let daemon = sockets.iter().find_map(|socket| {
        let stream = std::os::unix::net::UnixStream::connect(socket).ok()?;
        let peer = rustix::net::sockopt::socket_peercred(&stream).ok()?;
        network(&peer.pid.as_raw_nonzero().to_string())
    });
    let uuid = vm.to_string();
    std::fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let name = entry.file_name();
        let pid = name.to_str()?.parse().ok()?;
        let command = std::fs::read(entry.path().join("cmdline")).ok()?;
        let mut words = command.split(|byte| *byte == 0);
        let found = words.any(|word| word == b"-uuid") && words.next() == Some(uuid.as_bytes());
        (found && (daemon.is_none() || network(name.to_str()?) == daemon)).then_some(pid)
    })
}
