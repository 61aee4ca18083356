//! What is wrong with a cluster, and what to do about it: judged from what each controller tells of itself. Pure; whoever was
//! asked gathers the facts (`api/inspect.rs`), with or without a quorum.

use std::collections::{BTreeMap, BTreeSet};

use dunlin_model::host::{HostPhase, HostStatus};
use dunlin_model::{ControllerId, HostId, Identity, Level, Timestamp};
use dunlin_state::State;

use crate::room::IMAGE_RESERVE_BYTES;

/// Clocks further apart than this make certificates hold too early or too late, ms: what `pki` allows.
const CLOCK_BROKEN_MS: u64 = 600_000;
/// Clocks further apart than this make logs hard to lay side by side, ms. With NTP it is a few.
const CLOCK_ODD_MS: u64 = 1_000;
/// A sync slower than this delays each write so that people notice, us: ten times a good disk's.
const SYNC_SLOW_US: u64 = 50_000;
/// A sync slower than this looks like a leader that hangs, us: the shortest election timeout.
const SYNC_BROKEN_US: u64 = 300_000;
/// Free space below which it is time to do something: a thousand times what is kept back for the core, bytes.
const SPACE_LOW_BYTES: u64 = 16 * IMAGE_RESERVE_BYTES;
/// Free space below which a host's guests soon want for it, MiB: a guest writes so much within minutes.
const HOST_SPACE_LOW_MIB: u64 = 1024;
/// A certificate with less than this left is not being renewed, ms: that is tried from half of its life on, a week before.
const CERTIFICATE_LATE_MS: u64 = 3 * 24 * 3600 * 1000;
/// Entries a controller may be behind while the fleet is written to: a second's worth.
const BEHIND: u64 = 1_000;
/// An agent answers a ping every two seconds, ms.
const SILENT_MS: u64 = 6_000;

/// How bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Grade {
    Error,
    Warning,
    Fine,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    pub(crate) grade: Grade,
    pub(crate) check: &'static str,
    pub(crate) about: String,
    pub(crate) found: String,
    pub(crate) advice: String,
}

/// A controller, and what it told of itself if it did.
#[derive(Clone, Debug)]
pub(crate) struct Patient {
    pub(crate) id: ControllerId,
    pub(crate) votes: bool,
    pub(crate) told: Option<Told>,
}

/// What a controller tells.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    pub(crate) version: String,
    pub(crate) level: Level,
    pub(crate) leads: bool,
    pub(crate) leader: Option<ControllerId>,
    pub(crate) applied: u64,
    /// How far its clock is ahead of the asking one's, at least, ms: what the way there and back may explain is taken off.
    pub(crate) ahead_ms: i64,
    /// 99 of 100 of its newest syncs took at most this, us; none were made yet.
    pub(crate) sync_p99_us: Option<u64>,
    pub(crate) free_bytes: u64,
    pub(crate) certificate: Option<Timestamp>,
    /// The agents' sessions, from the leader.
    pub(crate) hosts: Vec<HostTold>,
}

/// What the leader tells of an agent.
#[derive(Clone, Debug)]
pub(crate) struct HostTold {
    pub(crate) host: HostId,
    pub(crate) level: Level,
    /// As in [`Told`], against the leader's.
    pub(crate) ahead_ms: Option<i64>,
    pub(crate) silent_ms: u64,
}

/// Everything that is found, the worst first; a check that found nothing says so.
pub(crate) fn judge(state: &State, patients: &[Patient], now: Timestamp) -> Vec<Finding> {
    let mut found = Vec::new();
    quorum(patients, &mut found);
    for patient in patients {
        if let Some(told) = &patient.told {
            controller(&format!("controller {}", patient.id), told, now, &mut found);
        }
    }
    releases(state, patients, &mut found);
    hosts(state, patients, now, &mut found);
    let checks = [
        ("quorum", "every controller answers, and one leads"),
        ("clock", "clocks agree"),
        ("disk", "the log's disks are quick"),
        ("space", "there is room on the disks"),
        ("certificate", "certificates hold for days, and are being renewed"),
        ("version", "controllers and agents are of one release, and the level is its highest"),
        ("host", "every host's agent holds a session and answers"),
        ("driver", "every driver of every host has something that works"),
    ];
    for (check, fine) in checks {
        if !found.iter().any(|finding: &Finding| finding.check == check) {
            found.push(Finding {
                grade: Grade::Fine,
                check,
                about: "cluster".to_owned(),
                found: fine.to_owned(),
                advice: String::new(),
            });
        }
    }
    found.sort();
    found
}

