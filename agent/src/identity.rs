//! Who this host is: its lock on the data folder, its uid, and the cluster it belongs to. Its key and certificate are `keys`.
//!
//! ```text
//! (nothing) --mint uid and key, durably--> Minted --Join answered--> Enrolled --revoked, and a new token--> Enrolled
//! ```
//! What is minted is kept before the call, so a join whose answer was lost is repeated as the same join.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dunlin_model::{ClusterId, ErrorCode, HostId, Invalid, Role, Secret};
use dunlin_pki::{Clock, JoinToken, KeyPair, Keyring, Ring, Trust};
use dunlin_proto::{Fault, v1};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::config::Config;
use crate::durable;
use crate::journal::hex;
use crate::keys::{self, Keys, KeysError};
use crate::line::Line;

/// Layout of `identity.json`.
const VERSION: u32 = 2;

/// Why the host has no identity.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// Two agents would fight over the same guests.
    #[error("another agent (process {pid}) uses {path}")]
    InUse {
        /// The data folder.
        path: PathBuf,
        /// Its process id, as it wrote it down.
        pid: String,
    },
    /// The file system refused.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The identity cannot be read.
    #[error("{path} is no identity of version {VERSION}: {problem}")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A host that has not joined needs a token.
    #[error("this host has not joined a cluster yet: a one-time token is needed (`dunlin token create`)")]
    NoToken,
    /// The controllers refused the token.
    #[error("the token was refused: {message}")]
    Token {
        /// Their words: unknown, used or expired.
        message: String,
    },
    /// The name belongs to another host.
    #[error("this host cannot join as {name}: {message}")]
    NameTaken {
        /// The name asked for.
        name: String,
        /// Their words.
        message: String,
    },
    /// They belong to another cluster than this host.
    #[error(
        "this host belongs to cluster {ours} ({path}), but these controllers refuse it: {message}; to leave that cluster for good, remove the data folder"
    )]
    OtherCluster {
        /// The cluster this host is enrolled in.
        ours: ClusterId,
        /// Where that is written.
        path: PathBuf,
        /// Their words.
        message: String,
    },
    /// Somebody else is this host.
    #[error(
        "{message}; {path} was copied: one identity is for one host. Remove this data folder and join with a new token, or stop the other agent"
    )]
    Rival {
        /// Where the identity is written.
        path: PathBuf,
        /// The controllers' words.
        message: String,
    },
    /// Its key or certificate cannot be used.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The key or certificate of a host that has joined is gone.
    #[error(
        "{path} belongs to a host that has joined, but its identity.pem or ca.pem is missing: put them back, or give a new token"
    )]
    NoKeys {
        /// The data folder.
        path: PathBuf,
    },
    /// No controller answered, or one failed otherwise.
    #[error("joining failed: {0}")]
    Join(#[source] Fault),
}

/// The identity of a host that has joined.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) path: PathBuf,
    pub(crate) host: HostId,
    pub(crate) keys: Arc<Keys>,
    pub(crate) cluster: ClusterId,
    pub(crate) controllers: Vec<String>,
    used_token: String,
}

#[derive(Clone, Serialize, Deserialize)]
struct OnDisk {
    version: u32,
    host: HostId,
    cluster: Option<ClusterId>,
    controllers: Vec<String>,
    /// SHA-256 of the token it joined with, hex: a unit file goes on giving it at every start.
    #[serde(default)]
    used_token: String,
}

/// The lock on a data folder. Held by everything that may still write there, threads that outlive their task included.
#[derive(Clone, Debug)]
pub(crate) struct DirLock {
    _file: Arc<File>,
}

