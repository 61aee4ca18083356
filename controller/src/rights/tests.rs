//! Refusals over the wire, each with the right code and its line in the audit log, on clusters that let nobody in who shows
//! nothing.

use std::collections::BTreeMap;

use dunlin_model::vm::Power;
use dunlin_model::{ErrorCode, Identity, Labels, Secret, Timestamp};
use dunlin_pki::{Clock, Keyring, Ring};
use dunlin_proto::{Fault, v1};
use dunlin_state::Command;
use dunlin_state::rights::{RightsSpec, RightsWrite};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use v1::access_client::AccessClient;
use v1::fleet_client::FleetClient;
use v1::identities_client::IdentitiesClient;

use crate::mint;
use crate::testing::{Cluster, eventually, key, keyring, vm};

/// What is planted, and must be seen nowhere but where it was given.
const PASSWORD: &str = "planted-password-77";

type Shown = Box<dyn FnMut(Request<()>) -> Result<Request<()>, Status> + Send + Sync>;
type Line = InterceptedService<Channel, Shown>;

struct Site {
    cluster: Cluster,
}

fn spec<T: serde::de::DeserializeOwned>(json: &str) -> T {
    serde_json::from_str(json).unwrap()
}

impl Site {
    /// Users viv (viewer), opa (operator in project web of one VM) and root (admin), all with the planted password.
    async fn start(controllers: u64) -> Self {
        let cluster = Cluster::start(controllers).await;
        let site = Self { cluster };
        let quota = r#"{"quota": {"vms": 1}}"#;
        site.put("web", RightsSpec::Project(spec(quota)), None).await;
        let hash = super::Passwords::default().hash(Secret::new(PASSWORD)).await.unwrap();
        for (user, role, project) in
            [("viv", "viewer", None), ("opa", "operator", Some("web")), ("root", "admin", None)]
        {
            site.put(user, RightsSpec::User(spec("{}")), Some(hash.clone())).await;
            let binding = serde_json::json!({"role": role, "users": [user], "project": project}).to_string();
            site.put(&format!("b-{user}"), RightsSpec::Binding(spec(&binding)), None).await;
        }
        site
    }

    /// As whoever holds the machine does it.
    async fn put(&self, name: &str, spec: RightsSpec, secret: Option<Secret>) {
        let name = name.parse().unwrap();
        let write = RightsWrite::Create { uid: mint::uuid(), name, labels: Labels::new(), spec, secret };
        self.write(write).await;
    }

    async fn write(&self, write: RightsWrite) {
        let leader = self.cluster.leader().await;
        let command = Command::Write { key: key(), write: dunlin_state::Write::Rights(write) };
        self.cluster.controller(leader).node.replica.propose(&command).await.unwrap().unwrap();
    }

    fn line(&self, id: u64, token: &str) -> Line {
        let channel = self.cluster.channel(id, &keyring(&self.cluster.authority, None));
        let token = token.to_owned();
        let show: Shown = Box::new(move |mut request| {
            if !token.is_empty() {
                request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
            }
            request.metadata_mut().insert("dunlin-correlation", "told-by-the-test".parse().unwrap());
            Ok(request)
        });
        InterceptedService::new(channel, show)
    }

    /// Where the test's own calls come from: the system takes 127.0.0.1 for whatever is on the loopback.
    fn address(&self) -> String {
        "127.0.0.1".to_owned()
    }

    fn fleet(&self, id: u64, token: &str) -> FleetClient<Line> {
        FleetClient::new(self.line(id, token))
    }

    fn access(&self, id: u64, token: &str) -> AccessClient<Line> {
        AccessClient::new(self.line(id, token))
    }

    async fn login(&self, user: &str, password: &str) -> Result<String, Fault> {
        let request = v1::LoginRequest { user: user.into(), password: password.into() };
        Ok(self.access(1, "").login(request).await?.into_inner().token)
    }

