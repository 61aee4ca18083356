//! A controller that joins a cluster that is there: trades its token for an identity before it opens anything.

use std::path::Path;

use dunlin_model::{ErrorCode, Secret};
use dunlin_pki::{
    JoinToken, KeyPair, Keyring, Ring, Shown, Trust, pem_certificates, write_private, write_roots,
    write_shown,
};
use dunlin_proto::Fault;

use super::keys::{AUTHORITIES, IDENTITY, KeysError};
use crate::Config;
use crate::api::join_as_controller;

/// The key a join was begun with: a join whose answer was lost is repeated as the same join.
const JOINING: &str = "joining.pem";

pub(super) async fn join(config: &Config, token: &Secret, folder: &Path) -> Result<Shown, KeysError> {
    let token: JoinToken =
        token.expose().parse().map_err(|e: dunlin_model::Invalid| KeysError::Join(e.into()))?;
    let path = folder.join(JOINING);
    let key = match std::fs::read_to_string(&path) {
        Ok(text) => KeyPair::from_pem(&text)?,
        Err(_) => {
            let key = KeyPair::generate()?;
            write_private(&path, key.to_pem().expose().as_bytes())?;
            key
        }
    };
    let ring = Ring { shown: None, trust: Trust::Pinned(token.fingerprint.clone()), beside: Vec::new() };
    let keyring = Keyring::new(ring, config.clock.clone())?;
    let mut last = Fault::new(ErrorCode::Unavailable, "no other controller was named");
    let named = config.join_at.iter().chain(config.peers.iter().map(|peer| &peer.api_endpoint));
    for endpoint in named {
        match join_as_controller(&keyring, endpoint, &token, config.id, &key).await {
            Ok((shown, authorities)) => {
                write_roots(&folder.join(AUTHORITIES), &pem_certificates(&authorities)?)?;
                write_shown(&folder.join(IDENTITY), &shown)?;
                // What it was for is done; left behind it is of no use to anybody.
                let _ = std::fs::remove_file(&path);
                return Ok(shown);
            }
            Err(fault) if !fault.code.retryable() => return Err(KeysError::Join(fault)),
            Err(fault) => last = fault,
        }
    }
    Err(KeysError::Join(last))
}
