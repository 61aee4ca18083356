//! Verbs of the cluster's certificate authority.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use dunlin_model::{Identity, Invalid, Role, Timestamp};
use dunlin_pki::Clock;
use dunlin_proto::{Wire as _, v1};
use serde_json::json;

use super::Session;
use crate::args::Format;
use crate::daemon::MemberArg;
use crate::failure::Failure;
use crate::output::{self, table};

#[derive(Debug, Subcommand)]
pub(crate) enum CaVerb {
    /// Make the identities of controllers that are to found a cluster together; needs no cluster
    Init {
        /// Folder to make: in it one for each controller, whose tls folder goes into that controller's --data-dir
        dir: PathBuf,
        /// A controller of the cluster, once for each: ID=API_ADDRESS/RAFT_ADDRESS
        #[arg(long = "member", value_name = "ID=API/RAFT", required = true)]
        members: Vec<MemberArg>,
    },
    /// Show the authorities that are believed, and who holds certificates of them
    Show,
    /// Make a new authority that signs from now on; the old one is dropped when nobody uses it any more
    Rotate {
        /// Instead, drop this one that signs no more: whoever has nothing newer is out
        #[arg(long, value_name = "ID")]
        drop: Option<String>,
    },
    /// Refuse every certificate of an admin or controller from now on (of a host: `dunlin host revoke`)
    Revoke {
        /// admin/NAME or controller/NUMBER
        identity: Identity,
    },
}

pub(crate) fn init(dir: &Path, members: &[MemberArg]) -> Result<(), Failure> {
    if dir.exists() {
        let problem = format!("{} is there already, and its keys may be in use", dir.display());
        return Err(Invalid::new("DIR", problem, "a folder that is yet to be made").into());
    }
    let host = |member: &MemberArg| {
        let (host, _) = member.api.rsplit_once(':').unwrap_or((&member.api, ""));
        (member.id, host.trim_start_matches('[').trim_end_matches(']').to_owned())
    };
    let hosts: BTreeMap<_, _> = members.iter().map(host).collect();
    if hosts.len() != members.len() {
        return Err(
            Invalid::new("--member", "a controller is given twice", "one for every controller").into()
        );
    }
    for (id, bundle) in dunlin_controller::bundle(Clock::system().now(), &hosts)? {
        bundle.write(&dir.join(format!("controller-{id}/tls")))?;
    }
    output::remark(&format!(
        "{} has the identity of each controller: move controller-N/tls into the --data-dir of controller N, and keep no copy",
        dir.display()
    ));
    Ok(())
}

pub(crate) async fn run(session: &Session, verb: CaVerb) -> Result<(), Failure> {
    match verb {
        CaVerb::Init { dir, members } => init(&dir, &members),
        CaVerb::Show => {
            let request = v1::ShowAuthoritiesRequest {};
            let found =
                session.fleet.identities(async |mut client| client.show_authorities(request).await).await?;
            show(session.format, &found)
        }
        CaVerb::Rotate { drop } => {
            let request = v1::RotateRequest { drop: drop.unwrap_or_default() };
            let found =
                session.fleet.identities(async |mut client| client.rotate(request.clone()).await).await?;
            show(session.format, &found)
        }
        CaVerb::Revoke { identity } if identity.role() == Role::Host => {
            let problem = "a host is revoked by its name";
            Err(Invalid::new("IDENTITY", problem, "dunlin host revoke NAME").into())
        }
        CaVerb::Revoke { identity } => {
            let text = identity.to_string();
            let name = text.split_once('/').map(|(_, name)| name.to_owned()).unwrap_or_default();
            revoke(session, identity.role(), name).await
        }
    }
}

/// Refuses every certificate of a holder from now on.
pub(crate) async fn revoke(session: &Session, role: Role, name: String) -> Result<(), Failure> {
    let request = v1::RevokeRequest { role: role.to_wire(), name };
    let done = session.fleet.identities(async |mut client| client.revoke(request.clone()).await).await?;
    match session.format {
        Format::Table | Format::Wide => output::line(&format!("{} revoked", done.identity)),
        format => output::value(format, &json!({"revoked": done.identity})),
    }
}

fn show(format: Format, found: &v1::Authorities) -> Result<(), Failure> {
    let at = |ms| Timestamp(ms);
    if matches!(format, Format::Json | Format::Yaml) {
        let authorities = found.authorities.iter().map(|known| {
            json!({"id": known.id, "fingerprint": known.fingerprint, "made": at(known.made_ms),
                "expires": at(known.expires_ms), "users": known.users})
        });
        let holders = found.holders.iter().map(|holder| {
            json!({"identity": holder.identity, "name": holder.name, "serial": holder.serial,
                "authority": holder.authority, "expires": at(holder.expires_ms), "revoked": holder.revoked})
        });
        let (authorities, holders): (Vec<_>, Vec<_>) = (authorities.collect(), holders.collect());
        return output::value(format, &json!({"authorities": authorities, "holders": holders}));
    }
    let last = found.authorities.len().saturating_sub(1);
    let authorities = found.authorities.iter().enumerate().map(|(place, known)| {
        let does = if place == last { "signs" } else { "is believed" };
        vec![
            known.id.clone(),
            does.to_owned(),
            known.users.to_string(),
            at(known.expires_ms).to_string(),
            known.fingerprint.clone(),
        ]
    });
    output::line(&table::columns(&["AUTHORITY", "DOES", "USERS", "EXPIRES", "FINGERPRINT"], authorities))?;
    let holders = found.holders.iter().map(|holder| {
        let state = if holder.revoked { "revoked".to_owned() } else { at(holder.expires_ms).to_string() };
        let name = if holder.name.is_empty() { "-" } else { &holder.name };
        vec![
            holder.identity.clone(),
            name.to_owned(),
            holder.serial.to_string(),
            holder.authority.clone(),
            state,
        ]
    });
    output::line(&table::columns(&["HOLDER", "NAME", "SERIAL", "AUTHORITY", "EXPIRES"], holders))
}
