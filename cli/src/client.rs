//! Talks to the fleet API: any controller that answers, with the same idempotency key on every try.

use std::sync::Arc;
use std::time::Duration;

use dunlin_model::{ErrorCode, Invalid, Kind, Object, Revision, Secret};
use dunlin_pki::{Keyring, NotOurs, UnixDialer};
use dunlin_proto::{Fault, v1};
use tokio::time::Instant;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use v1::access_client::AccessClient;
use v1::advisor_client::AdvisorClient;
use v1::fleet_client::FleetClient;
use v1::identities_client::IdentitiesClient;
use v1::operator_client::OperatorClient;

use crate::output;

/// One request, all tries together: longer than two elections and a slow disk.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// One try: a controller that hangs must not eat the whole request.
pub(crate) const TRY_TIMEOUT: Duration = Duration::from_secs(6);
/// Reaching a controller at all.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Between rounds over all controllers: an election takes about half a second.
pub(crate) const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// Largest message taken: a page of a thousand VMs with all their devices.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// One try that moves an image's bytes: what a controller allows for it, 2 GiB at 10 MiB/s and more.
pub(crate) const TRANSFER_TIMEOUT: Duration = Duration::from_secs(600);
/// When nobody has answered for so long, whoever waits is told.
const REMARK_AFTER: Duration = Duration::from_secs(3);

/// How often a list is begun again when its later pages are gone: a fleet whose controllers change that often has other
/// troubles.
const LIST_TRIES_MAX: usize = 3;

/// How tonic begins to tell of a server that speaks HTTP/2, but not gRPC.
const NO_GRPC: &str = "grpc-status header missing";

/// How an endpoint begins that is a socket of this machine.
const SOCKET: &str = "unix:";

/// A fleet API client over several controllers.
#[derive(Clone, Debug)]
pub(crate) struct Fleet {
    endpoints: Vec<String>,
    channels: Vec<Channel>,
    try_timeout: Duration,
    credentials: Credentials,
}

/// A connection on which every call shows who makes it.
pub(crate) type Line = InterceptedService<Channel, Credentials>;

/// What is shown with every call: a token, when there is one, and the id that ties together what this command leads to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Credentials {
    token: Option<Secret>,
}

impl Interceptor for Credentials {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        let unfit = |_| tonic::Status::invalid_argument("the token has characters that no token has");
        if let Some(token) = &self.token {
            let text = format!("Bearer {}", token.expose());
            request.metadata_mut().insert("authorization", text.parse().map_err(unfit)?);
        }
        request.metadata_mut().insert("dunlin-correlation", correlation().parse().map_err(unfit)?);
        Ok(request)
    }
}

/// The id of this command in the controllers' logs and in the audit log.
pub(crate) fn correlation() -> &'static str {
    static ID: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    ID.get_or_init(|| uuid::Uuid::new_v4().simple().to_string()[..16].to_owned())
}

impl Fleet {
    /// Dials lazily: nothing is connected before the first request.
    pub(crate) fn new(endpoints: &[String], keyring: Option<&Arc<Keyring>>) -> Result<Self, Fault> {
        let endpoints: Vec<String> =
            endpoints.iter().map(|text| endpoint(text)).collect::<Result<_, Invalid>>()?;
        let dial = |endpoint: &String| {
            if let Some(path) = endpoint.strip_prefix(SOCKET) {
                let near = Endpoint::from_static("http://local.invalid");
                return Ok(near
                    .connect_timeout(CONNECT_TIMEOUT)
                    .connect_with_connector_lazy(UnixDialer::new(path)));
            }
            let keyring = keyring.ok_or_else(nobody)?;
            let wrong = |e| Fault::new(ErrorCode::InvalidArgument, format!("endpoint {endpoint:?}: {e}"));
            let channel = Endpoint::from_shared(endpoint.clone()).map_err(|e| wrong(e.to_string()))?;
            Ok(channel.connect_timeout(CONNECT_TIMEOUT).connect_with_connector_lazy(keyring.dialer()))
        };
        let channels = endpoints.iter().map(dial).collect::<Result<_, Fault>>()?;
        Ok(Self { endpoints, channels, try_timeout: TRY_TIMEOUT, credentials: Credentials::default() })
    }

