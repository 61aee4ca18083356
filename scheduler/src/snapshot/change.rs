//! The deltas: how a snapshot follows the fleet.

use std::collections::BTreeMap;

use dunlin_model::{Labels, Name};

use super::amounts::Amounts;
use super::host::{Fact, FactKind, HostClass, HostEntry, HostRow, HostState, NODES_MAX, Room};
use super::index::{
    ClassIdx, DomainIdx, FactIdx, GateIdx, HostIdx, ImageIdx, LabelIdx, ProfileIdx, ResourceIdx, TiesIdx,
    VmIdx,
};
use super::load::Load;
use super::presence::own_value;
use super::sites::{Change, Mark, Site};
use super::vm::{Demand, Gate, Level, Need, Numa, Profile, Rule, Seat, Ties, VmEntry, VmRow, Want};
use super::{Place, Snapshot};

/// How much a VM with fault domains is drawn to where its own domain is already, beside its other wishes.
const THRIFT_WEIGHT: u16 = 50;

/// What a delta did, for the digest.
#[derive(Clone, Copy)]
enum What {
    Host = 1,
    Put = 2,
    Take = 3,
    Load = 4,
}

impl Snapshot {
    /// Where it stands.
    #[must_use]
    pub const fn mark(&self) -> Mark {
        self.changes.mark()
    }

    /// The hosts touched since that mark, in order, each with what it then was; some perhaps twice. None when too many
    /// were, or the mark is not of this snapshot's past.
    #[must_use]
    pub fn changed_since(&self, mark: Mark) -> Option<&[Change]> {
        self.changes.since(mark)
    }

    /// Of the changes to what hosts are, whoever is on them.
    #[must_use]
    pub const fn hosts_mark(&self) -> Mark {
        self.host_changes.mark()
    }

    /// As [`Snapshot::changed_since`], of the changes to what hosts are.
    #[must_use]
    pub fn hosts_changed_since(&self, mark: Mark) -> Option<&[Change]> {
        self.host_changes.since(mark)
    }

    /// What a decision reads of a host.
    #[must_use]
    pub fn site(&self, host: HostIdx) -> Site {
        let rack = self.places.get(host.at()).map_or(0, |[rack, _]| *rack);
        let Some(row) = self.get_host(host) else { return Site { rack, ..Site::default() } };
        let room = self.room(host);
        let open = row.state == HostState::Up && !row.cordoned;
        let (busy, gathers) = (!room.vms.is_empty(), room.gathering > 0);
        Site { free: room.free, total: row.total, class: row.class, rack, there: true, open, busy, gathers }
    }

    /// Comes last in a delta: it keeps what the host is then.
    fn touch(&mut self, host: HostIdx, what: What, whom: u32) {
        let site = self.site(host);
        let digest = (what as u64) << 56 ^ u64::from(whom);
        self.changes.push(host, digest, site);
        if matches!(what, What::Host) {
            self.host_changes.push(host, digest, site);
        }
    }

    /// A new host. A uid that is there already is updated.
    pub fn add_host(&mut self, entry: &HostEntry) -> HostIdx {
        if let Some(host) = self.find_host(entry.uid) {
            self.update_host(host, entry);
            return host;
        }
        let host = HostIdx::of(self.hosts.len());
        let row = self.host_row(entry);
        self.rooms.push(Room::default());
        self.host_of.insert(row.uid, host);
        self.hosts.push(Some(row));
        self.all.push(host);
        self.stand(host, true);
        self.refresh(host);
        host
    }

    /// What the host is has changed; the VMs it has stay.
    pub fn update_host(&mut self, host: HostIdx, entry: &HostEntry) {
        let seated = self.room(host).vms.clone();
        let load = self.host(host).load;
        self.count_use(host, false);
        self.count_presence(host, &seated, -1);
        self.stand(host, false);
        let before = self.places[host.at()];
        self.hosts[host.at()] = Some(HostRow { load, ..self.host_row(entry) });
        self.stand(host, true);
        // What is known rack by rack is not followed across racks: a host hardly ever moves.
        self.rules += u64::from(self.places[host.at()] != before);
        self.count_presence(host, &seated, 1);
        self.count_use(host, true);
        self.refresh(host);
    }

