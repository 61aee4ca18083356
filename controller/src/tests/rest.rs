use std::time::Duration;

use dunlin_model::vm::Power;
use dunlin_model::{ErrorCode, Kind};
use dunlin_proto::{Wire as _, v1};
use futures_util::StreamExt as _;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::testing::{Cluster, code, key, ok, soon, vm};

/// A client that speaks HTTP/1.1, as curl does.
pub(super) struct Http {
    client: reqwest::Client,
    base: String,
}

/// What came back.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    headers: reqwest::header::HeaderMap,
    pub(super) body: Value,
}

impl Reply {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }

    fn is(&self, status: u16, code: ErrorCode) -> &str {
        assert_eq!(
            (self.status.as_u16(), self.body["code"].as_str()),
            (status, Some(code.as_str())),
            "{self:?}"
        );
        assert_eq!(self.header("content-type"), "application/problem+json");
        assert_eq!(self.body["status"], status);
        self.body["detail"].as_str().unwrap()
    }
}

impl Http {
    pub(super) fn new(cluster: &Cluster, id: u64) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (own, authority) = cluster.pem();
        let client = reqwest::Client::builder()
            .http1_only()
            // A connection that was closed after a refusal is not to be found out by the next request.
            .pool_max_idle_per_host(0)
            .timeout(Duration::from_secs(30))
            .identity(reqwest::Identity::from_pem(own.as_bytes()).unwrap())
            .tls_certs_only([reqwest::Certificate::from_pem(authority.as_bytes()).unwrap()])
            .build()
            .unwrap();
        Self { client, base: cluster.endpoint(id) }
    }

    /// Whoever shows nothing.
    pub(super) fn nobody(cluster: &Cluster, id: u64) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let authority = reqwest::Certificate::from_pem(cluster.authority.certificate.as_bytes()).unwrap();
        let client = reqwest::Client::builder().tls_certs_only([authority]).build().unwrap();
        Self { client, base: cluster.endpoint(id) }
    }

    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Value>,
    ) -> Reply {
        let mut request = self.client.request(method, format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = body {
            request = request.body(body.to_string());
            if !headers.iter().any(|(name, _)| *name == "Content-Type") {
                request = request.header("Content-Type", "application/json");
            }
        }
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        let text = response.text().await.unwrap();
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Reply { status, headers, body }
    }

    pub(super) async fn get(&self, path: &str) -> Reply {
        self.send(Method::GET, path, &[], None).await
    }

    async fn post(&self, path: &str, body: Value) -> Reply {
        self.send(Method::POST, path, &[], Some(body)).await
    }

    async fn put(&self, path: &str, headers: &[(&str, &str)], body: Value) -> Reply {
        self.send(Method::PUT, path, headers, Some(body)).await
    }

    async fn patch(&self, path: &str, headers: &[(&str, &str)], body: Value) -> Reply {
        self.send(Method::PATCH, path, headers, Some(body)).await
    }
}

fn written(name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"app": "web"}}, "spec": {"mem_mib": 128, "driver": "test"}})
}

