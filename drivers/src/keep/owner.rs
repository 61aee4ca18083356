//! The task that owns one guest: every verb, every word of the guest and its end pass through it, one at a time.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dunlin_model::Incarnation;
use dunlin_model::observed::EndCause;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Site;
use super::backend::{Backend, Fault, How, Live, News, Place, Reset};
use super::fork::Seat;
use super::record::Record;
use super::{START_DEADLINE, console};
use crate::DriverError;
use crate::error::DriverErrorKind;
use crate::hypervisor::{DriverResult, Guest, Notice, Run};
use crate::process::Process;

/// How long a killed process may take to be gone; one that waits for a dead disk cannot be killed at all.
const DEATH_DEADLINE: Duration = Duration::from_secs(30);
/// News waiting for the owner. A guest has few, and whoever sends more waits.
const NEWS_MAX: usize = 16;

/// How far a guest is, as the driver's handle sees it.
#[derive(Clone, Debug)]
pub(super) enum State {
    Coming,
    Up(Box<Guest>),
    Failed(DriverError),
}

impl State {
    pub(super) fn has_ended(&self) -> bool {
        match self {
            Self::Coming => false,
            Self::Up(guest) => matches!(guest.run, Run::Ended(..)),
            Self::Failed(_) => true,
        }
    }
}

/// A verb for the owner.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) verb: Verb,
    pub(super) reply: Reply,
}

type Reply = oneshot::Sender<DriverResult<Answer>>;

#[derive(Clone, Debug)]
pub(super) enum Verb {
    Shutdown,
    RebootOnShutdown(bool),
    Reset,
    Destroy,
    Pause,
    Resume,
    AdoptIncarnation(Incarnation),
}

impl Verb {
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Shutdown => "shutdown",
            Self::RebootOnShutdown(_) => "reboot_on_shutdown",
            Self::Reset => "reset",
            Self::Destroy => "destroy",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::AdoptIncarnation(_) => "adopt_incarnation",
        }
    }
}

#[derive(Debug)]
pub(super) enum Answer {
    Done,
    Guest(Box<Guest>),
}

/// One guest.
#[derive(Debug)]
pub(super) struct Owner<B> {
    site: Arc<Site<B>>,
    pub(super) place: Place,
    pub(super) record: Record,
    /// None before it first runs.
    live: Option<Live>,
    asks: mpsc::Receiver<Ask>,
    state: watch::Sender<State>,
    news: Option<mpsc::Receiver<News>>,
    /// The guest's ear and its console; they end with it.
    tasks: Vec<JoinSet<()>>,
    resumed_at_ms: Option<u64>,
    /// Answers that are due when the process is gone.
    at_end: Vec<Reply>,
}

impl<B: Backend> Owner<B> {
    pub(super) fn new(seat: Seat<B>, record: Record) -> Self {
        let Seat { site, place, asks, state } = seat;
        Self {
            site,
            place,
            record,
            live: None,
            asks,
            state,
            news: None,
            tasks: Vec::new(),
            resumed_at_ms: None,
            at_end: Vec::new(),
        }
    }

    /// Serves until the guest has ended or the driver is dropped.
    pub(super) async fn run(mut self) {
        loop {
            let goes_on = tokio::select! {
                // Verbs first: a process that is gone because it was told to is told apart from one that died.
                biased;
                ask = self.asks.recv() => match ask {
                    Some(ask) => self.take(ask).await,
                    None => return,
                },
                end = gone(self.live.clone()) => self.finish(&end).await,
                news = next(&mut self.news) => self.hear(news).await,
            };
            self.publish();
            if !goes_on {
                // The one who asked may have given up.
                self.at_end.drain(..).for_each(|reply| drop(reply.send(Ok(Answer::Done))));
                return;
            }
        }
    }

    fn guest(&self) -> Guest {
        self.record.guest(self.live.as_ref().map(|live| live.process.id.pid), self.resumed_at_ms)
    }

    /// Tells everybody what the guest looks like, when that has changed.
    pub(super) fn publish(&self) {
        let guest = self.guest();
        let changed = self.state.send_if_modified(|state| {
            let same = matches!(state, State::Up(known) if **known == guest);
            *state = State::Up(Box::new(guest.clone()));
            !same
        });
        if changed {
            // Nobody listens: list() has it.
            let _ = self.site.notices.send(Notice { guest });
        }
    }

    /// Writes the record without holding up the other guests.
    pub(super) async fn store(&self, durable: bool) -> Result<(), Fault> {
        let (dir, record) = (self.place.dir.clone(), self.record.clone());
        if !durable {
            return Ok(dir.store(&record, false)?);
        }
        let stored = tokio::task::spawn_blocking(move || dir.store(&record, true)).await;
        Ok(stored.expect("the store does not panic")?)
    }

