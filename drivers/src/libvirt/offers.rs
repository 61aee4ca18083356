//! What a daemon and its hypervisor can do, found out by asking them.
//!
//! A verb that a driver has answers "no such domain" for a domain that is not there; one that it has not says so. That is
//! asked, for each power, of a domain nobody has: nothing is changed, and nothing is believed.

use std::collections::BTreeSet;
use std::path::Path;

use dunlin_model::capabilities::{Accel, AccelProbe, DriverCapabilities, DriverName, DriverPower};
use dunlin_model::vm::MachineType;
use roxmltree::{Document, Node, ParsingOptions};

use super::LibvirtConfig;
use super::client::{Client, ClientResult};
use super::wire::Call;
use super::wire::calls::{
    ConnectGetAllDomainStats, ConnectGetCapabilities, ConnectGetLibVersion, ConnectGetType,
    ConnectGetVersion, DomainMigrateBegin, DomainOpenConsole, DomainReset, DomainRestore, DomainSave,
    DomainSetLifecycleAction, DomainShutdown, DomainSuspend,
};
use super::wire::types::Domain;
use super::wire::xdr::List;

/// A domain that nobody has.
const NOBODY: [u8; 16] = *b"dunlin's nobody!";
/// Most nodes of a capabilities document; one with a hundred machine types of thirty architectures has 10,000.
const NODES_MAX: u32 = 1 << 18;

/// A kind of guest the daemon can run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    /// `hvm`, `xen`, `exe`.
    pub(super) os_type: String,
    /// `x86_64`.
    pub(super) arch: String,
    /// `qemu`, `kvm`, `lxc`.
    pub(super) domain: String,
}

/// All that was found.
#[derive(Clone, Debug, Default)]
pub(super) struct Offers {
    pub(super) version: String,
    pub(super) kinds: Vec<Kind>,
    pub(super) machines: BTreeSet<String>,
    pub(super) powers: BTreeSet<DriverPower>,
    pub(super) kvm: Option<AccelProbe>,
    /// All domains' figures come in one call.
    pub(super) stats: bool,
    /// A power-off can be turned into a restart.
    pub(super) reboots: bool,
}

/// Asks.
pub(super) async fn offers(client: &Client, config: &LibvirtConfig) -> ClientResult<Offers> {
    let hypervisor = client.call(&ConnectGetType {}).await?;
    let text = client.call(&ConnectGetCapabilities {}).await?;
    let (kinds, machines) = kinds(&text);
    let daemon = client.call(&ConnectGetLibVersion {}).await?;
    let own = match client.call(&ConnectGetVersion {}).await {
        Ok(version) => format!("{hypervisor} {}", dotted(version)),
        Err(_) => hypervisor,
    };
    let version = format!("libvirt {}, {own} by {}", dotted(daemon), config.uri_text);
    let mut found = Offers { version, kinds, machines, ..Offers::default() };
    found.powers = powers(client).await?;
    if found.is_qemu() {
        found.powers.insert(DriverPower::Vnc);
        if found.powers.contains(&DriverPower::Migrate) {
            found.powers.insert(DriverPower::MigrateStorage);
        }
    }
    let action = DomainSetLifecycleAction { domain: nobody(), kind: 0, action: 0, flags: 1 };
    found.reboots = has(client, &action).await?;
    let stats = ConnectGetAllDomainStats { domains: List(Vec::new()), stats: 1, flags: 0 };
    found.stats = client.call(&stats).await.is_ok();
    if found.offers("kvm") {
        found.kvm = Some(kvm(config).await);
    }
    Ok(found)
}

fn nobody() -> Domain {
    Domain { name: "dunlin-nobody".to_owned(), uuid: NOBODY, id: -1 }
}

/// Is there such a verb here?
async fn has<C: Call>(client: &Client, call: &C) -> ClientResult<bool> {
    match client.call(call).await {
        Ok(_) => Ok(true),
        Err(error) => match error.fault() {
            Some(fault) => Ok(!fault.is_unsupported()),
            None => Err(error),
        },
    }
}

async fn powers(client: &Client) -> ClientResult<BTreeSet<DriverPower>> {
    let file = || "/nonexistent/dunlin".to_owned();
    let console = DomainOpenConsole { domain: nobody(), device: None, flags: 0 };
    let mut powers = BTreeSet::new();
    let mut note = |power, has: bool| has.then(|| powers.insert(power));
    note(DriverPower::Pause, has(client, &DomainSuspend { domain: nobody() }).await?);
    note(DriverPower::Shutdown, has(client, &DomainShutdown { domain: nobody() }).await?);
    note(DriverPower::Reset, has(client, &DomainReset { domain: nobody(), flags: 0 }).await?);
    let saves = has(client, &DomainSave { domain: nobody(), to: file() }).await?;
    note(DriverPower::Save, saves && has(client, &DomainRestore { from: file() }).await?);
    note(DriverPower::Console, has(client, &console).await?);
    let begin = DomainMigrateBegin { domain: nobody(), params: List(Vec::new()), flags: 1 };
    note(DriverPower::Migrate, has(client, &begin).await?);
    Ok(powers)
}