/// Objects are made, read, replaced, changed and removed by any controller; conditions hold, a key counts once, a dry run
/// leaves nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_live_their_life_over_rest() {
    let cluster = Cluster::start(3).await;
    let http = Http::new(&cluster, cluster.follower().await);

    let rehearsed = http.post("/v1/vms?dry_run=true", written("web")).await;
    assert_eq!((rehearsed.status, &rehearsed.body["spec"]["cpus"]), (StatusCode::OK, &json!(1)));
    http.get("/v1/vms/web").await.is(404, ErrorCode::NotFound);
    let key_header = [("Idempotency-Key", "k-1"), ("Content-Type", "application/json")];
    let made = http.send(Method::POST, "/v1/vms", &key_header, Some(written("web"))).await;
    assert_eq!((made.status, made.header("location")), (StatusCode::CREATED, "/v1/vms/web"));
    let again = http.send(Method::POST, "/v1/vms", &key_header, Some(written("web"))).await;
    assert_eq!(again.body, made.body, "the same key is the same request");
    http.send(Method::POST, "/v1/vms", &key_header, Some(written("db"))).await.is(422, ErrorCode::KeyReused);
    http.post("/v1/vms", written("web")).await.is(409, ErrorCode::AlreadyExists);

    // The same object as over gRPC, and as `dunlin vm show -o json` prints it.
    let over_grpc = ok(cluster
        .client(1)
        .get(v1::GetRequest { kind: Kind::Vm.to_wire(), name: "web".into(), ..v1::GetRequest::default() })
        .await);
    let got = http.get("/v1/vms/web").await;
    assert_eq!(got.body, serde_json::to_value(&over_grpc).unwrap());
    let tag = got.header("etag").to_owned();
    assert_eq!(tag, format!("\"{}\"", over_grpc.revision()));
    let unchanged = http.send(Method::GET, "/v1/vms/web", &[("If-None-Match", &tag)], None).await;
    assert_eq!(unchanged.status, StatusCode::NOT_MODIFIED);
    let fields = http.get("/v1/vms/web?fields=metadata.name,spec.mem_mib").await.body;
    assert_eq!(fields, json!({"kind": "Vm", "metadata": {"name": "web"}, "spec": {"mem_mib": 128}}));

    // Replaced only by one who has seen it.
    let mut whole = got.body.clone();
    whole["metadata"].as_object_mut().unwrap().remove("revision");
    whole["spec"]["mem_mib"] = json!(256);
    http.put("/v1/vms/web", &[], whole.clone()).await.is(428, ErrorCode::InvalidArgument);
    let replaced = http.put("/v1/vms/web", &[("If-Match", &tag)], whole.clone()).await;
    assert_eq!((replaced.status, &replaced.body["spec"]["mem_mib"]), (StatusCode::OK, &json!(256)));
    let stale = http.put("/v1/vms/web", &[("If-Match", &tag)], whole.clone()).await;
    stale.is(412, ErrorCode::StaleRevision);
    assert_eq!(stale.body["current"], replaced.body);
    whole["metadata"]["revision"] = got.body["metadata"]["revision"].clone();
    http.put("/v1/vms/web", &[], whole).await.is(409, ErrorCode::StaleRevision);

    // A patch needs to have seen nothing.
    let change = json!({"metadata": {"labels": {"app": null, "tier": "front"}}, "spec": {"cpus": 2}});
    let media = [("Content-Type", "application/merge-patch+json")];
    let patched = http.patch("/v1/vms/web", &media, change.clone()).await;
    assert_eq!(patched.body["metadata"]["labels"], json!({"tier": "front"}));
    assert_eq!((&patched.body["spec"]["cpus"], &patched.body["spec"]["mem_mib"]), (&json!(2), &json!(256)));
    assert_eq!(http.patch("/v1/vms/web", &media, change.clone()).await.body, patched.body, "twice is once");
    let conditional = [media[0], ("If-Match", tag.as_str())];
    http.patch("/v1/vms/web", &conditional, change).await.is(412, ErrorCode::StaleRevision);
    let detail = http.patch("/v1/vms/web", &media, json!({"spec": {"cpu": 2}})).await;
    assert!(detail.is(400, ErrorCode::InvalidArgument).starts_with("spec.cpu: there is no such field"));
    assert_eq!(detail.body["field"], "spec.cpu");
    http.patch("/v1/vms/web", &[("Content-Type", "text/plain")], json!({}))
        .await
        .is(415, ErrorCode::InvalidArgument);

    let power = http.put("/v1/vms/web/power", &[], json!({"power": "running"})).await;
    assert_eq!(power.body["spec"]["power"], "running");
    let gone = http.send(Method::DELETE, "/v1/vms/web", &[("If-Match", &tag)], None).await;
    gone.is(412, ErrorCode::StaleRevision);
    let gone = http.send(Method::DELETE, "/v1/vms/web", &[], None).await;
    assert_eq!((gone.status, &gone.body["status"]["phase"]), (StatusCode::OK, &json!("Deleting")));
}

