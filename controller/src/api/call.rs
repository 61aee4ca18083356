//! One call and its bounds: how long it may take, and whether another controller has passed it on.

use std::time::Duration;

use dunlin_model::ErrorCode;
use dunlin_proto::Fault;
use tokio::time::Instant;
use tonic::Request;
use tonic::metadata::{MetadataMap, MetadataValue};

/// How long a call may take when its client does not say: longer than an election and a slow disk together.
pub(crate) const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// The deadline of calls that move an image between controllers: 2 GiB at 10 MiB/s, with room.
pub(crate) const TRANSFER_DEADLINE: Duration = Duration::from_secs(600);
/// Kept of the client's own deadline, so that our answer still reaches it.
const MARGIN: Duration = Duration::from_millis(20);

/// Metadata key that marks a call another controller has passed on: it goes no further.
const FORWARDED_KEY: &str = "dunlin-forwarded";
const TIMEOUT_KEY: &str = "grpc-timeout";

/// The bounds of one call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) deadline: Instant,
    /// Passed on by another controller.
    pub(crate) forwarded: bool,
}

impl Call {
    /// Takes `most` at most, and no longer than the client waits.
    pub(crate) fn of<T>(request: &Request<T>, most: Duration) -> Self {
        let asked = client_timeout(request.metadata()).unwrap_or(most);
        let forwarded = request.metadata().contains_key(FORWARDED_KEY);
        Self { deadline: Instant::now() + asked.min(most).saturating_sub(MARGIN), forwarded }
    }

    pub(crate) fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// The same request as it is passed on to the leader.
    pub(crate) fn pass_on<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert(FORWARDED_KEY, MetadataValue::from_static("1"));
        request.set_timeout(self.left());
        request
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

/// Marks a stream that is passed on to the leader.
pub(crate) fn mark_forwarded(metadata: &mut MetadataMap) {
    metadata.insert(FORWARDED_KEY, MetadataValue::from_static("1"));
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
}
