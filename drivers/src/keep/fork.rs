//! How a guest comes to have an owner: brought up from nothing, or found again after the agent was gone.
//!
//! What is written before what: the record of the intent, that it may have run, then the fork, then the process's
//! identity. A process whose record does not say `started` was never told of to anybody: it is killed and the start
//! repeated.

use std::sync::Arc;
use std::time::Duration;

use dunlin_model::{Incarnation, VmId};
use futures_util::future::join_all;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

use super::backend::{Backend, Fault, Place};
use super::owner::{Ask, Owner, State};
use super::record::{RECORD_VERSION, Record};
use super::{ASKS_MAX, Handle, START_DEADLINE, Site};
use crate::hypervisor::Launch;
use crate::process::Process;
use crate::run_dir::RunDir;

/// Longest search for a process that was forked and has not yet got its command line.
const FIND_DEADLINE: Duration = Duration::from_secs(10);
/// Pause between looks for it.
const FIND_EVERY: Duration = Duration::from_millis(5);

/// The owner's end of one guest, before there is an owner.
#[derive(Debug)]
pub(super) struct Seat<B> {
    pub(super) site: Arc<Site<B>>,
    pub(super) place: Place,
    pub(super) asks: mpsc::Receiver<Ask>,
    pub(super) state: watch::Sender<State>,
}

/// Both ends of a guest to be.
pub(super) fn seat<B: Backend>(site: &Arc<Site<B>>, launch: &Launch) -> Result<(Handle, Seat<B>), Fault> {
    let dir = RunDir::new(site.backend.dir(), launch.vm);
    dir.prepare(B::STALE)?;
    seat_in(site, dir, launch.incarnation, format!("dunlin.{}.{}", launch.vm, launch.incarnation))
}

fn seat_in<B: Backend>(
    site: &Arc<Site<B>>,
    dir: RunDir,
    incarnation: Incarnation,
    token: String,
) -> Result<(Handle, Seat<B>), Fault> {
    let (to_owner, asks) = mpsc::channel(ASKS_MAX);
    let (state, seen) = watch::channel(State::Coming);
    let place = Place { anchor: Arc::new(dir.anchor()?), dir, token };
    let handle = Handle { incarnation, place: place.clone(), asks: to_owner, state: seen };
    Ok((handle, Seat { site: Arc::clone(site), place, asks, state }))
}

/// Brings a guest up and then owns it. On failure nothing is left of it.
pub(super) async fn bring_up<B: Backend>(seat: Seat<B>, launch: Launch) {
    let begun = Instant::now();
    let (site, place, state) = (Arc::clone(&seat.site), seat.place.clone(), seat.state.clone());
    match come_up(seat, &launch).await {
        Ok(owner) => {
            let took_ms = begun.elapsed().as_millis();
            tracing::info!(vm = %launch.vm, incarnation = %launch.incarnation, took_ms, "guest is up");
            owner.publish();
            owner.run().await;
        }
        Err(fault) => {
            if let Err(left) = site.backend.clear(&place, None).await {
                tracing::warn!(vm = %launch.vm, error = left.message, "a failed start leaves something behind");
            }
            if let Err(error) = place.dir.remove() {
                tracing::warn!(vm = %launch.vm, %error, "a failed start leaves its folder behind");
            }
            state.send_replace(State::Failed(fault.of(B::NAME, "start")));
        }
    }
}

async fn come_up<B: Backend>(seat: Seat<B>, launch: &Launch) -> Result<Owner<B>, Fault> {
    let words = seat.site.backend.plan(launch, &seat.place).await?;
    let mut owner = Owner::new(seat, intent(launch, words));
    if !launch.paused {
        match timeout(START_DEADLINE, owner.fork()).await {
            Ok(forked) => forked?,
            Err(_) => {
                owner.kill_now().await;
                return Err(Fault::refused("it did not come up in time"));
            }
        }
    }
    owner.record.started = true;
    owner.store(true).await?;
    Ok(owner)
}

fn intent(launch: &Launch, words: Vec<String>) -> Record {
    Record {
        version: RECORD_VERSION,
        vm: launch.vm,
        name: launch.name.clone(),
        incarnation: launch.incarnation,
        token: format!("dunlin.{}.{}", launch.vm, launch.incarnation),
        words,
        process: None,
        started: false,
        ever_ran: false,
        paused: launch.paused,
        reboot_on_shutdown: false,
        pressed: false,
        resetting: false,
        reboots: 0,
        ending: None,
        ended: None,
    }
}

/// Takes over every guest that has a folder.
pub(super) async fn adopt_all<B: Backend>(site: &Arc<Site<B>>) -> Result<Vec<(VmId, Handle)>, Fault> {
    let folders = RunDir::all(site.backend.dir())?;
    let adopted = join_all(folders.into_iter().map(|dir| adopt(site, dir))).await;
    let known = adopted.into_iter().filter_map(|adopted| match adopted {
        Ok(adopted) => adopted,
        Err(fault) => {
            tracing::error!(error = fault.message, "a guest's folder cannot be read: it is left alone");
            None
        }
    });
    Ok(known.collect())
}

async fn adopt<B: Backend>(site: &Arc<Site<B>>, dir: RunDir) -> Result<Option<(VmId, Handle)>, Fault> {
    let Some(record) = dir.load::<Record>(RECORD_VERSION)? else {
        // Without a record nothing was forked.
        dir.remove()?;
        return Ok(None);
    };
    let process = find(&dir, &record).await?;
    let (handle, seat) = seat_in(site, dir.clone(), record.incarnation, record.token.clone())?;
    let vm = record.vm;
    if record.ended.is_some() {
        seat.state.send_replace(State::Up(Box::new(record.guest(None, None))));
        return Ok(Some((vm, handle)));
    }
    let started = record.started;
    let mut owner = Owner::new(seat, record);
    if !started {
        match process {
            Some(process) => owner.take_over(process).await?,
            None => site.backend.clear(&owner.place, owner.record.process.as_ref()).await?,
        }
        owner.kill_now().await;
        tracing::info!(%vm, "a start that was broken off is cleared away");
        dir.remove()?;
        return Ok(None);
    }
    let goes_on = match process {
        Some(process) => owner.take_over(process).await.map(|()| true)?,
        // Started paused, and nobody has resumed it yet.
        None if owner.record.paused && !owner.record.ever_ran => true,
        None => owner.finish("it ended while no agent was there").await,
    };
    owner.publish();
    if goes_on {
        tokio::spawn(owner.run());
    }
    Ok(Some((vm, handle)))
}

/// The record's process, if it lives. The lock in the folder tells whether one is just being forked.
async fn find(dir: &RunDir, record: &Record) -> Result<Option<Process>, Fault> {
    if let Some(id) = &record.process
        && let Some(process) = Process::adopt(id, &record.token)
    {
        return Ok(Some(process));
    }
    let deadline = Instant::now() + FIND_DEADLINE;
    loop {
        // The lock first: whoever had it until now has got its command line since.
        let free = dir.lock()?.is_some();
        if let Some(process) = Process::find(&record.token) {
            return Ok(Some(process));
        }
        if free || Instant::now() > deadline {
            return Ok(None);
        }
        sleep(FIND_EVERY).await;
    }
}