    async fn create(&self, id: u64, token: &str, object: v1::Object) -> Result<Response<v1::Object>, Status> {
        let request = v1::CreateRequest { idempotency_key: key(), object: Some(object), dry_run: false };
        self.fleet(id, token).create(request).await
    }

    /// All lines with that verb and user, in order.
    async fn lines(&self, token: &str, user: &str, verb: &str) -> Vec<BTreeMap<String, serde_json::Value>> {
        let request = v1::ListAuditRequest { user: user.into(), verb: verb.into(), ..Default::default() };
        let told = self.access(1, token).list_audit(request).await.unwrap().into_inner();
        assert!(told.missing.is_empty());
        told.lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The outcomes of those, of calls that were told by which id they belong together.
    async fn outcomes(&self, token: &str, user: &str, verb: &str) -> Vec<String> {
        let outcome = |line: BTreeMap<String, serde_json::Value>| {
            assert_eq!(line["correlation"], "told-by-the-test");
            line["outcome"].as_str().unwrap().to_owned()
        };
        self.lines(token, user, verb).await.into_iter().map(outcome).collect()
    }
}

#[track_caller]
fn code<T>(answer: Result<T, Status>) -> (ErrorCode, String) {
    let Err(status) = answer else { panic!("it was allowed") };
    let fault = Fault::from_status(&status);
    (fault.code, fault.message)
}

fn vm_in(name: &str, project: &str) -> v1::Object {
    let mut object = vm(name, Power::Stopped);
    if let Some(v1::object::Choice::Vm(vm)) = &mut object.choice {
        vm.spec.as_mut().unwrap().project = Some(project.to_owned());
    }
    object
}

fn get(kind: v1::Kind, name: &str) -> v1::GetRequest {
    v1::GetRequest { kind: kind.into(), name: name.into(), ..Default::default() }
}

fn all(kind: v1::Kind) -> v1::ListRequest {
    v1::ListRequest { kind: kind.into(), ..Default::default() }
}

/// Who shows nothing, a viewer who writes, a project over its quota, another project's VM, and a token narrowed to a project
/// are each refused with the right code, whichever controller is asked, and each has its line.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_refusal_has_its_code_and_its_line() {
    let site = Site::start(3).await;
    let viv = site.login("viv", PASSWORD).await.unwrap();
    let opa = site.login("opa", PASSWORD).await.unwrap();
    let root = site.login("root", PASSWORD).await.unwrap();
    for id in 1..=3 {
        assert_eq!(code(site.create(id, "", vm("a", Power::Stopped)).await).0, ErrorCode::Unauthenticated);
        assert_eq!(code(site.fleet(id, "").list(all(v1::Kind::Vm)).await).0, ErrorCode::Unauthenticated);
        assert_eq!(
            code(site.fleet(id, "").watch(v1::WatchRequest::default()).await).0,
            ErrorCode::Unauthenticated
        );
        assert_eq!(
            code(site.fleet(id, "dlt_guess").list(all(v1::Kind::Vm)).await).0,
            ErrorCode::Unauthenticated
        );
        let (refused, says) = code(site.create(id, &viv, vm("a", Power::Stopped)).await);
        assert_eq!(refused, ErrorCode::Forbidden);
        assert!(says.contains("viv may not: this needs the verb create on Vm in project default"), "{says}");
    }
    site.create(2, &opa, vm_in("mine", "web")).await.unwrap();
    assert_eq!(code(site.create(3, &opa, vm_in("more", "web")).await).0, ErrorCode::QuotaExceeded);
    assert_eq!(code(site.create(3, &opa, vm_in("more", "default")).await).0, ErrorCode::Forbidden);
    site.create(1, &root, vm_in("other", "default")).await.unwrap();
    // The other project's VM is not there for opa: neither read, listed nor deleted.
    assert_eq!(code(site.fleet(2, &opa).get(get(v1::Kind::Vm, "other")).await).0, ErrorCode::NotFound);
    assert_eq!(code(site.fleet(2, &opa).list(all(v1::Kind::Host)).await).0, ErrorCode::Forbidden);
    let seen = site.fleet(2, &opa).list(all(v1::Kind::Vm)).await.unwrap().into_inner().objects;
    assert_eq!(seen.len(), 1);
    let request = v1::DeleteRequest { kind: v1::Kind::Vm.into(), name: "other".into(), ..Default::default() };
    assert_eq!(code(site.fleet(2, &opa).delete(request).await).0, ErrorCode::NotFound);
    let narrow = v1::CreateApiTokenRequest {
        name: "narrow".into(),
        user: "root".into(),
        roles: vec!["operator".into()],
        project: Some("web".into()),
        ttl_s: 60,
    };
    let narrow = site.access(3, &root).create_api_token(narrow).await.unwrap().into_inner().token;
    assert_eq!(code(site.create(1, &narrow, vm_in("x", "default")).await).0, ErrorCode::Forbidden);
    assert_eq!(code(site.create(1, &narrow, vm_in("x", "web")).await).0, ErrorCode::QuotaExceeded);
    let denied = ["forbidden"; 3];
    assert_eq!(site.outcomes(&root, "viv", "create").await, denied);
    assert_eq!(site.outcomes(&root, "opa", "create").await, ["ok", "quota_exceeded", "forbidden"]);
    assert_eq!(site.outcomes(&root, "opa", "delete").await, ["not_found"]);
    assert_eq!(site.outcomes(&root, "", "authenticate").await.len(), 12);
    assert_eq!(
        code(site.access(1, &viv).list_audit(v1::ListAuditRequest::default()).await).0,
        ErrorCode::Forbidden
    );
    for controller in 1..=3 {
        let told = site.access(2, &root).verify_audit(v1::VerifyAuditRequest { controller }).await.unwrap();
        assert_eq!(told.into_inner().broken, "");
    }
    site.nothing_secret_is_seen(&[PASSWORD, &viv, &opa, &root, &narrow]).await;
}

