//! What may be proposed. Intent and transitions only, never samples.

use std::collections::BTreeMap;

use dunlin_model::capabilities::HostCapabilities;
use dunlin_model::cluster::{ClusterSpec, Controller};
use dunlin_model::decision::{Decision, Effect};
use dunlin_model::image::ImageSpec;
use dunlin_model::migration::{Endpoint, MigrationFigures, MigrationOutcome, MigrationSpec};
use dunlin_model::recommendation::RecommendationSpec;
use dunlin_model::task::{DrainProgress, TaskPhase, TaskSpec};
use dunlin_model::vm::{Built, Power, SavedState, VmSpec};
use dunlin_model::{
    ApiTokenId, ClusterId, Generation, HostId, ImageId, Incarnation, Labels, Level, MigrationId, Name,
    RecommendationId, Revision, Role, TaskId, Timestamp, VmId,
};
use serde::{Deserialize, Serialize};

use crate::owners::{Claim, Expected};
use crate::rights::RightsWrite;
use crate::trust::{Ask, TrustChange};

/// When and where in the log a command stands. The only time `apply` knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Counts the commands of the log; it only grows.
    pub index: u64,
    /// The proposer's clock. `apply` never lets the cluster's time go backwards.
    pub time: Timestamp,
}

/// One proposal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::large_enum_variant)] // It lives from the log to the state; most of them are users' writes.
pub enum Command {
    /// A user's write, under its idempotency key: the same key and write again give the same answer and change nothing.
    Write {
        /// 1 to 64 characters.
        key: String,
        /// What.
        write: Write,
    },
    /// The first command of a cluster.
    FoundCluster {
        uid: ClusterId,
        name: Name,
        controllers: Vec<Controller>,
        /// What all of them read.
        #[serde(default, skip_serializing_if = "Level::is_oldest")]
        level: Level,
    },
    /// The set of controllers, or the endpoint of one, has changed.
    SetControllers { controllers: Vec<Controller> },
    /// From now on everything may be written that this level reads. Proposed once every controller and agent can.
    RaiseLevel { to: Level },
    /// An agent traded a token for an identity. The same uid and key again: the same join.
    JoinHost { token_sha256: String, uid: HostId, name: Name, labels: Labels, ask: Ask },
    /// Whom the cluster believes has changed.
    Trust(TrustChange),
    /// A session opened: the host is Up. Refused when `session` is not higher than the last.
    OpenSession { host: HostId, session: u64, agent_version: String, capabilities: HostCapabilities },
    /// That session ended: the host is Down. Does nothing when a newer session is known.
    CloseSession { host: HostId, session: u64, message: String },
    /// The host reported other capabilities within its session.
    SetCapabilities { host: HostId, session: u64, capabilities: HostCapabilities },
    /// A Pending VM gets a host and its next incarnation: phase Starting. Refused when the VM's spec or incarnation
    /// moved, when the host is not Up or is cordoned, when a rule keeps it away, or when it has no room left. `why` is
    /// kept with the VM.
    BindVm {
        vm: VmId,
        generation: Generation,
        incarnation: Incarnation,
        host: HostId,
        #[serde(default)]
        why: Option<Box<Decision>>,
    },
    /// A Pending VM fits nowhere, with the reason per group of hosts. Changes nothing when it says what is known.
    ExplainPending { vm: VmId, generation: Generation, reason: String, message: String },
    /// A host saw a transition of the incarnation it holds. Refused when that is no longer the VM's incarnation.
    Observe { vm: VmId, host: HostId, incarnation: Incarnation, seen: Seen },
    /// Nothing of a Deleting VM is left on its host: it is removed. Or nothing was ever bound.
    ForgetVm { vm: VmId },
    /// A step of a migration, legal in `phase` only; see `migration::next` for the table.
    Migrate { migration: MigrationId, event: MigrationEvent },
    /// A step of a task.
    Progress {
        task: TaskId,
        phase: TaskPhase,
        progress_percent: u32,
        message: String,
        #[serde(default)]
        drain: Option<DrainProgress>,
    },
    /// The balancer would move a VM. Refused when the VM has moved, or has another open recommendation.
    Recommend { uid: RecommendationId, name: Name, spec: Box<RecommendationSpec> },
    /// An open recommendation is no longer worth while.
    Expire { recommendation: RecommendationId, message: String },
    /// What came of a migration that had grounds, measured once.
    NoteEffect { migration: MigrationId, effect: Effect },
    /// Makes the built-in roles and the project `default` where they are missing.
    SeedRights,
    /// A user's token was used; kept to the hour.
    NoteUse { token: ApiTokenId },
    /// Old ended migrations and tasks, used-up tokens and answered keys are dropped, oldest first, down to the bounds.
    Sweep,
}

