//! The receiving side of a migration: ports, exports, and the moment before the guest may run.

use std::net::TcpListener;

use dunlin_model::Name;
use dunlin_model::migration::Endpoint;
use serde_json::json;

use super::owner::{Fault, Owner};
use super::qmp::Qmp;

/// Connections one NBD export may have: the mirror's, and one that a source opens to see whether we are there.
const CONNECTIONS_PER_DISK: usize = 2;

/// Sets the switches both sides of a migration, a save and a restore must set alike.
pub(super) async fn set_capabilities(qmp: &Qmp, pause_before_switchover: bool) -> Result<(), Fault> {
    let switch = |name: &str, state: bool| json!({ "capability": name, "state": state });
    let all = [switch("events", true), switch("pause-before-switchover", pause_before_switchover)];
    qmp.run("migrate-set-capabilities", json!({ "capabilities": all })).await?;
    Ok(())
}

/// Listens for disks and memory on ports the kernel chooses.
pub(super) async fn listen(qmp: &Qmp, address: &str, disks: &[(String, Name)]) -> Result<Endpoint, Fault> {
    set_capabilities(qmp, true).await?;
    let disks_at = if disks.is_empty() { String::new() } else { export(qmp, address, disks).await? };
    let host = bracketed(address);
    qmp.run("migrate-incoming", json!({ "uri": format!("tcp:{host}:0") })).await?;
    let answer = qmp.run("query-migrate", json!({})).await?;
    let port = answer["socket-address"][0]["port"].as_str();
    let port = port.ok_or_else(|| Fault::Refused(format!("QEMU does not say where it listens: {answer}")))?;
    Ok(Endpoint { memory: format!("tcp:{host}:{port}"), disks: disks_at })
}

/// Offers the disks to the source's mirrors. QEMU cannot tell which port it took, so the socket is made here.
async fn export(qmp: &Qmp, address: &str, disks: &[(String, Name)]) -> Result<String, Fault> {
    let bare = address.trim_start_matches('[').trim_end_matches(']');
    let bind = || {
        let listener = TcpListener::bind((bare, 0))?;
        let port = listener.local_addr()?.port();
        std::io::Result::Ok((listener, port))
    };
    let (listener, port) = bind().map_err(|e| Fault::Refused(format!("cannot listen on {address}: {e}")))?;
    qmp.give("disks", listener.into()).await?;
    let connections = disks.len() * CONNECTIONS_PER_DISK;
    let server =
        json!({ "addr": { "type": "fd", "data": { "str": "disks" } }, "max-connections": connections });
    qmp.run("nbd-server-start", server).await?;
    for (node, name) in disks {
        let export = json!({
            "type": "nbd", "id": format!("export-{node}"), "node-name": node, "name": name, "writable": true,
        });
        qmp.run("block-export-add", export).await?;
    }
    Ok(format!("{}:{port}", bracketed(address)))
}

fn bracketed(address: &str) -> String {
    if address.contains(':') && !address.starts_with('[') {
        format!("[{address}]")
    } else {
        address.to_owned()
    }
}

impl Owner {
    /// Everything has come: nobody may write to the disks any more but the guest.
    pub(super) async fn close_exports(&self) {
        // An error says that no server runs: no disks were exported, or it was closed before.
        let _ = self.qmp.run("nbd-server-stop", json!({})).await;
    }

    /// What must be true before a received guest runs for the first time.
    pub(super) async fn ready_to_run(&mut self) -> Result<(), Fault> {
        if self.status().await? == "inmigrate" {
            return Err(Fault::Refused("its memory has not arrived yet".to_owned()));
        }
        self.arrived = true;
        self.close_exports().await;
        Ok(())
    }
}
