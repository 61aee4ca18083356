//! Properties of the whole state machine, and the rules that users meet, as one story each.

mod levels;
mod owners;
mod planners;
mod random;
mod rules;
mod trust;

use dunlin_model::capabilities::{
    Accel, AccelProbe, DriverCapabilities, DriverName, DriverPower, HostCapabilities,
};
use dunlin_model::migration::{MigrationCause, MigrationLimits, MigrationSpec};
use dunlin_model::vm::{Power, VmSpec};
use dunlin_model::{ClusterId, HostId, Labels, Level, MigrationId, Role, Timestamp, VmId};
use uuid::Uuid;

use crate::command::{Command, Seen, Stamp, Write};
use crate::trust::Ask;
use crate::{Outcome, Rejected, State, apply, invariant};

/// A fleet under test: every command is followed by the invariants.
#[derive(Clone)]
pub(crate) struct Fleet {
    pub(crate) state: State,
    pub(crate) index: u64,
    pub(crate) now: u64,
}

pub(crate) fn host_id(number: u64) -> HostId {
    HostId(Uuid::from_u64_pair(1, number))
}

pub(crate) fn vm_id(number: u64) -> VmId {
    VmId(Uuid::from_u64_pair(2, number))
}

pub(crate) fn migration_id(number: u64) -> MigrationId {
    MigrationId(Uuid::from_u64_pair(3, number))
}

pub(crate) fn capabilities() -> HostCapabilities {
    use DriverPower as P;
    let powers = [P::Pause, P::Shutdown, P::Reset, P::Save, P::Migrate, P::MigrateStorage];
    let driver = DriverCapabilities {
        name: DriverName::Qemu,
        accels: vec![AccelProbe { accel: Accel::Tcg, usable: true, evidence: String::new() }],
        powers: powers.into(),
        ..DriverCapabilities::default()
    };
    HostCapabilities { cpus: 2, mem_mib: 1_280, drivers: vec![driver], ..HostCapabilities::default() }
}

impl Fleet {
    /// A founded cluster with hosts h0, h1, ... that are Up, of 1024 MiB to sell each.
    pub(crate) fn new(hosts: u64) -> Self {
        Self::at(Level::NEWEST, hosts)
    }

    /// The same, at a level of its own.
    pub(crate) fn at(level: Level, hosts: u64) -> Self {
        let mut fleet = Self { state: State::new(), index: 0, now: 1_000 };
        let uid = ClusterId(Uuid::from_u64_pair(9, 9));
        fleet.ok(&Command::FoundCluster { uid, name: "c".parse().unwrap(), controllers: Vec::new(), level });
        for number in 0..hosts {
            fleet.ok(&fleet.token(&format!("t{number}")));
            fleet.ok(&join(number, &format!("t{number}"), "secret"));
            fleet.ok(&open(number, 1));
        }
        fleet
    }

    pub(crate) fn token(&self, sha256: &str) -> Command {
        let write = Write::CreateToken {
            sha256: sha256.to_owned(),
            role: Role::Host,
            expires: Timestamp(self.now + 60_000),
        };
        Command::Write { key: format!("token-{sha256}"), write }
    }

    pub(crate) fn try_apply(&mut self, command: &Command) -> Result<Outcome, Rejected> {
        self.index += 1;
        let stamp = Stamp { index: self.index, time: Timestamp(self.now) };
        let before = self.state.clone();
        let result = apply(&mut self.state, &stamp, command);
        invariant::check(&self.state).unwrap_or_else(|broken| panic!("{broken} after {command:?}"));
        if result.is_err() {
            let trace = State { time: before.time, index: before.index, ..self.state.clone() };
            assert_eq!(trace, before, "a refused command left a trace: {command:?}");
        }
        result
    }

    #[track_caller]
    pub(crate) fn ok(&mut self, command: &Command) -> Outcome {
        self.try_apply(command).unwrap_or_else(|refused| panic!("{command:?}: {refused}"))
    }

    #[track_caller]
    pub(crate) fn refused(&mut self, command: &Command) -> Rejected {
        self.try_apply(command).expect_err("it should be refused")
    }

    pub(crate) fn write(&mut self, write: Write) -> Command {
        Command::Write { key: format!("k{}", self.index), write }
    }

    #[track_caller]
    pub(crate) fn write_ok(&mut self, write: Write) -> Outcome {
        let command = self.write(write);
        self.ok(&command)
    }

    #[track_caller]
    pub(crate) fn write_refused(&mut self, write: Write) -> Rejected {
        let command = self.write(write);
        self.refused(&command)
    }

    pub(crate) fn create(&mut self, number: u64, spec: VmSpec) -> Outcome {
        let name = format!("vm{number}").parse().unwrap();
        self.write_ok(Write::CreateVm {
            uid: vm_id(number),
            own_uid: false,
            name,
            labels: Labels::new(),
            spec,
        })
    }

    pub(crate) fn bind(&mut self, number: u64, host: u64) -> Result<Outcome, Rejected> {
        let vm = self.state.vm(vm_id(number)).unwrap();
        let (generation, incarnation) = (vm.metadata.generation, vm.status.incarnation);
        self.try_apply(&Command::BindVm {
            vm: vm_id(number),
            generation,
            incarnation,
            host: host_id(host),
            why: None,
        })
    }

    pub(crate) fn observe(&mut self, number: u64, seen: Seen) -> Result<Outcome, Rejected> {
        let vm = self.state.vm(vm_id(number)).unwrap();
        let incarnation = vm.status.incarnation;
        let host = vm.status.host.unwrap_or(host_id(0));
        self.try_apply(&Command::Observe { vm: vm_id(number), host, incarnation, seen })
    }

    /// A VM that runs on a host.
    pub(crate) fn running(&mut self, number: u64, host: u64, mem_mib: u64) {
        self.create(number, VmSpec { power: Power::Running, ..VmSpec::new(mem_mib) });
        self.bind(number, host).unwrap();
        self.observe(number, Seen::Running { pid: Some(7), vnc: None }).unwrap();
    }

    pub(crate) fn migration(number: u64, vm: u64, to: Option<&str>) -> Write {
        let spec = MigrationSpec {
            vm: vm_id(vm),
            vm_name: "any".parse().unwrap(),
            to: to.map(|name| name.parse().unwrap()),
            cause: MigrationCause::User,
            limits: MigrationLimits::default(),
            grounds: None,
        };
        let name = format!("m{number}").parse().unwrap();
        Write::CreateMigration { uid: migration_id(number), name, spec }
    }
}

pub(crate) fn join(number: u64, token: &str, secret: &str) -> Command {
    Command::JoinHost {
        token_sha256: token.to_owned(),
        uid: host_id(number),
        name: format!("h{number}").parse().unwrap(),
        labels: Labels::new(),
        ask: ask(secret),
    }
}

pub(crate) fn ask(key: &str) -> Ask {
    Ask { key_sha256: key.to_owned(), authority: String::new(), expires: Timestamp::MAX }
}

pub(crate) fn open(number: u64, session: u64) -> Command {
    Command::OpenSession {
        host: host_id(number),
        session,
        agent_version: "0.1".to_owned(),
        capabilities: capabilities(),
    }
}
