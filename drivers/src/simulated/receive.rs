//! The destination's side of a simulated migration: waits for the right source, takes the stream, and never runs
//! anything by itself.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dunlin_model::migration::Endpoint;
use dunlin_model::observed::EndCause;
use dunlin_model::{Incarnation, VmId};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::record::{Record, State};
use super::table::{Entry, Host, failed};
use super::wire::{Frame, WIRE_VERSION};
use crate::DriverError;
use crate::error::DriverErrorKind;

/// A connection that says nothing for so long is hung up on, so that it cannot keep the source out.
const HELLO_DEADLINE: Duration = Duration::from_secs(5);

/// Listens at `listen` (an address, or address and port) on a free port.
pub(super) fn bind(host: &Host, listen: &str) -> Result<(TcpListener, SocketAddr), DriverError> {
    let refuse = |e: std::io::Error| {
        failed("start", DriverErrorKind::Refused, format!("cannot listen on {listen}: {e}"))
    };
    let address = listen.parse::<SocketAddr>().or_else(|_| listen.parse().map(|ip| SocketAddr::new(ip, 0)));
    let address = address.map_err(std::io::Error::other).map_err(refuse)?;
    let listener = std::net::TcpListener::bind(address).map_err(refuse)?;
    listener.set_nonblocking(true).map_err(refuse)?;
    let _runtime = host.runtime.enter();
    let listener = TcpListener::from_std(listener).map_err(refuse)?;
    let bound = listener.local_addr().map_err(refuse)?;
    Ok((listener, bound))
}

/// Starts to wait for the source.
pub(super) fn attend(host: &Arc<Host>, entry: &mut Entry, listener: TcpListener, bound: SocketAddr) {
    let record = &entry.record;
    let disks = if record.disks.iter().any(|disk| !disk.shared) { bound.to_string() } else { String::new() };
    entry.endpoint = Some(Endpoint { memory: format!("tcp:{bound}"), disks });
    entry.link = Some(host.spawn(receive(Arc::clone(host), record.vm, record.incarnation, listener)));
}

async fn receive(host: Arc<Host>, vm: VmId, incarnation: Incarnation, listener: TcpListener) {
    let mut stream = loop {
        let Ok((mut stream, peer)) = listener.accept().await else { continue };
        match timeout(HELLO_DEADLINE, Frame::read(&mut stream)).await {
            Ok(Ok(hello)) if welcome(&host, vm, &hello) => break stream,
            refused => tracing::warn!(%vm, %peer, ?refused, "not the source of this guest"),
        }
    };
    drop(listener);
    let arrived = take(&host, vm, &mut stream).await;
    let ended = host.change(vm, "start", |record, now| {
        if record.incarnation != incarnation || !matches!(record.state, State::Incoming { .. }) {
            return Err(failed("start", DriverErrorKind::Refused, "nobody waits for the stream any more"));
        }
        match arrived {
            Ok((memory, powering_off)) => {
                record.memory = memory;
                record.power_off_at_ms = powering_off.then_some(now);
                record.state = State::Arrived;
            }
            Err(why) => record.end(now, EndCause::Died, &format!("the migration stream broke off: {why}")),
        }
        Ok(())
    });
    if let Err(error) = ended {
        tracing::warn!(%vm, %error, "what came of the migration could not be kept");
    }
}

/// Is it the source we wait for? Writes down that a stream has begun before the first byte of it is taken.
fn welcome(host: &Host, vm: VmId, hello: &Frame) -> bool {
    let expected = |record: &Record| match hello {
        Frame::Hello { version, vm, incarnation, mem_mib } => {
            *version == WIRE_VERSION
                && *vm == record.vm
                && *incarnation < record.incarnation
                && *mem_mib == record.mem_mib
        }
        _ => false,
    };
    let noted = host.change(vm, "start", |record, _| {
        let welcome = expected(record);
        if let State::Incoming { receiving, .. } = &mut record.state {
            *receiving = welcome;
        }
        Ok(welcome)
    });
    noted.is_ok_and(|(welcome, _)| welcome)
}

async fn take(host: &Host, vm: VmId, stream: &mut TcpStream) -> Result<(super::Memory, bool), String> {
    loop {
        match Frame::read(stream).await.map_err(|e| e.to_string())? {
            Frame::Switch { memory, powering_off } => {
                host.fault(vm, "arrive").map_err(|e| e.message)?;
                return Ok((memory, powering_off));
            }
            Frame::Progress { .. } => {}
            Frame::Hello { .. } => return Err("a second hello".to_owned()),
        }
    }
}
