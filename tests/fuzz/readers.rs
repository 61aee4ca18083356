//! The readers, with their seeds, and what each promises of what it has taken.

use dunlin_model::fields::Projection;
use dunlin_model::object::Kind;
use dunlin_model::selector::LabelSelector;
use dunlin_model::vm::VmSpec;
use dunlin_scheduler::ganeti::score::{Loads, Measured, Score, read_loads};
use dunlin_scheduler::ganeti::text::TextFleet;
use dunlin_scheduler::replay::trace::LoadTrace;
use dunlin_scheduler::simulate::{Options, azure, check, fleet, huawei, replay};
use dunlin_scheduler::{Placer, Policy, Request, Snapshot};

use crate::Target;

const FLEET_SEED: &[u8] = include_bytes!("seeds/fleet.txt");
const GANETI_SEED: &[u8] = include_bytes!("../../scheduler/src/ganeti/golden.data");
const LOADS_SEED: &[u8] = include_bytes!("../../scheduler/src/ganeti/golden.loads");

/// The fleet that traces are replayed over.
fn small() -> Snapshot {
    let text = "host h1 cpus=8 mem=16G node=4:8G node=4:8G rack=r1\nhost h2 cpus=8 mem=16G rack=r2";
    fleet::read("small", text.as_bytes(), Policy::pack()).expect("the fleet is right")
}

/// Text fleets: every VM of it can be placed anew, by every filter and score.
pub(crate) const FLEET: Target = Target {
    name: "fleet",
    seeds: &[FLEET_SEED],
    words: &[
        "host ",
        "vm ",
        "cpus=",
        "mem=",
        "node=",
        "rule=apart:",
        "~50",
        "on=h1",
        "numa=split:",
        "has=",
        "\u{fe0f}",
    ],
    run: |bytes| {
        for policy in [Policy::spread(), Policy::pack_slots()] {
            let Ok(snapshot) = fleet::read("fleet", bytes, policy) else { return false };
            let vms: Vec<_> = snapshot.vms().map(|(vm, _)| vm).collect();
            let mut placer = Placer::new();
            for vm in vms {
                let found = placer.place(&snapshot, &Request::to_move(&snapshot, vm));
                let all = dunlin_scheduler::place(&snapshot, &Request::to_move(&snapshot, vm));
                assert_eq!(found.map(|pick| pick.seat), all.seat());
            }
            drop(check::violations(&snapshot));
        }
        true
    },
};

/// What one VM asks for, on a command line.
pub(crate) const DEMAND: Target = Target {
    name: "demand",
    seeds: &[
        b"cpus=4 mem=8G label=app=db rule=apart:app=db@host rule=together:app=web@rack~20",
        b"cpus=2.5 mem=512M numa=split:2 needs=label:disk=ssd tolerates=gpu=yes prefers=disk=ssd:50 has=disk/fast:100",
    ],
    words: &["rule=domain:", "@zone", "numa=one", "needs=driver:", ":", "=", "~"],
    run: |bytes| {
        let Ok(demand) = fleet::read_demand("asked", &String::from_utf8_lossy(bytes)) else { return false };
        let mut snapshot = small();
        let (profile, ties) = snapshot.intern(&demand);
        dunlin_scheduler::place(&snapshot, &Request::imagined(profile, ties)).fitting <= 2
    },
};

/// Arrivals: what is taken can be replayed, and breaks no rule.
pub(crate) const ARRIVALS: Target = Target {
    name: "arrivals",
    seeds: &[include_bytes!("seeds/arrivals.csv")],
    words: &[
        ",",
        "\r\n",
        "vm,arrival_s,tenant_batch,vcpus,mem_gib,life_lo_s,life_hi_s,censored\n",
        "\"",
        "\t",
    ],
    run: |bytes| {
        let Ok(trace) = azure::read("trace", bytes, 7) else { return false };
        let options = Options { moves_per_day_permille: 500, ..Options::default() };
        let (report, _) = replay(small(), &trace, &options);
        assert_eq!(report.violations, 0);
        true
    },
};

/// Request sequences with rules.
pub(crate) const REQUESTS: Target = Target {
    name: "requests",
    seeds: &[include_bytes!("seeds/requests.csv")],
    words: &[",", "fault_domain", "affinity", "anti-affinity", "0.0", "\n"],
    run: |bytes| {
        let Ok(trace) = huawei::read_requests("requests", bytes) else { return false };
        let (report, _) = replay(small(), &trace, &Options::default());
        assert_eq!(report.violations, 0);
        true
    },
};