    /// The host is gone. Its VMs wait again.
    pub fn remove_host(&mut self, host: HostIdx) {
        for vm in self.room(host).vms.clone() {
            if self.vm(vm).held.is_some_and(|seat| seat.host == host) {
                self.release(vm);
            }
            if self.vm(vm).at.is_some_and(|seat| seat.host == host) {
                self.take(vm);
            }
        }
        self.stand(host, false);
        if let Some(row) = self.hosts[host.at()].take() {
            self.host_of.remove(&row.uid);
        }
        self.rooms[host.at()] = Room::default();
        self.touch(host, What::Host, u32::MAX);
    }

    /// Counts the host among those of its rack and zone, or no more.
    fn stand(&mut self, host: HostIdx, comes: bool) {
        let row = self.host(host);
        let places = [(Level::Rack, row.rack.0), (Level::Zone, row.zone.0)];
        if self.places.len() <= host.at() {
            self.places.resize(host.at() + 1, [0; 2]);
        }
        self.places[host.at()] = places.map(|(_, place)| place);
        for (level, place) in places {
            let of_level = &mut self.members[usize::from(level == Level::Zone)];
            if of_level.len() <= place as usize {
                of_level.resize_with(place as usize + 1, Vec::new);
            }
            let members = &mut of_level[place as usize];
            match (members.binary_search(&host), comes) {
                (Err(at), true) => members.insert(at, host),
                (Ok(at), false) => drop(members.remove(at)),
                _ => {}
            }
        }
        let rack = &self.members[0][places[0].1 as usize];
        let span = match (rack.first(), rack.last()) {
            (Some(first), Some(last)) if last.at() - first.at() + 1 == rack.len() => {
                [first.0, last.0 - first.0 + 1]
            }
            _ => [0; 2],
        };
        self.spans.resize(self.members[0].len(), [0; 2]);
        self.spans[places[0].1 as usize] = span;
    }

    /// Brings what is left of a host up to what it is.
    fn refresh(&mut self, host: HostIdx) {
        let row = self.hosts[host.at()].as_ref().expect("the caller has just set it");
        let room = &mut self.rooms[host.at()];
        let largest = self.largest.most(row.total);
        if largest != self.largest {
            self.largest = largest;
            self.rules += 1;
        }
        room.free = row.total.minus(room.used);
        room.named_free = row.named.iter().map(|(_, total)| *total).collect();
        room.nodes_free.clone_from(&row.nodes);
        for vm in room.vms.clone() {
            for seat in self.seats(vm).into_iter().flatten().filter(|seat| seat.host == host) {
                self.occupy_finer(vm, seat, true);
            }
        }
        self.touch(host, What::Host, 0);
    }

    /// Says what has been promised of a host in all, where the caller knows better than the sum over its VMs.
    pub fn set_used(&mut self, host: HostIdx, used: Amounts) {
        self.count_use(host, false);
        self.rooms[host.at()].used = used;
        self.count_use(host, true);
        self.rooms[host.at()].free = self.host(host).total.minus(used);
        self.touch(host, What::Host, 1);
    }

    /// A new VM, waiting. A uid that is there already is updated.
    pub fn add_vm(&mut self, entry: &VmEntry) -> VmIdx {
        if let Some(vm) = self.find_vm(entry.uid) {
            self.update_vm(vm, entry);
            return vm;
        }
        let (profile, ties, moving) = self.intern_entry(entry);
        let row = VmRow {
            moving,
            movable: entry.movable,
            priority: entry.priority,
            local_disk_mib: entry.local_disk_mib,
            ..VmRow::new(entry.uid, entry.name.clone(), profile, ties)
        };
        let vm = self.slot();
        self.vm_of.insert(row.uid, vm);
        self.vms[vm.at()] = Some(row);
        vm
    }

    /// A new VM of a demand that is interned already, waiting: for replays, where nobody asks for its name.
    pub fn add_interned(&mut self, profile: ProfileIdx, ties: TiesIdx) -> VmIdx {
        let vm = self.slot();
        let uid = crate::simulate::fleet::vm_uid(vm.at());
        let row = VmRow::new(uid, nameless(), profile, ties);
        self.vm_of.insert(uid, vm);
        self.vms[vm.at()] = Some(row);
        vm
    }

