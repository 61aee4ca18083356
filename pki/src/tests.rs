use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dunlin_model::identity::Authority;
use dunlin_model::{ControllerId, Identity, Role, Secret, Timestamp};
use proptest::prelude::*;
use rustls::AlertDescription;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::verify::{identity, number, uri};

/// Midday of 2026-11-23.
const NOW: Timestamp = Timestamp(1_795_435_200_000);
const DAY: u64 = 24 * 3600 * 1000;

fn controller(id: u64) -> Identity {
    Identity::Controller(ControllerId(id))
}

fn admin() -> Identity {
    Identity::Admin("ada".parse().unwrap())
}

fn shown(authority: &Authority, identity: Identity, serial: u64) -> Shown {
    let key = KeyPair::generate().unwrap();
    let (issued, expires) = (NOW, Timestamp(NOW.0 + 10 * DAY));
    let names = vec!["127.0.0.1".to_owned(), "c1.example".to_owned()];
    let grant = Grant { identity, serial, issued, expires, names };
    let certificate = sign(authority, &key.public(), &grant).unwrap();
    Shown { key: key.to_pem(), certificate, issued, expires }
}

fn roots(authorities: &[&Authority]) -> Vec<CertificateDer<'static>> {
    authorities.iter().flat_map(|authority| pem_certificates(&authority.certificate).unwrap()).collect()
}

fn judged(
    shown: &Shown,
    roots: &[CertificateDer<'static>],
    usage: Usage,
    now: u64,
) -> Result<Verified, Refusal> {
    verify(&[shown.certificate().unwrap()], roots, usage, Timestamp(now))
}

/// A certificate proves one identity and number, for its time, its use and its authority, and nothing else.
#[test]
fn a_certificate_proves_what_it_says() {
    let (ours, theirs) = (make(NOW).unwrap(), make(NOW).unwrap());
    let trusted = roots(&[&ours]);
    let ada = shown(&ours, admin(), u64::MAX);
    let verified = judged(&ada, &trusted, Usage::Client, NOW.0).unwrap();
    assert_eq!((verified.identity, verified.serial), (admin(), u64::MAX));
    assert_eq!(verified.anchor, fingerprint(&trusted[0]));
    assert_eq!(judged(&ada, &trusted, Usage::Server, NOW.0), Err(Refusal::Usage));
    assert_eq!(judged(&ada, &trusted, Usage::Client, NOW.0 + 10 * DAY + 1000), Err(Refusal::Expired));
    assert_eq!(judged(&ada, &trusted, Usage::Client, NOW.0 - DAY), Err(Refusal::Early));
    assert_eq!(judged(&ada, &roots(&[&theirs]), Usage::Client, NOW.0), Err(Refusal::Foreign));
    assert_eq!(judged(&ada, &[], Usage::Client, NOW.0), Err(Refusal::Foreign));
    assert_eq!(verify(&[], &trusted, Usage::Client, NOW), Err(Refusal::Missing));
    let one = shown(&ours, controller(1), 1);
    for usage in [Usage::Client, Usage::Server] {
        assert_eq!(judged(&one, &trusted, usage, NOW.0).unwrap().identity, controller(1));
    }
    // An authority's own certificate is nobody's; one that pretends to the name of ours is not ours.
    let own = verify(&trusted, &trusted, Usage::Client, NOW);
    assert!(own.is_err(), "{own:?}");
    let impostor = Authority { id: ours.id.clone(), ..make(NOW).unwrap() };
    assert_eq!(judged(&shown(&impostor, admin(), 1), &trusted, Usage::Client, NOW.0), Err(Refusal::Foreign));
    // A leaf signs nothing, whatever it is put between.
    let leaf = Authority { key: ada.key.clone(), ..ours.clone() };
    let forged = shown(&leaf, controller(1), 2);
    let chain = [forged.certificate().unwrap(), ada.certificate().unwrap()];
    assert!(verify(&chain, &trusted, Usage::Client, NOW).is_err());
}

/// In a rotation, who knows only the old authority believes a certificate of the new one through the endorsement, and who
/// knows only the new one does so directly; without the endorsement the first does not.
#[test]
fn an_endorsement_bridges_two_authorities() {
    let old = make(NOW).unwrap();
    let new = make_endorsed(NOW, &old).unwrap();
    let leaf = shown(&new, controller(2), 7).certificate().unwrap();
    let endorsement = pem_certificates(new.endorsement.as_ref().unwrap()).unwrap().remove(0);
    let check = |chain: &[CertificateDer<'static>], trusted: &Authority| {
        verify(chain, &roots(&[trusted]), Usage::Server, NOW).map(|verified| verified.identity)
    };
    assert_eq!(check(&[leaf.clone(), endorsement.clone()], &old), Ok(controller(2)));
    assert_eq!(check(&[leaf.clone(), endorsement], &new), Ok(controller(2)));
    assert_eq!(check(std::slice::from_ref(&leaf), &new), Ok(controller(2)));
    assert_eq!(check(&[leaf], &old), Err(Refusal::Foreign));
}

/// Renewal is due when half of the life is over, and at once when the clock says nonsense.
#[test]
fn renewal_is_due_halfway() {
    let shown = shown(&make(NOW).unwrap(), admin(), 1);
    let due = |days: u64| shown.is_due(Timestamp(NOW.0 + days * DAY));
    assert_eq!((due(0), due(4), due(5), due(11)), (false, false, true, true));
    assert!(shown.is_due(Timestamp(NOW.0 - 1)));
}

/// A file gives back what was written, is for its owner only, and one that holds anything else is named.
#[test]
fn files_keep_keys() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deep/identity.pem");
    assert_eq!(read_shown(&path).unwrap(), None);
    let authority = make(NOW).unwrap();
    let ada = shown(&authority, admin(), 1);
    for _ in 0..2 {
        write_shown(&path, &ada).unwrap();
    }
    assert_eq!(read_shown(&path).unwrap(), Some(ada));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let ca = dir.path().join("ca.pem");
    write_roots(&ca, &roots(&[&authority])).unwrap();
    // The text that rcgen writes and ours are the same certificate.
    assert_eq!(read_roots(&ca).unwrap(), Some(roots(&[&authority])));
    std::fs::write(&path, "-----BEGIN PRIVATE KEY-----\nAAAA\n").unwrap();
    assert!(read_shown(&path).unwrap_err().to_string().contains("identity.pem"));
    std::fs::write(&ca, "").unwrap();
    assert!(read_roots(&ca).unwrap_err().to_string().contains("there is none"));
}

