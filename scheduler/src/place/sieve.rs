//! Which classes of hosts a profile may go to, by facts and taints. Profiles that ask for the same room share one
//! standing, however their facts differ, as long as enough hosts pass.

use crate::filter::{CLASS, refuse_by};
use crate::request::Request;
use crate::snapshot::{ClassIdx, ProfileIdx, Snapshot, TiesIdx};

/// One host in so many must pass for the shared standing to be searched: below that the search passes over too many.
const BROAD_SHARE: usize = 16;

/// Kept for one profile until hosts or the policy change.
#[derive(Clone, Debug, Default)]
pub(super) struct Sieve {
    /// Of the policy and of the hosts, when it was made.
    made: Option<(u64, u64)>,
    passes: Vec<bool>,
    broad: bool,
}

impl Sieve {
    pub(super) fn follow(&mut self, snapshot: &Snapshot, profile: ProfileIdx) {
        let now = Some((snapshot.rules_version(), snapshot.hosts_version()));
        if self.made == now {
            return;
        }
        let request = Request::imagined(profile, TiesIdx(0));
        let mut known: Vec<Option<bool>> = vec![None; snapshot.class_count()];
        let (mut through, mut all) = (0, 0);
        for (host, row) in snapshot.hosts() {
            let ask = || refuse_by(CLASS, snapshot, &request, host).is_none();
            through += usize::from(*known[row.class.at()].get_or_insert_with(ask));
            all += 1;
        }
        self.passes = known.into_iter().map(|known| known == Some(true)).collect();
        self.broad = through * BROAD_SHARE >= all;
        self.made = now;
    }

    /// Do enough hosts pass?
    pub(super) const fn is_broad(&self) -> bool {
        self.broad
    }

    pub(super) fn passes(&self, class: ClassIdx) -> bool {
        self.passes.get(class.at()).copied().unwrap_or(false)
    }
}