/// What a user may write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Write {
    /// Uids are minted at the edge, so that apply needs no randomness. MACs too.
    CreateVm {
        uid: VmId,
        /// The user chose the uid. It may have been another VM's before, so its incarnations begin behind all of those.
        #[serde(default)]
        own_uid: bool,
        name: Name,
        labels: Labels,
        spec: VmSpec,
    },
    /// Several at once, all or none, under one revision.
    CreateVms {
        vms: Vec<NewVm>,
    },
    /// Replaces labels and spec; only power and labels may change while a process may exist.
    UpdateVm {
        uid: VmId,
        revision: Revision,
        labels: Labels,
        spec: VmSpec,
    },
    /// Running, Paused or Stopped, whatever the revision.
    SetPower {
        uid: VmId,
        power: Power,
    },
    /// Its guest is killed, its disks made by us are deleted.
    DeleteVm {
        uid: VmId,
    },
    /// A guest that runs on a host already becomes a VM, where it is. The same uid again: the same VM.
    AdoptVm {
        uid: VmId,
        name: Name,
        spec: VmSpec,
        host: HostId,
    },
    /// An adopted VM is handed back as it is.
    ReleaseVm {
        uid: VmId,
    },
    UpdateHost {
        uid: HostId,
        revision: Revision,
        labels: Labels,
        cordoned: bool,
        #[serde(default)]
        rack: Option<Name>,
        #[serde(default)]
        zone: Option<Name>,
        #[serde(default)]
        taints: Labels,
        #[serde(default)]
        resources: BTreeMap<String, u64>,
    },
    /// Refused while VMs are bound to it, unless forced; a forced removal stops nothing on the host.
    RemoveHost {
        uid: HostId,
        force: bool,
    },
    CreateImage {
        uid: ImageId,
        name: Name,
        labels: Labels,
        spec: ImageSpec,
    },
    /// Refused while a VM names it.
    DeleteImage {
        uid: ImageId,
    },
    UpdateCluster {
        revision: Revision,
        labels: Labels,
        spec: ClusterSpec,
    },
    CreateMigration {
        uid: MigrationId,
        name: Name,
        spec: MigrationSpec,
    },
    CancelMigration {
        uid: MigrationId,
    },
    CreateTask {
        uid: TaskId,
        name: Name,
        spec: TaskSpec,
    },
    CancelTask {
        uid: TaskId,
    },
    /// Approves a recommendation, which becomes the migration of that uid and name, or dismisses it.
    DecideRecommendation {
        uid: RecommendationId,
        approve: bool,
        migration: MigrationId,
        name: Name,
    },
    CreateToken {
        sha256: String,
        role: Role,
        expires: Timestamp,
    },
    /// Users, roles, bindings, projects and tokens of users.
    Rights(RightsWrite),
    /// Replaces an image's labels. Its bytes are what it is, and never change.
    UpdateImage {
        uid: ImageId,
        revision: Revision,
        labels: Labels,
        spec: ImageSpec,
    },
    /// Another write, with what must hold for it, and whose it is.
    Checked {
        /// An object must be at this revision.
        #[serde(default)]
        expect: Option<Expected>,
        /// Somebody applies a document: which fields are his from now on.
        #[serde(default)]
        claim: Option<Claim>,
        /// What was asked for, as a hash, when the write was made from that and from what was stored: two requests are
        /// the same when this is. Empty when the write itself says it all.
        #[serde(default)]
        asked: String,
        write: Box<Write>,
    },
}

impl Write {
    /// The write itself, without what is checked around it.
    #[must_use]
    pub fn inner(&self) -> &Self {
        match self {
            Self::Checked { write, .. } => write.inner(),
            other => other,
        }
    }