    /// The same, showing a token.
    pub(crate) fn showing(self, token: Option<Secret>) -> Self {
        Self { credentials: Credentials { token }, ..self }
    }

    /// The same, showing nothing: a token that has expired must not stand in the way of a login.
    pub(crate) fn anonymous(&self) -> Self {
        self.clone().showing(None)
    }

    /// The same, for calls that take as long as an image takes to cross the network.
    pub(crate) fn patient(&self) -> Self {
        Self { try_timeout: TRANSFER_TIMEOUT, ..self.clone() }
    }

    /// Runs `call` against one controller after the other until one gives an answer that is worth having.
    pub(crate) async fn call<T, F>(&self, call: F) -> Result<T, Fault>
    where
        F: AsyncFn(FleetClient<Line>) -> Result<tonic::Response<T>, tonic::Status>,
    {
        let client = |line| FleetClient::new(line).max_decoding_message_size(MESSAGE_BYTES_MAX);
        self.each(async |channel| call(client(channel)).await).await
    }

    /// The same for a question to the scheduler.
    pub(crate) async fn advise<T, F>(&self, call: F) -> Result<T, Fault>
    where
        F: AsyncFn(AdvisorClient<Line>) -> Result<tonic::Response<T>, tonic::Status>,
    {
        let client = |line| AdvisorClient::new(line).max_decoding_message_size(MESSAGE_BYTES_MAX);
        self.each(async |channel| call(client(channel)).await).await
    }

    /// The same for who one is and may be.
    pub(crate) async fn access<T, F>(&self, call: F) -> Result<T, Fault>
    where
        F: AsyncFn(AccessClient<Line>) -> Result<tonic::Response<T>, tonic::Status>,
    {
        let client = |line| AccessClient::new(line).max_decoding_message_size(MESSAGE_BYTES_MAX);
        self.each(async |channel| call(client(channel)).await).await
    }

    /// The same for who one is.
    pub(crate) async fn identities<T, F>(&self, call: F) -> Result<T, Fault>
    where
        F: AsyncFn(IdentitiesClient<Line>) -> Result<tonic::Response<T>, tonic::Status>,
    {
        self.each(async |channel| call(IdentitiesClient::new(channel)).await).await
    }

    /// The same for the keeping of the cluster itself.
    pub(crate) async fn operate<T, F>(&self, call: F) -> Result<T, Fault>
    where
        F: AsyncFn(OperatorClient<Line>) -> Result<tonic::Response<T>, tonic::Status>,
    {
        self.each(async |channel| call(OperatorClient::new(channel)).await).await
    }

