//! Certificates and TLS of a cluster: who somebody is, proved.
//!
//! ```text
//!   authority: signs --> certificate { serial, identity as a URI, days } <-- verify: roots, usage, clock
//!   token: a secret + the authority's fingerprint      keyring: key + certificate + roots, replaced while it runs
//!                                                         +--> server and client configuration, dialer
//! ```
//! Owns the format of certificates, of tokens' text and of the files they lie in. Refuses to know the cluster's state: what
//! was revoked is for whoever asks [`verify`] to look up. One kind of key (ECDSA P-256, which browsers speak too), one
//! version of TLS (1.3), one provider (ring).

mod authority;
mod clock;
mod dial;
mod files;
mod hex;
mod keyring;
mod keys;
mod tls;
mod token;
mod verify;

#[cfg(test)]
mod tests;

pub use authority::{Grant, make, make_endorsed, sign, subject_of};
pub use clock::Clock;
pub use dial::{Dialer, NotOurs, Stream, UnixDialer};
pub use files::{FileError, read_roots, read_shown, write_private, write_roots, write_shown};
pub use keyring::{Keyring, Ring};
pub use keys::{KeyPair, PublicKey, Shown};
pub use rustls::pki_types::CertificateDer;
pub use tls::{Judge, Trust, acceptor};
pub use token::JoinToken;
pub use verify::{Refusal, Usage, Verified, fingerprint, pem_certificates, to_pem, verify};

/// A certificate could not be made, or is none.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The library that makes certificates refused.
    #[error("making a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// A key or certificate cannot be read.
    #[error("{what} cannot be read: {problem}")]
    Unreadable {
        /// What it should be.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The TLS library refused the key, the certificate or the roots.
    #[error("setting TLS up: {0}")]
    Tls(#[from] rustls::Error),
}
