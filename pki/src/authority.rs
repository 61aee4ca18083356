//! The authority: makes itself, and signs certificates.
//!
//! DECISION: what is signed is a public key that was sent as it is, not a certificate request (CSR). Nothing of a request
//! would be believed anyway (the token or the certificate shown says who it is for), and so no X.509 parser reads what
//! strangers send.

use std::net::IpAddr;

use dunlin_model::identity::Authority;
use dunlin_model::{Identity, Role, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, SanType, SerialNumber,
};
use time::OffsetDateTime;

use crate::verify::uri;
use crate::{KeyPair, PkiError, PublicKey, hex};

/// Life of an authority, ms: ten years. It is replaced by a rotation, not by its end; this is only the backstop.
const AUTHORITY_LIFE_MS: u64 = 10 * 365 * DAY_MS;
/// Certificates hold from so long before they are signed, ms: clocks of a fleet differ by less than this.
const BACKDATED_MS: u64 = 10 * 60 * 1000;
/// One day, ms.
const DAY_MS: u64 = 24 * 3600 * 1000;
/// Random bytes of an authority's name: two of one cluster never have the same.
const ID_BYTES: usize = 8;

/// What one certificate says.
#[derive(Clone, Debug)]
pub struct Grant {
    /// Who it is for.
    pub identity: Identity,
    /// Its number, of which the cluster gives each once.
    pub serial: u64,
    /// From when, less some minutes for clocks that differ.
    pub issued: Timestamp,
    /// Until when.
    pub expires: Timestamp,
    /// Host names and addresses that it is shown under, for clients that look at those: browsers, curl.
    pub names: Vec<String>,
}

/// A new authority, which signs itself.
pub fn make(now: Timestamp) -> Result<Authority, PkiError> {
    let key = KeyPair::generate()?;
    let mut id = [0; ID_BYTES];
    getrandom::fill(&mut id)
        .map_err(|e| PkiError::Unreadable { what: "randomness", problem: e.to_string() })?;
    let id = hex::encode(&id);
    let expires = Timestamp(now.0 + AUTHORITY_LIFE_MS);
    let certificate = authority_params(&id, now, expires)?.self_signed(&key.0)?.pem();
    Ok(Authority { id, certificate, endorsement: None, key: key.to_pem(), made: now, expires })
}

/// A new authority that the one before it vouches for.
pub fn make_endorsed(now: Timestamp, before: &Authority) -> Result<Authority, PkiError> {
    let authority = make(now)?;
    let key = KeyPair::from_pem(authority.key.expose())?;
    let until = authority.expires.min(before.expires);
    let endorsed = authority_params(&authority.id, now, until)?.signed_by(&key.0, &issuer(before)?)?;
    Ok(Authority { endorsement: Some(endorsed.pem()), ..authority })
}

/// Signs a certificate; PEM.
pub fn sign(authority: &Authority, key: &PublicKey, grant: &Grant) -> Result<String, PkiError> {
    let mut params = CertificateParams::default();
    params.not_before = calendar(Timestamp(grant.issued.0.saturating_sub(BACKDATED_MS)))?;
    params.not_after = calendar(grant.expires.min(authority.expires))?;
    params.serial_number = Some(SerialNumber::from_slice(&grant.serial.to_be_bytes()));
    params.distinguished_name = named(&grant.identity.to_string());
    params.subject_alt_names = vec![SanType::URI(uri(&grant.identity).try_into()?)];
    for name in &grant.names {
        params.subject_alt_names.push(match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(name.as_str().try_into()?),
        });
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if grant.identity.role() == Role::Controller {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    params.use_authority_key_identifier_extension = true;
    Ok(params.signed_by(key, &issuer(authority)?)?.pem())
}

/// The subject that authority writes into the certificates it signs, as people see it.
#[must_use]
pub fn subject_of(id: &str) -> String {
    format!("Dunlin authority {id}")
}

fn issuer(authority: &Authority) -> Result<Issuer<'static, rcgen::KeyPair>, PkiError> {
    let params = authority_params(&authority.id, authority.made, authority.expires)?;
    Ok(Issuer::new(params, KeyPair::from_pem(authority.key.expose())?.0))
}

fn authority_params(id: &str, made: Timestamp, expires: Timestamp) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::default();
    params.not_before = calendar(Timestamp(made.0.saturating_sub(BACKDATED_MS)))?;
    params.not_after = calendar(expires)?;
    params.distinguished_name = named(&subject_of(id));
    // It signs certificates of identities and endorses the next authority, which again signs only identities.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn named(name: &str) -> DistinguishedName {
    let mut named = DistinguishedName::new();
    named.push(DnType::CommonName, name);
    named
}

fn calendar(at: Timestamp) -> Result<OffsetDateTime, PkiError> {
    let seconds = i64::try_from(at.0 / 1000).unwrap_or(i64::MAX);
    OffsetDateTime::from_unix_timestamp(seconds)
        .map_err(|e| PkiError::Unreadable { what: "a time", problem: e.to_string() })
}
