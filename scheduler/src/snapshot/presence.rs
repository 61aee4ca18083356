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

/// How many VMs of one role are in each place, and in all.
#[derive(Clone, Debug, Default)]
pub struct Count {
    places: BTreeMap<Place, u32>,
    all: u32,
}

impl Count {
    /// In that place.
    #[must_use]
    pub fn at(&self, place: Place) -> u32 {
        self.places.get(&place).copied().unwrap_or(0)
    }

    /// Anywhere.
    #[must_use]
    pub const fn all(&self) -> u32 {
        self.all
    }

    /// Every place of that level where there is one, in order, and how many.
    pub fn places(&self, level: Level) -> impl Iterator<Item = (u32, u32)> {
        self.places.range((level, 0)..=(level, u32::MAX)).map(|((_, place), count)| (*place, *count))
    }

    fn add(&mut self, places: &[Place], by: i8) {
        for place in places {
            let count = self.places.entry(*place).or_default();
            *count = count.saturating_add_signed(by.into());
            if *count == 0 {
                self.places.remove(place);
            }
        }
        self.all = self.all.saturating_add_signed(by.into());
    }
}

#[derive(Clone, Debug, Default)]
struct Counts([Count; 4]);

/// Counts for every label.
#[derive(Clone, Debug, Default)]
pub struct Presence {
    labels: Vec<Counts>,
    none: Count,
}

impl Presence {
    /// VMs of that role towards the label.
    #[must_use]
    pub fn of(&self, role: Role, label: LabelIdx) -> &Count {
        self.labels.get(label.at()).map_or(&self.none, |counts| &counts.0[role as usize])
    }

    /// A VM with these ties comes to (+1) or leaves (-1) a host that stands in these places: host, rack, zone.
    pub(super) fn change(&mut self, ties: &Ties, places: [Place; 3], by: i8) {
        for (role, label, level) in roles(ties) {
            if self.labels.len() <= label.at() {
                self.labels.resize_with(label.at() + 1, Counts::default);
            }
            let count = &mut self.labels[label.at()].0[role as usize];
            match level.and_then(|level| places.iter().find(|place| place.0 == level)) {
                None => count.add(&places, by),
                Some(place) => count.add(&[*place], by),
            }
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