fn say(found: &mut Vec<Finding>, grade: Grade, check: &'static str, about: &str, what: String, advice: &str) {
    let (about, advice) = (about.to_owned(), advice.to_owned());
    found.push(Finding { grade, check, about, found: what, advice });
}

fn quorum(patients: &[Patient], found: &mut Vec<Finding>) {
    let voters: Vec<_> = patients.iter().filter(|one| one.votes).collect();
    let alive = voters.iter().filter(|one| one.told.is_some()).count();
    let need = voters.len() / 2 + 1;
    if alive < need {
        let what = format!(
            "{alive} of {} controllers that vote answer, {need} must: nothing can be changed",
            voters.len()
        );
        let advice = "start the others; when they are lost for good, `dunlin backup --stale` and restore (docs/operating.md)";
        say(found, Grade::Error, "quorum", "cluster", what, advice);
    } else if alive < voters.len() {
        let what = format!(
            "{alive} of {} controllers that vote answer; {} more may fail",
            voters.len(),
            alive - need
        );
        let advice = "start it, or put another in its place: `dunlin controller replace`";
        say(found, Grade::Warning, "quorum", "cluster", what, advice);
    }
    for silent in patients.iter().filter(|one| one.told.is_none()) {
        let advice = "is it running, and can its address be reached from here? Its log says why it ended";
        let about = format!("controller {}", silent.id);
        say(found, Grade::Warning, "quorum", &about, "does not answer".to_owned(), advice);
    }
    let told = || patients.iter().filter_map(|one| Some((one.id, one.told.as_ref()?)));
    let leading = told().filter(|(_, told)| told.leads).count();
    if alive >= need && leading != 1 {
        let what = format!("{leading} controllers lead");
        let advice = "an election takes about a second: ask again; if it stays so, look at the controllers' logs and clocks";
        say(found, Grade::Error, "quorum", "cluster", what, advice);
    }
    let furthest = told().map(|(_, told)| told.applied).max().unwrap_or(0);
    for (id, told) in told().filter(|(_, told)| told.applied + BEHIND < furthest) {
        let what = format!("is {} log entries behind", furthest - told.applied);
        let advice = "it catches up by itself; if not, its disk or its network is slow";
        say(found, Grade::Warning, "quorum", &format!("controller {id}"), what, advice);
    }
    let leaders: BTreeSet<_> = told().filter_map(|(_, told)| told.leader).collect();
    if leaders.len() > 1 {
        let what = format!("controllers name different leaders: {leaders:?}");
        say(found, Grade::Warning, "quorum", "cluster", what, "ask again in a moment");
    }
}

fn controller(about: &str, told: &Told, now: Timestamp, found: &mut Vec<Finding>) {
    clock(about, told.ahead_ms, found);
    if let Some(us) = told.sync_p99_us.filter(|us| *us > SYNC_SLOW_US) {
        let grade = if us > SYNC_BROKEN_US { Grade::Error } else { Grade::Warning };
        let what = format!("1 of 100 syncs of its log takes {} ms or more", us / 1_000);
        let advice = "every write waits for it: give the data directory a disk of its own with a cache that survives power loss";
        say(found, grade, "disk", about, what, advice);
    }
    if told.free_bytes < SPACE_LOW_BYTES {
        let grade = if told.free_bytes < IMAGE_RESERVE_BYTES { Grade::Error } else { Grade::Warning };
        let what = format!("{} MiB are free under its data directory", told.free_bytes >> 20);
        let advice = "make room there, or delete images: writes are refused below 32 MiB";
        say(found, grade, "space", about, what, advice);
    }
    if let Some(expires) = told.certificate {
        let advice = "it renews itself at half of its life: is there a leader, and is its clock right?";
        certificate(about, expires, now, advice, found);
    }
}