impl DirLock {
    pub(crate) fn take(folder: &Path) -> Result<Self, IdentityError> {
        let path = folder.join("lock");
        let at = |source| IdentityError::Io { path: path.clone(), source };
        std::fs::create_dir_all(folder).map_err(at)?;
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(at)?;
        if let Err(e) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
            if e != rustix::io::Errno::WOULDBLOCK {
                return Err(at(e.into()));
            }
            let mut pid = String::new();
            file.read_to_string(&mut pid).map_err(at)?;
            return Err(IdentityError::InUse { path: folder.to_owned(), pid: pid.trim().to_owned() });
        }
        // Who holds it is only told to people: a full disk must not keep an agent from its guests.
        let noted = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        if let Err(error) = noted {
            tracing::warn!(%error, path = %path.display(), "the lock is held, but not signed");
        }
        Ok(Self { _file: Arc::new(file) })
    }
}

/// The host's identity; joins when it has none, or when a token it has not used yet lets it in again.
pub(crate) async fn enrol(config: &Config) -> Result<Identity, IdentityError> {
    let path = config.data_dir.join("identity.json");
    let known = match read(&path)? {
        Some(known) => known,
        None if config.token.is_none() => return Err(IdentityError::NoToken),
        None => {
            let host = HostId(uuid::Uuid::new_v4());
            let (cluster, controllers, used_token) = (None, Vec::new(), String::new());
            let minted = OnDisk { version: VERSION, host, cluster, controllers, used_token };
            write(&path, &minted)?;
            minted
        }
    };
    let keys = Keys::open(&config.data_dir)?;
    let known = match (&known.cluster, &config.token, &keys) {
        (Some(_), None, Some(_)) => known,
        (Some(_), Some(token), Some(keys)) if keys.holds() => {
            // One that was revoked does not know it yet; a new token is there to let it in again.
            if known.used_token == digest(token) {
                known
            } else {
                readmitted(config, token, known, &path).await?
            }
        }
        (_, Some(token), _) => {
            let joined = join(config, token, known).await?;
            write(&path, &joined)?;
            joined
        }
        (Some(_), None, None) => return Err(IdentityError::NoKeys { path: config.data_dir.clone() }),
        (None, None, _) => return Err(IdentityError::NoToken),
    };
    let OnDisk { host, cluster, controllers, used_token, .. } = known;
    let cluster = cluster.ok_or(IdentityError::NoToken)?;
    let keys = Keys::open(&config.data_dir)?;
    let keys = keys.ok_or_else(|| IdentityError::NoKeys { path: config.data_dir.clone() })?;
    Ok(Identity { path, host, keys, cluster, controllers, used_token })
}

/// Joins again under the same uid; where that is refused, the host is who it was.
async fn readmitted(
    config: &Config,
    token: &Secret,
    known: OnDisk,
    path: &Path,
) -> Result<OnDisk, IdentityError> {
    match join(config, token, known.clone()).await {
        Ok(joined) => {
            write(path, &joined)?;
            Ok(joined)
        }
        Err(error) => {
            tracing::warn!(%error, "the token was not needed, or not taken; this host is who it was");
            Ok(known)
        }
    }
}

fn digest(token: &Secret) -> String {
    hex(&Sha256::digest(token.expose().trim().as_bytes()))
}

impl Identity {
    /// The controllers that are known do not know this host.
    pub(crate) fn refused(&self, message: String) -> IdentityError {
        IdentityError::OtherCluster { ours: self.cluster, path: self.path.clone(), message }
    }

    /// Another agent with this identity is alive.
    pub(crate) fn rivalled(&self, message: String) -> IdentityError {
        IdentityError::Rival { path: self.path.clone(), message }
    }

    /// Keeps the controllers the cluster has now.
    pub(crate) fn remember(&mut self, controllers: &[String]) -> Result<(), IdentityError> {
        if controllers.is_empty() || self.controllers == controllers {
            return Ok(());
        }
        self.controllers = controllers.to_vec();
        let on_disk = OnDisk {
            version: VERSION,
            host: self.host,
            cluster: Some(self.cluster),
            controllers: self.controllers.clone(),
            used_token: self.used_token.clone(),
        };
        write(&self.path, &on_disk)
    }
}

