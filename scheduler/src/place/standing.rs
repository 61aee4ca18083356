//! What every host is worth to one profile: a flat array with the maxima of its blocks, so that the best host is found,
//! and one host changed, by looking at a few cache lines whatever the size of the fleet.
//!
//! ```text
//! tops    max of 64 blocks          100,000 hosts: 25
//! blocks  max of 64 cells                       1,563
//! cells   0 no host | 1..=63 refused, the reason | 64.. score + 64
//! ```

use std::collections::BTreeMap;

use crate::filter::{CLASS, FIT, Reason, STATE, refuse_by};
use crate::request::Request;
use crate::score::{Weights, standing};
use crate::snapshot::{HostIdx, Mark, ProfileIdx, Snapshot, TiesIdx};

/// Cells of a block and blocks of a top: 64 cells are four cache lines.
pub(super) const FAN: usize = 64;

/// Cells below this are refusals; every [`Reason`] has a number below it.
pub(super) const FITS: u32 = 64;

/// Past so many changes for each cell in eight, building anew is cheaper than catching up.
const CATCH_UP_SHARE: usize = 8;

#[derive(Clone, Debug)]
pub(super) struct Standing {
    profile: ProfileIdx,
    shared: bool,
    mark: Option<Mark>,
    rules: u64,
    worths: u64,
    used: u64,
    pub(super) cells: Vec<u32>,
    pub(super) blocks: Vec<u32>,
    pub(super) tops: Vec<u32>,
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
            rules: 0,
            worths: 0,
            used: 0,
            cells: Vec::new(),
            blocks: Vec::new(),
            tops: Vec::new(),
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
        self.cells.get(host.at()).filter(|cell| **cell >= FITS).map(|cell| u64::from(cell - FITS))
    }

    /// Why a host does not fit.
    pub(super) fn reason(&self, host: HostIdx) -> Option<Reason> {
        self.cells.get(host.at()).and_then(|cell| Reason::ALL.get((*cell as usize).checked_sub(1)?).copied())
    }

    /// Hosts removed by each filter.
    pub(super) fn removed(&self) -> BTreeMap<Reason, u32> {
        let counts = Reason::ALL.iter().zip(&self.refused[1..]);
        counts.filter(|(_, hosts)| **hosts > 0).map(|(reason, hosts)| (*reason, *hosts)).collect()
    }

    /// The best host of those that fit; the lowest index among equals.
    pub(super) fn best(&self) -> Option<(u64, HostIdx)> {
        let top = first_max(&self.tops)?;
        let block = top * FAN + first_max(slice(&self.blocks, top))?;
        let host = block * FAN + first_max(slice(&self.cells, block))?;
        Some((u64::from(self.cells[host].checked_sub(FITS)?), HostIdx::of(host)))
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
            Some(hosts) if hosts.len() <= slots / CATCH_UP_SHARE + FAN => {
                self.grow(slots);
                for host in hosts {
                    self.refresh(snapshot, &weights, host);
                }
            }
            _ => self.build(snapshot, &weights),
        }
        (self.mark, self.rules, self.worths) = (Some(snapshot.mark()), rules, worths);
    }

    fn build(&mut self, snapshot: &Snapshot, weights: &Weights) {
        self.cells.clear();
        self.classes.clear();
        self.refused = [0; FITS as usize];
        for host in (0..snapshot.host_slots()).map(HostIdx::of) {
            let cell = self.evaluate(snapshot, weights, host);
            if cell < FITS {
                self.refused[cell as usize] += 1;
            }
            self.cells.push(cell);
        }
        self.blocks = maxima(&self.cells);
        self.tops = maxima(&self.blocks);
    }

    fn grow(&mut self, slots: usize) {
        if slots > self.cells.len() {
            let new = u32::try_from(slots - self.cells.len()).unwrap_or(u32::MAX);
            self.refused[0] += new;
            self.cells.resize(slots, 0);
            self.blocks.resize(slots.div_ceil(FAN), 0);
            self.tops.resize(self.blocks.len().div_ceil(FAN), 0);
        }
    }

    fn refresh(&mut self, snapshot: &Snapshot, weights: &Weights, host: HostIdx) {
        let new = self.evaluate(snapshot, weights, host);
        let old = std::mem::replace(&mut self.cells[host.at()], new);
        if old == new {
            return;
        }
        if old < FITS {
            self.refused[old as usize] -= 1;
        }
        if new < FITS {
            self.refused[new as usize] += 1;
        }
        let block = host.at() / FAN;
        if raise(&mut self.blocks[block], slice(&self.cells, block), old, new) {
            let (top, max) = (block / FAN, self.blocks[block]);
            self.tops[top] = slice(&self.blocks, top).iter().copied().max().unwrap_or(max);
        }
    }

    fn evaluate(&mut self, snapshot: &Snapshot, weights: &Weights, host: HostIdx) -> u32 {
        let Some(row) = snapshot.get_host(host) else { return 0 };
        // Pins and ties are not looked at here.
        let request = Request::imagined(self.profile, TiesIdx(0));
        let number = |reason: Reason| reason as u32 + 1;
        if let Some(reason) = refuse_by(STATE, snapshot, &request, host) {
            return number(reason);
        }
        if self.classes.len() <= row.class.at() {
            self.classes.resize(snapshot.class_count(), 0);
        }
        let known = &mut self.classes[row.class.at()];
        if *known == 0 {
            // A standing that is shared leaves facts and taints to the sieves of those who share it.
            let no = if self.shared { None } else { refuse_by(CLASS, snapshot, &request, host) };
            *known = no.map_or(1, |reason| reason as u8 + 2);
        }
        if *known > 1 {
            return u32::from(*known) - 1;
        }
        if let Some(reason) = refuse_by(FIT, snapshot, &request, host) {
            return number(reason);
        }
        let score = standing(snapshot, weights, self.profile, host);
        u32::try_from(score).unwrap_or(u32::MAX - FITS).saturating_add(FITS)
    }
}

/// Brings the maximum of a block up to date after one of its values went from `old` to `new`. Did it change?
fn raise(max: &mut u32, values: &[u32], old: u32, new: u32) -> bool {
    let before = *max;
    if new >= before {
        *max = new;
    } else if old == before {
        *max = values.iter().copied().max().unwrap_or(0);
    }
    *max != before
}

pub(super) fn slice(values: &[u32], block: usize) -> &[u32] {
    &values[block * FAN..((block + 1) * FAN).min(values.len())]
}

fn maxima(values: &[u32]) -> Vec<u32> {
    values.chunks(FAN).map(|chunk| chunk.iter().copied().max().unwrap_or(0)).collect()
}

/// Where the greatest value stands first. None when nothing there fits.
fn first_max(values: &[u32]) -> Option<usize> {
    let max = values.iter().copied().max().filter(|max| *max >= FITS)?;
    values.iter().position(|value| *value == max)
}
