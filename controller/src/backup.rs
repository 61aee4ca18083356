//! Backups: the whole state in one sealed file, and the way back into an empty data directory.
//!
//! Owns the file's head and what a restored state may still claim. A backup is of the past: hosts may run guests that it
//! does not know, and know of guests that have moved since. So a restored state starts nothing by itself; see
//! `State::restored`.
//!
//! A backup holds the key of the cluster's authority, or the agents could not be spoken to after it: it is as secret as a
//! controller's data directory.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use dunlin_model::{ClusterId, ControllerId, Kind, Timestamp};
use dunlin_pki::{CertificateDer, FileError, PkiError, Shown, write_roots, write_shown};
use dunlin_state::{State, snapshot};
use serde::{Deserialize, Serialize};

use crate::config::host_of;
use crate::fleet::View;
use crate::raft::{self, Member, StoreError};
use crate::sealed::{self, BUFFER_BYTES, Format};
use crate::trust::{self, Bundle};
use crate::{clock, mint};

const BACKUP: Format = Format { magic: b"DUNLBKUP", version: 1, noun: "Dunlin backup" };

/// What a backup says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The cluster it is of.
    pub cluster: ClusterId,
    /// What that is called.
    pub name: String,
    /// When it was taken.
    pub taken: Timestamp,
    /// The last command it holds.
    pub index: u64,
    /// The time of that command.
    pub time: Timestamp,
    /// The version of Dunlin that wrote it.
    pub version: String,
    /// How many VMs it holds, for people.
    pub vms: usize,
    /// How many hosts.
    pub hosts: usize,
}

/// Why a backup could not be used.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// It is no whole backup of a version that is known.
    #[error("{} cannot be restored: {what}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Its first controller could not be given an identity.
    #[error("make the identity of the restored controller")]
    Pki(#[from] PkiError),
    /// The files of that could not be written.
    #[error("write the identity of the restored controller")]
    File(#[from] FileError),
    /// The data directory could not be filled.
    #[error("fill the data directory")]
    Store(#[source] StoreError),
}

/// Writes a backup of this view.
pub(crate) fn write(view: &View, out: impl Write) -> io::Result<()> {
    let cluster = view.cluster().ok_or_else(|| io::Error::other("the cluster is not founded yet"))?;
    let head = Head {
        cluster: cluster.metadata.uid,
        name: cluster.metadata.name.to_string(),
        taken: clock::now(),
        index: view.index,
        time: view.time,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        vms: view.objects_of(Kind::Vm).count(),
        hosts: view.objects_of(Kind::Host).count(),
    };
    let head = serde_json::to_vec(&head)?;
    let state = &view.machine;
    let body = |mut out: &mut dyn Write| snapshot::encode(state, &mut out).map_err(io::Error::other);
    sealed::write(BACKUP, out, &head, body).map(drop)
}

/// Checks a backup from its first byte to its last, and reads it.
pub fn read(path: &Path) -> Result<(Head, State), BackupError> {
    let unreadable = |what: String| BackupError::Unreadable { path: path.to_owned(), what };
    let mut file = File::open(path).map_err(|error| unreadable(error.to_string()))?;
    let decode = |input: &mut dyn io::Read| {
        snapshot::decode(&mut io::BufReader::new(input)).map_err(|error| {
            let cause =
                std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            io::Error::other(format!("{error}{cause}"))
        })
    };
    let (head, state) =
        sealed::read(BACKUP, &mut file, decode).map_err(|error| unreadable(error.to_string()))?;
    let head = serde_json::from_slice(&head).map_err(|error| unreadable(format!("its head: {error}")))?;
    Ok((head, state))
}

/// Where to restore to.
#[derive(Clone, Debug)]
pub struct Target {
    /// The first controller of the restored cluster.
    pub id: ControllerId,
    /// Its data directory: none yet, or empty.
    pub data_dir: PathBuf,
    /// Where it will be reached: `https://host:port`.
    pub api_endpoint: String,
    /// Where the other controllers will reach it: `host:port`.
    pub raft_endpoint: String,
    /// Make another cluster of it, which no agent of the old one belongs to.
    pub new_identity: bool,
}

/// Fills the data directory of a new cluster's first controller. Returns the cluster it belongs to.
pub fn restore(path: &Path, target: &Target) -> Result<(Head, ClusterId), BackupError> {
    let (head, state) = read(path)?;
    let cluster = if target.new_identity { ClusterId(mint::uuid()) } else { head.cluster };
    let mut state = state.restored(target.new_identity.then_some(cluster));
    let identity = identity(&mut state, target)?;
    // Nothing listens: the addresses in the store are those that others are told.
    let nowhere = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let config = raft::Config::new(target.id, target.data_dir.join("raft"), nowhere);
    let member = Member { raft: target.raft_endpoint.clone(), api: target.api_endpoint.clone() };
    let (index, time) = (state.index(), state.time());
    raft::restore(&config, cluster, member, &state, index, time).map_err(BackupError::Store)?;
    identity.write(target)?;
    Ok((head, cluster))
}

/// The identity of the restored cluster's first controller: of a new authority, or signed by the one that came back, whom its
/// agents believe.
fn identity(state: &mut State, target: &Target) -> Result<Restored, BackupError> {
    if target.new_identity || state.trust().signer().is_none() {
        state.believe_nobody();
        let host = host_of(&target.api_endpoint).unwrap_or_default().to_owned();
        let mut bundles = trust::bundle(clock::now(), &[(target.id, host)].into())?;
        let bundle = bundles.remove(&target.id).expect("a bundle was asked for this one");
        return Ok(Restored::Founder(Box::new(bundle)));
    }
    let (shown, authorities) = trust::certify_restored(state, target.id, &target.api_endpoint, clock::now())?;
    Ok(Restored::Certified(shown, authorities))
}

enum Restored {
    Founder(Box<Bundle>),
    Certified(Shown, Vec<CertificateDer<'static>>),
}

impl Restored {
    fn write(&self, target: &Target) -> Result<(), BackupError> {
        let folder = target.data_dir.join(trust::FOLDER);
        match self {
            Self::Founder(bundle) => bundle.write(&folder)?,
            Self::Certified(shown, authorities) => {
                write_roots(&folder.join(trust::AUTHORITIES), authorities)?;
                write_shown(&folder.join(trust::IDENTITY), shown)?;
            }
        }
        Ok(())
    }
}

/// Hands on what is written in pieces of one size.
pub(crate) struct Chunked<F> {
    full: Vec<u8>,
    send: F,
}

impl<F: FnMut(Vec<u8>) -> io::Result<()>> Chunked<F> {
    pub(crate) fn new(send: F) -> Self {
        Self { full: Vec::with_capacity(BUFFER_BYTES), send }
    }
}

impl<F: FnMut(Vec<u8>) -> io::Result<()>> Write for Chunked<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let take = bytes.len().min(BUFFER_BYTES - self.full.len());
        self.full.extend_from_slice(&bytes[..take]);
        if self.full.len() == BUFFER_BYTES {
            self.flush()?;
        }
        Ok(take)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.full.is_empty() {
            return Ok(());
        }
        let full = std::mem::replace(&mut self.full, Vec::with_capacity(BUFFER_BYTES));
        (self.send)(full)
    }
}
