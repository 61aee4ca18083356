//! Does every rule hold, right now? Counted afresh from who sits where, without the tables that placement keeps.

use std::collections::{BTreeMap, BTreeSet};

use crate::snapshot::{Amounts, HostIdx, LabelIdx, Snapshot, VmIdx, Want};

/// Something that must hold and does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// More was promised than there is.
    Oversold(HostIdx),
    /// More lies on a NUMA node, or a named resource, than there is.
    OversoldPart(HostIdx),
    /// A VM is on a host that lacks a fact it needs, or carries a taint it does not tolerate.
    Misfit(VmIdx),
    /// A hard rule of the VM does not hold.
    Broken(VmIdx, Want),
}

/// Every violation, hosts first.
#[must_use]
pub fn violations(snapshot: &Snapshot) -> Vec<Violation> {
    let mut found = Vec::new();
    for (host, _) in snapshot.hosts() {
        oversold(snapshot, host, &mut found);
    }
    let (carriers, keys) = carriers(snapshot);
    for (vm, row) in snapshot.vms() {
        let Some(seat) = row.at else { continue };
        let (profile, class) =
            (snapshot.profile(row.profile), snapshot.class(snapshot.host(seat.host).class));
        let met = profile.needs.iter().all(|need| need.any_of.iter().any(|fact| class.facts.contains(fact)));
        if !met || class.taints.iter().any(|taint| !profile.tolerates.contains(taint)) {
            found.push(Violation::Misfit(vm));
        }
        for rule in snapshot.ties(row.ties).rules.iter().filter(|rule| rule.is_hard()) {
            let here = snapshot.place(rule.level, seat.host);
            let others = carriers.get(&rule.label).into_iter().flatten().filter(|(other, _)| *other != vm);
            let mut others = others.map(|(other, host)| (*other, snapshot.place(rule.level, *host) == here));
            let own = keys.get(&(vm, rule.label));
            let holds = match rule.want {
                Want::Together => others.all(|(_, beside)| beside),
                Want::Apart => others.all(|(_, beside)| !beside),
                Want::OtherValuesApart => {
                    others.all(|(other, beside)| !beside || keys.get(&(other, rule.label)) == own)
                }
            };
            if !holds {
                found.push(Violation::Broken(vm, rule.want));
            }
        }
    }
    found
}

type Carriers = BTreeMap<LabelIdx, Vec<(VmIdx, HostIdx)>>;

/// Who carries each label where, and which value of each key each VM carries.
fn carriers(snapshot: &Snapshot) -> (Carriers, BTreeMap<(VmIdx, LabelIdx), LabelIdx>) {
    let (mut carriers, mut keys) = (Carriers::new(), BTreeMap::new());
    for (vm, row) in snapshot.vms() {
        let Some(seat) = row.at else { continue };
        let ties = snapshot.ties(row.ties);
        for label in &ties.labels {
            carriers.entry(*label).or_default().push((vm, seat.host));
        }
        keys.extend(ties.values.iter().map(|(key, pair)| ((vm, *key), *pair)));
    }
    (carriers, keys)
}

fn oversold(snapshot: &Snapshot, host: HostIdx, found: &mut Vec<Violation>) {
    let row = snapshot.host(host);
    let mut sum = Amounts::default();
    let mut named: BTreeMap<_, u64> = BTreeMap::new();
    let mut nodes = vec![Amounts::default(); row.nodes.len()];
    let seated: BTreeSet<VmIdx> = snapshot.room(host).vms.iter().copied().collect();
    for vm in seated {
        let guest = snapshot.vm(vm);
        let profile = snapshot.profile(guest.profile);
        for seat in [guest.at, guest.held].into_iter().flatten().filter(|seat| seat.host == host) {
            sum = sum.plus(profile.amounts);
            profile
                .named
                .iter()
                .for_each(|(resource, amount)| *named.entry(*resource).or_default() += amount);
            for node in seat.nodes.nodes().filter(|node| *node < row.nodes.len()) {
                nodes[node] = nodes[node].plus(profile.node_part(seat.nodes.len()));
            }
        }
    }
    if !sum.fits(&row.total) {
        found.push(Violation::Oversold(host));
    }
    let has: BTreeMap<_, u64> = row.named.iter().copied().collect();
    let parts =
        nodes.iter().zip(&row.nodes).all(|(used, total)| used.fits(&Amounts { net_mbps: 0, ..*total }));
    if !parts || named.iter().any(|(resource, used)| *used > has.get(resource).copied().unwrap_or(0)) {
        found.push(Violation::OversoldPart(host));
    }
}