/// A libvirtd of this machine has its KVM: whether that really runs a vCPU is tried. Another's is believed.
async fn kvm(config: &LibvirtConfig) -> AccelProbe {
    if !config.is_local() {
        let evidence = format!("{} offers it; it was not tried from here", config.uri_text);
        return AccelProbe { accel: Accel::Kvm, usable: true, evidence };
    }
    let tried = tokio::task::spawn_blocking(|| crate::qemu::kvm::try_vcpu(Path::new("/dev/kvm"))).await;
    match tried.expect("the KVM probe does not panic") {
        Ok(evidence) => AccelProbe { accel: Accel::Kvm, usable: true, evidence },
        Err(evidence) => AccelProbe { accel: Accel::Kvm, usable: false, evidence },
    }
}

impl Offers {
    pub(super) fn is_qemu(&self) -> bool {
        self.offers("qemu") || self.offers("kvm")
    }

    pub(super) fn offers(&self, domain: &str) -> bool {
        self.kinds.iter().any(|kind| kind.domain == domain)
    }

    /// As the agent is told.
    pub(super) fn capabilities(&self) -> DriverCapabilities {
        let mut accels: Vec<AccelProbe> = self.kvm.iter().cloned().collect();
        let offered = |accel, domain: &str| {
            let evidence = format!("{} offers domains of type {domain}", self.version);
            self.offers(domain).then_some(AccelProbe { accel, usable: true, evidence })
        };
        accels.extend(offered(Accel::Tcg, "qemu"));
        accels.extend(offered(Accel::Simulated, "test"));
        DriverCapabilities {
            name: DriverName::Libvirt,
            version: self.version.clone(),
            accels,
            machines: self.machines.clone(),
            cpu_models: BTreeSet::new(),
            powers: self.powers.clone(),
            away: String::new(),
        }
    }
}

/// 7002022 is 7.2.22.
fn dotted(version: u64) -> String {
    format!("{}.{}.{}", version / 1_000_000, version / 1000 % 1000, version % 1000)
}

/// Kinds of guests and machine types in a capabilities document; none when it is no document.
fn kinds(text: &str) -> (Vec<Kind>, BTreeSet<String>) {
    let reading = ParsingOptions { allow_dtd: false, nodes_limit: NODES_MAX, ..ParsingOptions::default() };
    let Ok(document) = Document::parse_with_options(text, reading) else { return Default::default() };
    let named = |node: Node<'_, '_>, name: &'static str| {
        node.children().filter(|child| child.has_tag_name(name)).map(|child| child.id()).collect::<Vec<_>>()
    };
    let (mut kinds, mut machines) = (Vec::new(), BTreeSet::new());
    let node = |id| document.get_node(id).expect("the id is of this document");
    for guest in named(document.root_element(), "guest").into_iter().map(node) {
        let os_type = named(guest, "os_type").first().and_then(|id| node(*id).text()).unwrap_or_default();
        for arch in named(guest, "arch").into_iter().map(node) {
            let name = arch.attribute("name").unwrap_or_default();
            for domain in named(arch, "domain").into_iter().map(node) {
                let domain = domain.attribute("type").unwrap_or_default();
                kinds.push(Kind { os_type: os_type.into(), arch: name.into(), domain: domain.into() });
            }
            if name == "x86_64" {
                machines.extend(
                    named(arch, "machine").into_iter().filter_map(|id| node(id).text()).filter_map(known),
                );
            }
        }
    }
    (kinds, machines)
}

/// The machine type of ours that this one is.
fn known(machine: &str) -> Option<String> {
    let all = [MachineType::Pc, MachineType::Q35, MachineType::Microvm];
    all.iter().map(|machine| machine.as_str().to_owned()).find(|ours| ours == machine)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What can be run is read out of a capabilities document, and what is none offers nothing.
    #[test]
    fn kinds_are_read() {
        let text = "<capabilities><host/><guest><os_type>hvm</os_type><arch name='x86_64'>
            <machine maxCpus='255'>pc-i440fx-7.2</machine><machine canonical='pc-i440fx-7.2'>pc</machine>
            <machine>q35</machine><domain type='qemu'/><domain type='kvm'/></arch></guest>
            <guest><os_type>exe</os_type><arch name='i686'><domain type='lxc'/></arch></guest></capabilities>";
        let (found, machines) = kinds(text);
        let kind = |os: &str, arch: &str, domain: &str| Kind {
            os_type: os.into(),
            arch: arch.into(),
            domain: domain.into(),
        };
        assert_eq!(
            found,
            [kind("hvm", "x86_64", "qemu"), kind("hvm", "x86_64", "kvm"), kind("exe", "i686", "lxc")]
        );
        assert_eq!(machines, ["pc", "q35"].map(str::to_owned).into());
        assert_eq!(kinds("<capabilities"), (Vec::new(), BTreeSet::new()));
        assert_eq!(dotted(7_002_022), "7.2.22");
    }
}