impl Site {
    /// In no object, event, debug print, audit line or file of the log are these.
    async fn nothing_secret_is_seen(&self, secrets: &[&str]) {
        let leader = self.cluster.leader().await;
        let node = &self.cluster.controller(leader).node;
        let view = node.replica.read();
        let mut seen = format!("{:?}", view.machine);
        for kind in dunlin_model::Kind::ALL {
            for object in view.objects_of(kind) {
                seen.push_str(&serde_json::to_string(object).unwrap());
                seen.push_str(&format!("{object:?}"));
            }
        }
        for id in 1..=3 {
            let dir = self.cluster.config(id).data_dir.join("audit");
            for file in std::fs::read_dir(dir).unwrap().flatten() {
                seen.push_str(&std::fs::read_to_string(file.path()).unwrap());
            }
        }
        assert!(!seen.contains("argon2id"), "a password's hash is seen");
        for secret in secrets {
            assert!(!seen.contains(secret), "{secret} is seen");
            assert!(!seen.contains(&mint::sha256_hex(secret)), "the hash of {secret} is seen");
        }
        let request = v1::LoginRequest { user: "viv".into(), password: PASSWORD.into() };
        assert!(!format!("{request:?}").contains(PASSWORD));
    }
}

/// A wrong password, an unknown user and a disabled one read alike; after enough of them even the right one has to wait. A
/// disabled user's session ends at once, an open watch too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logins_and_what_ends_them() {
    let site = Site::start(1).await;
    let root = site.login("root", PASSWORD).await.unwrap();
    let viv = site.login("viv", PASSWORD).await.unwrap();
    let mut said = std::collections::BTreeSet::new();
    for (user, password) in
        [("opa", "wrong"), ("nobody", PASSWORD), ("opa", ""), ("opa", "x"), ("opa", "y"), ("opa", "z")]
    {
        let refused = site.login(user, password).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::Unauthenticated);
        said.insert(refused.message);
    }
    assert_eq!(said.len(), 1, "{said:?}");
    let waits = site.login("opa", PASSWORD).await.unwrap_err();
    assert_eq!(waits.code, ErrorCode::TooManyAttempts);
    assert!(waits.message.contains("try again in"), "{waits}");
    site.login("viv", PASSWORD).await.unwrap();
    let logins = site.outcomes(&root, "", "login").await;
    let count = |outcome: &str| logins.iter().filter(|line| *line == outcome).count();
    assert_eq!((count("ok"), count("unauthenticated"), count("too_many_attempts")), (3, 6, 1));

    let mut watch = site.fleet(1, &viv).watch(v1::WatchRequest::default()).await.unwrap().into_inner();
    let me = site.access(1, &viv).show_account(v1::ShowAccountRequest {}).await.unwrap().into_inner();
    assert_eq!(
        (me.name.as_str(), me.bound.as_slice()),
        ("viv", &["viewer in the whole fleet".to_owned()][..])
    );
    let found = site.fleet(1, &root).get(get(v1::Kind::User, "viv")).await.unwrap().into_inner();
    let Some(v1::object::Choice::User(mut user)) = found.choice else { panic!("a user") };
    user.spec.as_mut().unwrap().disabled = true;
    let object = Some(v1::Object { choice: Some(v1::object::Choice::User(user)) });
    site.fleet(1, &root)
        .update(v1::UpdateRequest { idempotency_key: key(), object, dry_run: false })
        .await
        .unwrap();
    let (refused, says) = code(site.fleet(1, &viv).list(all(v1::Kind::Vm)).await);
    assert!(refused == ErrorCode::Unauthenticated && says.contains("disabled"), "{says}");
    assert_eq!(site.login("viv", PASSWORD).await.unwrap_err().code, ErrorCode::Unauthenticated);
    loop {
        match watch.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ended without a word"),
            Err(status) => break assert_eq!(Fault::from_status(&status).code, ErrorCode::Unauthenticated),
        }
    }
}

