//! Whose store this is, and whose messages it may read.
//!
//! ```text
//!   blank ──init (mints an id) or first contact (takes the caller's)──> member of that cluster, for ever
//! ```
//! The identity lies in the store and, as plain text, in a file beside it: the file tells a human whose directory this
//! is, and it tells this code that a store which comes up empty has been lost rather than never filled.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use dunlin_model::{ClusterId, ControllerId};
use dunlin_proto::v1 as wire;
use tokio::sync::{OnceCell, watch};
use tonic::Status;
use uuid::Uuid;

use super::engine::{LogEngine, MetaKey};
use super::log_store::LogStore;
use super::{Config, StoreError, record};
use crate::mint;

/// The layout of the data directory. 1: sled `log` and `meta` trees, snapshot files.
const FORMAT: u32 = 1;

/// The version of the transport's messages.
const WIRE_VERSION: u32 = 1;

/// The plain-text file.
const FILE: &str = "IDENTITY";

/// Who this controller is.
pub(super) struct Identity {
    pub(super) me: ControllerId,
    /// Minted with the store.
    pub(super) store: u64,
    path: PathBuf,
    cluster: OnceCell<ClusterId>,
    /// The cluster as text, empty while unknown.
    text: watch::Sender<String>,
    /// Where to write it down; taken away when the store closes.
    log: Mutex<Option<LogStore>>,
}

impl Identity {
    /// Reads the identity of the store, or gives it one. Blocks.
    pub(super) fn open(engine: &dyn LogEngine, config: &Config) -> Result<Self, StoreError> {
        let path = config.data_dir.clone();
        let file = path.join(FILE);
        let damaged = |what: String| StoreError::Damaged { path: path.clone(), what };
        let stored = engine.get(MetaKey::Identity)?.map(record::decode_identity).transpose();
        let stored = stored.map_err(|error| damaged(format!("its identity is unreadable: {error}")))?;
        let (identity, cluster) = match stored {
            Some(identity) => {
                let cluster = check(&identity, config)?;
                (identity, cluster)
            }
            None if file.exists() => {
                return Err(damaged(format!(
                    "{} says the store was in use, but the store is empty",
                    file.display()
                )));
            }
            None => (blank(config), None),
        };
        let this = Self {
            me: config.id,
            store: identity.store,
            path: path.clone(),
            cluster: OnceCell::new(),
            text: watch::Sender::new(String::new()),
            log: Mutex::new(None),
        };
        if let Some(cluster) = cluster.or(config.cluster) {
            if identity.cluster_id.is_empty() {
                engine.put(MetaKey::Identity, &record::encode_identity(&this.message(Some(cluster))))?;
            }
            this.set(cluster);
        } else {
            engine.put(MetaKey::Identity, &record::encode_identity(&identity))?;
        }
        engine.sync()?;
        write_file(&path, &this.text_of(this.cluster()))
            .map_err(|source| io_error("write IDENTITY in", &path, source))?;
        Ok(this)
    }

    /// From now on a blank identity can take a cluster's.
    pub(super) fn attach(&self, log: LogStore) {
        *self.log.lock().unwrap_or_else(PoisonError::into_inner) = Some(log);
    }

