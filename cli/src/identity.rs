//! Who this user is to a cluster: key and certificate beside the context file, and whom he believes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use dunlin_model::{Identity, Timestamp};
use dunlin_pki::{
    Clock, FileError, Keyring, PkiError, Ring, Shown, Trust, Usage, pem_certificates, read_roots, read_shown,
    verify, write_roots, write_shown,
};

use crate::failure::Failure;

/// The files of one context.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    pub(crate) shown: PathBuf,
    pub(crate) authorities: PathBuf,
}

impl Files {
    /// Beside the context file: NAME.pem, which curl takes as `--cert`, and NAME-ca.pem, which it takes as `--cacert`.
    pub(crate) fn of(contexts: &Path, name: &str) -> Self {
        let folder = contexts.parent().unwrap_or(Path::new("."));
        let file = |tail: &str| folder.join(format!("{name}{tail}.pem"));
        Self { shown: file(""), authorities: file("-ca") }
    }

    /// What is in them; none when there are none.
    pub(crate) fn open(&self) -> Result<Option<Arc<Keyring>>, Failure> {
        let Some(roots) = read_roots(&self.authorities)? else { return Ok(None) };
        // Whoever logs in with a password has no certificate, and believes those who took it.
        let shown = read_shown(&self.shown)?;
        let ring = Ring { shown, trust: Trust::Roots(roots), beside: Vec::new() };
        Ok(Some(Keyring::new(ring, Clock::system())?))
    }

    /// Replaces what is in them.
    pub(crate) fn keep(&self, shown: &Shown, authorities: &str) -> Result<(), Failure> {
        self.believe(authorities)?;
        Ok(write_shown(&self.shown, shown)?)
    }

    /// Replaces whom one believes.
    pub(crate) fn believe(&self, authorities: &str) -> Result<(), Failure> {
        Ok(write_roots(&self.authorities, &pem_certificates(authorities)?)?)
    }

    /// Removes them. That there are none is no error.
    pub(crate) fn remove(&self) {
        for path in [&self.shown, &self.authorities] {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Whom a keyring shows, and until when.
pub(crate) fn who(keyring: &Keyring) -> Option<(Identity, Timestamp)> {
    let Ring { shown, trust: Trust::Roots(roots), .. } = keyring.ring() else { return None };
    let shown = shown?;
    let verified = verify(&[shown.certificate().ok()?], &roots, Usage::Client, shown.issued).ok()?;
    Some((verified.identity, shown.expires))
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        Self::Local(error.to_string())
    }
}

impl From<PkiError> for Failure {
    fn from(error: PkiError) -> Self {
        Self::Local(error.to_string())
    }
}
