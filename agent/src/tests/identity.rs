use std::time::Instant;

use super::*;
use crate::IdentityError;

/// A join whose answer was lost is repeated as the same join; the identity then needs no token; a second agent on the
/// folder, a wrong token, a taken name and a foreign cluster are told apart.
#[tokio::test]
async fn joining() {
    let fake = Fake::start().await;
    let mut house = House::new("n1", &[&fake]);
    fake.with(|state| state.lose_answers = 1);
    let never = std::future::pending::<()>;
    let lost = run_with(house.config.clone(), Vec::new(), never()).await.unwrap_err();
    assert!(matches!(lost, Error::Identity(IdentityError::Join(_))), "{lost}");
    house.start().await;
    let id = house.id(&fake).await;
    let joins =
        fake.until("the second join", |state| (state.joins.len() == 2).then(|| state.joins.clone())).await;
    assert_eq!(joins[0], joins[1]);
    fake.until("a session", |state| state.lines.get(&id).cloned()).await;

    let second = run_with(house.config.clone(), Vec::new(), never()).await.unwrap_err().to_string();
    assert!(second.contains(&format!("process {}", std::process::id())), "{second}");

    house.config.token = None;
    house.restart(&fake).await;
    fake.until("a second session", |state| (state.hellos.len() == 2).then_some(())).await;
    assert_eq!(fake.with(|state| state.joins.len()), 2);
    let [first, again] = fake.with(|state| [state.hellos[0].clone(), state.hellos[1].clone()]);
    assert_eq!(first.host_uid, again.host_uid);
    assert_ne!(first.instance, again.instance);
    assert_eq!(again.capabilities.unwrap().cpus, 8);

    house.kill().await;
    fake.with(|state| state.dismisses = true);
    house.start().await;
    let refused = house.agent.take().unwrap().await.unwrap().unwrap_err();
    assert!(matches!(refused, Error::Identity(IdentityError::OtherCluster { .. })), "{refused}");

    let mut other = House::new("n1", &[&fake]);
    let taken = run_with(other.config.clone(), Vec::new(), never()).await.unwrap_err().to_string();
    assert_eq!(taken, "this host cannot join as n1: there is a host of that name");
    other.config.token = Some(token(&"a".repeat(64)));
    let refused = run_with(other.config.clone(), Vec::new(), never()).await.unwrap_err().to_string();
    assert_eq!(refused, "the token was refused: the token is unknown");
    let fresh = House::new("n2", &[]);
    let config = Config { token: None, ..fresh.config.clone() };
    let none = run_with(config, Vec::new(), never()).await.unwrap_err();
    assert!(matches!(none, Error::Identity(IdentityError::NoToken)), "{none}");
}

/// The agent goes where it is redirected, answers pings, and is back within a second when the leader dies and another
/// controller leads, with a complete report.
#[tokio::test]
async fn following_the_leader() {
    let (first, second) = (Fake::start().await, Fake::start().await);
    first.with(|state| state.redirect = Some(second.endpoint.clone()));
    let mut house = House::new("n1", &[&first, &second]);
    house.start().await;
    let id = house.id(&first).await;
    second.until("a session with the leader", |state| state.lines.get(&id).cloned()).await;
    second.say(id, dunlin_proto::v1::to_agent::Message::Ping(dunlin_proto::v1::Ping { nonce: 77 })).await;
    second.until("a pong", |state| (state.hosts.get(&id)?.pongs == 77).then_some(())).await;
    second.tell(id, 1, &[told(vm(1), 1, running())], &[]).await;
    second.sees("running", id, vm(1), runs_as(1)).await;

    first.with(|state| state.redirect = None);
    let died = Instant::now();
    second.kill();
    first.sees("running", id, vm(1), runs_as(1)).await;
    let away = died.elapsed();
    assert!(away.as_millis() < 1000, "{away:?}");
    assert_eq!(first.with(|state| state.hosts[&id].completes), 1);
}

/// A certificate whose time has half passed is renewed for a new key at once, while the session goes on, and is what the next
/// start shows; a token for another role, or one that is no token, is refused before it is shown to anybody; a controller
/// that proves nothing is not spoken to.
#[tokio::test]
async fn certificates_renew_by_themselves() {
    let fake = Fake::start().await;
    let mut house = House::new("n1", &[&fake]);
    fake.with(|state| state.stale = true);
    house.start().await;
    let id = house.id(&fake).await;
    fake.until("a session", |state| state.lines.get(&id).cloned()).await;
    let renewed = fake.until("a renewal", |state| state.renewals.first().cloned()).await;
    assert_ne!(renewed, fake.with(|state| state.joins[0].public_key.clone()));
    assert_eq!(fake.with(|state| state.hellos.len()), 1, "the session went on");
    let pem = house.config.data_dir.join("identity.pem");
    let public = |pem: &std::path::Path| {
        let shown = dunlin_pki::read_shown(pem).unwrap().unwrap();
        dunlin_pki::KeyPair::from_pem(shown.key.expose()).unwrap().public().as_bytes().to_vec()
    };
    eventually("it is kept", async || (public(&pem) == renewed).then_some(())).await;
    assert!(!house.config.data_dir.join("joining.pem").exists());
    house.config.token = None;
    house.restart(&fake).await;
    fake.until("a second session", |state| (state.hellos.len() == 2).then_some(())).await;
    assert_eq!(fake.with(|state| state.renewals.len()), 1);

    let never = std::future::pending::<()>;
    for (text, says) in [
        ("guessed".to_owned(), "it has not three parts"),
        (token("").expose().replace("host.", "admin."), "not for a host"),
    ] {
        let mut other = House::new("n2", &[&fake]);
        other.config.token = Some(dunlin_model::Secret::new(text));
        let refused = run_with(other.config.clone(), Vec::new(), never()).await.unwrap_err().to_string();
        assert!(refused.contains(says), "{refused}");
    }
    let mut other = House::new("n2", &[&fake]);
    other.config.controllers = vec![fake.endpoint.replace("https", "http")];
    let refused = run_with(other.config.clone(), Vec::new(), never()).await.unwrap_err().to_string();
    assert!(refused.contains("is not encrypted"), "{refused}");
}