/// A token that has expired, was revoked, or whose user has another password or has logged out, is of no use at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_end() {
    let site = Site::start(1).await;
    let root = site.login("root", PASSWORD).await.unwrap();
    let short = v1::CreateApiTokenRequest {
        name: "short".into(),
        user: "root".into(),
        ttl_s: 1,
        ..Default::default()
    };
    let short = site.access(1, &root).create_api_token(short).await.unwrap().into_inner().token;
    eventually_refused(&site, &short, "expired").await;
    let long = v1::CreateApiTokenRequest {
        name: "long".into(),
        user: "root".into(),
        ttl_s: 600,
        ..Default::default()
    };
    let long = site.access(1, &root).create_api_token(long).await.unwrap().into_inner().token;
    site.fleet(1, &long).list(all(v1::Kind::Vm)).await.unwrap();
    let view = &site.cluster.controller(1).node.replica;
    eventually("its use is noted", || {
        let view = view.read();
        view.api_tokens().any(|token| {
            token.metadata.name.as_str() == "long" && token.status.last_used > Some(Timestamp(0))
        })
    })
    .await;
    let revoke =
        v1::DeleteRequest { kind: v1::Kind::ApiToken.into(), name: "long".into(), ..Default::default() };
    site.fleet(1, &root).delete(revoke).await.unwrap();
    assert_eq!(code(site.fleet(1, &long).list(all(v1::Kind::Vm)).await).0, ErrorCode::Unauthenticated);
    let new = v1::SetPasswordRequest { user: "root".into(), password: "another-password".into() };
    site.access(1, &root).set_password(new).await.unwrap();
    assert_eq!(code(site.fleet(1, &root).list(all(v1::Kind::Vm)).await).0, ErrorCode::Unauthenticated);
    let root = site.login("root", "another-password").await.unwrap();
    site.access(1, &root).logout(v1::LogoutRequest {}).await.unwrap();
    assert_eq!(code(site.fleet(1, &root).list(all(v1::Kind::Vm)).await).0, ErrorCode::Unauthenticated);
}