/// Hosts of those sequences.
pub(crate) const HOST_SIZES: Target = Target {
    name: "host-sizes",
    seeds: &[b"CPU1,RAM1,CPU2,RAM2\n32,64,32,64\n16,128,16,128\n"],
    words: &[",", "CPU1", "\n"],
    run: |bytes| {
        let racks = b"host_id,rack_id\nhost-0,0\nhost-1,1\nhost-2,1\n";
        let _ = huawei::read_hosts(("racks", racks), ("sizes", bytes));
        let Ok(hosts) = huawei::read_hosts(("sizes", bytes), ("racks", racks)) else { return false };
        let mut snapshot = Snapshot::empty(Policy::pack());
        for host in &hosts {
            snapshot.add_host(host);
        }
        snapshot.host_count() == hosts.len()
    },
};

/// Load traces.
pub(crate) const LOADS: Target = Target {
    name: "loads",
    seeds: &[include_bytes!("seeds/loads.csv")],
    words: &[
        ",",
        "vm,timestamp,duration_ms,cpu_count,cpu_mhz\n",
        "2013-08-12 00:05:00+00:00",
        "a,",
        "9999-12-31 23:59:59+00:00",
    ],
    run: |bytes| {
        let text = String::from_utf8_lossy(bytes);
        let vms =
            "vm,cpu_count,cpu_mhz_total,mem_mb_or_unit_as_in_source\na,2,5200,4194304\nb,4,10400,8388608\n";
        let _ = LoadTrace::read(("vms", &text), ("cpu", "vm,timestamp,duration_ms,cpu_mhz\n"));
        let Ok(trace) = LoadTrace::read(("vms", vms), ("cpu", &text)) else { return false };
        trace.draw(3, 1).len() <= 3
    },
};

/// Ganeti's text format: what was taken is written and read as the same, and has a score.
pub(crate) const GANETI: Target = Target {
    name: "ganeti",
    seeds: &[GANETI_SEED],
    words: &["|", "||", "\n\n", "running", "N", "htools:iextags:", "drbd", ";", "1,2,3,4,5,6"],
    run: |bytes| {
        let Ok(fleet) = TextFleet::read("fleet", &String::from_utf8_lossy(bytes)) else { return false };
        assert_eq!(TextFleet::read("again", &fleet.write()).expect("what was written is right"), fleet);
        for group in 0..fleet.groups.len() {
            let score = Score::new(&fleet, group, Measured::Loads(&Loads::new())).value();
            assert!(!score.is_nan(), "the score of group {group} is no number");
        }
        true
    },
};

/// Ganeti's load file.
pub(crate) const GANETI_LOADS: Target = Target {
    name: "ganeti-loads",
    seeds: &[LOADS_SEED],
    words: &[" ", "  ", "\n", "web-1"],
    run: |bytes| read_loads("loads", &String::from_utf8_lossy(bytes)).is_ok(),
};

/// Label selectors.
pub(crate) const SELECTOR: Target = Target {
    name: "selector",
    seeds: &[b"app=db,tier!=web", b"app in (db,web),!old,zone notin (a)"],
    words: &["=", "!=", " in (", ")", ",", "!"],
    run: |bytes| LabelSelector::parse(&String::from_utf8_lossy(bytes)).is_ok(),
};

/// Lists of fields.
pub(crate) const FIELDS: Target = Target {
    name: "fields",
    seeds: &[b"metadata.name,status.phase", b"metadata.labels,spec.cpus"],
    words: &[".", ",", "metadata", "*"],
    run: |bytes| Projection::parse(Kind::Vm, &String::from_utf8_lossy(bytes)).is_ok(),
};

/// Policies as data: what passes validation decides without breaking.
pub(crate) const POLICY: Target = Target {
    name: "policy",
    seeds: &[
        br#"{"name":"mine","weights":{"pack":100,"slots":7,"whole-nodes":3},"without":["Numa"],"failover_hosts":1}"#,
        br#"{"cpu_overcommit_percent":400,"mem_overcommit_percent":120,"host_reserve_mib":2048}"#,
    ],
    words: &["{", "}", "\"spread\":", "\"load\":", "null", "[", "\"Tainted\"", ","],
    run: |bytes| {
        let Ok(policy) = serde_json::from_slice::<Policy>(bytes) else { return false };
        if policy.validate().is_err() {
            return false;
        }
        let Ok(snapshot) = fleet::read("fleet", FLEET_SEED, policy) else { return false };
        for (vm, _) in snapshot.vms() {
            let decided = dunlin_scheduler::place(&snapshot, &Request::to_move(&snapshot, vm));
            assert_eq!(decided.winner.is_some(), decided.fitting > 0);
        }
        true
    },
};

/// The spec of a VM, as a document or a call brings it.
pub(crate) const VM_SPEC: Target = Target {
    name: "vm-spec",
    seeds: &[br#"{"cpus":2,"mem_mib":2048,"placement":{"host":"h1"}}"#],
    words: &["{", "}", "\"cpus\":", "null", "[", "]", ",", "\"\\u0000\""],
    run: |bytes| serde_json::from_slice::<VmSpec>(bytes).is_ok(),
};