/// What is wrong is said by field, with what would be right and what was probably meant; what is too much is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_are_problems() {
    let cluster = Cluster::start(1).await;
    let http = Http::new(&cluster, 1);
    http.post("/v1/vms", written("web")).await;

    let near = http.get("/v1/vms/wbe").await;
    near.is(404, ErrorCode::NotFound);
    assert_eq!(
        (&near.body["near"], &near.body["type"]),
        (&json!(["web"]), &json!("urn:dunlin:error:not_found"))
    );
    let mut tiny = written("tiny");
    tiny["spec"]["mem_mib"] = json!(1);
    let range = http.post("/v1/vms", tiny).await;
    range.is(400, ErrorCode::InvalidArgument);
    assert_eq!(
        (&range.body["field"], &range.body["allowed"]),
        (&json!("spec.mem_mib"), &json!("16 to 4194304"))
    );
    let param = http.get("/v1/vms?lable_selector=a").await;
    assert!(param.body["allowed"].as_str().unwrap().contains("did you mean `label_selector`?"), "{param:?}");
    http.get("/v1/vms?field_selector=status.fase=x").await.is(400, ErrorCode::InvalidArgument);
    http.get("/v1/nothing").await.is(404, ErrorCode::NotFound);
    http.send(Method::PUT, "/v1/vms", &[], None).await.is(405, ErrorCode::InvalidArgument);
    http.post("/v1/vms", Value::String("x".repeat(2 << 20))).await.is(413, ErrorCode::TooLarge);
    http.post("/v1/vms?timeout=soon", written("late")).await.is(400, ErrorCode::InvalidArgument);
    http.post("/v1/tokens", json!({"ttl_s": 0})).await.is(400, ErrorCode::InvalidArgument);
    assert_eq!(http.get("/healthz").await.status, StatusCode::OK);
    assert_eq!(http.get("/readyz").await.body["leader"], 1);
    assert_eq!(http.get("/openapi.json").await.body["openapi"], "3.1.0");

    // With every place taken, a call is told at once to come again, over either protocol; health is still answered.
    let node = &cluster.controller(1).node;
    let all = node.calls.clone().acquire_many_owned(u32::try_from(crate::api::call::CALLS_MAX).unwrap());
    let all = soon("every place is free", all).await.unwrap();
    let shed = http.get("/v1/vms").await;
    shed.is(503, ErrorCode::Overloaded);
    assert_eq!(shed.header("retry-after"), "1");
    let (found, _) = code(cluster.client(1).list(v1::ListRequest::default()).await);
    assert_eq!(found, ErrorCode::Overloaded);
    assert_eq!(http.get("/readyz").await.status, StatusCode::OK);
    drop(all);
    assert_eq!(http.get("/v1/vms").await.status, StatusCode::OK);
}

