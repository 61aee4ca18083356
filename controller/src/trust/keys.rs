//! What this controller shows and believes, and where it keeps that.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use dunlin_model::identity::{Authority, Issued};
use dunlin_model::{ControllerId, Identity, Timestamp};
use dunlin_pki::{
    CertificateDer, FileError, Grant, KeyPair, Keyring, PkiError, Refusal, Ring, Shown, Trust, Usage,
    Verified, pem_certificates, read_roots, read_shown, sign, verify, write_roots, write_shown,
};
use dunlin_proto::Fault;
use dunlin_state::Trust as Believed;
use tokio::sync::watch;

use super::bundle::{self, Founding, bundle};
use super::{Peer, join};
use crate::Config;

/// The folder within the data directory.
pub(crate) const FOLDER: &str = "tls";
/// Key and certificate.
pub(crate) const IDENTITY: &str = "identity.pem";
/// Certificates of the authorities.
pub(crate) const AUTHORITIES: &str = "ca.pem";
/// The authority with its key, until the cluster has it.
pub(super) const FOUNDING: &str = "founding.json";
/// Of the data directory: what is in it makes whoever reads it anybody.
const DATA_DIR_MODE: u32 = 0o700;
/// Life of a certificate that a controller signs for itself because its own has ended, ms: a day, enough to find a quorum
/// and get a proper one.
const MENDED_LIFE_MS: u64 = 24 * 3600 * 1000;

/// Why a controller has no identity.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// A file of it cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The data directory cannot be used.
    #[error("{}: {source}", path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A certificate cannot be made or read.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// It was never given one.
    #[error(
        "controller {me} has no identity in {}: make the founding controllers' with `dunlin ca init` and put its tls folder \
         there, or give --controller and a token of `dunlin token create --role controller`",
        path.display()
    )]
    None {
        /// This controller.
        me: ControllerId,
        /// Where it should be.
        path: PathBuf,
    },
    /// There is a log, and no identity.
    #[error(
        "{} has a log but no identity (tls/{IDENTITY}): it was made by a release without certificates, or the identity was \
         removed; put it back, or begin with an empty folder",
        path.display()
    )]
    Lost {
        /// The data directory.
        path: PathBuf,
    },
    /// The identity is somebody else's.
    #[error("{} belongs to {}, but this is {}", path.display(), spoken(is), spoken(&Identity::Controller(*me)))]
    Other {
        /// The data directory.
        path: PathBuf,
        /// Whose it is.
        is: Identity,
        /// This controller.
        me: ControllerId,
    },
    /// The identity is not of the authorities beside it.
    #[error("the identity in {} is worth nothing: {refusal}", path.display())]
    Worthless {
        /// The data directory.
        path: PathBuf,
        /// Why.
        refusal: Refusal,
    },
    /// No controller let it in.
    #[error("joining failed: {0}")]
    Join(#[source] Fault),
}

/// As people say it.
fn spoken(identity: &Identity) -> String {
    identity.to_string().replace('/', " ")
}

/// What one controller shows and believes.
#[derive(Debug)]
pub(crate) struct Keys {
    folder: PathBuf,
    me: ControllerId,
    pub(crate) keyring: Arc<Keyring>,
    founding: Mutex<Option<Founding>>,
    /// What the cluster believes, as far as this controller has followed.
    believed: watch::Sender<Believed>,
}

impl Keys {
    /// Reads them; makes or fetches them for a controller that has none yet.
    pub(crate) async fn open(config: &Config) -> Result<Arc<Self>, KeysError> {
        let folder = config.data_dir.join(FOLDER);
        private(&config.data_dir)?;
        let shown = match read_shown(&folder.join(IDENTITY))? {
            Some(shown) => shown,
            None => first(config, &folder).await?,
        };
        let none = || KeysError::None { me: config.id, path: config.data_dir.clone() };
        let roots = read_roots(&folder.join(AUTHORITIES))?.ok_or_else(none)?;
        let founding = read_founding(&folder.join(FOUNDING))?;
        let chain = [shown.certificate()?];
        // By its own time: one that has ended is mended once the log is open.
        let is = verify(&chain, &roots, Usage::Server, shown.issued);
        let path = config.data_dir.clone();
        match is {
            Ok(Verified { identity: Identity::Controller(id), .. }) if id == config.id => {}
            Ok(Verified { identity: is, .. }) => return Err(KeysError::Other { path, is, me: config.id }),
            Err(refusal) => return Err(KeysError::Worthless { path, refusal }),
        }
        let ring = Ring { shown: Some(shown), trust: Trust::Roots(roots.clone()), beside: roots };
        Ok(Arc::new(Self {
            folder,
            me: config.id,
            keyring: Keyring::new(ring, config.clock.clone())?,
            founding: Mutex::new(founding),
            believed: watch::Sender::new(Believed::default()),
        }))
    }

    /// Who this controller is, and by which certificate.
    pub(crate) fn me(&self) -> Peer {
        let ring = self.keyring.ring();
        let serial = ring.shown.as_ref().and_then(|shown| serial_of(shown, &ring.trust)).unwrap_or_default();
        Peer { identity: Identity::Controller(self.me), serial, via: None }
    }

    /// The authority and the certificates that a cluster begins with, if this is one of its founders.
    pub(crate) fn founding(&self) -> Option<(Authority, Vec<(Identity, Issued)>)> {
        let founding = self.founding.lock().unwrap_or_else(PoisonError::into_inner);
        founding.as_ref().map(|founding| (founding.authority.clone(), founding.issued.clone()))
    }

    /// Refuses who was revoked.
    pub(crate) fn admit(&self, peer: &Verified) -> Result<(), Refusal> {
        if self.believed.borrow().admits(&peer.identity, peer.serial) {
            return Ok(());
        }
        Err(Refusal::Revoked(peer.identity.clone()))
    }