fn clock(about: &str, ahead_ms: i64, found: &mut Vec<Finding>) {
    let apart = ahead_ms.unsigned_abs();
    if apart > CLOCK_ODD_MS {
        let grade = if apart > CLOCK_BROKEN_MS { Grade::Error } else { Grade::Warning };
        let way = if ahead_ms > 0 { "ahead" } else { "behind" };
        let what = format!("its clock is {}.{:03} s {way}", apart / 1_000, apart % 1_000);
        let advice = "run an NTP client there (chrony, systemd-timesyncd); certificates bear ten minutes";
        say(found, grade, "clock", about, what, advice);
    }
}

fn certificate(about: &str, expires: Timestamp, now: Timestamp, advice: &str, found: &mut Vec<Finding>) {
    let left_ms = expires.0.saturating_sub(now.0);
    if left_ms == 0 {
        say(found, Grade::Error, "certificate", about, "its certificate has ended".to_owned(), advice);
    } else if left_ms < CERTIFICATE_LATE_MS {
        let what = format!("its certificate ends in {} hours and was not renewed", left_ms / 3_600_000);
        say(found, Grade::Warning, "certificate", about, what, advice);
    }
}

fn releases(state: &State, patients: &[Patient], found: &mut Vec<Finding>) {
    let told: Vec<_> = patients.iter().filter_map(|one| one.told.as_ref()).collect();
    let versions: BTreeSet<_> = told.iter().map(|told| told.version.as_str()).collect();
    if versions.len() > 1 {
        let all: Vec<_> = versions.iter().copied().collect();
        let what = format!("controllers are of releases {}", all.join(" and "));
        say(found, Grade::Warning, "version", "cluster", what, "upgrade the others too (docs/operating.md)");
    }
    let hosts = told.iter().flat_map(|told| &told.hosts).map(|host| host.level);
    let read = told.iter().map(|told| told.level).chain(hosts).min();
    let level = state.level();
    if let Some(read) = read.filter(|read| *read > level) {
        let what = format!("everything is written at level {level}, and all that answer read level {read}");
        let advice = "once no old release is to come back: `dunlin cluster upgrade`";
        say(found, Grade::Warning, "version", "cluster", what, advice);
    }
}

fn hosts(state: &State, patients: &[Patient], now: Timestamp, found: &mut Vec<Finding>) {
    let leader = patients.iter().filter_map(|one| one.told.as_ref()).find(|told| told.leads);
    let seen: BTreeMap<_, _> =
        leader.iter().flat_map(|told| &told.hosts).map(|told| (told.host, told)).collect();
    let newest: BTreeMap<_, _> = state
        .trust()
        .holders()
        .filter_map(|(who, holder)| Some((who, holder.issued.iter().map(|issued| issued.expires).max()?)))
        .collect();
    for host in state.hosts() {
        let uid = host.metadata.uid;
        let about = format!("host {}", host.metadata.name);
        if host.status.phase != HostPhase::Up {
            let minutes = now.0.saturating_sub(host.status.since.0) / 60_000;
            let what = format!("is {:?} since {minutes} minutes: {}", host.status.phase, host.status.message);
            let advice = "is the machine on, its agent running, and can it reach a controller? `dunlin host remove` if it is gone for good";
            say(found, Grade::Error, "host", &about, what, advice);
            continue;
        }
        if leader.is_some() {
            session(&about, seen.get(&uid).copied(), found);
        }
        if let Some(expires) = newest.get(&Identity::Host(uid)) {
            let advice = "its agent renews it over its session: look at its log; a new token lets it back in";
            certificate(&about, *expires, now, advice, found);
        }
        equipment(&about, &host.status, found);
    }
}

