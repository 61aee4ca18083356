//! Where the VMs of each label are, and where those are whose rules name it: rules are judged by counting.

use std::collections::BTreeMap;

use super::index::LabelIdx;
use super::vm::{Level, Rule, Ties, Want};

/// A host, rack or zone, by its level and number.
pub type Place = (Level, u32);

/// What a VM is to a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Carries it.
    Carrier,
    /// Has a hard rule that keeps its carriers away.
    Shunner,
    /// Has a hard rule that wants all its carriers beside it.
    Binder,
    /// Has a hard rule that wants no other value of this key beside it; counted under the key and under its own label.
    Keeper,
}

/// Counts of one label kept in a list. Most groups of VMs are small: a list is read at once where a tree is walked from node
/// to node, each somewhere else in memory.
const FEW_MAX: usize = 128;

/// Bits of an entry that hold the count; the place stands above them, the level and the role above that.
const COUNT_BITS: u32 = 28;

/// The most that is counted in one place: more VMs than any host, rack or zone has.
const COUNT_MAX: u64 = (1 << COUNT_BITS) - 1;

/// Where a count stands among those of its label.
const fn key(role: Role, (level, place): Place) -> u64 {
    (role as u64) << 34 | (level as u64) << 32 | place as u64
}

/// How many VMs are something to one label, in each place and in all.
#[derive(Clone, Debug, Default)]
struct Counts {
    /// By role: in all.
    sums: [u32; 4],
    places: Places,
}

/// Counts by key, none of them 0.
#[derive(Clone, Debug)]
enum Places {
    /// Each with its key above the count, sorted.
    Few(Vec<u64>),
    Many(BTreeMap<u64, u32>),
}

impl Default for Places {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

impl Places {
    fn at(&self, key: u64) -> u32 {
        match self {
            Self::Few(few) => {
                let at = few.partition_point(|entry| entry >> COUNT_BITS < key);
                let found = few.get(at).filter(|entry| *entry >> COUNT_BITS == key);
                found.map_or(0, |entry| u32::try_from(entry & COUNT_MAX).unwrap_or(u32::MAX))
            }
            Self::Many(many) => many.get(&key).copied().unwrap_or(0),
        }
    }

    fn change(&mut self, key: u64, by: i8) {
        match self {
            Self::Few(few) => {
                let at = few.partition_point(|entry| entry >> COUNT_BITS < key);
                let old = few.get(at).filter(|entry| *entry >> COUNT_BITS == key).map(|old| old & COUNT_MAX);
                let new = old.unwrap_or(0).saturating_add_signed(by.into()).min(COUNT_MAX);
                match (old, new) {
                    (Some(_), 0) => drop(few.remove(at)),
                    (Some(_), new) => few[at] = key << COUNT_BITS | new,
                    (None, 0) => {}
                    (None, new) => few.insert(at, key << COUNT_BITS | new),
                }
                if few.len() > FEW_MAX {
                    let count = |entry: u64| u32::try_from(entry & COUNT_MAX).unwrap_or(u32::MAX);
                    *self =
                        Self::Many(few.iter().map(|entry| (entry >> COUNT_BITS, count(*entry))).collect());
                }
            }
            Self::Many(many) => {
                let count = many.entry(key).or_default();
                *count = count.saturating_add_signed(by.into());
                if *count == 0 {
                    many.remove(&key);
                }
                if many.is_empty() {
                    *self = Self::default();
                }
            }
        }
    }
}

/// How many VMs of one role are in each place, and in all.
#[derive(Clone, Copy, Debug)]
pub struct Count<'a> {
    role: Role,
    counts: Option<&'a Counts>,
}

impl<'a> Count<'a> {
    /// In that place.
    #[must_use]
    pub fn at(&self, place: Place) -> u32 {
        self.counts.map_or(0, |counts| counts.places.at(key(self.role, place)))
    }

    /// Anywhere.
    #[must_use]
    pub fn all(&self) -> u32 {
        self.counts.map_or(0, |counts| counts.sums[self.role as usize])
    }

    /// Every place of that level where there is one, in order, and how many.
    pub fn places(&self, level: Level) -> impl Iterator<Item = (u32, u32)> + use<'a> {
        let (first, last) = (key(self.role, (level, 0)), key(self.role, (level, u32::MAX)));
        let (few, many) = match self.counts.map(|counts| &counts.places) {
            Some(Places::Few(few)) => (few.as_slice(), None),
            Some(Places::Many(many)) => (&[][..], Some(many)),
            None => (&[][..], None),
        };
        let from = few.partition_point(|entry| entry >> COUNT_BITS < first);
        let few = few[from..].iter().take_while(move |entry| *entry >> COUNT_BITS <= last);
        let few = few.map(|entry| (entry >> COUNT_BITS, entry & COUNT_MAX));
        let many = many.into_iter().flat_map(move |many| many.range(first..=last));
        let all = few.chain(many.map(|(key, count)| (*key, u64::from(*count))));
        // The place is the low half of the key.
        let low = |word: u64| u32::try_from(word & u64::from(u32::MAX)).unwrap_or(u32::MAX);
        all.map(move |(key, count)| (low(key), low(count)))
    }
}

/// Counts for every label.
#[derive(Clone, Debug, Default)]
pub struct Presence {
    labels: Vec<Counts>,
}

impl Presence {
    /// VMs of that role towards the label.
    #[must_use]
    pub fn of(&self, role: Role, label: LabelIdx) -> Count<'_> {
        Count { role, counts: self.labels.get(label.at()) }
    }

    /// A VM with these ties comes to (+1) or leaves (-1) a host that stands in these places: host, rack, zone.
    pub(super) fn change(&mut self, ties: &Ties, places: [Place; 3], by: i8) {
        for (role, label, level) in roles(ties) {
            if self.labels.len() <= label.at() {
                self.labels.resize_with(label.at() + 1, Counts::default);
            }
            let counts = &mut self.labels[label.at()];
            for place in places.iter().filter(|place| level.is_none_or(|level| level == place.0)) {
                counts.places.change(key(role, *place), by);
            }
            let sum = &mut counts.sums[role as usize];
            *sum = sum.saturating_add_signed(by.into());
        }
    }
}

/// What one VM counts as: its role, towards which label, and at which level; None for every level.
pub(crate) fn roles(ties: &Ties) -> impl Iterator<Item = (Role, LabelIdx, Option<Level>)> {
    let carried = ties.labels.iter().map(|label| (Role::Carrier, *label, None));
    let ruled = ties.rules.iter().filter(|rule| rule.soft.is_none()).flat_map(move |rule| {
        let role = match rule.want {
            Want::Together => Role::Binder,
            Want::Apart => Role::Shunner,
            Want::OtherValuesApart => Role::Keeper,
        };
        let own = own_value(&ties.values, rule).map(|own| (role, own, Some(rule.level)));
        [Some((role, rule.label, Some(rule.level))), own].into_iter().flatten()
    });
    carried.chain(ruled)
}

/// For a fault domain: which `key=value` of the rule's key the VM itself carries.
pub(crate) fn own_value(values: &[(LabelIdx, LabelIdx)], rule: &Rule) -> Option<LabelIdx> {
    if rule.want != Want::OtherValuesApart {
        return None;
    }
    values.iter().find(|(key, _)| *key == rule.label).map(|(_, own)| *own)
}
