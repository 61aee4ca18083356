//! Tokens, certificates, revocations and rotations, as the log decides them.

use dunlin_model::host::HostPhase;
use dunlin_model::identity::{Authority, Issued};
use dunlin_model::{ControllerId, ErrorCode, Identity, Role, Secret, Timestamp};

use super::{Fleet, ask, host_id, join};
use crate::command::{Command, Write};
use crate::snapshot;
use crate::trust::{Ask, FOUNDING_SERIALS, TrustChange};

const DAY: u64 = 24 * 3600 * 1000;

fn authority(id: &str) -> Box<Authority> {
    Box::new(Authority {
        id: id.to_owned(),
        certificate: format!("certificate of {id}"),
        endorsement: None,
        key: Secret::new(format!("key of {id}")),
        made: Timestamp(0),
        expires: Timestamp::MAX,
    })
}

fn one() -> Identity {
    Identity::Controller(ControllerId(1))
}

fn ada() -> Identity {
    Identity::Admin("ada".parse().unwrap())
}

fn change(change: TrustChange) -> Command {
    Command::Trust(change)
}

fn asked(key: &str, authority: &str, expires: u64) -> Ask {
    Ask { key_sha256: key.to_owned(), authority: authority.to_owned(), expires: Timestamp(expires) }
}

impl Fleet {
    fn role_token(&self, sha256: &str, role: Role) -> Command {
        let expires = Timestamp(self.now + 60_000);
        let write = Write::CreateToken { sha256: sha256.to_owned(), role, expires };
        Command::Write { key: format!("token-{sha256}"), write }
    }

    /// A fleet with authority `a` and controller 1.
    fn trusting() -> Self {
        let mut fleet = Self::new(0);
        let issued = Issued {
            serial: 1,
            key_sha256: "k1".to_owned(),
            authority: "a".to_owned(),
            at: Timestamp(0),
            expires: Timestamp(10 * DAY),
        };
        fleet.ok(&change(TrustChange::Install { authority: authority("a"), issued: vec![(one(), issued)] }));
        fleet
    }

    fn says(&mut self, command: &Command, code: ErrorCode, text: &str) {
        let refused = self.refused(command);
        assert_eq!(refused.code, code, "{refused}");
        assert!(refused.message.contains(text), "{refused}");
    }
}

/// A token makes one holder of its own role, once; the same key again gets the same certificate, and a revoked holder none.
#[test]
fn a_token_makes_one_holder_of_its_role() {
    let mut fleet = Fleet::trusting();
    fleet.ok(&fleet.role_token("t", Role::Admin));
    let with = |token: &str, identity: Identity, key: &str| {
        let ask = asked(key, "a", DAY);
        change(TrustChange::Join { token_sha256: token.to_owned(), identity, ask })
    };
    let joins = |identity: Identity, key: &str| with("t", identity, key);
    let two = Identity::Controller(ControllerId(2));
    fleet.says(
        &joins(two, "k2"),
        ErrorCode::Forbidden,
        "the token is for the role admin, not for controller",
    );
    fleet.says(&joins(Identity::Host(host_id(1)), "k"), ErrorCode::InvalidArgument, "as a host");
    let wrong = Command::JoinHost {
        token_sha256: "t".to_owned(),
        uid: host_id(1),
        name: "h1".parse().unwrap(),
        labels: Default::default(),
        ask: asked("k", "a", DAY),
    };
    fleet.says(&wrong, ErrorCode::Forbidden, "not for host");
    fleet.ok(&joins(ada(), "ka"));
    let serial = fleet.state.trust().issued(&ada(), "ka").unwrap().serial;
    assert_eq!(serial, FOUNDING_SERIALS + 1);
    fleet.ok(&joins(ada(), "ka"));
    assert_eq!(fleet.state.trust().issued(&ada(), "ka").unwrap().serial, serial, "the same join");
    fleet.says(&joins(ada(), "other"), ErrorCode::Unauthenticated, "used before");

    let renews = |key: &str, serial| {
        change(TrustChange::Renew { identity: ada(), serial, ask: asked(key, "a", 2 * DAY) })
    };
    fleet.ok(&renews("kb", serial));
    assert_eq!(fleet.state.trust().issued(&ada(), "kb").unwrap().serial, serial + 1);
    assert!(fleet.state.trust().admits(&ada(), serial), "the one before holds to its end");
    let epoch = fleet.state.trust().epoch();
    fleet.ok(&change(TrustChange::Revoke { identity: ada() }));
    assert!(fleet.state.trust().epoch() > epoch);
    assert!(!fleet.state.trust().admits(&ada(), serial + 1));
    fleet.says(&renews("kc", serial + 1), ErrorCode::Unauthenticated, "revoked");
    fleet.says(&joins(ada(), "kb"), ErrorCode::Unauthenticated, "used before");
    fleet.ok(&fleet.role_token("t2", Role::Admin));
    fleet.ok(&with("t2", ada(), "kd"));
    assert!(fleet.state.trust().admits(&ada(), serial + 2));
}

