//! What every host is worth to one profile: a cell for each, which is 0 for no host, 1 to 63 for a reason, or 64 and the
//! score. Follows the snapshot change by change.

use std::collections::BTreeMap;

use crate::filter::{CLASS, FIT, Reason, STATE, refuse_by};
use crate::request::Request;
use crate::score::{Weights, standing_at};
use crate::snapshot::{GateIdx, HostIdx, Level, Mark, ProfileIdx, Site, Snapshot, TiesIdx};

use super::field::{FAN, FITS, Field};
use super::sieve::Sieve;

/// Past so many changes for each cell in eight, building anew is cheaper than catching up.
pub(super) const CATCH_UP_SHARE: usize = 8;

#[derive(Clone, Debug)]
pub(super) struct Standing {
    profile: ProfileIdx,
    shared: bool,
    mark: Option<Mark>,
    /// Of the hosts.
    hosts: Mark,
    rules: u64,
    worths: u64,
    used: u64,
    slots: usize,
    pub(super) field: Field,
    /// By rack: at least the best cell there, of all.
    racks: Vec<u32>,
    /// By class: what CLASS says of it; 0 not asked yet, 1 nothing against it, else the reason + 2.
    classes: Vec<u8>,
    refused: [u32; FITS as usize],
}

impl Standing {
    pub(super) fn new(profile: ProfileIdx, shared: bool) -> Self {
        Self {
            profile,
            shared,
            mark: None,
            hosts: Mark::default(),
            rules: 0,
            worths: 0,
            used: 0,
            slots: 0,
            field: Field::default(),
            racks: Vec::new(),
            classes: Vec::new(),
            refused: [0; FITS as usize],
        }
    }

    pub(super) const fn key(&self) -> (ProfileIdx, bool) {
        (self.profile, self.shared)
    }

    pub(super) const fn used(&self) -> u64 {
        self.used
    }

    /// The score of a host that fits, ties apart.
    pub(super) fn score(&self, host: HostIdx) -> Option<u64> {
        self.field.get(host).checked_sub(FITS).map(u64::from)
    }

    /// Why a host does not fit.
    pub(super) fn reason(&self, host: HostIdx) -> Option<Reason> {
        Reason::ALL.get((self.field.get(host) as usize).checked_sub(1)?).copied()
    }

    /// Hosts removed by each filter.
    pub(super) fn removed(&self) -> BTreeMap<Reason, u32> {
        let counts = Reason::ALL.iter().zip(&self.refused[1..]);
        counts.filter(|(_, hosts)| **hosts > 0).map(|(reason, hosts)| (*reason, *hosts)).collect()
    }

    /// At least the best score in a rack, of hosts that fit.
    pub(super) fn bound_in_rack(&self, rack: u32) -> Option<u64> {
        self.racks.get(rack as usize).and_then(|cell| cell.checked_sub(FITS)).map(u64::from)
    }

    /// Looks at a rack: its bound is then its best.
    pub(super) fn tighten(&mut self, snapshot: &Snapshot, rack: u32) {
        if snapshot.rack_span(rack).is_some() {
            return;
        }
        let members = snapshot.members(Level::Rack, rack).iter();
        let best = members.map(|host| self.field.get(*host)).max();
        if let Some(bound) = self.racks.get_mut(rack as usize) {
            *bound = best.unwrap_or(0);
        }
    }

    /// The view of the hosts that pass a gate. Those of a standing that is not shared pass anyway.
    pub(super) fn view(&mut self, gate: GateIdx, sieve: &Sieve) -> usize {
        let bits = sieve.bits().filter(|_| self.shared);
        self.field.view(bits.map(|bits| (gate, bits)), self.used)
    }

