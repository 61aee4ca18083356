//! Key pairs, and a key pair with the certificate that goes with it.

use dunlin_model::{Invalid, Secret, Timestamp};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest as _, Sha256};

use crate::{PkiError, hex};

/// Bytes of a public key as it is sent: an uncompressed point of P-256 (SEC 1, 2.3.3).
const PUBLIC_KEY_BYTES: usize = 65;
/// The mark of an uncompressed point.
const UNCOMPRESSED: u8 = 4;

/// A key pair of ECDSA over P-256.
#[derive(Debug)]
pub struct KeyPair(pub(crate) rcgen::KeyPair);

impl KeyPair {
    /// A new one.
    pub fn generate() -> Result<Self, PkiError> {
        Ok(Self(rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?))
    }

    /// Reads PKCS #8 in PEM.
    pub fn from_pem(pem: &str) -> Result<Self, PkiError> {
        Ok(Self(rcgen::KeyPair::from_pem(pem)?))
    }

    /// PKCS #8 in PEM: a secret.
    #[must_use]
    pub fn to_pem(&self) -> Secret {
        Secret::new(self.0.serialize_pem())
    }

    /// The half that is shown.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.public_key_raw().to_vec())
    }
}

/// A public key, as it is sent to whoever signs it. That the sender has the private half is not asked of it: each
/// handshake asks, and a certificate is of no use without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey(pub(crate) Vec<u8>);

impl PublicKey {
    /// Takes bytes that can be a key.
    pub fn parse(bytes: &[u8]) -> Result<Self, Invalid> {
        if bytes.len() == PUBLIC_KEY_BYTES && bytes[0] == UNCOMPRESSED {
            return Ok(Self(bytes.to_vec()));
        }
        let allowed = format!("an uncompressed point of P-256: {PUBLIC_KEY_BYTES} bytes beginning with 4");
        Err(Invalid::new("public_key", format!("{} bytes are none", bytes.len()), allowed))
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// SHA-256, hex: what the cluster remembers of it.
    #[must_use]
    pub fn sha256(&self) -> String {
        hex::encode(&Sha256::digest(&self.0))
    }
}

impl rcgen::PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

/// What somebody shows: a certificate, and the key that proves it is his.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// PKCS #8 in PEM.
    pub key: Secret,
    /// The certificate, PEM.
    pub certificate: String,
    /// When it was issued.
    pub issued: Timestamp,
    /// Until when it holds.
    pub expires: Timestamp,
}

impl Shown {
    /// Has half of its life passed? Then it is time for another: what is renewed so early can wait out an outage as long as
    /// the other half. A clock that was set back counts as time passed.
    #[must_use]
    pub fn is_due(&self, now: Timestamp) -> bool {
        let life = self.expires.millis_since(self.issued);
        now < self.issued || now.millis_since(self.issued) >= life / 2
    }

    /// The certificate in DER.
    pub fn certificate(&self) -> Result<CertificateDer<'static>, PkiError> {
        CertificateDer::from_pem_slice(self.certificate.as_bytes())
            .map_err(|e| PkiError::Unreadable { what: "a certificate", problem: e.to_string() })
    }

    pub(crate) fn key(&self) -> Result<PrivateKeyDer<'static>, PkiError> {
        PrivateKeyDer::from_pem_slice(self.key.expose().as_bytes())
            .map_err(|e| PkiError::Unreadable { what: "a private key", problem: e.to_string() })
    }
}
