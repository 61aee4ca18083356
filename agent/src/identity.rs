//! Who this host is: its lock on the data folder, its uid and secret, and the cluster it belongs to.
//!
//! ```text
//! (nothing) --mint uid and secret, durably--> Minted --Join answered--> Enrolled
//! ```
//! What is minted is kept before the call, so a join whose answer was lost is repeated as the same join.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dunlin_model::{ClusterId, ErrorCode, HostId, Secret};
use dunlin_proto::{Fault, v1};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::config::Config;
use crate::durable;
use crate::journal::hex;
use crate::line::{Line, dial};

/// Layout of `identity.json`.
const VERSION: u32 = 1;

/// Bytes of the secret: 256 bits, beyond guessing.
const SECRET_BYTES: usize = 32;

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
    /// No controller answered, or one failed otherwise.
    #[error("joining failed: {0}")]
    Join(#[source] Fault),
}

/// The identity of a host that has joined.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) path: PathBuf,
    pub(crate) host: HostId,
    pub(crate) secret: Secret,
    pub(crate) cluster: ClusterId,
    pub(crate) controllers: Vec<String>,
}

#[derive(Clone, Serialize, Deserialize)]
struct OnDisk {
    version: u32,
    host: HostId,
    secret: Secret,
    cluster: Option<ClusterId>,
    controllers: Vec<String>,
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

/// The host's identity; joins when it has none.
pub(crate) async fn enrol(config: &Config) -> Result<Identity, IdentityError> {
    let path = config.data_dir.join("identity.json");
    let known = match read(&path)? {
        Some(known) => known,
        None if config.token.is_none() => return Err(IdentityError::NoToken),
        None => {
            let minted = mint().map_err(|source| IdentityError::Io { path: path.clone(), source })?;
            write(&path, &minted)?;
            minted
        }
    };
    let known = match (known.cluster, &config.token) {
        (Some(_), _) => known,
        (None, None) => return Err(IdentityError::NoToken),
        (None, Some(token)) => {
            let joined = join(config, token, known).await?;
            write(&path, &joined)?;
            joined
        }
    };
    let OnDisk { host, secret, cluster, controllers, .. } = known;
    let cluster = cluster.ok_or(IdentityError::NoToken)?;
    Ok(Identity { path, host, secret, cluster, controllers })
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
            secret: self.secret.clone(),
            cluster: Some(self.cluster),
            controllers: self.controllers.clone(),
        };
        write(&self.path, &on_disk)
    }
}

fn mint() -> io::Result<OnDisk> {
    let mut secret = [0; SECRET_BYTES];
    getrandom::fill(&mut secret).map_err(io::Error::other)?;
    let (host, secret) = (HostId(uuid::Uuid::new_v4()), Secret::new(hex(&secret)));
    Ok(OnDisk { version: VERSION, host, secret, cluster: None, controllers: Vec::new() })
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
    let request = v1::JoinRequest {
        token: token.expose().to_owned(),
        name: config.name.to_string(),
        labels: config.labels.clone(),
        host_uid: minted.host.to_string(),
        secret_sha256: hex(&Sha256::digest(minted.secret.expose().as_bytes())),
    };
    let mut last = Fault::new(ErrorCode::Unavailable, "no controller was named");
    for endpoint in Line::new(config.controllers.iter().cloned()).candidates() {
        let answer = async {
            let mut gate = v1::agent_gate_client::AgentGateClient::new(dial(&endpoint).await?);
            Ok::<_, Fault>(gate.join(request.clone()).await?.into_inner())
        };
        match answer.await {
            Ok(answer) => return accept(minted, &answer).map_err(IdentityError::Join),
            Err(fault) if fault.code == ErrorCode::Unauthenticated => {
                return Err(IdentityError::Token { message: fault.message });
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

fn accept(minted: OnDisk, answer: &v1::JoinResponse) -> Result<OnDisk, Fault> {
    if answer.host_uid != minted.host.to_string() {
        return Err(Fault::new(ErrorCode::Internal, "the controllers answered for another host"));
    }
    let cluster = answer.cluster_uid.parse::<ClusterId>()?;
    Ok(OnDisk { cluster: Some(cluster), controllers: answer.controllers.clone(), ..minted })
}
