//! What this agent counts and times, and where it says so: docs/observing.md has the table.
//!
//! Served over plain HTTP on the loopback, to whoever is on this host: no names of guests and no secrets are in it. A handful
//! of lines instead of a web server, since an agent is to stay small; it reads the first line of a request and no more.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dunlin_metrics::{Cell, Counter, Family, Gauge, Histogram, Metric, TEXT_FORMAT};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::host::Host;

/// Whoever asks has so long for all of it: it is on this machine.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest request looked at, bytes.
const REQUEST_MAX: usize = 4 << 10;
/// Who may ask at once.
const ASKING_MAX: usize = 8;
/// Rest after the system refused a connection.
const REFUSED_PAUSE: Duration = Duration::from_millis(50);

macro_rules! table {
    ($(
        $name:ident = $kind:ident($text:literal, $help:literal $(, [$($label:literal),+], $cell:ident)?);
    )*) => {
        $(pub(crate) static $name: $kind = $kind::new($text, $help $(, &[$($label),+], Cell::$cell)?);)*

        /// Every metric of an agent.
        pub(crate) static ALL: &[&dyn Metric] = &[$(&$name),*];
    };
}

table! {
    SESSION = Gauge("dunlin_agent_session", "1 while a session to the leader is open.");
    SESSIONS = Counter("dunlin_agent_sessions_total", "Sessions opened by this process.");
    SESSION_ENDED = Family("dunlin_agent_session_ended_total", "How sessions and tries for one ended.", ["why"], Counter);
    DESIRED = Counter("dunlin_agent_desired_sets_total", "Desired sets taken in.");
    GENERATION = Gauge("dunlin_agent_generation", "Generation of the desired set last taken in.");
    REPORTS = Counter("dunlin_agent_reports_total", "Reports sent.");
    GUESTS = Family("dunlin_agent_guests", "Guests by driver.", ["driver"], Gauge);
    WORKING = Gauge("dunlin_agent_workers", "VMs that are being worked on.");
    STEPS = Family("dunlin_agent_steps_total", "Steps towards what is wanted, by what came of them.", ["outcome"], Counter);
    VERB = Family("dunlin_agent_verb_seconds", "Verbs of drivers.", ["driver", "verb"], Histogram);
    VERB_FAILED = Family(
        "dunlin_agent_verb_failures_total", "Verbs that failed, by how.", ["driver", "verb", "kind"], Counter
    );
    JOURNAL = Histogram("dunlin_agent_journal_write_seconds", "Writing one VM's record, durably.");
    STARTS_FREE = Gauge("dunlin_agent_free_starts", "Guests that could be started at once, beside those being started.");
    CERTIFICATE = Gauge("dunlin_agent_certificate_expires_timestamp_seconds", "When the certificate shown ends.");
}

/// Looks at what stands, and writes down everything.
fn render(host: &Host) -> String {
    STARTS_FREE.set(host.starts.available_permits() as u64);
    GENERATION.set(host.board.generation().0);
    let guests = host.board.guests();
    GUESTS.set_all(guests.iter().map(|(driver, count)| (vec![driver.as_str()], *count)));
    dunlin_metrics::render(&[ALL, dunlin_metrics::process(env!("CARGO_PKG_VERSION"))])
}

/// Takes the address; none but the loopback's, where no firewall need stand in front of it.
pub(crate) async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    if !address.ip().is_loopback() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "metrics are served on the loopback only"));
    }
    TcpListener::bind(address).await
}

/// Serves until the agent stops.
pub(crate) async fn serve(host: Arc<Host>, listener: TcpListener) {
    let places = Arc::new(Semaphore::new(ASKING_MAX));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, _)) => {
                let asked = Arc::clone(&host);
                host.spawn(async move {
                    // Whoever goes away early has asked for nothing.
                    let _ = timeout(ASK_TIMEOUT, answer(&asked, stream)).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "somebody who asks for metrics was not let in");
                tokio::time::sleep(REFUSED_PAUSE).await;
            }
        }
    }
}

async fn answer(host: &Host, mut stream: TcpStream) -> io::Result<()> {
    let mut head = Vec::with_capacity(512);
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < REQUEST_MAX {
        if stream.read_buf(&mut head).await? == 0 {
            break;
        }
    }
    let text = String::from_utf8_lossy(&head);
    let mut words = text.lines().next().unwrap_or_default().split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (status, kind, body) = match (method, path) {
        ("GET", "/metrics") => ("200 OK", TEXT_FORMAT, render(host)),
        ("GET", "/healthz") => ("200 OK", "text/plain", "ok\n".to_owned()),
        ("GET", "/readyz") if SESSION.get() > 0 => ("200 OK", "text/plain", "a session is open\n".to_owned()),
        ("GET", "/readyz") => ("503 Service Unavailable", "text/plain", "no session is open\n".to_owned()),
        ("GET", _) => ("404 Not Found", "text/plain", "/metrics, /healthz and /readyz are here\n".to_owned()),
        _ => ("405 Method Not Allowed", "text/plain", "only GET is understood here\n".to_owned()),
    };
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The page names every metric with its labels, and none that there is not.
    #[test]
    fn the_page_has_every_metric() {
        let expected = dunlin_metrics::page(ALL);
        let page = include_str!("../../docs/observing.md");
        assert!(page.contains(&expected), "docs/observing.md should have:\n{expected}");
    }

    /// Only the loopback is served on.
    #[tokio::test]
    async fn only_on_the_loopback() {
        let refused = bind("0.0.0.0:0".parse().unwrap()).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
        assert!(bind("127.0.0.1:0".parse().unwrap()).await.is_ok());
    }
}