fn ring(shown: Option<Shown>, authority: &Authority) -> Ring {
    Ring { shown, trust: Trust::Roots(roots(&[authority])), beside: roots(&[authority]) }
}

/// One handshake between a server and a caller; what the caller got to read, or the alert it was refused with.
async fn shake(server: Arc<rustls::ServerConfig>, caller: &Arc<Keyring>) -> std::io::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        if let Ok(mut stream) = TlsAcceptor::from(server).accept(stream).await {
            tokio::io::AsyncWriteExt::write_all(&mut stream, b"hello").await.unwrap();
            tokio::io::AsyncWriteExt::shutdown(&mut stream).await.unwrap();
        }
    });
    let mut text = String::new();
    let mut stream = caller.dialer().connect("127.0.0.1", port).await?;
    stream.read_to_string(&mut text).await?;
    serving.await.unwrap();
    Ok(text)
}

fn alert(answer: std::io::Result<String>) -> AlertDescription {
    let error = answer.unwrap_err();
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::AlertReceived(alert)) => *alert,
        _ => panic!("{error}"),
    }
}

/// A port that only controllers may call refuses everybody else within the handshake, with the alert that fits; a caller
/// refuses what is no controller of its cluster; a joiner knows the cluster by the fingerprint alone.
#[tokio::test]
async fn handshakes_refuse_whom_they_should() {
    let (ours, theirs) = (make(NOW).unwrap(), make(NOW).unwrap());
    let time = Arc::new(AtomicU64::new(NOW.0));
    let told = Arc::clone(&time);
    let clock = Clock::new(move || Timestamp(told.load(Ordering::Relaxed)));
    let one = ring(Some(shown(&ours, controller(1), 1)), &ours);
    let (trusting, judging) = (one.clone(), clock.clone());
    let judge: Judge = Arc::new(move |chain| {
        let verified = trusting.judge(chain, &judging)?;
        match &verified.identity {
            Identity::Controller(ControllerId(9)) => Err(Refusal::Revoked(verified.identity)),
            Identity::Controller(_) => Ok(verified),
            is => Err(Refusal::Other { is: is.clone(), expected: "controller".to_owned() }),
        }
    });
    let strict = || acceptor(&one, Some(Arc::clone(&judge))).unwrap();
    let caller = |shown: Option<Shown>| Keyring::new(ring(shown, &ours), clock.clone()).unwrap();
    let as_who = |who: Identity| caller(Some(shown(&ours, who, 5)));
    assert_eq!(shake(strict(), &as_who(controller(2))).await.unwrap(), "hello");
    assert_eq!(alert(shake(strict(), &as_who(admin())).await), AlertDescription::AccessDenied);
    assert_eq!(alert(shake(strict(), &as_who(controller(9))).await), AlertDescription::CertificateRevoked);
    assert_eq!(alert(shake(strict(), &caller(None)).await), AlertDescription::CertificateRequired);
    let foreign = caller(Some(shown(&theirs, controller(2), 5)));
    assert_eq!(alert(shake(strict(), &foreign).await), AlertDescription::UnknownCA);

    // The open port takes all of them: they are judged later.
    let open = || acceptor(&one, None).unwrap();
    assert_eq!(shake(open(), &caller(None)).await.unwrap(), "hello");
    assert_eq!(shake(open(), &foreign).await.unwrap(), "hello");

    let not_a_controller = ring(Some(shown(&ours, admin(), 6)), &ours);
    let refused = shake(acceptor(&not_a_controller, None).unwrap(), &caller(None)).await.unwrap_err();
    assert!(refused.to_string().contains("no controller of this cluster"), "{refused}");
    let joiner = |fingerprint: String| {
        let ring = Ring { shown: None, trust: Trust::Pinned(fingerprint), beside: Vec::new() };
        Keyring::new(ring, clock.clone()).unwrap()
    };
    let pin = fingerprint(&roots(&[&ours])[0]);
    assert_eq!(shake(open(), &joiner(pin)).await.unwrap(), "hello");
    let other = fingerprint(&roots(&[&theirs])[0]);
    assert!(shake(open(), &joiner(other)).await.is_err());

    // Expired, by both clocks' agreement, without waiting.
    time.store(NOW.0 + 11 * DAY, Ordering::Relaxed);
    let fresh = Keyring::new(ring(None, &ours), Clock::new(|| NOW)).unwrap();
    assert_eq!(shake(open(), &fresh).await.unwrap(), "hello");
    assert!(shake(open(), &caller(None)).await.is_err(), "a server's certificate ends too");
    let late = Keyring::new(ring(Some(shown(&ours, controller(2), 5)), &ours), Clock::new(|| NOW)).unwrap();
    assert_eq!(alert(shake(strict(), &late).await), AlertDescription::CertificateExpired);
}