    /// Follows the snapshot to where it is now.
    pub(super) fn catch_up(&mut self, snapshot: &Snapshot, clock: u64) {
        self.used = clock;
        let weights = *snapshot.weights();
        let (worths, rules) = (snapshot.worths().version(), snapshot.rules_version());
        let same = self.rules == rules && (self.worths == worths || !weights.counts_worth());
        let changed = self.mark.filter(|_| same).and_then(|mark| snapshot.changed_since(mark));
        let slots = snapshot.host_slots();
        match changed {
            Some(changes) if changes.len() <= slots / CATCH_UP_SHARE + FAN => {
                self.grow(slots);
                let same_hosts = self.hosts == snapshot.hosts_mark();
                for change in changes {
                    // Hosts that have changed since are asked as they are now, all of them: classes are learnt from them.
                    let now = (!same_hosts).then(|| snapshot.site(change.host));
                    self.refresh(snapshot, &weights, change.host, now.as_ref().unwrap_or(&change.site));
                }
            }
            _ => self.build(snapshot, &weights),
        }
        (self.mark, self.rules, self.worths) = (Some(snapshot.mark()), rules, worths);
        self.hosts = snapshot.hosts_mark();
    }

    fn build(&mut self, snapshot: &Snapshot, weights: &Weights) {
        self.classes.clear();
        self.racks.clear();
        self.refused = [0; FITS as usize];
        let mut cells = Vec::with_capacity(snapshot.host_slots());
        for host in (0..snapshot.host_slots()).map(HostIdx::of) {
            let site = snapshot.site(host);
            let cell = self.evaluate(snapshot, weights, host, &site);
            if cell < FITS {
                self.refused[cell as usize] += 1;
            }
            cells.push(cell);
            let rack = self.rack(site.rack);
            *rack = cell.max(*rack);
        }
        self.slots = cells.len();
        self.field = Field::of(&cells);
    }

    fn rack(&mut self, rack: u32) -> &mut u32 {
        let at = rack as usize;
        if at >= self.racks.len() {
            self.racks.resize(at + 1, 0);
        }
        &mut self.racks[at]
    }

    fn grow(&mut self, slots: usize) {
        if slots > self.slots {
            let new = u32::try_from(slots - self.slots).unwrap_or(u32::MAX);
            self.refused[0] += new;
            self.slots = slots;
            self.field.grow(slots);
        }
    }

    fn refresh(&mut self, snapshot: &Snapshot, weights: &Weights, host: HostIdx, site: &Site) {
        let new = self.evaluate(snapshot, weights, host, site);
        let old = self.field.set(host, new);
        if old == new {
            return;
        }
        if old < FITS {
            self.refused[old as usize] -= 1;
        }
        if new < FITS {
            self.refused[new as usize] += 1;
        }
        let bound = *self.rack(site.rack);
        // What a rack lost is followed at once where its cells lie side by side, else when somebody looks there.
        let now = match snapshot.rack_span(site.rack) {
            Some(span) if old == bound && new < bound => {
                span.map(|host| self.field.get(HostIdx::of(host))).max().unwrap_or(0)
            }
            _ => new.max(bound),
        };
        *self.rack(site.rack) = now;
    }

    /// What a host is worth, mostly by its site alone. Where VMs came and went since, what is read of the host itself may be
    /// newer than the site: the last change of the host then mends what came of that.
    fn evaluate(&mut self, snapshot: &Snapshot, weights: &Weights, host: HostIdx, site: &Site) -> u32 {
        if !site.there {
            return 0;
        }
        // Pins and ties are not looked at here.
        let request = || Request::imagined(self.profile, TiesIdx(0));
        let number = |reason: Reason| reason as u32 + 1;
        if !site.open
            && let Some(reason) = refuse_by(STATE, snapshot, &request(), host)
        {
            return number(reason);
        }
        // A standing that is shared leaves facts and taints to the sieves of those who share it.
        if !self.shared {
            if self.classes.len() <= site.class.at() {
                self.classes.resize(snapshot.class_count(), 0);
            }
            if self.classes[site.class.at()] == 0 {
                let no = refuse_by(CLASS, snapshot, &request(), host);
                self.classes[site.class.at()] = no.map_or(1, |reason| reason as u8 + 2);
            }
            let known = self.classes[site.class.at()];
            if known > 1 {
                return u32::from(known) - 1;
            }
        }
        let shape = snapshot.profile(self.profile);
        let simple = shape.named.is_empty() && shape.node_count().is_none();
        if !(simple && shape.amounts.fits(&site.free))
            && let Some(reason) = refuse_by(FIT, snapshot, &request(), host)
        {
            return number(reason);
        }
        let score = standing_at(snapshot, weights, self.profile, host, site);
        u32::try_from(score).unwrap_or(u32::MAX - FITS).saturating_add(FITS)
    }
}
