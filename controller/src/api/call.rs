//! The door: the one place through which every call of a client comes, whether it was made as gRPC or as REST.
//!
//! [`Call::admit`] is given the request as it came, with its message, its metadata and its extensions, before anything is
//! done for it. Whoever has to say who may do what says it there. Here are its bounds: how long it may take, how many may
//! be under way, and whether another controller has passed it on.

use std::sync::Arc;
use std::time::Duration;

use dunlin_model::ErrorCode;
use dunlin_proto::Fault;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tonic::Request;
use tonic::metadata::MetadataMap;

use crate::metrics;
use crate::rights::{Caller, FORWARDED_KEY};

/// How long a call may take when its client does not say: longer than an election and a slow disk together.
pub(crate) const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// The deadline of calls that move an image between controllers: 2 GiB at 10 MiB/s, with room.
pub(crate) const TRANSFER_DEADLINE: Duration = Duration::from_secs(600);
/// Calls under way at once. The measured cluster commits some thousands of writes a second, so the last of these waits a
/// second or two, well within [`CALL_DEADLINE`]; whoever comes beyond is told at once to come again, rather than to wait
/// for an answer that would be too late.
pub(crate) const CALLS_MAX: usize = 4_096;
/// Kept of the client's own deadline, so that our answer still reaches it.
const MARGIN: Duration = Duration::from_millis(20);

const TIMEOUT_KEY: &str = "grpc-timeout";
/// What the client said and the leader must know too, when the call is passed on to it.
const CARRIED_KEYS: [&str; 1] = ["traceparent"];

/// The bounds of one call, and its place among those under way for as long as it is held.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) deadline: Instant,
    /// Passed on by another controller.
    pub(crate) forwarded: bool,
    /// Who makes it.
    pub(crate) caller: Arc<Caller>,
    carried: MetadataMap,
    _place: Option<OwnedSemaphorePermit>,
}

impl Call {
    /// Lets a call in, or refuses it before anything is done for it. It takes `most` at most, and no longer than the
    /// client waits.
    pub(crate) fn admit<T>(
        places: &Arc<Semaphore>,
        request: &Request<T>,
        most: Duration,
    ) -> Result<Self, Fault> {
        let place = Arc::clone(places).try_acquire_owned().map_err(|_| {
            metrics::API_SHED.inc(&["calls"]);
            overloaded()
        })?;
        Ok(Self { _place: Some(place), ..Self::of(request, most) })
    }

    fn of<T>(request: &Request<T>, most: Duration) -> Self {
        let asked = client_timeout(request.metadata()).unwrap_or(most);
        let forwarded = request.metadata().contains_key(FORWARDED_KEY);
        let mut carried = MetadataMap::new();
        for key in CARRIED_KEYS {
            if let Some(value) = request.metadata().get(key) {
                carried.insert(key, value.clone());
            }
        }
        let deadline = Instant::now() + asked.min(most).saturating_sub(MARGIN);
        Self { deadline, forwarded, caller: Caller::of(request.extensions()), carried, _place: None }
    }

    /// A call of this controller's own.
    pub(crate) fn own(most: Duration) -> Self {
        let (deadline, carried) = (Instant::now() + most, MetadataMap::new());
        Self { deadline, forwarded: false, caller: Arc::new(Caller::itself()), carried, _place: None }
    }

    pub(crate) fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// The same request as it is passed on to the leader.
    pub(crate) fn pass_on<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        self.mark(request.metadata_mut());
        request.set_timeout(self.left());
        request
    }

    /// Marks what is passed on to the leader, and says whose it is. What this controller asks for itself is neither.
    pub(crate) fn mark(&self, metadata: &mut MetadataMap) {
        *metadata = self.carried.clone();
        self.caller.show(metadata);
    }

    /// Runs `work` until the deadline.
    pub(crate) async fn within<T>(&self, work: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
        match tokio::time::timeout_at(self.deadline, work).await {
            Ok(result) => result,
            Err(_) => Err(Fault::new(
                ErrorCode::Deadline,
                "the deadline passed; a write may or may not have happened: repeat it with the same idempotency key",
            )),
        }
    }
}

fn overloaded() -> Fault {
    let message = format!(
        "{CALLS_MAX} calls are under way on this controller; nothing was done, come again in a moment"
    );
    Fault::new(ErrorCode::Overloaded, message)
}

/// The `grpc-timeout` header: up to eight digits and a unit (gRPC over HTTP/2, "Requests").
fn client_timeout(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get(TIMEOUT_KEY)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 3600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use tonic::metadata::MetadataValue;

    use super::*;

    /// A client's deadline is kept, less the margin, and one that cannot be read is as if not given.
    #[test]
    fn the_clients_deadline_counts() {
        let check = |header: &'static str, expect_ms: Option<u64>| {
            let mut metadata = MetadataMap::new();
            metadata.insert(TIMEOUT_KEY, MetadataValue::from_static(header));
            assert_eq!(client_timeout(&metadata), expect_ms.map(Duration::from_millis), "{header}");
        };
        check("2S", Some(2000));
        check("150m", Some(150));
        check("3000u", Some(3));
        check("1H", Some(3_600_000));
        check("S", None);
        check("x", None);
        check("123456789S", None);
        check("5d", None);

        let mut request = Request::new(());
        assert!(Call::of(&request, CALL_DEADLINE).left() > CALL_DEADLINE - Duration::from_secs(1));
        request.set_timeout(Duration::from_millis(500));
        let call = Call::of(&request, CALL_DEADLINE);
        assert!(call.left() <= Duration::from_millis(480) && !call.forwarded);
        assert!(Call::of(&call.pass_on(()), CALL_DEADLINE).forwarded);
    }

    /// Calls beyond the bound are refused at once, with a code that says when to come again; one that ends makes room.
    #[test]
    fn overload_is_shed() {
        let places = Arc::new(Semaphore::new(2));
        let mut request = Request::new(());
        request.metadata_mut().insert("traceparent", "00-1-2-01".parse().unwrap());
        let admit = || Call::admit(&places, &request, CALL_DEADLINE);
        let (first, second) = (admit().unwrap(), admit().unwrap());
        let refused = admit().unwrap_err();
        assert!(refused.code == ErrorCode::Overloaded && refused.code.retryable());
        drop(first);
        admit().unwrap();
        let passed_on = second.pass_on(());
        assert_eq!(passed_on.metadata().get("traceparent").unwrap(), "00-1-2-01");
    }
}