    fn slot(&mut self) -> VmIdx {
        self.free_vms.pop().unwrap_or_else(|| {
            self.vms.push(None);
            VmIdx::of(self.vms.len() - 1)
        })
    }

    /// What the VM asks for has changed; it stays where it is.
    pub fn update_vm(&mut self, vm: VmIdx, entry: &VmEntry) {
        let (at, held) = (self.vm(vm).at, self.vm(vm).held);
        self.release(vm);
        self.take(vm);
        let (profile, ties, moving) = self.intern_entry(entry);
        if let Some(row) = self.vms[vm.at()].as_mut() {
            row.name = entry.name.clone();
            (row.profile, row.ties, row.moving) = (profile, ties, moving);
            (row.movable, row.priority) = (entry.movable, entry.priority);
            row.local_disk_mib = entry.local_disk_mib;
        }
        if let Some(seat) = at {
            self.put(vm, seat);
        }
        if let Some(seat) = held {
            self.hold(vm, seat);
        }
    }

    /// The VM is gone.
    pub fn remove_vm(&mut self, vm: VmIdx) {
        self.release(vm);
        self.take(vm);
        if let Some(row) = self.vms[vm.at()].take() {
            self.vm_of.remove(&row.uid);
            self.free_vms.push(vm);
        }
    }

    /// Seats a VM. It leaves the seat it had.
    pub fn put(&mut self, vm: VmIdx, seat: Seat) {
        self.take(vm);
        self.row_mut(vm).at = Some(seat);
        self.occupy(vm, seat, true);
        self.count_asked(vm, true);
    }

    /// The VM leaves its seat and waits.
    pub fn take(&mut self, vm: VmIdx) {
        let Some(seat) = self.row_mut(vm).at.take() else { return };
        self.occupy(vm, seat, false);
        self.count_asked(vm, false);
    }

    /// Counts what a seated VM asks for among what all ask for, and learns what room is worth when that has changed.
    fn count_asked(&mut self, vm: VmIdx, comes: bool) {
        let profile = self.vm(vm).profile;
        let amounts = self.profile(profile).amounts;
        let count = self.shapes.entry(profile).or_default();
        *count = if comes { *count + 1 } else { *count - 1 };
        if *count == 0 {
            self.shapes.remove(&profile);
        }
        if !comes {
            (self.asked, self.seated) = (self.asked.minus(amounts), self.seated - 1);
            return;
        }
        (self.asked, self.seated) = (self.asked.plus(amounts), self.seated + 1);
        if self.worths.count(self.seated) {
            let mut mix: BTreeMap<Amounts, u64> = BTreeMap::new();
            for (profile, count) in &self.shapes {
                *mix.entry(self.words.profiles.get(profile.0).amounts).or_default() += u64::from(*count);
            }
            let up = self.hosts().filter(|(_, row)| row.state == HostState::Up);
            let offered = up.fold(Amounts::default(), |sum, (_, row)| sum.plus(row.total));
            self.worths.learn(&mix, offered, self.largest);
        }
    }

    /// The VM has moved: to the seat it held, or to any other.
    pub fn move_to(&mut self, vm: VmIdx, seat: Seat) {
        self.release(vm);
        self.put(vm, seat);
        let now_ms = self.now_ms;
        self.row_mut(vm).moved_ms = Some(now_ms);
    }

    /// Holds a second seat for a VM that is on its way there.
    pub fn hold(&mut self, vm: VmIdx, seat: Seat) {
        self.release(vm);
        self.row_mut(vm).held = Some(seat);
        self.occupy(vm, seat, true);
    }

    /// Gives up the seat that was held.
    pub fn release(&mut self, vm: VmIdx) {
        let Some(seat) = self.row_mut(vm).held.take() else { return };
        self.occupy(vm, seat, false);
    }

    /// The bytes of a VM's disks that a move carries along have become known, MiB.
    pub fn set_local_disk(&mut self, vm: VmIdx, mib: u64) {
        self.row_mut(vm).local_disk_mib = mib;
    }