/// What the leader hears of an agent.
fn session(about: &str, seen: Option<&HostTold>, found: &mut Vec<Finding>) {
    let mut warn = |what, advice| say(found, Grade::Warning, "host", about, what, advice);
    match seen {
        None => warn(
            "its agent has not come to the leader yet".to_owned(),
            "ask again in some seconds; then look at its log",
        ),
        Some(seen) if seen.silent_ms > SILENT_MS => warn(
            format!("its agent was last heard {} s ago", seen.silent_ms / 1_000),
            "look at the agent's log and at the network",
        ),
        Some(_) => {}
    }
    if let Some(ahead_ms) = seen.and_then(|seen| seen.ahead_ms) {
        clock(about, ahead_ms, found);
    }
}

/// What a host says of itself.
fn equipment(about: &str, status: &HostStatus, found: &mut Vec<Finding>) {
    let mut warn = |check, what, advice| say(found, Grade::Warning, check, about, what, advice);
    if status.agent_version != env!("CARGO_PKG_VERSION") {
        let what = format!("its agent is of release {}", status.agent_version);
        warn("version", what, "upgrade it: guests go on meanwhile (docs/operating.md)");
    }
    let free_mib = status.capabilities.disk_free_mib;
    if free_mib < HOST_SPACE_LOW_MIB {
        let what = format!("{free_mib} MiB are free for volumes and images");
        let advice = "guests whose disks grow stop there: make room, or drain it (`dunlin host drain`)";
        warn("space", what, advice);
    }
    for driver in &status.capabilities.drivers {
        if !driver.away.is_empty() {
            let what = format!("its driver {} is away: {}", driver.name, driver.away);
            let advice = "its guests go on unseen: start its daemon there, and the agent finds it again";
            warn("driver", what, advice);
        } else if !driver.accels.iter().any(|accel| accel.usable) {
            let why: Vec<_> = driver.accels.iter().map(|accel| accel.evidence.as_str()).collect();
            let what = format!("its driver {} can run nothing: {}", driver.name, why.join("; "));
            let advice =
                "install what is missing there, or leave the driver out of --driver; then restart the agent";
            warn("driver", what, advice);
        }
    }
}

#[cfg(test)]
mod tests {
    use dunlin_model::capabilities::{Accel, AccelProbe, DriverCapabilities, HostCapabilities};

    use super::*;

    fn well(id: u64) -> Patient {
        let told = Told {
            version: "1".into(),
            level: Level::OLDEST,
            leads: id == 1,
            leader: Some(ControllerId(1)),
            free_bytes: 1 << 40,
            sync_p99_us: Some(2_000),
            certificate: Some(Timestamp(8 * 24 * 3_600_000)),
            ..Told::default()
        };
        Patient { id: ControllerId(id), votes: true, told: Some(told) }
    }

    fn found(patients: &[Patient], check: &str) -> (Grade, String, String) {
        let all = judge(&State::default(), patients, Timestamp(0));
        let worst = all.iter().find(|finding| finding.check == check).expect("every check is told of");
        assert!(worst.grade == Grade::Fine || !worst.advice.is_empty(), "{worst:?}");
        (worst.grade, worst.about.clone(), worst.found.clone())
    }

