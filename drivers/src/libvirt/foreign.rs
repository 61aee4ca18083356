//! Domains that somebody else made: listed, taken under management where they are, and given back as they were.
//!
//! Nothing of a domain is changed by any of this but a mark in its metadata; its process never notices. What our spec has
//! no word for stays in libvirt's own document: when an adopted guest is started again, only what is asked otherwise is
//! changed in it ([`super::graft`]).

use std::sync::Arc;

use dunlin_model::vm::Power;
use dunlin_model::{Incarnation, VmId};
use uuid::Uuid;

use super::client::Client;
use super::link::{Site, domain};
use super::record::Record;
use super::wire::calls::{ConnectListAllDomains, DomainGetState, DomainGetXml, DomainSetMetadata};
use super::wire::fault::{NO_DOMAIN, NO_METADATA};
use super::{console, fail, failed, guests::state, start, verbs};
use crate::domain_xml::{NAMESPACE, Options, Parsed, parse};
use crate::error::DriverErrorKind;
use crate::hypervisor::{DriverResult, Foreign, Guest};

/// Leave nothing out that is not said to be left out.
const IGNORE: Options = Options { ignore_unsupported: true };

/// See [`crate::Hypervisor::foreign`].
pub(super) async fn foreign(site: &Site) -> DriverResult<Vec<Foreign>> {
    let verb = "foreign";
    let client = site.client(verb).await?;
    let ask = ConnectListAllDomains { need_results: 1, flags: 0 };
    let all = client.call(&ask).await.map_err(|e| failed(verb, &e))?;
    let mut found = Vec::new();
    for theirs in all.domains.0 {
        let vm = VmId(Uuid::from_bytes(theirs.uuid));
        if site.guests.record(vm).is_some() {
            continue;
        }
        // One that has just gone is none.
        if let Ok(foreign) = look(&client, vm, theirs.name).await {
            found.push(foreign);
        }
    }
    Ok(found)
}

async fn look(client: &Client, vm: VmId, name: String) -> DriverResult<Foreign> {
    let verb = "foreign";
    let state =
        client.call(&DomainGetState { domain: domain(vm), flags: 0 }).await.map_err(|e| failed(verb, &e))?;
    let xml =
        client.call(&DomainGetXml { domain: domain(vm), flags: 0 }).await.map_err(|e| failed(verb, &e))?;
    let running = !matches!(state.state, state::SHUTOFF | state::CRASHED);
    let (spec, left_out) = match parse(xml.as_bytes(), IGNORE) {
        Ok(Parsed { mut spec, ignored, .. }) => {
            let still = matches!(state.state, state::PAUSED | state::PM_SUSPENDED);
            spec.power = if still { Power::Paused } else { Power::Running };
            // What runs lists what its model comes to on this host; what was asked for is in the definition.
            let ask = DomainGetXml { domain: domain(vm), flags: start::XML_INACTIVE };
            let defined = client.call(&ask).await.map_err(|e| failed(verb, &e))?;
            if let Ok(defined) = parse(defined.as_bytes(), IGNORE) {
                spec.cpu_model = defined.spec.cpu_model;
            }
            (Ok(spec), ignored)
        }
        Err(error) => (Err(error.to_string()), Vec::new()),
    };
    Ok(Foreign { vm, name, running, spec, left_out })
}

/// See [`crate::Hypervisor::adopt`].
pub(super) async fn adopt(site: &Arc<Site>, vm: VmId, incarnation: Incarnation) -> DriverResult<Guest> {
    let verb = "adopt";
    let _claim = site.guests.claim(vm, verb)?;
    let (client, offers) = site.connected(verb).await?;
    let refused = |words: String| fail(verb, DriverErrorKind::Refused, words);
    match site.guests.record(vm) {
        Some(record) if record.incarnation == incarnation && record.ended.is_none() => {}
        Some(record) => return Err(refused(format!("it is managed already, as {}", record.incarnation))),
        None => {
            let ask = DomainGetXml { domain: domain(vm), flags: 0 };
            let xml = client.call(&ask).await.map_err(|e| failed(verb, &e))?;
            let parsed = parse(xml.as_bytes(), IGNORE).map_err(|e| refused(e.to_string()))?;
            let foreign = look(&client, vm, parsed.name.to_string()).await?;
            if !foreign.running {
                return Err(refused("it does not run; define it as a VM of its own".to_owned()));
            }
            let record = Record {
                ever_ran: true,
                has_display: parsed.spec.vnc.is_some(),
                adopted: true,
                ..Record::new(vm, parsed.name, incarnation)
            };
            site.guests.place(record).await?;
            let disks = parsed.spec.disks.iter();
            let disks = disks.map(|disk| (&disk.name, disk.bus, disk.shared || disk.read_only));
            start::note_disks(site, &client, vm, disks).await?;
        }
    }
    mark(&client, vm, Some(Mark { incarnation, adopted: true })).await?;
    site.guests.came_up(vm, verb).await?;
    site.look(&client, vm, verb).await?;
    console::serve(site, vm, &offers);
    site.guests.guest(vm).ok_or_else(|| refused("it has ended meanwhile".to_owned()))
}

/// See [`crate::Hypervisor::release`].
pub(super) async fn release(site: &Arc<Site>, vm: VmId) -> DriverResult<()> {
    let verb = "release";
    let _claim = site.guests.claim(vm, verb)?;
    if site.guests.record(vm).is_none() {
        return Ok(());
    }
    let client = site.client(verb).await?;
    mark(&client, vm, None).await?;
    site.guests.remove(vm, verb)
}

/// What says that a domain is in the fleet.
#[derive(Clone, Copy)]
pub(super) struct Mark {
    pub(super) incarnation: Incarnation,
    /// Somebody else made it.
    pub(super) adopted: bool,
}

impl Mark {
    /// Without its namespace: libvirt declares that itself, and refuses an element that does.
    fn element(self) -> String {
        let adopted = if self.adopted { " adopted='yes'" } else { "" };
        format!("<guest incarnation='{}'{adopted}/>", self.incarnation.0)
    }
}

/// Writes or removes the mark, in what runs and in what is defined, where there is either.
pub(super) async fn mark(client: &Client, vm: VmId, mark: Option<Mark>) -> DriverResult<()> {
    for flags in [verbs::AFFECT_LIVE, verbs::AFFECT_CONFIG] {
        let key = mark.as_ref().map(|_| "dunlin".to_owned());
        let uri = Some(NAMESPACE.to_owned());
        let kind = verbs::METADATA_ELEMENT;
        let call = DomainSetMetadata {
            domain: domain(vm),
            kind,
            metadata: mark.map(Mark::element),
            key,
            uri,
            flags,
        };
        match client.call(&call).await {
            Err(error) if error.fault().is_none() => return Err(failed("adopt", &error)),
            Err(error) if error.is(NO_DOMAIN) || error.is(NO_METADATA) => {}
            // A transient domain has no definition, one that is off no process.
            Err(error) => tracing::debug!(%vm, %error, "the mark is not everywhere"),
            Ok(()) => {}
        }
    }
    Ok(())
}
