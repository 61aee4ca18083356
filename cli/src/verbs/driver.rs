//! Drivers over the fleet: what each host has probed of each, and how.

use dunlin_model::capabilities::DriverCapabilities;
use dunlin_model::host::Host;
use dunlin_model::{Kind, Object};
use serde_json::json;

use super::Session;
use crate::args::{DriverVerb, Format};
use crate::failure::Failure;
use crate::output;
use crate::output::table::columns;

pub(crate) async fn run(session: &Session, verb: DriverVerb) -> Result<(), Failure> {
    let DriverVerb::List = verb;
    let objects = session.fleet.list(Kind::Host, false).await?.objects;
    let hosts: Vec<&Host> = objects
        .iter()
        .filter_map(|object| match object {
            Object::Host(host) => Some(host),
            _ => None,
        })
        .collect();
    let all = hosts.iter().flat_map(|host| {
        host.status.capabilities.drivers.iter().map(move |driver| (host.metadata.name.to_string(), driver))
    });
    match session.format {
        Format::Json | Format::Yaml => {
            let told: Vec<_> = all.map(|(host, driver)| json!({ "host": host, "driver": driver })).collect();
            output::value(session.format, &told)
        }
        Format::Table | Format::Wide => {
            let rows = all.flat_map(|(host, driver)| {
                rows(driver).into_iter().map(move |row| [vec![host.clone()], row].concat())
            });
            output::line(&columns(&["HOST", "DRIVER", "VERSION", "WAY", "WORKS", "POWERS", "SEEN"], rows))
        }
    }
}

/// A row for each way to run a guest.
fn rows(driver: &DriverCapabilities) -> Vec<Vec<String>> {
    let powers: Vec<_> = driver.powers.iter().map(|power| format!("{power:?}").to_lowercase()).collect();
    let row = |probe: &dunlin_model::capabilities::AccelProbe| {
        vec![
            driver.name.to_string(),
            driver.version.clone(),
            probe.accel.to_string(),
            if probe.usable { "yes" } else { "no" }.to_owned(),
            if probe.usable { powers.join(",") } else { "-".to_owned() },
            probe.evidence.clone(),
        ]
    };
    let away = (!driver.away.is_empty()).then(|| {
        let (name, none) = (driver.name.to_string(), || "-".to_owned());
        vec![name, or_dash(&driver.version), none(), "away".to_owned(), none(), driver.away.clone()]
    });
    match away {
        Some(away) => vec![away],
        None => driver.accels.iter().map(row).collect(),
    }
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

/// `host show` for people: the host, and what was probed on it.
pub(crate) fn host(session: &Session, object: &Object) -> Result<(), Failure> {
    let (Object::Host(host), Format::Table | Format::Wide) = (object, session.format) else {
        return output::object(session.format, object);
    };
    let mut plain = host.clone();
    let drivers = std::mem::take(&mut plain.status.capabilities.drivers);
    let about = output::yaml_text(&Object::Host(plain));
    // They are the table below.
    let about: String =
        about.lines().filter(|line| line.trim() != "drivers: []").map(|line| format!("{line}\n")).collect();
    let rows = drivers.iter().flat_map(rows);
    let table = columns(&["DRIVER", "VERSION", "WAY", "WORKS", "POWERS", "SEEN"], rows);
    output::line(&format!("{}\n\n{table}", about.trim_end()))
}
