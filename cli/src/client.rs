//! Talks to the fleet API: any controller that answers, with the same idempotency key on every try.

use std::time::Duration;

use dunlin_model::{ErrorCode, Kind, Object, Revision};
use dunlin_proto::{Fault, v1};
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};
use v1::advisor_client::AdvisorClient;
use v1::fleet_client::FleetClient;

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

/// A fleet API client over several controllers.
#[derive(Clone, Debug)]
pub(crate) struct Fleet {
    channels: Vec<Channel>,
}

impl Fleet {
    /// Dials lazily: nothing is connected before the first request.
    pub(crate) fn new(endpoints: &[String]) -> Result<Self, Fault> {
        let dial = |endpoint: &String| {
            let wrong = |e| Fault::new(ErrorCode::InvalidArgument, format!("endpoint {endpoint:?}: {e}"));
            let channel = Endpoint::from_shared(endpoint.clone()).map_err(|e| wrong(e.to_string()))?;
            Ok(channel.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true).connect_lazy())
        };
        Ok(Self { channels: endpoints.iter().map(dial).collect::<Result<_, Fault>>()? })
    }

    /// Runs `call` against one controller after the other until one gives an answer that is worth having.
    pub(crate) async fn call<T, F>(&self, call: F) -> Result<T, Fault>
    where
        F: AsyncFn(FleetClient<Channel>) -> Result<tonic::Response<T>, tonic::Status>,
    {
        let client = |channel| FleetClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        self.each(async |channel| call(client(channel)).await).await
    }

    /// The same for a question to the scheduler.
    pub(crate) async fn advise<T, F>(&self, call: F) -> Result<T, Fault>
    where
        F: AsyncFn(AdvisorClient<Channel>) -> Result<tonic::Response<T>, tonic::Status>,
    {
        let client = |channel| AdvisorClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        self.each(async |channel| call(client(channel)).await).await
    }

    async fn each<T, F>(&self, call: F) -> Result<T, Fault>
    where
        F: AsyncFn(Channel) -> Result<tonic::Response<T>, tonic::Status>,
    {
        let deadline = Instant::now() + REQUEST_TIMEOUT;
        loop {
            let mut last = None;
            for channel in &self.channels {
                let fault = match tokio::time::timeout(TRY_TIMEOUT, call(channel.clone())).await {
                    Ok(Ok(response)) => return Ok(response.into_inner()),
                    Ok(Err(status)) => Fault::from_status(&status),
                    Err(_) => Fault::new(ErrorCode::Deadline, format!("no answer within {TRY_TIMEOUT:?}")),
                };
                let elsewhere =
                    matches!(fault.code, ErrorCode::NotLeader | ErrorCode::Unavailable | ErrorCode::Deadline);
                if !elsewhere {
                    return Err(fault);
                }
                last = Some(fault);
            }
            let Some(fault) = last.filter(|_| Instant::now() + RETRY_PAUSE >= deadline) else {
                tokio::time::sleep(RETRY_PAUSE).await;
                continue;
            };
            return Err(fault);
        }
    }

    /// As [`Fleet::call`], for an answer that is one object.
    pub(crate) async fn object<F>(&self, call: F) -> Result<Object, Fault>
    where
        F: AsyncFn(FleetClient<Channel>) -> Result<tonic::Response<v1::Object>, tonic::Status>,
    {
        Ok(Object::try_from(self.call(call).await?)?)
    }

    /// One object by its name.
    pub(crate) async fn get(&self, kind: Kind, name: &str) -> Result<Object, Fault> {
        let request =
            v1::GetRequest { kind: v1::Kind::from(kind).into(), name: name.to_owned(), ..Default::default() };
        self.object(async |mut client| client.get(request.clone()).await).await
    }

    /// All objects of a kind with these labels, and the revision of the list.
    pub(crate) async fn list(
        &self,
        kind: Kind,
        labels: &[(String, String)],
        stale: bool,
    ) -> Result<(Revision, Vec<Object>), Fault> {
        let consistency = if stale { v1::Consistency::Stale } else { v1::Consistency::Linearizable };
        let mut request = v1::ListRequest {
            kind: v1::Kind::from(kind).into(),
            labels: labels.iter().cloned().collect(),
            consistency: consistency.into(),
            ..Default::default()
        };
        let mut objects = Vec::new();
        loop {
            let page = self.call(async |mut client| client.list(request.clone()).await).await?;
            for object in page.objects {
                objects.push(Object::try_from(object)?);
            }
            match objects.last() {
                Some(last) if page.more => request.after = last.name().to_string(),
                _ => return Ok((Revision(page.revision), objects)),
            }
        }
    }

    /// Opens a watch on the first controller that gives one.
    pub(crate) async fn watch(&self, kinds: &[Kind], after: Revision, name: &str) -> Result<Watch, Fault> {
        let request = v1::WatchRequest {
            kinds: kinds.iter().map(|kind| v1::Kind::from(*kind).into()).collect(),
            after_revision: after.0,
            name: name.to_owned(),
        };
        let stream = self.call(async |mut client| client.watch(request.clone()).await).await?;
        Ok(Watch { fleet: self.clone(), request, stream })
    }
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
            // One revision may change several objects: only a bookmark or a higher revision says that it is complete.
            let complete = event.object.is_none();
            let seen = if complete { event.revision } else { event.revision.saturating_sub(1) };
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

/// A fresh idempotency key: one for each thing the user asked for, whatever number of tries it takes.
pub(crate) fn idempotency_key() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}
