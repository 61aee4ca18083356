//! The public table as it crosses the wire.

use dunlin_model::meta::{Metadata, Resource};
use dunlin_model::vm::{Vm, VmSpec, VmStatus, Vnc};
use dunlin_model::{ErrorCode, Generation, Object, Revision, Secret, Timestamp, VmId};
use tonic::{Code, Status};
use uuid::Uuid;

use super::*;

fn vm() -> Vm {
    let vnc = Vnc { password: Some(Secret::new("geheim")), ..Vnc::default() };
    Resource {
        metadata: Metadata {
            name: "web".parse().unwrap(),
            uid: VmId(Uuid::from_u128(1)),
            labels: [("tier".to_owned(), "front".to_owned())].into(),
            generation: Generation(2),
            revision: Revision(7),
            created: Timestamp(1_795_000_000_000),
        },
        spec: VmSpec { vnc: Some(vnc), ..VmSpec::new(512) },
        status: VmStatus::default(),
    }
}

/// Every code survives the trip through a gRPC status, and the exit status of each is what it was when it was published.
#[test]
fn every_code_survives_a_status_and_keeps_its_exit_status() {
    let golden = [
        ("invalid_argument", 2),
        ("not_found", 3),
        ("already_exists", 4),
        ("stale_revision", 4),
        ("wrong_state", 5),
        ("in_use", 5),
        ("no_capacity", 6),
        ("unauthenticated", 7),
        ("forbidden", 16),
        ("quota_exceeded", 14),
        ("too_many_attempts", 15),
        ("unsupported", 8),
        ("key_reused", 2),
        ("compacted", 9),
        ("field_conflict", 4),
        ("too_large", 2),
        ("too_many", 10),
        ("overloaded", 10),
        ("not_leader", 10),
        ("unavailable", 10),
        ("deadline", 11),
        ("internal", 70),
    ];
    let now: Vec<_> = ErrorCode::ALL.iter().map(|code| (code.as_str(), code.exit())).collect();
    assert_eq!(now, golden);
    for code in ErrorCode::ALL {
        let fault = Fault::new(*code, "Kein Platz für „web“");
        let status = Status::from(fault.clone());
        assert_eq!(status.code(), Code::from_i32(code.grpc()));
        assert_ne!(status.code(), Code::Unknown, "{code} has a gRPC code");
        assert_eq!(Fault::from(status), fault);
    }
}

/// A stale write gets the object as it is now, and no secret with it.
#[test]
fn the_current_object_travels_without_its_secrets() {
    let fault = Fault::new(ErrorCode::StaleRevision, "web is at revision 7").with_current(vm().into());
    let back = Fault::from(Status::from(fault.clone()));
    assert_eq!(back, fault);
    let Some(Object::Vm(current)) = back.current.map(|object| *object) else { panic!("no VM came back") };
    assert_eq!(current.metadata.revision, Revision(7));
    assert_eq!(current.spec.vnc.unwrap().password.unwrap().expose(), Secret::REDACTED);
}

/// What would not fit into HTTP/2 headers is cut or left out, at a character boundary.
#[test]
fn a_fault_stays_within_the_headers() {
    let mut big = vm();
    big.metadata.labels = (0..64).map(|i| (format!("label-{i}"), "x".repeat(200))).collect();
    let fault = Fault::new(ErrorCode::StaleRevision, "ö".repeat(9000)).with_current(big.into());
    let back = Fault::from(Status::from(fault));
    assert_eq!(back.code, ErrorCode::StaleRevision);
    assert_eq!(back.current, None);
    assert_eq!(back.message, "ö".repeat(MESSAGE_BYTES_MAX / 2));
}

/// A status that no part of Dunlin made is one of three: try later, too late, or a bug.
#[test]
fn foreign_statuses_fall_into_three_codes() {
    let broken = std::io::Error::other("connection reset");
    let table = [
        (Status::unavailable("x"), ErrorCode::Unavailable),
        (Status::cancelled("x"), ErrorCode::Unavailable),
        (Status::deadline_exceeded("x"), ErrorCode::Deadline),
        (Status::from_error(Box::new(broken)), ErrorCode::Unavailable),
        (Status::unknown("x"), ErrorCode::Internal),
        (Status::internal("x"), ErrorCode::Internal),
        (Status::unimplemented("x"), ErrorCode::Internal),
    ];
    for (status, code) in table {
        assert_eq!(Fault::from_status(&status).code, code, "{status:?}");
    }
}

/// A controller that is not there reads as unavailable, with the reason in the message.
#[tokio::test]
async fn a_refused_connection_is_unavailable() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
    let fault = Fault::from(endpoint.connect().await.unwrap_err());
    assert_eq!(fault.code, ErrorCode::Unavailable);
    assert!(fault.message.contains("refused"), "{fault}");
    let mut client = v1::fleet_client::FleetClient::new(endpoint.connect_lazy());
    let fault = Fault::from(client.get(v1::GetRequest::default()).await.unwrap_err());
    assert_eq!(fault.code, ErrorCode::Unavailable);
}

/// What a message says of a field or of near names can be had without reading sentences, after the wire too.
#[test]
fn details_are_in_the_message() {
    let over_the_wire = |fault: Fault| Fault::from_status(&Status::from(fault)).details();
    let invalid = Invalid::new(
        "spec.disks[0].bus",
        "\"x\": is not known; allowed: never",
        "virtio, sata; did you mean a: b",
    );
    let details = over_the_wire(invalid.clone().into());
    assert_eq!(details.field, Some(invalid.field));
    assert_eq!(details.allowed, Some(invalid.allowed));
    let near = Fault::new(ErrorCode::NotFound, "no vm is called \"wbe\"; did you mean web, web-1?");
    assert_eq!(over_the_wire(near).near, ["web", "web-1"]);
    let plain = Fault::new(ErrorCode::Internal, "a: b; allowed: c");
    assert_eq!(over_the_wire(plain), crate::Details::default());
    let status = Status::from(Fault::new(ErrorCode::Overloaded, "later"));
    assert_eq!(status.metadata().get("grpc-retry-pushback-ms").unwrap(), "1000");
}