    async fn each<T, F>(&self, call: F) -> Result<T, Fault>
    where
        F: AsyncFn(Line) -> Result<tonic::Response<T>, tonic::Status>,
    {
        let began = Instant::now();
        let mut remarked = false;
        loop {
            let mut last = None;
            let mut foreign = 0;
            for channel in &self.channels {
                let fault = match tokio::time::timeout(
                    self.try_timeout,
                    call(InterceptedService::new(channel.clone(), self.credentials.clone())),
                )
                .await
                {
                    Ok(Ok(response)) => return Ok(response.into_inner()),
                    Ok(Err(status)) => {
                        foreign += usize::from(is_foreign(&status));
                        fault_of(&status)
                    }
                    Err(_) => {
                        Fault::new(ErrorCode::Deadline, format!("no answer within {:?}", self.try_timeout))
                    }
                };
                let elsewhere = matches!(
                    fault.code,
                    ErrorCode::NotLeader
                        | ErrorCode::Unavailable
                        | ErrorCode::Deadline
                        | ErrorCode::Overloaded
                );
                if fault.message.starts_with(NO_GRPC) {
                    let why =
                        Fault::new(ErrorCode::Unavailable, "what listens there is no Dunlin controller");
                    return Err(self.in_vain(why));
                }
                if !elsewhere {
                    return Err(fault);
                }
                last = Some(fault);
            }
            let fault = last.unwrap_or_else(|| Fault::new(ErrorCode::Unavailable, "no controller is named"));
            // Who is of another authority stays so, however often he is asked.
            if foreign > 0 && foreign == self.channels.len() {
                return Err(self.in_vain(fault));
            }
            let left = REQUEST_TIMEOUT.saturating_sub(began.elapsed());
            if left <= RETRY_PAUSE {
                return Err(self.in_vain(fault));
            }
            if began.elapsed() > REMARK_AFTER && !std::mem::replace(&mut remarked, true) {
                let why = self.in_vain(fault).message;
                output::remark(&format!("{why}; trying for {} s more", left.as_secs()));
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// What the last of the controllers said, and which were asked.
    fn in_vain(&self, last: Fault) -> Fault {
        let message = format!("no answer from {}: {}", self.endpoints.join(" or "), last.message);
        Fault { message, ..last }
    }

    /// As [`Fleet::call`], for an answer that is one object.
    pub(crate) async fn object<F>(&self, call: F) -> Result<Object, Fault>
    where
        F: AsyncFn(FleetClient<Line>) -> Result<tonic::Response<v1::Object>, tonic::Status>,
    {
        Ok(Object::try_from(self.call(call).await?)?)
    }

    /// One object by its name.
    pub(crate) async fn get(&self, kind: Kind, name: &str) -> Result<Object, Fault> {
        let request =
            v1::GetRequest { kind: v1::Kind::from(kind).into(), name: name.to_owned(), ..Default::default() };
        self.object(async |mut client| client.get(request.clone()).await).await
    }

    /// Every object of a kind, and the revision of the list.
    pub(crate) async fn list(&self, kind: Kind, stale: bool) -> Result<Listed, Fault> {
        let consistency = if stale { v1::Consistency::Stale } else { v1::Consistency::Linearizable };
        let request = v1::ListRequest {
            kind: v1::Kind::from(kind).into(),
            consistency: consistency.into(),
            ..v1::ListRequest::default()
        };
        self.select(request).await
    }

    /// The objects that are asked for, page by page. When the pages of one revision come to an early end, because another
    /// controller had to be asked, the list is begun again.
    pub(crate) async fn select(&self, ask: v1::ListRequest) -> Result<Listed, Fault> {
        let most = usize::try_from(ask.limit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
        let (mut request, mut objects, mut begun) = (ask.clone(), Vec::new(), 1);
        loop {
            let page = match self.call(async |mut client| client.list(request.clone()).await).await {
                Err(fault) if fault.code == ErrorCode::Compacted && begun < LIST_TRIES_MAX => {
                    (request, objects, begun) = (ask.clone(), Vec::new(), begun + 1);
                    continue;
                }
                page => page?,
            };
            for object in page.objects {
                objects.push(Object::try_from(object)?);
            }
            if !page.more || objects.len() >= most {
                return Ok(Listed { revision: Revision(page.revision), objects, more: page.more });
            }
            request.page_token = page.next_page_token;
        }
    }

    /// Opens a watch on the first controller that gives one.
    pub(crate) async fn watch(&self, kinds: &[Kind], after: Revision, name: &str) -> Result<Watch, Fault> {
        let request = v1::WatchRequest {
            kinds: kinds.iter().map(|kind| v1::Kind::from(*kind).into()).collect(),
            after_revision: after.0,
            name: name.to_owned(),
            ..v1::WatchRequest::default()
        };
        let stream = self.call(async |mut client| client.watch(request.clone()).await).await?;
        Ok(Watch { fleet: self.clone(), request, stream })
    }
}

/// A list.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) revision: Revision,
    pub(crate) objects: Vec<Object>,
    /// There are more, which were not asked for.
    pub(crate) more: bool,
}

/// A watch that survives the controller it began on: it resumes elsewhere from the last revision it saw.
#[derive(Debug)]
pub(crate) struct Watch {
    fleet: Fleet,
    request: v1::WatchRequest,
    stream: tonic::Streaming<v1::WatchEvent>,
}

/// One change.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) object: Object,
    pub(crate) deleted: bool,
}

impl Watch {
    /// The next change. Waits as long as it takes.
    pub(crate) async fn next(&mut self) -> Result<Change, Fault> {
        loop {
            let event = match self.stream.message().await {
                Ok(Some(event)) => event,
                Ok(None) => {
                    self.resume().await?;
                    continue;
                }
                Err(status) => {
                    let fault = Fault::from_status(&status);
                    if fault.code == ErrorCode::Compacted {
                        return Err(fault);
                    }
                    self.resume().await?;
                    continue;
                }
            };
            // One revision may change several objects, and is behind us only with the last of them.
            let seen = if event.complete { event.revision } else { event.revision.saturating_sub(1) };
            self.request.after_revision = self.request.after_revision.max(seen);
            let deleted = event.r#type() == v1::watch_event::Type::Deleted;
            if let Some(object) = event.object {
                return Ok(Change { object: Object::try_from(object)?, deleted });
            }
        }
    }

    async fn resume(&mut self) -> Result<(), Fault> {
        tokio::time::sleep(RETRY_PAUSE).await;
        let request = self.request.clone();
        self.stream = self.fleet.call(async |mut client| client.watch(request.clone()).await).await?;
        Ok(())
    }
}

/// As the server said it; where the connection failed on this side, with the causes, of which the status has the first.
fn fault_of(status: &tonic::Status) -> Fault {
    let mut fault = Fault::from_status(status);
    let mut cause = std::error::Error::source(status);
    while let Some(inner) = cause {
        let text = inner.to_string();
        if !fault.message.contains(&text) && text != "transport error" {
            fault.message = format!("{}: {text}", fault.message);
        }
        cause = inner.source();
    }
    fault
}

/// Was it another authority's certificate that was shown? An [`io::Error`](std::io::Error) passes its own cause over.
fn is_foreign(status: &tonic::Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(inner) = cause {
        let wrapped = inner.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if inner.is::<NotOurs>() || wrapped.and_then(|wrapped| wrapped.downcast_ref::<NotOurs>()).is_some() {
            return true;
        }
        cause = inner.source();
    }
    false
}

/// `https://host:port`, as it is used, where the scheme may be left out; or `unix:` and the path of a local socket.
pub(crate) fn endpoint(text: &str) -> Result<String, Invalid> {
    let refuse = |problem: String| Invalid::new("endpoint", problem, "https://host:port or unix:SOCKET");
    if text.strip_prefix(SOCKET).is_some_and(|path| !path.is_empty()) {
        return Ok(text.to_owned());
    }
    if text.starts_with("http://") {
        return Err(refuse(format!("{text:?} is not encrypted, and controllers speak only TLS")));
    }
    let address = text.strip_prefix("https://").unwrap_or(text).trim_end_matches('/');
    let strange = |c: char| c.is_whitespace() || c.is_control() || "/@?#\\\"<>".contains(c) || !c.is_ascii();
    match address.rsplit_once(':') {
        Some((host, port))
            if !host.is_empty()
                && !host.contains(strange)
                && port.parse::<u16>().is_ok_and(|port| port > 0) =>
        {
            Ok(format!("https://{address}"))
        }
        _ => Err(refuse(format!("{text:?} is none"))),
    }
}

/// Nobody is refused by the controllers; without an authority to believe, they are not even asked.
fn nobody() -> Fault {
    let message = "you are nobody to these controllers: make a context with `dunlin context join NAME URL... --token TOKEN`, \
                   log in with `dunlin login USER --controller URL --authority FINGERPRINT`, or on the machine of a controller with `dunlin admin enroll --data-dir DIR`";
    Fault::new(ErrorCode::Unauthenticated, message)
}

/// A fresh idempotency key: one for each thing the user asked for, whatever number of tries it takes.
pub(crate) fn idempotency_key() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An endpoint is an address and a port; anything else is refused before it is dialled.
    #[test]
    fn endpoints() {
        let check =
            |text: &str, expect: &str| assert_eq!(endpoint(text).ok().as_deref(), Some(expect), "{text}");
        check("https://10.0.0.1:7400", "https://10.0.0.1:7400");
        check("10.0.0.1:7400", "https://10.0.0.1:7400");
        check("https://[::1]:7400/", "https://[::1]:7400");
        check("unix:/a/b.sock", "unix:/a/b.sock");
        for text in [
            "",
            " ",
            "https://",
            "unix:",
            "http://10.0.0.1:7400",
            "host",
            "host:",
            ":7400",
            "host:0",
            "host:65536",
            "host:-1",
            "ftp://host:7400",
            "https://host:7400/path",
            "https://user@host:7400",
            "https://h\u{f6}st:7400",
            "a b:7400",
        ] {
            let refused = endpoint(text).unwrap_err();
            assert_eq!(
                (refused.field.as_str(), refused.allowed.as_str()),
                ("endpoint", "https://host:port or unix:SOCKET"),
                "{text}"
            );
        }
    }
}