    /// Lets go of the store.
    pub(super) fn release(&self) {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    pub(super) fn cluster(&self) -> Option<ClusterId> {
        self.cluster.get().copied()
    }

    /// The cluster as text, empty while unknown.
    pub(super) fn text(&self) -> watch::Receiver<String> {
        self.text.subscribe()
    }

    /// Makes a blank store a member of `cluster`; returns the cluster it is a member of then. Durable on return.
    pub(super) async fn join(&self, cluster: ClusterId) -> Result<ClusterId, String> {
        let joined = self.cluster.get_or_try_init(|| async {
            let log = self.log.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let log = log.ok_or("the store is closed")?;
            let record = record::encode_identity(&self.message(Some(cluster)));
            log.put(MetaKey::Identity, record).await.map_err(|error| error.to_string())?;
            let (path, text) = (self.path.clone(), self.text_of(Some(cluster)));
            let written = tokio::task::spawn_blocking(move || write_file(&path, &text)).await;
            written.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
            self.text.send_replace(cluster.to_string());
            tracing::info!(%cluster, controller = %self.me, "joined the cluster");
            Ok::<_, String>(cluster)
        });
        joined.await.copied()
    }

    /// The head of a message to controller `to`. `None` while this store is blank: it has nothing to say.
    pub(super) fn header(&self, to: u64) -> Option<wire::RaftHeader> {
        let cluster_id = self.cluster()?.to_string();
        Some(wire::RaftHeader { version: WIRE_VERSION, cluster_id, from: self.me.0, to })
    }

    /// Refuses mail of another version, for another controller, or from another cluster. Returns who speaks.
    pub(super) async fn admit(&self, header: Option<wire::RaftHeader>) -> Result<u64, Status> {
        let header = header.ok_or_else(|| Status::invalid_argument("the message has no header"))?;
        if header.version != WIRE_VERSION {
            let text =
                format!("the message has version {}; this controller speaks {WIRE_VERSION}", header.version);
            return Err(Status::failed_precondition(text));
        }
        if header.to != self.me.0 {
            let text =
                format!("the message is for controller {}, but this is controller {}", header.to, self.me);
            return Err(Status::failed_precondition(text));
        }
        let theirs = Uuid::parse_str(&header.cluster_id).map(ClusterId);
        let theirs =
            theirs.map_err(|_| Status::invalid_argument("the message's cluster id is not a UUID"))?;
        let mine = self.join(theirs).await.map_err(Status::unavailable)?;
        if mine == theirs {
            return Ok(header.from);
        }
        Err(Status::failed_precondition(format!(
            "controller {} of cluster {theirs} called controller {} of cluster {mine}: one of the two has a foreign \
             data directory or a wrong peer address",
            header.from, self.me
        )))
    }

    fn set(&self, cluster: ClusterId) {
        self.text.send_replace(cluster.to_string());
        // Only `open` calls this, once, on a fresh cell.
        drop(self.cluster.set(cluster));
    }

    fn message(&self, cluster: Option<ClusterId>) -> wire::StoreIdentity {
        wire::StoreIdentity {
            format: FORMAT,
            cluster_id: cluster.map_or_else(String::new, |cluster| cluster.to_string()),
            controller_id: self.me.0,
            store: self.store,
        }
    }

    fn text_of(&self, cluster: Option<ClusterId>) -> String {
        let cluster = cluster.map_or_else(|| "none yet".into(), |cluster| cluster.to_string());
        format!("Dunlin controller {}, cluster {cluster}. Do not edit, do not copy.\n", self.me)
    }
}

fn blank(config: &Config) -> wire::StoreIdentity {
    wire::StoreIdentity {
        format: FORMAT,
        cluster_id: String::new(),
        controller_id: config.id.0,
        store: mint::nonce(),
    }
}

/// Refuses a store of another controller, another cluster, or a newer format.
fn check(identity: &wire::StoreIdentity, config: &Config) -> Result<Option<ClusterId>, StoreError> {
    let path = config.data_dir.clone();
    if identity.format > FORMAT {
        return Err(StoreError::Newer { path, found: identity.format, known: FORMAT });
    }
    if identity.controller_id != config.id.0 {
        let found = ControllerId(identity.controller_id);
        return Err(StoreError::ForeignController { path, found, wanted: config.id });
    }
    if identity.cluster_id.is_empty() {
        return Ok(None);
    }
    let Ok(found) = Uuid::parse_str(&identity.cluster_id).map(ClusterId) else {
        return Err(StoreError::Damaged { path, what: "its cluster id is not a UUID".into() });
    };
    match config.cluster {
        Some(wanted) if wanted != found => Err(StoreError::ForeignCluster { path, found, wanted }),
        _ => Ok(Some(found)),
    }
}

/// Replaces the file durably.
fn write_file(path: &Path, text: &str) -> std::io::Result<()> {
    let temporary = path.join("IDENTITY.tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path.join(FILE))?;
    File::open(path)?.sync_all()
}

fn io_error(act: &'static str, path: &Path, source: std::io::Error) -> StoreError {
    StoreError::Io { act, path: path.to_owned(), source }
}
