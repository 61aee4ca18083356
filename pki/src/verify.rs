//! Who is it? A certificate that was proved in a handshake, judged: by which roots, for what, at what time.
//!
//! DECISION: servers judge after the handshake, not in it (`tls`). TLS asks for proof that the caller has the certificate's
//! key; whether the certificate is worth anything is decided here, so that a caller with an old or foreign one is told so in
//! an answer with a code, instead of by a connection that breaks.

use dunlin_model::{Identity, Timestamp};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use sha2::{Digest as _, Sha256};
use webpki::{EndEntityCert, KeyUsage};

use crate::{PkiError, hex};

/// Before an identity, in a certificate's alternative name.
const SCHEME: &str = "dunlin:";
/// Longest URI that is looked into, bytes: a name has 63, a uid 36.
const URI_BYTES_MAX: usize = 128;
/// Most URIs that are looked at in one certificate: those we make have one.
const URIS_MAX: usize = 4;

/// What a certificate is shown for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// By who calls.
    Client,
    /// By who is called.
    Server,
}

/// Who it is, proved by a certificate that holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Who.
    pub identity: Identity,
    /// Number of the certificate.
    pub serial: u64,
    /// SHA-256 of the root that it led to, hex.
    pub anchor: String,
}

/// Why a certificate proves nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// None was shown.
    #[error("no certificate was shown")]
    Missing,
    /// It is no certificate that we would make.
    #[error("the certificate cannot be read: {0}")]
    Unreadable(String),
    /// It is of another cluster, or of an authority that was dropped.
    #[error("the certificate is not of this cluster's authority")]
    Foreign,
    /// Its time is over.
    #[error("the certificate has expired")]
    Expired,
    /// Its time has not come: a clock is wrong.
    #[error("the certificate does not hold yet: look at the clocks")]
    Early,
    /// It is not for this use: a client's shown by a server.
    #[error("the certificate is not made for this use")]
    Usage,
    /// It names nobody that we know how to name.
    #[error("the certificate names no identity of a cluster")]
    Nameless,
    /// It was taken back.
    #[error("the certificate of {0} was revoked")]
    Revoked(Identity),
    /// Somebody else was expected.
    #[error("the certificate is that of {is}; expected: {expected}")]
    Other {
        /// Who it is.
        is: Identity,
        /// Who it should be.
        expected: String,
    },
}

/// Judges a chain: the certificate itself first, then what may lead from it to a root.
pub fn verify(
    chain: &[CertificateDer<'_>],
    roots: &[CertificateDer<'static>],
    usage: Usage,
    now: Timestamp,
) -> Result<Verified, Refusal> {
    let (leaf, rest) = chain.split_first().ok_or(Refusal::Missing)?;
    let certificate = EndEntityCert::try_from(leaf).map_err(|e| Refusal::Unreadable(e.to_string()))?;
    let anchors: Vec<(TrustAnchor<'_>, &CertificateDer<'_>)> =
        roots.iter().filter_map(|root| Some((webpki::anchor_from_trusted_cert(root).ok()?, root))).collect();
    let trusted: Vec<TrustAnchor<'_>> = anchors.iter().map(|(anchor, _)| anchor.clone()).collect();
    let time = UnixTime::since_unix_epoch(std::time::Duration::from_millis(now.0));
    let usage = match usage {
        Usage::Client => KeyUsage::client_auth(),
        Usage::Server => KeyUsage::server_auth(),
    };
    let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms.all;
    let path = certificate
        .verify_for_usage(algorithms, &trusted, rest, time, usage, None, None)
        .map_err(|e| refusal(&e))?;
    let anchor = anchors.iter().find(|(anchor, _)| {
        anchor.subject == path.anchor().subject
            && anchor.subject_public_key_info == path.anchor().subject_public_key_info
    });
    let anchor = anchor.map(|(_, root)| fingerprint(root)).unwrap_or_default();
    let serial = number(certificate.serial())?;
    let mut named = certificate.valid_uri_names().take(URIS_MAX).filter_map(identity);
    match (named.next(), named.next()) {
        (Some(identity), None) => Ok(Verified { identity, serial, anchor }),
        _ => Err(Refusal::Nameless),
    }
}

/// Who issued a certificate, as DER: compared, never read.
pub(crate) fn issuer(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    EndEntityCert::try_from(certificate).ok().map(|found| found.issuer().to_vec())
}

/// SHA-256 of a certificate, hex.
#[must_use]
pub fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    hex::encode(&Sha256::digest(certificate.as_ref()))
}

/// Every certificate of a PEM text.
pub fn pem_certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    all.map_err(|e| PkiError::Unreadable { what: "a certificate", problem: e.to_string() })
}

/// The identity a URI names, when it names one.
pub(crate) fn identity(uri: &str) -> Option<Identity> {
    if uri.len() > URI_BYTES_MAX {
        return None;
    }
    uri.strip_prefix(SCHEME)?.parse().ok()
}

/// An identity as it stands in a certificate.
pub(crate) fn uri(identity: &Identity) -> String {
    format!("{SCHEME}{identity}")
}

/// A serial number of ours: big-endian, at most eight bytes and a sign.
pub(crate) fn number(bytes: &[u8]) -> Result<u64, Refusal> {
    let significant = bytes.iter().skip_while(|byte| **byte == 0);
    let significant: Vec<u8> = significant.copied().collect();
    if significant.len() > size_of::<u64>() {
        return Err(Refusal::Unreadable("its serial number is not one of ours".to_owned()));
    }
    Ok(significant.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

fn refusal(error: &webpki::Error) -> Refusal {
    use webpki::Error as E;
    match error {
        E::CertExpired { .. } | E::InvalidCertValidity => Refusal::Expired,
        E::CertNotValidYet { .. } => Refusal::Early,
        E::UnknownIssuer | E::InvalidSignatureForPublicKey => Refusal::Foreign,
        E::RequiredEkuNotFoundContext(_) => Refusal::Usage,
        other => Refusal::Unreadable(other.to_string()),
    }
}

/// Certificates as PEM.
#[must_use]
pub fn to_pem(certificates: &[CertificateDer<'_>]) -> String {
    certificates.iter().map(|certificate| encode_pem(certificate)).collect()
}

fn encode_pem(certificate: &CertificateDer<'_>) -> String {
    const LINE: usize = 64;
    let text = base64(certificate.as_ref());
    let lines: Vec<&str> =
        (0..text.len()).step_by(LINE).map(|at| &text[at..(at + LINE).min(text.len())]).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits =
            three.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for (digit, shift) in [18, 12, 6, 0].into_iter().enumerate() {
            let index = (bits >> shift) & 63;
            let padded = digit > three.len();
            text.push(if padded { '=' } else { char::from(DIGITS[index as usize]) });
        }
    }
    text
}