/// What is refused before anybody looks at what is asked has its line too: certificates that do not hold, a join token shown
/// again, and bodies that are too large, by gRPC and by REST. An admin's certificate keeps all its rights.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_doors_refusals_have_their_lines() {
    let site = Site::start(1).await;
    let viv = site.login("viv", PASSWORD).await.unwrap();
    let mut admin = site.cluster.client(1);
    let token = admin.create_token(v1::CreateTokenRequest { ttl_s: 60, ..Default::default() }).await.unwrap();
    let token: dunlin_pki::JoinToken = token.into_inner().token.parse().unwrap();
    let joins = |name: &str| v1::JoinRequest {
        token: token.secret.expose().to_owned(),
        name: name.into(),
        host_uid: mint::uuid().to_string(),
        public_key: dunlin_pki::KeyPair::generate().unwrap().public().as_bytes().to_vec(),
        ..Default::default()
    };
    let nobody = || IdentitiesClient::new(site.line(1, ""));
    nobody().join(joins("h1")).await.unwrap();
    assert_eq!(code(nobody().join(joins("h2")).await).0, ErrorCode::Unauthenticated);

    let theirs = dunlin_pki::make(crate::clock::now()).unwrap();
    let roots = keyring(&site.cluster.authority, None).ring();
    let foreign = keyring(&theirs, Some((Identity::Admin("ada".parse().unwrap()), 9))).ring().shown;
    let foreign = Keyring::new(Ring { shown: foreign, ..roots }, Clock::system()).unwrap();
    let mut foreign = FleetClient::new(site.cluster.channel(1, &foreign));
    let (refused, says) = code(foreign.list(all(v1::Kind::Vm)).await);
    assert!(refused == ErrorCode::Unauthenticated && says.contains("authority"), "{says}");

    let huge = v1::PatchRequest { name: "x".repeat(5 << 20), ..Default::default() };
    let refused = site.fleet(1, &viv).patch(huge).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::OutOfRange);
    let _ = rustls::crypto::ring::default_provider().install_default();
    let authority = reqwest::Certificate::from_pem(site.cluster.authority.certificate.as_bytes()).unwrap();
    let http = reqwest::Client::builder().tls_certs_only([authority]).build().unwrap();
    let sent = http.post(format!("{}/v1/vms", site.cluster.endpoint(1))).bearer_auth(&viv);
    let sent =
        sent.header("content-type", "application/json").header("dunlin-correlation", "told-by-the-test");
    let answer = sent.body(vec![b' '; 2 << 20]).send().await.unwrap();
    assert_eq!(answer.status(), 413);
    assert_eq!(answer.json::<serde_json::Value>().await.unwrap()["code"], "too_large");

    let root = site.login("root", PASSWORD).await.unwrap();
    assert_eq!(site.outcomes(&root, "", "join").await, ["ok", "unauthenticated"]);
    assert_eq!(site.outcomes(&root, "viv", "call").await, ["too_large"; 2]);
    let refusals = site.lines(&root, "", "authenticate").await;
    let [refusal] = &refusals[..] else { panic!("{refusals:?}") };
    assert_eq!(
        (&refusal["name"], &refusal["outcome"]),
        (&"/dunlin.v1.Fleet/List".into(), &"unauthenticated".into())
    );
    let minted = site.lines(&root, "admin/test", "create").await;
    assert_eq!((&minted[0]["via"], &minted[0]["from"]), (&"certificate".into(), &site.address().into()));
}

async fn eventually_refused(site: &Site, token: &str, says: &str) {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        let answer = site.fleet(1, token).list(all(v1::Kind::Vm)).await;
        if let Err(status) = answer {
            let fault = Fault::from_status(&status);
            assert!(fault.code == ErrorCode::Unauthenticated && fault.message.contains(says), "{fault}");
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "it is still taken");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}
