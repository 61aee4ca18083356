use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::{LINE_BYTES_MAX, Lines, Message, Qmp, QmpError, parse};

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

/// Every kind of line is understood, and nothing else is: bad bytes make an error that shows them, never a panic.
#[test]
fn lines_are_understood_or_refused() {
    let event = parse(br#"{"timestamp":{"seconds":2,"microseconds":345678},"event":"STOP","data":{"a":1}}"#);
    let Ok(Message::Event(event)) = event else { panic!("{event:?}") };
    assert_eq!((event.name.as_str(), event.at_ms, &event.data["a"]), ("STOP", 2345, &json!(1)));
    let refused = QmpError::Refused { class: "GenericError".into(), desc: "no such node".into() };
    let line = br#"{"error":{"class":"GenericError","desc":"no such node"},"id":7}"#;
    assert_eq!(parse(line), Ok(Message::Reply(Some(7), Err(refused))));
    assert_eq!(parse(br#"{"return":{}}"#), Ok(Message::Reply(None, Ok(json!({})))));
    // An id we never give, an event without a time: odd, but no reason to lose a guest.
    assert_eq!(parse(br#"{"return":{},"id":"x"}"#), Ok(Message::Reply(None, Ok(json!({})))));
    assert!(matches!(parse(br#"{"event":"RESET"}"#), Ok(Message::Event(e)) if e.at_ms == 0));
    for bad in [&b"{}"[..], b"[]", b"7", b"{\"return\":", b"\xff\xfe{}", b"{\"event\":4}", b"\0", b"null"] {
        let error = parse(bad).expect_err("no QMP");
        assert!(matches!(error, QmpError::Malformed(_)), "{bad:?}: {error}");
    }
}

/// However the bytes are cut, the same lines come out; a line without end is refused before it fills memory.
#[test]
fn lines_are_bounded_and_independent_of_how_the_bytes_arrive() {
    let text = b"{\"a\":1}\r\n\r\n\n{\"b\":2}\n{\"c\":";
    for step in 1..text.len() {
        let mut lines = Lines::default();
        let mut found = Vec::new();
        for part in text.chunks(step) {
            lines.push(part);
            while let Some(line) = lines.next_line().expect("short") {
                found.push(String::from_utf8(line).expect("text"));
            }
        }
        assert_eq!(found, ["{\"a\":1}", "{\"b\":2}"], "cut every {step} bytes");
    }
    let mut endless = Lines::default();
    endless.push(&vec![b'x'; LINE_BYTES_MAX]);
    assert_eq!(endless.next_line(), Ok(None));
    endless.push(b"xx");
    assert!(matches!(endless.next_line(), Err(QmpError::Malformed(_))));
}

/// Answers reach whoever asked although they come out of order and between events; a command without an answer
/// ends at its deadline, and the end of the stream ends all others at once.
#[tokio::test]
async fn answers_find_their_command() {
    let (ours, theirs) = UnixStream::pair().expect("pair");
    let server = tokio::spawn(async move {
        let mut theirs = BufReader::new(theirs);
        theirs.write_all(b"{\"QMP\":{\"version\":{\"qemu\":{\"major\":7}}}}\r\n").await.expect("greet");
        let mut asked = Vec::new();
        while asked.len() < 4 {
            let mut line = String::new();
            theirs.read_line(&mut line).await.expect("command");
            let command: Value = serde_json::from_str(&line).expect("JSON");
            if command["execute"] == "qmp_capabilities" {
                let answer = format!("{{\"return\":{{}},\"id\":{}}}\n", command["id"]);
                theirs.write_all(answer.as_bytes()).await.expect("answer");
            } else {
                asked.push((command["execute"].clone(), command["id"].clone()));
            }
        }
        for (name, id) in asked.iter().rev().filter(|(name, _)| name != "lost") {
            let lines = format!("{{\"event\":\"NOISE\"}}\n{{\"return\":{name},\"id\":{id}}}\n");
            theirs.write_all(lines.as_bytes()).await.expect("answer");
        }
        // A stranger's answer is nobody's business.
        theirs.write_all(b"{\"return\":{},\"id\":99999}\n").await.expect("answer");
        let mut line = String::new();
        theirs.read_line(&mut line).await.expect("the last command, unanswered");
    });
    let (qmp, mut news) = Qmp::over(ours, soon()).await.expect("handshake");
    assert_eq!(qmp.greeting["qemu"]["major"], 7);
    let short = Duration::from_millis(200);
    let (a, b, c, lost) = tokio::join!(
        qmp.run("a", json!({})),
        qmp.run("b", json!({})),
        qmp.run("c", json!({})),
        qmp.run_within("lost", json!({}), None, short),
    );
    assert_eq!((a, b, c), (Ok(json!("a")), Ok(json!("b")), Ok(json!("c"))));
    assert_eq!(lost, Err(QmpError::Deadline { command: "lost".into(), ms: 200 }));
    assert_eq!(news.recv().await.expect("event").name, "NOISE");
    let begun = Instant::now();
    assert!(matches!(qmp.run("last", json!({})).await, Err(QmpError::Closed(_))));
    assert!(begun.elapsed() < Duration::from_secs(5), "the end of the stream is told at once");
    server.await.expect("server");
}

/// A peer that is no QEMU is let go with an error, not waited for.
#[tokio::test]
async fn a_peer_that_is_no_qemu_is_refused() {
    for (said, close) in [(&b"SSH-2.0-OpenSSH\r\n"[..], false), (b"{\"return\":{}}\n", false), (b"", true)] {
        let (ours, mut theirs) = UnixStream::pair().expect("pair");
        theirs.write_all(said).await.expect("write");
        let kept = (!close).then_some(theirs);
        let error = Qmp::over(ours, soon()).await.expect_err("no QEMU");
        assert!(matches!(error, QmpError::Malformed(_) | QmpError::Closed(_)), "{error}");
        drop(kept);
    }
}