/// A revoked host is down and refused, and comes back under its own uid with a new token; a host that was removed is refused
/// too, and nobody takes the place of a host or controller that is there.
#[test]
fn a_revoked_host_comes_back_only_with_a_token() {
    let mut fleet = Fleet::new(2);
    let host = |number| Identity::Host(host_id(number));
    let serial = fleet.state.trust().issued(&host(0), "secret").unwrap().serial;
    fleet.ok(&change(TrustChange::Revoke { identity: host(0) }));
    assert_eq!(fleet.state.host(host_id(0)).unwrap().status.phase, HostPhase::Down);
    assert!(!fleet.state.trust().admits(&host(0), serial));
    fleet.says(&join(0, "t0", "secret"), ErrorCode::Unauthenticated, "used before");
    fleet.ok(&fleet.token("again"));
    fleet.ok(&join(0, "again", "secret-2"));
    assert!(
        fleet
            .state
            .trust()
            .admits(&host(0), fleet.state.trust().issued(&host(0), "secret-2").unwrap().serial)
    );
    fleet.ok(&fleet.token("more"));
    fleet.says(&join(0, "more", "secret-3"), ErrorCode::Unauthenticated, "another key");

    let serial = fleet.state.trust().issued(&host(1), "secret").unwrap().serial;
    fleet.ok(&Command::Write {
        key: "r".to_owned(),
        write: Write::RemoveHost { uid: host_id(1), force: true },
    });
    assert!(!fleet.state.trust().admits(&host(1), serial));
    let renews = change(TrustChange::Renew { identity: host(1), serial, ask: ask("next") });
    fleet.says(&renews, ErrorCode::Unauthenticated, "revoked");

    let mut fleet = Fleet::trusting();
    fleet.ok(&fleet.role_token("c", Role::Controller));
    let ask = asked("k", "a", DAY);
    let joins = change(TrustChange::Join { token_sha256: "c".to_owned(), identity: one(), ask });
    fleet.says(&joins, ErrorCode::AlreadyExists, "revoke it first");
    fleet.ok(&change(TrustChange::Revoke { identity: one() }));
    fleet.ok(&joins);
}

/// A rotation believes two authorities until nobody needs the old one; the key of either is in no event; what has ended is
/// forgotten; and a snapshot carries all of it.
#[test]
fn a_rotation_ends_when_nobody_uses_the_old() {
    let mut fleet = Fleet::trusting();
    let rotate = |id: &str| change(TrustChange::Rotate { authority: authority(id) });
    let drops = |id: &str, force| change(TrustChange::Drop { authority: id.to_owned(), force });
    let install = change(TrustChange::Install { authority: authority("z"), issued: Vec::new() });
    fleet.says(&install, ErrorCode::AlreadyExists, "already");
    fleet.says(&drops("a", true), ErrorCode::InUse, "rotate first");
    fleet.ok(&rotate("b"));
    fleet.says(&rotate("c"), ErrorCode::WrongState, "under way");
    fleet.says(&drops("a", false), ErrorCode::InUse, "controller/1");
    let renews = |authority: &str| {
        change(TrustChange::Renew { identity: one(), serial: 1, ask: asked("k2", authority, 20 * DAY) })
    };
    fleet.says(&renews("a"), ErrorCode::WrongState, "another authority signs");
    fleet.ok(&renews("b"));
    assert_eq!(fleet.state.trust().users("a", Timestamp(fleet.now)).count(), 0);
    fleet.ok(&drops("a", false));
    let left: Vec<_> = fleet.state.trust().authorities().iter().map(|known| known.id.as_str()).collect();
    assert_eq!(left, ["b"]);
    for event in fleet.state.events() {
        assert!(!format!("{event:?}").contains("key of"), "{event:?}");
    }

    fleet.ok(&rotate("c"));
    let mut bytes = Vec::new();
    snapshot::encode(&fleet.state, &mut bytes).unwrap();
    assert_eq!(snapshot::decode(&mut bytes.as_slice()).unwrap(), fleet.state);
    fleet.now += 22 * DAY;
    fleet.ok(&fleet.token("any"));
    assert!(fleet.state.needs_sweep(Timestamp(fleet.now)));
    fleet.ok(&Command::Sweep);
    assert_eq!(fleet.state.trust().holders().count(), 0);
    fleet.ok(&drops("b", false));
}
