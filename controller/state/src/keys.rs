//! Idempotency keys: the same key and write again give the same answer and change nothing.

use std::sync::Arc;

use dunlin_model::{ErrorCode, Kind, Name, Object, Revision, Timestamp};
use imbl::OrdMap;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::command::Write;
use crate::rights::{RightsSpec, RightsWrite};
use crate::{Outcome, Rejected, State};

/// Answers kept: even at 10,000 writes per second a lost answer can be asked for again for 6 s, which is longer than it
/// takes to find a new leader. At worst they take some 12 MiB.
pub const ANSWERS_MAX: usize = 65_536;
/// An answer is kept this long, ms: longer than any client retries.
pub const ANSWER_LIFETIME_MS: u64 = 3_600_000;
/// Longest key, bytes.
pub const KEY_MAX: usize = 64;

/// What a write was answered with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Hash of the write, without what the edge mints for it.
    pub hash: u64,
    /// When.
    pub at: Timestamp,
    /// Log index: the order of answers.
    pub index: u64,
    /// Kind of the object it was about.
    pub kind: Kind,
    /// Uid of that object.
    pub uid: Uuid,
    /// The cluster's revision after it.
    pub revision: Revision,
}

/// An idempotency key, in the order of its sum: two numbers are compared without a look at texts that lie anywhere in
/// memory, which was a tenth of what a write cost the state.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    sum: u64,
    text: Arc<str>,
}

impl Key {
    fn new(text: &str) -> Self {
        let mut fnv = Fnv::default();
        fnv.take(text.as_bytes());
        Self { sum: fnv.0, text: text.into() }
    }
}

/// The answers, by key and by age.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Answers {
    by_key: OrdMap<Key, Answer>,
    by_age: OrdMap<u64, Key>,
}

impl Answers {
    pub(crate) fn insert(&mut self, key: &str, answer: Answer) {
        let key = Key::new(key);
        self.by_age.insert(answer.index, key.clone());
        self.by_key.insert(key, answer);
        while self.by_key.len() > ANSWERS_MAX {
            self.drop_oldest();
        }
    }

    /// Every answer and its key.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Answer)> {
        self.by_key.iter().map(|(key, answer)| (&*key.text, answer))
    }

    fn drop_oldest(&mut self) {
        if let Some((index, key)) = self.by_age.get_min().cloned() {
            self.by_age.remove(&index);
            self.by_key.remove(&key);
        }
    }

    /// Is the oldest answer past its lifetime?
    pub(crate) fn stale(&self, now: Timestamp) -> bool {
        let oldest = self.by_age.get_min().and_then(|(_, key)| self.by_key.get(key));
        oldest.is_some_and(|answer| now.millis_since(answer.at) > ANSWER_LIFETIME_MS)
    }

    pub(crate) fn drop_stale(&mut self, now: Timestamp) {
        while self.stale(now) {
            self.drop_oldest();
        }
    }
}

impl State {
    /// What was answered under an idempotency key, while that is remembered.
    #[must_use]
    pub fn answer(&self, key: &str) -> Option<&Answer> {
        self.answers.by_key.get(&Key::new(key))
    }
}

/// The answer to a write that was answered before.
pub(crate) fn answered(state: &State, key: &str, write: &Write) -> Result<Option<Outcome>, Rejected> {
    if key.is_empty() || key.len() > KEY_MAX {
        let message = format!("idempotency_key: {} bytes; allowed: 1 to {KEY_MAX}", key.len());
        return Err(Rejected::new(ErrorCode::InvalidArgument, message));
    }
    let Some(answer) = state.answer(key) else { return Ok(None) };
    if answer.hash != hash(write) {
        let message = format!("idempotency key {key:?} was used for another request");
        return Err(Rejected::new(ErrorCode::KeyReused, message));
    }
    let object = state.object(answer.kind, answer.uid).cloned();
    Ok(Some(Outcome { revision: answer.revision, object, repeated: true }))
}

pub(crate) fn remember(state: &mut State, key: &str, write: &Write, object: &Arc<Object>) {
    let answer = Answer {
        hash: hash(write),
        at: state.time,
        index: state.index,
        kind: object.kind(),
        uid: object.uid(),
        revision: state.revision,
    };
    state.answers.insert(key, answer);
}

/// FNV-1a over the JSON of what somebody asked for. What the edge mints anew for each attempt does not count: uids,
/// hardware addresses, names of migrations and tasks, tokens.
#[must_use]
pub fn hash(write: &Write) -> u64 {
    if let Write::Checked { asked, .. } = write
        && !asked.is_empty()
    {
        let mut fnv = Fnv::default();
        fnv.take(asked.as_bytes());
        return fnv.0;
    }
    let mut write = write.clone();
    let minted = || -> Name { "minted".parse().expect("a word is a name") };
    match &mut write {
        Write::CreateVm { uid, own_uid, spec, .. } => {
            if !*own_uid {
                uid.0 = Uuid::nil();
            }
            spec.nics.iter_mut().for_each(|nic| nic.mac = None);
        }
        Write::CreateVms { vms } => {
            for vm in vms {
                if !vm.own_uid {
                    vm.uid.0 = Uuid::nil();
                }
                vm.spec.nics.iter_mut().for_each(|nic| nic.mac = None);
            }
        }
        Write::CreateImage { uid, .. } => uid.0 = Uuid::nil(),
        Write::CreateMigration { uid, name, .. } => (uid.0, *name) = (Uuid::nil(), minted()),
        Write::CreateTask { uid, name, .. } => (uid.0, *name) = (Uuid::nil(), minted()),
        Write::DecideRecommendation { migration, name, .. } => (migration.0, *name) = (Uuid::nil(), minted()),
        Write::Rights(RightsWrite::Create { uid, secret, spec, .. }) => {
            (*uid, *secret) = (Uuid::nil(), None);
            if let RightsSpec::ApiToken(spec) = spec {
                spec.expires = Timestamp(0);
            }
        }
        Write::Rights(RightsWrite::SetPassword { hash, .. }) => *hash = None,
        Write::Rights(RightsWrite::Vouch { uid, .. }) => uid.0 = Uuid::nil(),
        Write::CreateToken { sha256, expires, .. } => (*sha256, *expires) = (String::new(), Timestamp(0)),
        _ => {}
    }
    let mut fnv = Fnv::default();
    serde_json::to_writer(&mut fnv, &write).expect("a write has only string keys, and a sum takes all");
    fnv.0
}

/// Sums what is written to it: FNV-1a, 64 bits.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn take(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

impl std::io::Write for Fnv {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.take(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