    /// What nobody waits for goes to the log when it fails.
    fn note(&self, result: Result<(), Fault>) {
        if let Err(fault) = result {
            tracing::warn!(vm = %self.record.vm, error = fault.message, "guest");
        }
    }

    async fn take(&mut self, Ask { verb, reply }: Ask) -> bool {
        let name = verb.name();
        tracing::debug!(vm = %self.record.vm, verb = name, "asked");
        let done = match verb {
            Verb::Destroy => return self.destroy(reply).await,
            Verb::Shutdown => self.shutdown().await.map(|()| Answer::Done),
            Verb::RebootOnShutdown(reboot) => {
                self.record.reboot_on_shutdown = reboot;
                self.store(true).await.map(|()| Answer::Done)
            }
            Verb::Reset => self.reset().await.map(|()| Answer::Done),
            Verb::Pause => self.pause().await.map(|()| Answer::Guest(Box::new(self.guest()))),
            Verb::Resume => self.resume().await.map(|()| Answer::Guest(Box::new(self.guest()))),
            Verb::AdoptIncarnation(incarnation) => {
                self.adopt_incarnation(incarnation).await.map(|()| Answer::Done)
            }
        };
        self.publish();
        // The one who asked may have given up.
        let _ = reply.send(done.map_err(|fault| fault.of(B::NAME, name)));
        true
    }

    async fn destroy(&mut self, reply: Reply) -> bool {
        self.record.ending = Some((EndCause::Told, String::new()));
        // Not worth a refusal when the disk is full: it would only be remembered as having died.
        let stored = self.store(false).await;
        self.note(stored);
        self.at_end.push(reply);
        match &self.live {
            Some(live) => {
                self.site.backend.kill(live);
                true
            }
            None => self.finish("it never ran").await,
        }
    }

    fn running(&self) -> Result<Live, Fault> {
        match &self.live {
            Some(live) if !self.record.paused => Ok(live.clone()),
            _ => Err(Fault::refused("the guest stands still")),
        }
    }

    async fn shutdown(&mut self) -> Result<(), Fault> {
        let live = self.running()?;
        self.record.pressed = true;
        self.store(true).await?;
        self.site.backend.press(&live).await
    }

    async fn reset(&mut self) -> Result<(), Fault> {
        let live = self.running()?;
        if self.site.backend.reset(&live).await? == Reset::Anew {
            self.record.resetting = true;
            self.store(true).await?;
            self.site.backend.kill(&live);
        }
        Ok(())
    }

    async fn pause(&mut self) -> Result<(), Fault> {
        if self.record.paused {
            return Ok(());
        }
        let live = self.running()?;
        self.site.backend.pause(&live).await?;
        self.record.paused = true;
        self.store(true).await
    }

    async fn resume(&mut self) -> Result<(), Fault> {
        if !self.record.paused {
            return Ok(());
        }
        match self.live.clone() {
            Some(live) => self.site.backend.resume(&live).await?,
            None => match timeout(START_DEADLINE, self.fork()).await {
                Ok(forked) => forked?,
                Err(_) => {
                    self.kill_now().await;
                    return Err(Fault::refused("it did not come up in time"));
                }
            },
        }
        self.record.paused = false;
        self.resumed_at_ms = Some(now_ms());
        self.store(true).await
    }

    async fn adopt_incarnation(&mut self, incarnation: Incarnation) -> Result<(), Fault> {
        if incarnation < self.record.incarnation {
            let has = self.record.incarnation;
            return Err(Fault::refused(format!("it carries incarnation {has} already")));
        }
        self.record.incarnation = incarnation;
        self.store(true).await
    }

    /// Makes the process, and waits until its machine runs. On failure no process is left.
    pub(super) async fn fork(&mut self) -> Result<(), Fault> {
        let busy = || Fault::new(DriverErrorKind::Busy, "an earlier process of this VM is still there");
        let lock = self.place.dir.lock()?.ok_or_else(busy)?;
        self.record.ever_ran = true;
        self.store(true).await?;
        self.attend()?;
        let (site, place, words) = (Arc::clone(&self.site), self.place.clone(), self.record.words.clone());
        let forked = tokio::task::spawn_blocking(move || site.backend.fork(&place, &words, &lock)).await;
        let process = Arc::new(forked.expect("a fork does not panic")?);
        self.record.process = Some(process.id.clone());
        let live = Live { place: self.place.clone(), process };
        self.live = Some(live.clone());
        // Not flushed: what may come after this is the agent's death, not the host's, which would end the process too.
        self.store(false).await?;
        tokio::select! {
            news = next(&mut self.news) => match news {
                News::Up => {
                    self.resumed_at_ms = Some(now_ms());
                    Ok(())
                }
                News::Panicked(words) => {
                    self.kill_now().await;
                    Err(Fault::refused(words))
                }
            },
            end = gone(Some(live)) => {
                let how = self.site.backend.how(&self.place, &end);
                self.kill_now().await;
                match how {
                    How::Died(words) => Err(Fault::refused(words)),
                    How::PowerOff => Err(Fault::refused("it powered itself off before it was up")),
                }
            }
        }
    }