    /// A sample of a VM has come in.
    pub fn observe_vm(&mut self, vm: VmIdx, load: Option<Load>) {
        self.row_mut(vm).load = load;
        if let Some(seat) = self.vm(vm).at {
            self.touch(seat.host, What::Load, vm.0);
        }
    }

    /// A sample of a host has come in.
    pub fn observe_host(&mut self, host: HostIdx, load: Option<Load>) {
        if let Some(row) = self.hosts[host.at()].as_mut() {
            row.load = load;
            self.touch(host, What::Load, u32::MAX);
        }
    }

    /// The images that a host has have become known, by their names.
    pub fn set_images(&mut self, host: HostIdx, images: &[String]) {
        let images = self.images(images);
        if let Some(row) = self.hosts[host.at()].as_mut()
            && row.images != images
        {
            row.images = images;
            self.refresh(host);
        }
    }

    /// When the VM last moved, for those that did so before the snapshot was taken.
    pub fn set_moved(&mut self, vm: VmIdx, moved_ms: Option<u64>) {
        self.row_mut(vm).moved_ms = moved_ms;
    }

    fn row_mut(&mut self, vm: VmIdx) -> &mut VmRow {
        self.vms[vm.at()].as_mut().expect("the index of a VM that is there")
    }

    fn seats(&self, vm: VmIdx) -> [Option<Seat>; 2] {
        let row = self.vm(vm);
        [row.at, row.held]
    }

    /// Counts a VM in at a seat, or out of it.
    fn occupy(&mut self, vm: VmIdx, seat: Seat, comes: bool) {
        let amounts = self.profile(self.vm(vm).profile).amounts;
        let total = self.host(seat.host).total;
        self.count_use(seat.host, false);
        let room = &mut self.rooms[seat.host.at()];
        room.used = if comes { room.used.plus(amounts) } else { room.used.minus(amounts) };
        room.free = total.minus(room.used);
        match (room.vms.binary_search(&vm), comes) {
            (Err(at), true) => room.vms.insert(at, vm),
            (Ok(at), false) => drop(room.vms.remove(at)),
            _ => {}
        }
        self.count_use(seat.host, true);
        if self.profile(self.vm(vm).profile).grows {
            self.count_gathering(seat.host, comes);
        }
        self.occupy_finer(vm, seat, comes);
        self.count_presence(seat.host, &[vm], if comes { 1 } else { -1 });
        self.touch(seat.host, if comes { What::Put } else { What::Take }, vm.0);
    }

    /// Counts a VM that others must share the host with.
    fn count_gathering(&mut self, host: HostIdx, comes: bool) {
        let room = &mut self.rooms[host.at()];
        room.gathering = if comes { room.gathering + 1 } else { room.gathering - 1 };
        let turns = room.gathering == u32::from(comes);
        if turns {
            self.gatherings = if comes { self.gatherings + 1 } else { self.gatherings - 1 };
            // With the first of them every host begins to be judged by whether it is one.
            self.rules += u64::from(self.gatherings == u32::from(comes));
        }
    }

    /// Named resources and NUMA nodes.
    fn occupy_finer(&mut self, vm: VmIdx, seat: Seat, comes: bool) {
        let profile = self.words.profiles.get(self.vms[vm.at()].as_ref().map_or(0, |row| row.profile.0));
        let Some(row) = self.hosts[seat.host.at()].as_ref() else { return };
        let room = &mut self.rooms[seat.host.at()];
        for (resource, amount) in &profile.named {
            if let Ok(at) = row.named.binary_search_by_key(resource, |(resource, _)| *resource) {
                let left = &mut room.named_free[at];
                *left =
                    if comes { left.saturating_sub(*amount) } else { (*left + amount).min(row.named[at].1) };
            }
        }
        let part = profile.node_part(seat.nodes.len());
        for node in seat.nodes.nodes().filter(|node| *node < row.nodes.len()) {
            let left = &mut room.nodes_free[node];
            *left = if comes { left.minus(part) } else { left.plus(part) };
        }
    }