    /// A cluster that is well has nothing but fine findings; each thing that is wrong is found by its check, as bad as it is,
    /// at the controller that has it, with something to do about it.
    #[test]
    fn each_trouble_is_found() {
        let well: Vec<_> = (1..=3).map(well).collect();
        assert!(
            judge(&State::default(), &well, Timestamp(0)).iter().all(|finding| finding.grade == Grade::Fine)
        );
        let check = |change: &dyn Fn(&mut Told), name: &str, grade: Grade| {
            let mut sick = well.clone();
            change(sick[1].told.as_mut().expect("it answers"));
            let (is, about, what) = found(&sick, name);
            assert_eq!(is, grade, "{name} of {about}: {what}");
            assert!(about == "controller 2" || about == "cluster", "{about}");
        };
        check(&|told| told.ahead_ms = -1_500, "clock", Grade::Warning);
        check(&|told| told.ahead_ms = 900_000, "clock", Grade::Error);
        check(&|told| told.sync_p99_us = Some(80_000), "disk", Grade::Warning);
        check(&|told| told.sync_p99_us = Some(800_000), "disk", Grade::Error);
        check(&|told| told.free_bytes = 500 << 20, "space", Grade::Warning);
        check(&|told| told.free_bytes = 1 << 20, "space", Grade::Error);
        check(&|told| told.certificate = Some(Timestamp(3_600_000)), "certificate", Grade::Warning);
        check(&|told| told.certificate = Some(Timestamp(0)), "certificate", Grade::Error);
        check(&|told| told.version = "2".into(), "version", Grade::Warning);
        check(&|told| told.leads = true, "quorum", Grade::Error);
        let mut ahead = well.clone();
        ahead[0].told.as_mut().expect("it answers").applied = 5_000;
        assert_eq!(found(&ahead, "quorum").1, "controller 2", "the others are behind");
        let mut raised = well.clone();
        raised.iter_mut().filter_map(|one| one.told.as_mut()).for_each(|told| told.level = Level(2));
        assert_eq!(found(&raised, "version").0, Grade::Warning);
        let mut one_lost = well.clone();
        one_lost[2].told = None;
        assert_eq!(found(&one_lost, "quorum").0, Grade::Warning);
        one_lost[1].told = None;
        let (grade, _, what) = found(&one_lost, "quorum");
        assert!(grade == Grade::Error && what.starts_with("1 of 3 controllers"), "{what}");
    }
    /// What an agent shows of itself and of its host is judged too, and one of which nothing is wrong is not named.
    #[test]
    fn each_trouble_of_a_host_is_found() {
        let accel = AccelProbe { accel: Accel::Tcg, usable: true, evidence: "no /dev/kvm".into() };
        let driver = DriverCapabilities { accels: vec![accel], ..DriverCapabilities::default() };
        let capabilities =
            HostCapabilities { disk_free_mib: 50_000, drivers: vec![driver], ..HostCapabilities::default() };
        let agent_version = env!("CARGO_PKG_VERSION").to_owned();
        let well = HostStatus { capabilities, agent_version, ..HostStatus::default() };
        let told = HostTold {
            host: HostId(uuid::Uuid::nil()),
            level: Level::NEWEST,
            ahead_ms: Some(3),
            silent_ms: 1_900,
        };
        let check = |change: &dyn Fn(&mut HostStatus, &mut HostTold), finds: Option<(&str, &str)>| {
            let (mut status, mut told, mut found) = (well.clone(), told.clone(), Vec::new());
            change(&mut status, &mut told);
            session("host h1", Some(&told), &mut found);
            equipment("host h1", &status, &mut found);
            match finds {
                None => assert_eq!(found, []),
                Some((check, words)) => {
                    assert_eq!(found.len(), 1, "{found:?}");
                    assert!(found[0].check == check && found[0].found.contains(words), "{found:?}");
                    assert!(found[0].grade == Grade::Warning && !found[0].advice.is_empty(), "{found:?}");
                }
            }
        };
        check(&|_, _| {}, None);
        check(&|_, told| told.silent_ms = 7_000, Some(("host", "7 s ago")));
        check(&|_, told| told.ahead_ms = Some(-2_500), Some(("clock", "2.500 s behind")));
        check(&|status, _| status.agent_version = "0".into(), Some(("version", "release 0")));
        check(&|status, _| status.capabilities.disk_free_mib = 900, Some(("space", "900 MiB")));
        let driver = |status: &mut HostStatus, away: &str, usable| {
            status.capabilities.drivers[0].away = away.into();
            status.capabilities.drivers[0].accels[0].usable = usable;
        };
        check(&|status, _| driver(status, "it hangs", true), Some(("driver", "is away: it hangs")));
        check(&|status, _| driver(status, "", false), Some(("driver", "can run nothing: no /dev/kvm")));
        let mut found = Vec::new();
        session("host h1", None, &mut found);
        assert_eq!(found.len(), 1, "it has not come to this leader");
    }
}
