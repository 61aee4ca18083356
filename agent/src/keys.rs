//! What this host shows to controllers, and which of them it believes: kept in the data folder, renewed by the agent itself.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use dunlin_model::{ErrorCode, Timestamp};
use dunlin_pki::{
    Clock, FileError, KeyPair, Keyring, PkiError, Refusal, Ring, Shown, Trust, Usage, pem_certificates,
    read_roots, read_shown, verify, write_private, write_roots, write_shown,
};
use dunlin_proto::Fault;

/// Key and certificate.
const SHOWN: &str = "identity.pem";
/// Certificates of the authorities.
const AUTHORITIES: &str = "ca.pem";
/// The key a join was begun with: a join whose answer was lost is repeated as the same join.
const JOINING: &str = "joining.pem";

/// Why keys or certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// A file of them.
    #[error(transparent)]
    File(#[from] FileError),
    /// What is in them.
    #[error(transparent)]
    Pki(#[from] PkiError),
}

/// The keys of a host that has joined.
#[derive(Debug)]
pub(crate) struct Keys {
    folder: PathBuf,
    pub(crate) keyring: Arc<Keyring>,
    /// Held by the one renewal under way.
    pub(crate) renewing: tokio::sync::Mutex<()>,
}

/// The key to join with, kept before it is shown.
pub(crate) fn joining(folder: &Path) -> Result<KeyPair, KeysError> {
    let path = folder.join(JOINING);
    if let Ok(text) = std::fs::read_to_string(&path) {
        return Ok(KeyPair::from_pem(&text)?);
    }
    let key = KeyPair::generate()?;
    write_private(&path, key.to_pem().expose().as_bytes())?;
    Ok(key)
}

/// Keeps what a join gave.
pub(crate) fn keep(folder: &Path, shown: &Shown, authorities: &str) -> Result<(), KeysError> {
    write_roots(&folder.join(AUTHORITIES), &pem_certificates(authorities)?)?;
    write_shown(&folder.join(SHOWN), shown)?;
    // It has served; left behind it is of no use to anybody.
    let _ = std::fs::remove_file(folder.join(JOINING));
    Ok(())
}

/// A certificate as it was given for `key`.
pub(crate) fn shown(key: &KeyPair, certificate: String, issued_ms: u64, expires_ms: u64) -> Shown {
    let (issued, expires) = (Timestamp(issued_ms), Timestamp(expires_ms));
    Shown { key: key.to_pem(), certificate, issued, expires }
}

impl Keys {
    /// Those of the data folder; none before the host has joined.
    pub(crate) fn open(folder: &Path) -> Result<Option<Arc<Self>>, KeysError> {
        let shown = read_shown(&folder.join(SHOWN))?;
        let roots = read_roots(&folder.join(AUTHORITIES))?;
        let (Some(shown), Some(roots)) = (shown, roots) else { return Ok(None) };
        let ring = Ring { shown: Some(shown), trust: Trust::Roots(roots), beside: Vec::new() };
        let keyring = Keyring::new(ring, Clock::system())?;
        Ok(Some(Arc::new(Self {
            folder: folder.to_owned(),
            keyring,
            renewing: tokio::sync::Mutex::default(),
        })))
    }

    /// Has the certificate still time?
    pub(crate) fn holds(&self) -> bool {
        let now = self.keyring.clock().now();
        self.keyring.ring().shown.is_some_and(|shown| shown.expires > now)
    }

    /// From now on these authorities are believed.
    pub(crate) fn believe(&self, authorities: &str) -> Result<(), KeysError> {
        let roots = pem_certificates(authorities)?;
        let ring = self.keyring.ring();
        if roots.is_empty() || ring.trust == Trust::Roots(roots.clone()) {
            return Ok(());
        }
        write_roots(&self.folder.join(AUTHORITIES), &roots)?;
        self.keyring.replace(Ring { trust: Trust::Roots(roots), ..ring })?;
        tracing::info!("the cluster's authorities have changed");
        Ok(())
    }

    /// From now on this is shown.
    pub(crate) fn show(&self, shown: Shown) -> Result<(), KeysError> {
        write_shown(&self.folder.join(SHOWN), &shown)?;
        let ring = self.keyring.ring();
        self.keyring.replace(Ring { shown: Some(shown), ..ring })?;
        Ok(())
    }

    /// When what is shown ends.
    pub(crate) fn expires(&self) -> Option<Timestamp> {
        self.keyring.ring().shown.map(|shown| shown.expires)
    }

    /// Is it time for another certificate: half of this one's life is over, or another authority signs by now?
    pub(crate) fn is_due(&self) -> bool {
        let ring = self.keyring.ring();
        let (Some(shown), Trust::Roots(roots)) = (ring.shown, ring.trust) else { return false };
        let Some(signer) = roots.last().map(std::slice::from_ref) else { return false };
        let by_signer = shown.certificate().is_ok_and(|certificate| {
            verify(&[certificate], signer, Usage::Client, shown.issued) != Err(Refusal::Foreign)
        });
        !by_signer || shown.is_due(self.keyring.clock().now())
    }
}

impl From<KeysError> for Fault {
    fn from(error: KeysError) -> Self {
        Self::new(ErrorCode::Internal, error.to_string())
    }
}
