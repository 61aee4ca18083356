//! What is asked: a place for one VM, whether it starts or moves.

use crate::filter::Reason;
use crate::snapshot::{HostIdx, ProfileIdx, Snapshot, TiesIdx, VmIdx};

/// A place is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// For which VM of the snapshot; what it counts for where it is now is not held against it. None for a VM that is
    /// only imagined.
    pub vm: Option<VmIdx>,
    /// What it asks of any host.
    pub profile: ProfileIdx,
    /// What ties it to other VMs.
    pub ties: TiesIdx,
    /// It runs on this host and is to leave it.
    pub from: Option<HostIdx>,
    /// It may only be there. All must hold.
    pub pins: Vec<Pin>,
    /// Hosts left out for now, sorted: their migration budget is spent, or they are to be emptied.
    pub closed: Vec<HostIdx>,
    /// So many hosts must be able to fail once it is there, 0 to 64: asked by [`place_with_spare`](crate::place_with_spare).
    pub spare: u32,
}

/// Why a VM is tied to one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// The host; None when it is not in the fleet.
    pub host: Option<HostIdx>,
    /// What it is told as.
    pub reason: Reason,
    /// The same for people: "the VM is to be on host h9".
    pub text: String,
}

impl Request {
    /// For a VM that waits.
    #[must_use]
    pub fn start(snapshot: &Snapshot, vm: VmIdx) -> Self {
        let row = snapshot.vm(vm);
        Self::of(Some(vm), row.profile, row.ties)
    }

    /// For a VM that runs and is to go elsewhere, alive.
    #[must_use]
    pub fn to_move(snapshot: &Snapshot, vm: VmIdx) -> Self {
        let row = snapshot.vm(vm);
        Self { from: row.at.map(|seat| seat.host), ..Self::of(Some(vm), row.moving, row.ties) }
    }

    /// For a VM that is only imagined: how many more would fit?
    #[must_use]
    pub const fn imagined(profile: ProfileIdx, ties: TiesIdx) -> Self {
        Self::of(None, profile, ties)
    }

    const fn of(vm: Option<VmIdx>, profile: ProfileIdx, ties: TiesIdx) -> Self {
        Self { vm, profile, ties, from: None, pins: Vec::new(), closed: Vec::new(), spare: 0 }
    }
}