/// Pages are of one revision whatever is written meanwhile, and when that is gone the list begins again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_are_of_one_revision() {
    let cluster = Cluster::start(1).await;
    let http = Http::new(&cluster, 1);
    for index in 0..5 {
        http.post("/v1/vms", written(&format!("vm-{index}"))).await;
    }
    let names = |reply: &Reply| -> Vec<String> {
        let items = reply.body["items"].as_array().unwrap().iter();
        items.map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    };
    let first = http.get("/v1/vms?limit=2&label_selector=app%3Dweb").await;
    assert_eq!(names(&first), ["vm-0", "vm-1"]);
    http.send(Method::DELETE, "/v1/vms/vm-2", &[], None).await;
    http.post("/v1/vms", written("vm-3a")).await;
    let path = |reply: &Reply| {
        let token = reply.body["next_page_token"].as_str()?;
        Some(format!("/v1/vms?limit=2&label_selector=app%3Dweb&page_token={token}"))
    };
    let second = http.get(&path(&first).unwrap()).await;
    let third = http.get(&path(&second).unwrap()).await;
    assert_eq!([names(&second), names(&third)].concat(), ["vm-2", "vm-3", "vm-4"]);
    assert_eq!([&second.body["revision"], &third.body["revision"]], [&first.body["revision"]; 2]);
    assert_eq!(path(&third), None);
    http.get(&path(&first).unwrap().replace("%3Dweb", "%3Ddb")).await.is(400, ErrorCode::InvalidArgument);

    // Selectors and fields, here and over gRPC.
    let found = http
        .get("/v1/vms?field_selector=spec.cpus%3D1,metadata.name%20in%20(vm-0,vm-4)&fields=metadata.name")
        .await;
    assert_eq!(found.body["items"][1], json!({"kind": "Vm", "metadata": {"name": "vm-4"}}));
    let ask = v1::ListRequest {
        kind: Kind::Vm.to_wire(),
        label_selector: "app,app!=db".into(),
        field_selector: "metadata.name=vm-1".into(),
        fields: "spec.cpus".into(),
        ..v1::ListRequest::default()
    };
    let listed = cluster.client(1).list(ask.clone()).await.unwrap().into_inner();
    assert_eq!(
        (listed.json, listed.objects),
        (vec![r#"{"kind":"Vm","spec":{"cpus":1}}"#.to_owned()], Vec::new())
    );

    // Lists begun later push the first one out.
    for index in 0..40 {
        http.post("/v1/vms", written(&format!("more-{index}"))).await;
        http.get("/v1/vms?limit=1").await;
    }
    let gone = http.get(&path(&first).unwrap()).await;
    assert!(gone.is(410, ErrorCode::Compacted).contains("list again"), "{gone:?}");
}

/// Events tell every change in order with the id to come again with; what was missed is told, and what is gone is said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_are_resumable_event_streams() {
    let cluster = Cluster::start(1).await;
    let http = Http::new(&cluster, 1);
    let start = http.post("/v1/vms", written("vm-0")).await.body["metadata"]["revision"].as_u64().unwrap();
    let events = async |after: u64, last: Option<u64>, count: usize| -> Vec<(String, Option<u64>, Value)> {
        let mut request = http.client.get(format!("{}/v1/watch?kinds=vm&after_revision={after}", http.base));
        if let Some(last) = last {
            request = request.header("Last-Event-ID", last);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let (mut bytes, mut text, mut found) = (response.bytes_stream(), String::new(), Vec::new());
        while found.len() < count {
            let piece = soon("an event", bytes.next()).await.unwrap().unwrap();
            text.push_str(std::str::from_utf8(&piece).unwrap());
            while let Some((event, rest)) = text.clone().split_once("\n\n") {
                text = rest.to_owned();
                let field =
                    |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
                let data = serde_json::from_str(field("data:").unwrap()).unwrap();
                found.push((
                    field("event:").unwrap().to_owned(),
                    field("id:").map(|id| id.parse().unwrap()),
                    data,
                ));
            }
        }
        found
    };
    for index in 1..=3 {
        http.post("/v1/vms", written(&format!("vm-{index}"))).await;
    }
    let told = events(start, None, 4).await;
    let names: Vec<_> =
        told[..3].iter().map(|(_, _, data)| data["object"]["metadata"]["name"].clone()).collect();
    assert_eq!(names, ["vm-1", "vm-2", "vm-3"]);
    assert_eq!((told[0].0.as_str(), told[3].0.as_str()), ("put", "bookmark"));
    let middle = told[1].1.unwrap();
    assert_eq!(told[1].2["revision"], middle);
    let resumed = events(0, Some(middle), 1).await;
    assert_eq!(resumed[0].2, told[2].2);
    http.get("/v1/watch?after_revision=999999").await.is(400, ErrorCode::InvalidArgument);
    http.get("/v1/watch?kinds=vms").await.is(400, ErrorCode::InvalidArgument);

    // A snapshot carries no history: after a restart what was before it is compacted.
    let streams = &cluster.controller(1).node.streams;
    let client = Some("127.9.9.9".parse().unwrap());
    let held: Vec<_> = std::iter::from_fn(|| streams.enter(client).ok()).collect();
    assert_eq!(streams.enter(client).unwrap_err().code, ErrorCode::TooMany);
    drop(held);
}

/// Acts, plans and answers of the scheduler, and the bytes of an image, all over REST.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acts_and_answers() {
    let cluster = Cluster::start(1).await;
    let http = Http::new(&cluster, 1);
    http.post("/v1/vms", written("web")).await;
    let token = http.post("/v1/tokens", json!({"ttl_s": 60})).await;
    assert_eq!(
        (token.status, token.body["token"].as_str().unwrap().len()),
        (StatusCode::CREATED, "host..".len() + 2 * 64)
    );
    assert_eq!(http.post("/v1/tokens?dry_run=true", json!({"ttl_s": 60})).await.body["token"], "");

    let told = http.get("/v1/vms/web/explanation").await;
    assert_eq!((told.status, &told.body["name"]), (StatusCode::OK, &json!("web")));
    let told = http.post("/v1/explanation", written("new")).await;
    assert_eq!(told.status, StatusCode::OK, "{told:?}");
    let told = http.post("/v1/capacity", json!({"spec": {"mem_mib": 128}, "failures": 1})).await;
    assert_eq!((told.status, &told.body["fits"]), (StatusCode::OK, &json!(0)));
    assert_eq!(http.get("/v1/plans/balance?level=5").await.body["level"], 5);
    http.get("/v1/plans/balance?level=6").await.is(400, ErrorCode::InvalidArgument);
    http.post("/v1/plans/drain", json!({"hosts": ["h1"]})).await.is(404, ErrorCode::NotFound);
    assert_eq!(http.post("/v1/plans/balance/apply", json!({})).await.body["migrations"], json!([]));

    let task = json!({"spec": {"kind": "Vm", "name": "web", "act": {"reboot": {"timeout_s": 0}}}});
    http.post("/v1/tasks", task).await.is(400, ErrorCode::InvalidArgument);
    let task = json!({"spec": {"kind": "Vm", "name": "web", "act": "reset"}});
    http.post("/v1/tasks", task).await.is(409, ErrorCode::WrongState);
    http.post("/v1/tasks/none/cancel", json!({})).await.is(404, ErrorCode::NotFound);
    http.post("/v1/recommendations/none/decide", json!({"approve": true})).await.is(404, ErrorCode::NotFound);
    http.post("/v1/migrations", json!({"spec": {"vm_name": "web"}})).await.is(409, ErrorCode::WrongState);

    let sent = http.client.post(format!("{}/v1/blobs", http.base)).body("some bytes");
    let sent = sent.header("Content-Type", "application/octet-stream").send().await.unwrap();
    let stored: Value = serde_json::from_str(&sent.text().await.unwrap()).unwrap();
    let sha256 = stored["sha256"].as_str().unwrap();
    assert_eq!(stored["size_bytes"], 10);
    assert_eq!(http.get(&format!("/v1/blobs/{sha256}")).await.body, stored);
    assert_eq!(http.get(&format!("/v1/blobs/{sha256}/bytes?offset=5")).await.body, json!("bytes"));
    let image = json!({
        "metadata": {"name": "tiny"},
        "spec": {"format": "raw", "sha256": sha256, "size_bytes": 10},
    });
    assert_eq!(http.post("/v1/images", image).await.status, StatusCode::CREATED);
    let listed = http.get("/v1/images").await;
    assert_eq!(listed.body["items"][0]["metadata"]["name"], "tiny");
    assert_eq!(http.get("/v1/cluster").await.body["kind"], "Cluster");
    assert_eq!(http.get("/v1/events").await.body["items"][0]["kind"], "Event");
    let created = ok(cluster
        .client(1)
        .create(v1::CreateRequest {
            idempotency_key: key(),
            object: Some(vm("other", Power::Stopped)),
            dry_run: false,
        })
        .await);
    assert_eq!(created.name().as_str(), "other");
}
