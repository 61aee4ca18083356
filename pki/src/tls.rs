//! TLS as the house speaks it: 1.3 alone, both sides by certificates of the cluster's own authority.
//!
//! Sessions are not resumed: every connection proves anew who is at both ends, and so a certificate that has ended or was
//! revoked ends with it. A handshake costs less than a millisecond, and connections are kept.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use dunlin_model::{Identity, Role};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme,
};

use crate::verify::issuer;
use crate::{Clock, PkiError, Refusal, Ring, Shown, Usage, Verified, fingerprint, verify};

/// What gRPC speaks.
const HTTP_2: &[u8] = b"h2";
/// What browsers and consoles speak too.
const HTTP_1: &[u8] = b"http/1.1";

/// Whom a caller believes to be a controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Who shows a certificate that leads to one of these.
    Roots(Vec<CertificateDer<'static>>),
    /// Who shows the authority's certificate of this fingerprint, and one that leads to it: for a joiner.
    Pinned(String),
}

/// Judges a caller's chain within the handshake; what it refuses ends it, with the alert that fits.
pub type Judge = Arc<dyn Fn(&[CertificateDer<'_>]) -> Result<Verified, Refusal> + Send + Sync>;

/// What a server needs to take connections. With a judge, nobody gets in whom it does not know; without, a caller may show
/// no certificate or any whose key he has, and is judged by whoever takes the connection.
pub fn acceptor(ring: &Ring, judge: Option<Judge>) -> Result<Arc<ServerConfig>, PkiError> {
    let shown = ring.shown.as_ref().ok_or(PkiError::Unreadable {
        what: "the identity",
        problem: "there is none, and a server needs one".to_owned(),
    })?;
    let mut chain = vec![shown.certificate()?];
    chain.extend(ring.beside.iter().cloned());
    let protocols =
        if judge.is_some() { vec![HTTP_2.to_vec()] } else { vec![HTTP_2.to_vec(), HTTP_1.to_vec()] };
    let callers = Arc::new(Callers { provider: provider(), judge });
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(callers)
        .with_single_cert(chain, shown.key()?)?;
    config.alpn_protocols = protocols;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// The issuer of the last certificate that a controller showed.
pub(crate) type Theirs = Arc<Mutex<Option<Vec<u8>>>>;

/// What a caller needs to dial controllers.
pub(crate) fn caller(
    shown: Option<&Shown>,
    trust: &Trust,
    clock: &Clock,
    theirs: &Theirs,
) -> Result<Arc<ClientConfig>, PkiError> {
    let (trust, clock, theirs) = (trust.clone(), clock.clone(), Arc::clone(theirs));
    let called = Arc::new(Called { provider: provider(), trust, clock, theirs });
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(called);
    let mut config = match shown {
        Some(shown) => config.with_client_auth_cert(vec![shown.certificate()?], shown.key()?)?,
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![HTTP_2.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// How a server looks at its callers.
struct Callers {
    provider: Arc<CryptoProvider>,
    judge: Option<Judge>,
}

impl fmt::Debug for Callers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Callers").finish_non_exhaustive()
    }
}

impl ClientCertVerifier for Callers {
    fn client_auth_mandatory(&self) -> bool {
        self.judge.is_some()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if let Some(judge) = &self.judge {
            let chain: Vec<_> = [leaf].into_iter().chain(rest).cloned().collect();
            judge(&chain).map_err(|refusal| Error::InvalidCertificate(alert(&refusal)))?;
        }
        // Without a judge only the key is proved, by the signature that rustls asks for next; see `verify`.
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// How a caller looks at a server: it must be a controller of the cluster, at whatever address. Which of them does not
/// matter, since each may answer for all; so certificates need not follow addresses.
#[derive(Debug)]
struct Called {
    provider: Arc<CryptoProvider>,
    trust: Trust,
    clock: Clock,
    theirs: Theirs,
}

impl ServerCertVerifier for Called {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain: Vec<_> = [leaf].into_iter().chain(rest).cloned().collect();
        let pinned: Vec<_>;
        let roots = match &self.trust {
            Trust::Roots(roots) => roots,
            Trust::Pinned(pin) => {
                let fits = |certificate: &&CertificateDer<'_>| fingerprint(certificate) == *pin;
                pinned = rest.iter().filter(fits).map(|found| found.clone().into_owned()).collect();
                &pinned
            }
        };
        let refused = |refusal: Refusal| Error::InvalidCertificate(alert(&refusal));
        let verified = verify(&chain, roots, Usage::Server, self.clock.now()).map_err(refused)?;
        match verified.identity {
            Identity::Controller(_) => {
                *self.theirs.lock().unwrap_or_else(PoisonError::into_inner) = issuer(leaf);
                Ok(ServerCertVerified::assertion())
            }
            is => Err(refused(Refusal::Other { is, expected: Role::Controller.to_string() })),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// What TLS calls it, and so which alert the other side gets.
fn alert(refusal: &Refusal) -> CertificateError {
    match refusal {
        Refusal::Expired => CertificateError::Expired,
        Refusal::Early => CertificateError::NotValidYet,
        Refusal::Foreign => CertificateError::UnknownIssuer,
        Refusal::Revoked(_) => CertificateError::Revoked,
        Refusal::Usage => CertificateError::InvalidPurpose,
        Refusal::Missing | Refusal::Unreadable(_) => CertificateError::BadEncoding,
        Refusal::Nameless | Refusal::Other { .. } => CertificateError::ApplicationVerificationFailure,
    }
}