    /// Returns when who was let in is to be put out.
    pub(crate) async fn revoked(&self, peer: &Verified) {
        let mut believed = self.believed.subscribe();
        let out = believed.wait_for(|believed| !believed.admits(&peer.identity, peer.serial)).await.map(drop);
        if out.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Tells the ports and the connections what the cluster believes now, and keeps it for the next start.
    pub(crate) fn follow(&self, believed: &Believed) -> Result<(), KeysError> {
        if believed.authorities().is_empty() {
            return Ok(());
        }
        let roots = certificates(believed.authorities().iter().map(|known| known.certificate.as_str()))?;
        let mut ring = self.keyring.ring();
        // What leads from the signer to older roots goes first, then the roots, for who knows one by its fingerprint alone.
        let endorsed = believed.authorities().iter().filter_map(|known| known.endorsement.as_deref());
        let mut beside = certificates(endorsed)?;
        beside.extend(roots.iter().cloned());
        if ring.trust != Trust::Roots(roots.clone()) || ring.beside != beside {
            write_roots(&self.folder.join(AUTHORITIES), &roots)?;
            (ring.trust, ring.beside) = (Trust::Roots(roots), beside);
            self.keyring.replace(ring)?;
        }
        self.believed.send_replace(believed.clone());
        if self.founding.lock().unwrap_or_else(PoisonError::into_inner).take().is_some() {
            let path = self.folder.join(FOUNDING);
            std::fs::remove_file(&path).map_err(|source| KeysError::Folder { path, source })?;
        }
        Ok(())
    }

    /// Is it time for another certificate of its own?
    pub(super) fn is_due(&self) -> bool {
        let ring = self.keyring.ring();
        let signer = self.believed.borrow().signer().map(|signer| signer.certificate.clone());
        let (Some(shown), Some(signer)) = (ring.shown, signer) else { return false };
        let by_signer = pem_certificates(&signer).ok().zip(shown.certificate().ok()).is_some_and(
            |(signer, certificate)| {
                !matches!(verify(&[certificate], &signer, Usage::Client, shown.issued), Err(Refusal::Foreign))
            },
        );
        !by_signer || shown.is_due(self.keyring.clock().now())
    }

    /// From now on it shows this.
    pub(crate) fn show(&self, shown: Shown) -> Result<(), KeysError> {
        write_shown(&self.folder.join(IDENTITY), &shown)?;
        let ring = self.keyring.ring();
        self.keyring.replace(Ring { shown: Some(shown), ..ring })?;
        Ok(())
    }

    /// A controller whose certificate has ended while it was off signs itself another with the authority's key, which its own
    /// log holds: else a cluster that was off for long could never find a quorum again.
    pub(crate) fn mend(&self, believed: &Believed) -> Result<(), KeysError> {
        let now = self.keyring.clock().now();
        let ended = self.keyring.ring().shown.is_some_and(|shown| shown.expires <= now);
        let Some(signer) = believed.signer().filter(|_| ended) else { return Ok(()) };
        let key = KeyPair::generate()?;
        let peer = self.me();
        let expires = Timestamp(now.0 + MENDED_LIFE_MS);
        let grant =
            Grant { identity: peer.identity, serial: peer.serial, issued: now, expires, names: Vec::new() };
        let certificate = sign(signer, &key.public(), &grant)?;
        tracing::warn!("the certificate of this controller had ended; it signed itself one for a day");
        self.show(Shown { key: key.to_pem(), certificate, issued: now, expires })
    }
}

/// Number of a certificate, whether it still holds or not.
fn serial_of(shown: &Shown, trust: &Trust) -> Option<u64> {
    let Trust::Roots(roots) = trust else { return None };
    let verified = verify(&[shown.certificate().ok()?], roots, Usage::Client, shown.issued);
    verified.ok().map(|verified| verified.serial)
}

fn certificates<'a>(pems: impl Iterator<Item = &'a str>) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    pems.map(pem_certificates).collect::<Result<Vec<_>, _>>().map(|found| found.concat())
}

/// An identity for a controller that has none.
async fn first(config: &Config, folder: &Path) -> Result<Shown, KeysError> {
    if config.data_dir.join("raft/IDENTITY").exists() {
        return Err(KeysError::Lost { path: config.data_dir.clone() });
    }
    let none = || KeysError::None { me: config.id, path: config.data_dir.clone() };
    if let Some(token) = &config.token {
        return join::join(config, token, folder).await;
    }
    if config.init != [config.id] {
        return Err(none());
    }
    let now = config.clock.now();
    let bundles = bundle(now, &[(config.id, config.api_host().to_owned())].into())?;
    bundles.get(&config.id).ok_or_else(none)?.write(folder)?;
    read_shown(&folder.join(IDENTITY))?.ok_or_else(none)
}

fn read_founding(path: &Path) -> Result<Option<Founding>, KeysError> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(KeysError::Folder { path: path.to_owned(), source }),
    };
    let wrong = |problem: String| {
        let source = PkiError::Unreadable { what: "the founding authority", problem };
        FileError::Content { path: path.to_owned(), source }
    };
    let founding: Founding = serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))?;
    if founding.version != bundle::VERSION {
        return Err(wrong(format!("it has version {}", founding.version)).into());
    }
    Ok(Some(founding))
}

/// Makes the folder, and its owner's alone.
fn private(folder: &Path) -> Result<(), KeysError> {
    let at = |source| KeysError::Folder { path: folder.to_owned(), source };
    std::fs::create_dir_all(folder).map_err(at)?;
    std::fs::set_permissions(folder, Permissions::from_mode(DATA_DIR_MODE)).map_err(at)
}