    fn level(&self) -> Level {
        let of = |spec: &VmSpec| {
            let needs = [
                (!spec.placement.resources.is_empty()).then_some(Level::RESOURCES),
                spec.cloud_init.as_ref().map(|_| Level::CLOUD_INIT),
            ];
            needs.into_iter().flatten().max().unwrap_or_default()
        };
        match self.inner() {
            Self::CreateVm { spec, .. } | Self::UpdateVm { spec, .. } => of(spec),
            Self::CreateVms { vms } => vms.iter().map(|vm| of(&vm.spec)).max().unwrap_or_default(),
            Self::AdoptVm { .. } | Self::ReleaseVm { .. } => Level::ADOPTION,
            Self::UpdateHost { resources, .. } if !resources.is_empty() => Level::RESOURCES,
            _ => Level::OLDEST,
        }
    }
}

/// One of several VMs that are created together; see [`Write::CreateVm`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewVm {
    /// Minted at the edge, or the user's.
    pub uid: VmId,
    /// It is the user's.
    #[serde(default)]
    pub own_uid: bool,
    /// What it is called.
    pub name: Name,
    /// Its labels.
    #[serde(default)]
    pub labels: Labels,
    /// What it is to be.
    pub spec: VmSpec,
}

/// A transition of a VM, as its host saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Seen {
    /// vCPUs run.
    Running { pid: Option<u32>, vnc: Option<String> },
    /// vCPUs stand still as asked.
    Paused { pid: Option<u32>, vnc: Option<String> },
    /// The guest powered itself off: the VM is Stopped, and its spec's power with it.
    PoweredOff,
    /// The process is gone because the fleet wanted it so (power off).
    Stopped,
    /// Memory lies in a file: the VM is Saved, and its spec's power Stopped.
    Saved(SavedState),
    /// It could not be started: Failed, with the hypervisor's words.
    Refused { message: String },
    /// It died: Pending again on its host under `RestartPolicy::OnCrash`, bounded, else Failed.
    Died { message: String },
    /// Disks that only this host has now exist.
    VolumesMade,
    /// News of a start under way ("fetching image debian").
    Doing { message: String },
    /// Its process is built so; none: as the spec says.
    Built(Option<Built>),
}

/// What moves a migration from phase to phase.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MigrationEvent {
    /// Planned -> Reserved. The proposal names what it assumed; room and rules are checked again. `why` is kept.
    Reserve {
        host: HostId,
        vm_generation: Generation,
        vm_incarnation: Incarnation,
        #[serde(default)]
        why: Option<Box<Decision>>,
        /// Virtual sizes of the disks that are not shared, bytes, as the source reports them.
        #[serde(default)]
        disk_bytes: BTreeMap<Name, u64>,
    },
    /// Planned, and it stays so: why no host was chosen.
    Wait { reason: String, message: String },
    /// Reserved -> Prepared.
    Ready { endpoint: Endpoint },
    /// Prepared -> Copying.
    Started,
    /// Copying -> Switching: THE hand-over. The VM's host becomes the destination, its incarnation the next.
    /// Refused when cancel was asked, when the VM's incarnation moved, or when its power is no longer Running/Paused.
    HandOver { figures: MigrationFigures },
    /// Switching -> Aborting: taken back. The VM's host is the source again with incarnation + 1, `continues` the old.
    HandBack { reason: String, message: String },
    /// Switching -> Done: the guest runs at the destination. `figures` from both hypervisors.
    Arrived { figures: MigrationFigures, outcome: MigrationOutcome },
    /// Planned..Copying -> Aborting.
    Abort { reason: String, message: String },
    /// Aborting -> Aborted: both sides have let go.
    Cleaned { outcome: MigrationOutcome },
}

impl Command {
    /// The level from which on this may be proposed. A command that comes with a later release, or with a field whose meaning
    /// an older one must not miss, is named here with its level; below it, it is refused. `RaiseLevel` and `FoundCluster` are
    /// proposed by whoever has found out what all read, and everything else there is every release reads.
    #[must_use]
    pub fn level(&self) -> Level {
        match self {
            Self::Write { write, .. } => write.level(),
            Self::Observe { seen: Seen::Built(_), .. } => Level::REBUILDING,
            Self::OpenSession { capabilities, .. } | Self::SetCapabilities { capabilities, .. } => {
                capabilities.level()
            }
            _ => Level::OLDEST,
        }
    }

    /// The same proposal without its record of why: two that differ only in that are one.
    #[must_use]
    pub fn without_why(&self) -> Self {
        let mut command = self.clone();
        match &mut command {
            Self::BindVm { why, .. } | Self::Migrate { event: MigrationEvent::Reserve { why, .. }, .. } => {
                *why = None;
            }
            _ => {}
        }
        command
    }
}