    /// Has an ear and a console for a process, new or found.
    fn attend(&mut self) -> Result<(), Fault> {
        self.tasks.clear();
        let (tell, news) = mpsc::channel(NEWS_MAX);
        self.news = Some(news);
        self.tasks.push(self.site.backend.listen(&self.place, tell)?);
        self.tasks.push(console::serve(&self.place, self.site.backend.console(&self.place))?);
        Ok(())
    }

    /// Owns a process that was found.
    pub(super) async fn take_over(&mut self, process: Process) -> Result<(), Fault> {
        self.attend()?;
        let live = Live { place: self.place.clone(), process: Arc::new(process) };
        self.record.process = Some(live.process.id.clone());
        self.record.paused = self.site.backend.is_paused(&live, self.record.paused).await;
        self.live = Some(live);
        self.store(false).await
    }

    /// Kills what there is and waits until it is gone.
    pub(super) async fn kill_now(&mut self) {
        self.tasks.clear();
        self.news = None;
        if let Some(live) = self.live.take() {
            self.site.backend.kill(&live);
            // Killed and gone, or unkillable and on its own: its command line still says so.
            let _ = timeout(DEATH_DEADLINE, live.process.gone()).await;
        }
        let cleared = self.site.backend.clear(&self.place, self.record.process.as_ref()).await;
        self.note(cleared);
    }

    async fn hear(&mut self, news: News) -> bool {
        let ending = match news {
            News::Panicked(words) => Some((EndCause::Died, words)),
            // The button makes many a guest restart. Nobody wanted that: it ends where it would begin again.
            News::Up if self.record.pressed && !self.record.reboot_on_shutdown => {
                Some((EndCause::GuestShutdown, "the guest shut itself down".to_owned()))
            }
            News::Up => {
                (self.record.pressed, self.record.reboot_on_shutdown) = (false, false);
                // On record: whoever waits for a restart may be another process by then.
                self.record.reboots += 1;
                None
            }
        };
        let ends = ending.is_some();
        self.record.ending = ending.or(self.record.ending.take());
        let stored = self.store(false).await;
        self.note(stored);
        if let Some(live) = self.live.as_ref().filter(|_| ends) {
            self.site.backend.kill(live);
        }
        true
    }

    /// The process is gone: starts it anew where somebody wanted that, else says how it ended, for good. Does the guest
    /// go on?
    pub(super) async fn finish(&mut self, end: &str) -> bool {
        let how = self.site.backend.how(&self.place, end);
        self.kill_now().await;
        let off = how == How::PowerOff;
        if self.record.ending.is_none() && (self.record.resetting || off && self.record.reboot_on_shutdown) {
            (self.record.resetting, self.record.reboot_on_shutdown) = (false, false);
            self.record.pressed = false;
            self.record.reboots += 1;
            match timeout(START_DEADLINE, self.fork()).await {
                Ok(Ok(())) => {
                    let stored = self.store(true).await;
                    self.note(stored);
                    return true;
                }
                failed => {
                    let words = failed.map_or("it did not come up in time".to_owned(), |done| {
                        done.err().map(|fault| fault.message).unwrap_or_default()
                    });
                    self.kill_now().await;
                    self.record.ending = Some((EndCause::Died, format!("it did not start again: {words}")));
                }
            }
        }
        let seen = match how {
            How::PowerOff => (EndCause::GuestShutdown, "the guest powered itself off".to_owned()),
            How::Died(words) => (EndCause::Died, words),
        };
        self.record.ended = Some(self.record.ending.clone().unwrap_or(seen));
        let stored = self.store(true).await;
        self.note(stored);
        false
    }
}

/// The end of a process; never, when there is none.
async fn gone(live: Option<Live>) -> String {
    match live {
        Some(live) => live.process.gone().await,
        None => std::future::pending().await,
    }
}

/// The next news; never, when there is nobody to tell any.
async fn next(news: &mut Option<mpsc::Receiver<News>>) -> News {
    if let Some(news) = news
        && let Some(told) = news.recv().await
    {
        return told;
    }
    std::future::pending().await
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