fn token() -> impl Strategy<Value = JoinToken> {
    (prop::sample::select(&Role::ALL), "[0-9a-f]{64}", "[0-9a-f]{64}")
        .prop_map(|(role, secret, fingerprint)| JoinToken { role, secret: Secret::new(secret), fingerprint })
}

proptest! {
    /// A token's text is read back, and no part of it may be missing, longer or in another spelling.
    #[test]
    fn a_token_reads_back(token in token(), cut in 0_usize..130, noise in "[g-zA-Z0-9.]") {
        let text = token.text();
        prop_assert_eq!(text.parse::<JoinToken>(), Ok(token.clone()));
        prop_assert!(text[..cut.min(text.len() - 1)].parse::<JoinToken>().is_err());
        let longer = text.clone() + &noise;
        prop_assert!(longer.parse::<JoinToken>().is_err());
        let shown = format!("{token:?} {token}");
        prop_assert!(!shown.contains(token.secret.expose()));
    }

    /// No text makes the parsers of a token, of a certificate's name or of an identity file fail otherwise than by refusing,
    /// and a refusal never repeats the token.
    #[test]
    fn hostile_text_is_refused(text in "(dunlin:)?(host|admin|controller)?[./]?\\PC{0,80}") {
        if let Err(refused) = text.parse::<JoinToken>() {
            prop_assert!(text.len() < 12 || !refused.to_string().contains(&text));
        }
        if let Some(found) = identity(&text) {
            prop_assert_eq!(uri(&found), text.clone());
        }
        let file = format!("# issued {text} expires\n-----BEGIN PRIVATE KEY-----\n{text}-----BEGIN CERTIFICATE-----{text}");
        prop_assert_eq!(files::parse_shown(&file), None);
        prop_assert_eq!(files::parse_shown(&text), None);
    }

    /// Serial numbers are what we wrote, and others are refused.
    #[test]
    fn serials_are_ours_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..20)) {
        let significant = bytes.iter().skip_while(|byte| **byte == 0).count();
        prop_assert_eq!(number(&bytes).is_ok(), significant <= 8);
    }

    /// Bytes that are no certificate are refused as such.
    #[test]
    fn hostile_certificates_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let chain = [CertificateDer::from(bytes)];
        let found = verify(&chain, &[], Usage::Client, NOW);
        prop_assert!(matches!(found, Err(Refusal::Unreadable(_))), "{found:?}");
    }
}
