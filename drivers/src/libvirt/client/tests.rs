//! The client against a daemon that is played with the same table.

use std::time::Duration;

use tokio::io::{AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::broadcast::Receiver;

use super::*;
use crate::libvirt::wire::calls::{ConnectGetHostname, DomainOpenConsole, DomainShutdown};
use crate::libvirt::wire::fault::NO_DOMAIN;
use crate::libvirt::wire::frame::{Frames, PING, PONG, PROGRAM_KEEPALIVE, PROGRAM_REMOTE};
use crate::libvirt::wire::types::Domain;
use crate::libvirt::wire::{Frame, Head, Kind, Status, Xdr};

/// The far end.
struct Daemon {
    frames: Frames<ReadHalf<DuplexStream>>,
    to: WriteHalf<DuplexStream>,
}

fn pair() -> (Client, Receiver<Event>, Daemon) {
    let (near, far) = tokio::io::duplex(1 << 20);
    let (client, events) = Client::over(Box::new(near));
    let (from, to) = tokio::io::split(far);
    (client, events, Daemon { frames: Frames::new(from), to })
}

impl Daemon {
    async fn hear(&mut self) -> Frame {
        self.frames.next().await.expect("a frame").expect("no end")
    }

    async fn say<T: Xdr>(&mut self, head: Head, body: &T) {
        let frame = Frame { head, body: xdr::encode(body).expect("short") };
        self.to.write_all(&frame.encode().expect("short")).await.expect("write");
    }

    async fn answer<T: Xdr>(&mut self, asked: &Frame, status: Status, body: &T) {
        self.say(Head { kind: Kind::Reply, status, ..asked.head.clone() }, body).await;
    }

    /// Hears a call and answers it.
    async fn serve<C: Call>(&mut self, answer: impl FnOnce(C) -> C::Answer) {
        let asked = self.hear().await;
        assert_eq!(asked.head.procedure, C::ENTRY.number, "{}", C::ENTRY.name);
        let arguments = xdr::decode(&asked.body).expect("arguments");
        self.answer(&asked, Status::Ok, &answer(arguments)).await;
    }
}

fn nobody() -> Domain {
    Domain { name: "nobody".into(), uuid: [1; 16], id: -1 }
}

fn message(program: u32, procedure: i32) -> Head {
    Head { program, version: 1, procedure, kind: Kind::Message, serial: 0, status: Status::Ok }
}

/// Answers find their questions in any order; no more than five are under way; a fault is one call's; an event comes in
/// between; and whoever gave up does not harm the others.
#[tokio::test(start_paused = true)]
async fn answers_find_their_questions() {
    let (client, mut events, mut daemon) = pair();
    let ask = |client: &Client| {
        let client = client.clone();
        tokio::spawn(async move { client.call(&ConnectGetHostname {}).await })
    };
    let given_up = ask(&client);
    let first = daemon.hear().await;
    given_up.abort();
    let asked: Vec<_> = (0..6).map(|_| ask(&client)).collect();
    let mut heard = Vec::new();
    for _ in 0..4 {
        heard.push(daemon.hear().await);
    }
    let sixth = tokio::time::timeout(Duration::from_secs(1), daemon.hear()).await;
    assert!(sixth.is_err(), "a sixth call is under way");
    let lifecycle = [0u32, 1, u32::from(b'x') << 24, 0, 0, 0, 0, 7, 2, 0].into_iter();
    let body: Vec<u8> = lifecycle.flat_map(u32::to_be_bytes).collect();
    let frame = Frame { head: message(PROGRAM_REMOTE, 318), body };
    daemon.to.write_all(&frame.encode().expect("short")).await.expect("write");
    assert_eq!(events.recv().await.expect("event").domain().id, 7);
    daemon.answer(&first, Status::Ok, &"nobody hears this".to_owned()).await;
    for frame in heard.iter().rev() {
        daemon.answer(frame, Status::Ok, &format!("host {}", frame.head.serial)).await;
    }
    for _ in 0..2 {
        let asked = daemon.hear().await;
        daemon.answer(&asked, Status::Ok, &format!("host {}", asked.head.serial)).await;
    }
    let mut names = Vec::new();
    for asked in asked {
        names.push(asked.await.expect("task").expect("answer"));
    }
    names.sort();
    assert_eq!(names, ["host 2", "host 3", "host 4", "host 5", "host 6", "host 7"]);
    let shut = DomainShutdown { domain: nobody() };
    let (failed, ()) = tokio::join!(client.call(&shut), async {
        let asked = daemon.hear().await;
        let fault = Fault { code: NO_DOMAIN, message: Some("no such domain".into()), ..bare_fault() };
        daemon.answer(&asked, Status::Error, &fault).await;
    });
    assert!(failed.expect_err("a fault").is(NO_DOMAIN));
}

fn bare_fault() -> Fault {
    Fault {
        code: 1,
        origin: 0,
        message: None,
        level: 2,
        domain: None,
        text_1: None,
        text_2: None,
        text_3: None,
        number_1: 0,
        number_2: 0,
        network: None,
    }
}

/// A ping is answered; a daemon that answers none is given up, and so is everybody who waits for it.
#[tokio::test(start_paused = true)]
async fn keepalive() {
    let (client, mut events, mut daemon) = pair();
    daemon.say(message(PROGRAM_KEEPALIVE, PING), &()).await;
    assert_eq!(daemon.hear().await.head, message(PROGRAM_KEEPALIVE, PONG));
    client.pours.send(Pour::KeepAlive).await.expect("told");
    assert_eq!(daemon.hear().await.head, message(PROGRAM_KEEPALIVE, PING));
    daemon.say(message(PROGRAM_KEEPALIVE, PONG), &()).await;
    let waiting = client.call(&ConnectGetHostname {}).await;
    assert!(matches!(waiting, Err(ClientError::Gone(why)) if why.contains("5 pings")));
    assert!(events.recv().await.is_err() && client.is_closed());
}

/// Whatever a daemon sends that was not asked for ends the connection with a word, and nothing else.
#[tokio::test]
async fn hostile_daemons() {
    let reply = Head { kind: Kind::Reply, serial: 99, ..message(PROGRAM_REMOTE, 59) };
    let frame = |head: Head| Frame { head, body: Vec::new() }.encode().expect("short");
    for bytes in [
        vec![0; 4],
        vec![0xff; 64],
        frame(reply),
        frame(Head { kind: Kind::Call, ..message(PROGRAM_REMOTE, 1) }),
        frame(Head { program: 7, ..message(PROGRAM_REMOTE, 1) }),
    ] {
        let (client, _events, mut daemon) = pair();
        let (answer, ()) = tokio::join!(client.call(&ConnectGetHostname {}), async {
            daemon.to.write_all(&bytes).await.expect("write");
        });
        assert!(matches!(answer, Err(ClientError::Gone(_))), "{answer:?}");
    }
    let (client, _events, mut daemon) = pair();
    let (answer, ()) = tokio::join!(client.call(&ConnectGetHostname {}), async {
        let asked = daemon.hear().await;
        daemon.answer(&asked, Status::Ok, &7u32).await;
    });
    assert!(matches!(answer, Err(ClientError::Wire(_))), "{answer:?}");
}

/// A stream carries bytes both ways in frames of its own, ends when the daemon ends it, and is called off when dropped.
#[tokio::test]
async fn streams() {
    let (client, _events, mut daemon) = pair();
    let call = DomainOpenConsole { domain: nobody(), device: None, flags: 0 };
    let (stream, asked) = tokio::join!(client.stream(&call), async {
        let asked = daemon.hear().await;
        daemon.answer(&asked, Status::Ok, &()).await;
        asked
    });
    let mut stream = stream.expect("a stream");
    let piece = |status| Head { kind: Kind::Stream, status, ..asked.head.clone() };
    let frame = Frame { head: piece(Status::Continue), body: b"login: ".to_vec() };
    daemon.to.write_all(&frame.encode().expect("short")).await.expect("write");
    assert_eq!(stream.read().await.expect("bytes"), b"login: ");
    stream.write(vec![b'x'; 300_000]).await.expect("sent");
    let (one, two) = (daemon.hear().await, daemon.hear().await);
    assert_eq!((one.head, one.body.len() + two.body.len()), (piece(Status::Continue), 300_000));
    daemon.say(piece(Status::Ok), &()).await;
    assert!(stream.read().await.is_none());
    assert_eq!(daemon.hear().await.head, piece(Status::Ok));
    drop(stream);
    assert_eq!(daemon.hear().await.head, piece(Status::Error));
}

/// A login with SCRAM and one with PLAIN get in; nothing is said to one who would listen in, or to an impostor.
#[tokio::test]
async fn logins() {
    let login = Login { user: "user".into(), password: dunlin_model::Secret::new("pencil") };
    let uri = |text: &str| text.parse::<Uri>().expect("uri");
    {
        let (client, _events, mut daemon) = pair();
        let unix = uri("qemu:///system");
        let (done, ()) = tokio::join!(client.log_in(&unix, Some(&login)), async {
            daemon.serve::<AuthList>(|_| List(vec![1])).await;
            daemon.serve::<AuthSaslInit>(|_| "GSSAPI,PLAIN".into()).await;
            daemon
                .serve::<AuthSaslStart>(|start| {
                    assert_eq!(
                        (start.mechanism.as_str(), start.data.0.as_slice()),
                        ("PLAIN", &b"\0user\0pencil"[..])
                    );
                    SaslStep { complete: 1, nil: 0, data: Chars(Vec::new()) }
                })
                .await;
        });
        done.expect("in");
    }
    {
        let (client, _events, mut daemon) = pair();
        let tcp = uri("qemu+tcp://h/system");
        let (done, ()) = tokio::join!(client.log_in(&tcp, Some(&login)), async {
            daemon.serve::<AuthList>(|_| List(vec![1])).await;
            daemon.serve::<AuthSaslInit>(|_| "PLAIN".into()).await;
        });
        assert!(matches!(done, Err(ClientError::Login(SaslError::Mechanisms(_)))), "{done:?}");
    }
    let (client, _events, mut daemon) = pair();
    let tls = uri("qemu://h/system");
    let (done, ()) = tokio::join!(client.log_in(&tls, Some(&login)), async {
        daemon.serve::<AuthList>(|_| List(vec![1])).await;
        daemon.serve::<AuthSaslInit>(|_| "PLAIN,SCRAM-SHA-256".into()).await;
        let mut nonce = String::new();
        daemon
            .serve::<AuthSaslStart>(|start| {
                nonce = String::from_utf8(start.data.0)
                    .expect("text")
                    .split("r=")
                    .nth(1)
                    .expect("nonce")
                    .to_owned();
                let said = format!("r={nonce}x,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096");
                SaslStep { complete: 0, nil: 0, data: Chars(said.into_bytes()) }
            })
            .await;
        daemon
            .serve::<AuthSaslStep>(|_| {
                let forged = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=".to_vec();
                SaslStep { complete: 1, nil: 0, data: Chars(forged) }
            })
            .await;
    });
    assert!(matches!(done, Err(ClientError::Login(SaslError::Impostor))), "{done:?}");
}
