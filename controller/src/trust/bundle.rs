//! What the founding controllers are given before there is a cluster: an identity each, and the authority with its key.

use std::collections::BTreeMap;
use std::path::Path;

use dunlin_model::identity::{Authority, Issued};
use dunlin_model::{ControllerId, Identity, Timestamp};
use dunlin_pki::{
    FileError, Grant, KeyPair, PkiError, Shown, make, pem_certificates, sign, write_private, write_roots,
    write_shown,
};
use serde::{Deserialize, Serialize};

use super::issue::life_ms;
use super::keys::{AUTHORITIES, FOUNDING, IDENTITY};

/// Layout of `founding.json`.
pub(super) const VERSION: u32 = 1;

/// What whoever is elected first writes into the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Founding {
    pub(super) version: u32,
    pub(super) authority: Authority,
    pub(super) issued: Vec<(Identity, Issued)>,
}

/// The files of one founding controller.
#[derive(Clone, Debug)]
pub struct Bundle {
    shown: Shown,
    founding: Founding,
}

/// Bundles for controllers that are to found a cluster together. `hosts`: the name or address at which each is reached.
pub fn bundle(
    now: Timestamp,
    hosts: &BTreeMap<ControllerId, String>,
) -> Result<BTreeMap<ControllerId, Bundle>, PkiError> {
    let authority = make(now)?;
    let (mut issued, mut shown) = (Vec::new(), BTreeMap::new());
    for (id, host) in hosts {
        let key = KeyPair::generate()?;
        let identity = Identity::Controller(*id);
        let expires = Timestamp(now.0 + life_ms(identity.role()));
        let names = vec![host.clone()];
        let grant = Grant { identity: identity.clone(), serial: id.0, issued: now, expires, names };
        let certificate = sign(&authority, &key.public(), &grant)?;
        let (key_sha256, authority) = (key.public().sha256(), authority.id.clone());
        issued.push((identity, Issued { serial: id.0, key_sha256, authority, at: now, expires }));
        shown.insert(*id, Shown { key: key.to_pem(), certificate, issued: now, expires });
    }
    let founding = Founding { version: VERSION, authority, issued };
    let whole = |(id, shown)| (id, Bundle { shown, founding: founding.clone() });
    Ok(shown.into_iter().map(whole).collect())
}

impl Bundle {
    /// Writes it into the `tls` folder of a controller's data directory.
    pub fn write(&self, folder: &Path) -> Result<(), FileError> {
        let content = |source| FileError::Content { path: folder.to_owned(), source };
        let roots = pem_certificates(&self.founding.authority.certificate).map_err(content)?;
        let founding = serde_json::to_vec_pretty(&self.founding).expect("a struct of plain fields is JSON");
        write_private(&folder.join(FOUNDING), &founding)?;
        write_roots(&folder.join(AUTHORITIES), &roots)?;
        // Last: with an identity it is whole.
        write_shown(&folder.join(IDENTITY), &self.shown)
    }

    /// The authority: for tests, which make whatever certificates they want with it.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.founding.authority
    }
}