fn read(path: &Path) -> Result<Option<OnDisk>, IdentityError> {
    let damaged = |problem: String| IdentityError::Damaged { path: path.to_owned(), problem };
    match std::fs::read(path) {
        Ok(bytes) => {
            let found: OnDisk = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
            if found.version != VERSION {
                return Err(damaged(format!("it has version {}", found.version)));
            }
            Ok(Some(found))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(IdentityError::Io { path: path.to_owned(), source }),
    }
}

fn write(path: &Path, identity: &OnDisk) -> Result<(), IdentityError> {
    let bytes = serde_json::to_vec_pretty(identity).map_err(io::Error::from);
    bytes
        .and_then(|bytes| durable::replace(path, &bytes))
        .map_err(|source| IdentityError::Io { path: path.to_owned(), source })
}

async fn join(config: &Config, token: &Secret, minted: OnDisk) -> Result<OnDisk, IdentityError> {
    let refused = |message: String| IdentityError::Token { message };
    let used_token = digest(token);
    let token: JoinToken = token.expose().parse().map_err(|e: Invalid| refused(e.to_string()))?;
    if token.role != Role::Host {
        return Err(refused(format!("it is {token}, not for a host")));
    }
    let key = keys::joining(&config.data_dir)?;
    let request = v1::JoinRequest {
        token: token.secret.expose().to_owned(),
        role: v1::IdentityRole::Host.into(),
        name: config.name.to_string(),
        labels: config.labels.clone(),
        host_uid: minted.host.to_string(),
        public_key: key.public().as_bytes().to_vec(),
    };
    // Whom the token is for is known by its fingerprint alone: to nobody else is it shown.
    let ring = Ring { shown: None, trust: Trust::Pinned(token.fingerprint), beside: Vec::new() };
    let keyring = Keyring::new(ring, Clock::system()).map_err(KeysError::from)?;
    let known = config.controllers.iter().chain(&minted.controllers).cloned();
    let line = Line::new(known, keyring.dialer());
    let mut last = Fault::new(ErrorCode::Unavailable, "no controller was named");
    for endpoint in line.candidates() {
        let answer = async {
            let mut door = v1::identities_client::IdentitiesClient::new(line.dial(&endpoint).await?);
            Ok::<_, Fault>(door.join(request.clone()).await?.into_inner())
        };
        match answer.await {
            Ok(answer) => return accept(config, &key, OnDisk { used_token, ..minted }, answer),
            Err(fault) if matches!(fault.code, ErrorCode::Unauthenticated | ErrorCode::Forbidden) => {
                return Err(refused(fault.message));
            }
            Err(fault) if fault.code == ErrorCode::AlreadyExists => {
                return Err(IdentityError::NameTaken {
                    name: config.name.to_string(),
                    message: fault.message,
                });
            }
            Err(fault) => {
                let message = format!("{endpoint}: {}", fault.message);
                last = Fault { message, ..fault };
            }
        }
    }
    Err(IdentityError::Join(last))
}

fn accept(
    config: &Config,
    key: &KeyPair,
    minted: OnDisk,
    answer: v1::Credentials,
) -> Result<OnDisk, IdentityError> {
    if answer.identity != dunlin_model::Identity::Host(minted.host).to_string() {
        let fault = Fault::new(ErrorCode::Internal, "the controllers answered for somebody else");
        return Err(IdentityError::Join(fault));
    }
    let cluster = answer.cluster_uid.parse::<ClusterId>().map_err(|e| IdentityError::Join(e.into()))?;
    let shown = keys::shown(key, answer.certificate, answer.issued_ms, answer.expires_ms);
    keys::keep(&config.data_dir, &shown, &answer.authorities)?;
    Ok(OnDisk { cluster: Some(cluster), controllers: answer.controllers, ..minted })
}