    /// Counts what the host adds to the sums over hosts in use, in or out.
    fn count_use(&mut self, host: HostIdx, comes: bool) {
        let Some(row) = self.hosts[host.at()].as_ref() else { return };
        let room = &self.rooms[host.at()];
        if room.vms.is_empty() {
            return;
        }
        let all = &mut self.in_use;
        let count = |sum: Amounts, part| if comes { sum.plus(part) } else { sum.minus(part) };
        (all.promised, all.offered) = (count(all.promised, room.used), count(all.offered, row.total));
        all.hosts = if comes { all.hosts + 1 } else { all.hosts - 1 };
    }

    fn count_presence(&mut self, host: HostIdx, vms: &[VmIdx], by: i8) {
        let places: [Place; 3] = [Level::Host, Level::Rack, Level::Zone].map(|level| self.place(level, host));
        for vm in vms {
            if let Some(row) = self.vms[vm.at()].as_ref() {
                self.presence.change(self.words.ties.get(row.ties.0), places, by);
            }
        }
    }
}

/// Words to numbers.
impl Snapshot {
    fn fact_idx(&mut self, kind: FactKind, text: &str) -> FactIdx {
        FactIdx(self.words.facts.intern(&Fact::new(kind, text)))
    }

    fn named(&mut self, named: &[(String, u64)]) -> Vec<(ResourceIdx, u64)> {
        let words = &mut self.words;
        sorted(
            named.iter().map(|(name, amount)| (ResourceIdx(words.resources.intern(name)), *amount)).collect(),
        )
    }

    fn images(&mut self, images: &[String]) -> Vec<ImageIdx> {
        sorted(images.iter().map(|name| ImageIdx(self.words.images.intern(name))).collect())
    }

    fn host_row(&mut self, entry: &HostEntry) -> HostRow {
        let mut facts: Vec<FactIdx> =
            entry.facts.iter().map(|fact| FactIdx(self.words.facts.intern(fact))).collect();
        facts.extend(entry.labels.iter().map(|(key, value)| {
            let text = format!("{key}={value}");
            FactIdx(self.words.facts.intern(&Fact::new(FactKind::Label, text)))
        }));
        let taints = entry.taints.iter().map(|taint| self.fact_idx(FactKind::Label, taint)).collect();
        let class = HostClass { facts: sorted(facts), taints: sorted(taints) };
        let (rack, zone) = (self.rack_of(entry), self.zone_of(&entry.labels));
        let whole = entry.nodes.len() > NODES_MAX;
        HostRow {
            uid: entry.uid,
            name: entry.name.clone(),
            state: entry.state,
            cordoned: entry.cordoned,
            class: ClassIdx(self.words.classes.intern(&class)),
            rack,
            zone,
            physical: entry.physical,
            total: entry.total,
            named: self.named(&entry.named),
            nodes: if whole { Vec::new() } else { entry.nodes.clone() },
            images: self.images(&entry.images),
            notes: entry.notes.clone(),
            load: None,
        }
    }

    fn rack_of(&mut self, entry: &HostEntry) -> DomainIdx {
        let name = entry
            .labels
            .get("rack")
            .map_or_else(|| format!("host {}", entry.name), |rack| format!("rack {rack}"));
        DomainIdx(self.words.domains.intern(&name))
    }

    fn zone_of(&mut self, labels: &Labels) -> DomainIdx {
        let name = labels.get("zone").map_or_else(|| "no zone".to_owned(), |zone| format!("zone {zone}"));
        DomainIdx(self.words.domains.intern(&name))
    }

    /// The numbers of a demand. A demand seen before gets the same ones.
    pub fn intern(&mut self, demand: &Demand) -> (ProfileIdx, TiesIdx) {
        let needs = demand.needs.iter().filter_map(|any_of| {
            let kind = any_of.first()?.kind;
            let any_of = any_of.iter().map(|fact| FactIdx(self.words.facts.intern(fact))).collect();
            Some(Need { kind, any_of: sorted(any_of) })
        });
        let needs = sorted(needs.collect());
        let tolerates = demand.tolerates.iter().map(|taint| self.fact_idx(FactKind::Label, taint)).collect();
        let prefers: Vec<(FactIdx, u16)> = demand
            .prefers
            .iter()
            .map(|(label, weight)| (self.fact_idx(FactKind::Label, label), *weight))
            .collect();
        let profile = Profile {
            amounts: demand.amounts,
            prefers: sorted(prefers),
            named: self.named(&demand.named),
            numa: demand.numa,
            needs,
            tolerates: sorted(tolerates),
            images: self.images(&demand.images),
            grows: demand
                .rules
                .iter()
                .any(|rule| rule.want == Want::Together && rule.level == Level::Host && rule.soft.is_none()),
        };
        let profile = self.intern_profile(&profile);
        (profile, self.intern_ties(demand))
    }

    fn intern_profile(&mut self, profile: &Profile) -> ProfileIdx {
        let known = self.words.profiles.len();
        let number = ProfileIdx(self.words.profiles.intern(profile));
        if self.words.profiles.len() > known {
            let gate = Gate { needs: profile.needs.clone(), tolerates: profile.tolerates.clone() };
            self.words.gate_of.push(GateIdx(self.words.gates.intern(&gate)));
            self.words.shapes.push([number; 2]);
            let bare = Profile { needs: Vec::new(), tolerates: Vec::new(), ..profile.clone() };
            // How many more of a growing group fit depends on the nodes.
            let numa = if profile.grows { profile.numa } else { Numa::Float };
            let floating = Profile { numa, ..bare.clone() };
            let shapes = [bare, floating].map(|shape| self.intern_profile(&shape));
            self.words.shapes[number.at()] = shapes;
        }
        number
    }

    fn intern_entry(&mut self, entry: &VmEntry) -> (ProfileIdx, TiesIdx, ProfileIdx) {
        let (profile, ties) = self.intern(&entry.demand);
        if entry.move_needs.is_empty() {
            return (profile, ties, profile);
        }
        let needs = [entry.demand.needs.as_slice(), &entry.move_needs].concat();
        let moving = self.intern(&Demand { needs, ..entry.demand.clone() }).0;
        (profile, ties, moving)
    }

    fn intern_ties(&mut self, demand: &Demand) -> TiesIdx {
        let labels = &mut self.words.labels;
        let mut ties = Ties::default();
        for label in &demand.labels {
            let pair = LabelIdx(labels.intern(label));
            let key = label.split_once('=').map_or(label.as_str(), |(key, _)| key);
            let key = LabelIdx(labels.intern(&key.to_owned()));
            ties.labels.extend([pair, key]);
            ties.values.push((key, pair));
        }
        ties.rules.extend(demand.rules.iter().map(|rule| Rule {
            label: LabelIdx(labels.intern(&rule.label)),
            level: rule.level,
            want: rule.want,
            soft: rule.soft,
        }));
        // A fault domain that claims few places leaves more of them to the others.
        let hard: Vec<Rule> = ties.rules.iter().filter(|rule| rule.is_hard()).copied().collect();
        ties.rules.extend(hard.iter().filter_map(|rule| {
            let label = own_value(&ties.values, rule)?;
            Some(Rule { label, level: rule.level, want: Want::Together, soft: Some(THRIFT_WEIGHT) })
        }));
        let ties =
            Ties { labels: sorted(ties.labels), values: sorted(ties.values), rules: sorted(ties.rules) };
        TiesIdx(self.words.ties.intern(&ties))
    }
}

impl Profile {
    /// What each of `nodes` NUMA nodes has to give. Bandwidth belongs to no node.
    #[must_use]
    pub fn node_part(&self, nodes: u32) -> Amounts {
        Amounts { net_mbps: 0, ..self.amounts }.part(nodes.into())
    }

    /// NUMA nodes it lies on: None when it floats.
    #[must_use]
    pub const fn node_count(&self) -> Option<u32> {
        match self.numa {
            Numa::Float => None,
            Numa::One => Some(1),
            Numa::Split(nodes) => Some(nodes as u32),
        }
    }
}

impl Rule {
    /// Must it hold?
    #[must_use]
    pub const fn is_hard(&self) -> bool {
        self.soft.is_none()
    }

    /// Is it of that kind?
    #[must_use]
    pub fn wants(&self, want: Want) -> bool {
        self.want == want
    }
}

/// Stands for the name of a VM that nobody asks for.
fn nameless() -> Name {
    "vm".parse().expect("two letters are a name")
}

fn sorted<T: Ord>(mut values: Vec<T>) -> Vec<T> {
    values.sort_unstable();
    values.dedup();
    values
}
