//! What the CLI prints and what the fleet refuses. Simulated guests: nothing here needs a real one.

use std::process::Stdio;
use std::time::{Duration, Instant};

use dunlin_model::vm::VmPhase;
use dunlin_tests::{Fleet, FleetOptions, eventually};

/// Simulated guests start at once; the machine may be busy.
const LIMIT: Duration = Duration::from_secs(30);

/// Every kind reads as {kind, metadata, spec, status} in JSON and YAML, and the tables, refusals and exit statuses are the
/// ones on record.
#[test]
fn output_and_refusals_are_as_recorded() -> anyhow::Result<()> {
    let fleet = Fleet::start(FleetOptions { controllers: 1, hosts: 2, drivers: "test" })?;
    let mut said = String::new();
    every_kind_is_made(&fleet)?;
    for words in [
        &["vm", "list"][..],
        &["vm", "list", "-o", "json"],
        &["vm", "list", "-o", "yaml", "-l", "tier=web"],
        &["vm", "show", "sim-1"],
        &["host", "list"],
        &["image", "list", "-o", "wide"],
        &["migration", "list"],
        &["task", "list"],
        &["vm", "xml", "sim-1"],
    ] {
        said.push_str(&format!("$ dunlin {}\n{}\n", words.join(" "), normal(&fleet, &fleet.ok(words)?)));
    }
    insta::assert_snapshot!("output", said);
    for kind in ["cluster", "vm", "host", "image", "migration", "task", "event"] {
        let verb = if kind == "cluster" { "show" } else { "list" };
        let told = fleet.json(&[kind, verb])?;
        let object = if kind == "cluster" { told } else { told["items"][0].clone() };
        let keys: Vec<_> = object.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, ["kind", "metadata", "spec", "status"], "{kind}");
        for key in ["name", "uid", "generation", "revision", "created"] {
            assert!(object["metadata"].get(key).is_some(), "{kind} has no metadata.{key}");
        }
    }
    refusals(&fleet)?;
    pending_until_there_is_room(&fleet)
}

fn every_kind_is_made(fleet: &Fleet) -> anyhow::Result<()> {
    let file = fleet.scratch().join("tiny.img");
    std::fs::write(&file, vec![7; 4096])?;
    fleet.ok(&["image", "import", "tiny", &file.display().to_string(), "--label", "use=test"])?;
    // One host at a time, so that it is known which is chosen.
    fleet.ok(&["host", "cordon", "host-2"])?;
    let sim = ["--driver", "test", "--mem-mib", "256", "--sim-boot-ms", "1", "--start", "--wait"];
    fleet.ok(&[
        &[
            "vm",
            "create",
            "sim-1",
            "--label",
            "tier=web",
            "--disk",
            "empty=8",
            "--vnc",
            "auto",
            "--vnc-password",
            "hidden",
        ],
        &sim[..],
    ]
    .concat())?;
    fleet.ok(&[&["vm", "create", "sim-2", "--host", "host-1"], &sim[..]].concat())?;
    fleet.ok(&["host", "uncordon", "host-2"])?;
    fleet.ok(&["vm", "migrate", "sim-1", "--to", "host-2", "--wait"])?;
    fleet.ok(&["vm", "reset", "sim-2", "--wait"])?;
    Ok(())
}

fn refusals(fleet: &Fleet) -> anyhow::Result<()> {
    let listing_1 = include_str!("../golden/listing-1.xml");
    let xml = fleet.scratch().join("listing-1.xml");
    std::fs::write(&xml, listing_1)?;
    let xml = xml.display().to_string();
    let mut said = String::new();
    for words in [
        &["vm", "show", "sim-11"][..],
        &["vm", "create", ""],
        &["vm", "create", "w\u{e9}b"],
        &["vm", "create", "x", "--mem-mib", "-5"],
        &["vm", "create", "x", "--mem-mib", "1e3"],
        &["vm", "create", "x", "--cpus", "99999999999999999999999"],
        &["vm", "create", "x", "--cpus", "1", "--cpus", "2"],
        &["vm", "create", "x", "--driver", "qmeu"],
        &["vm", "create", "x", "--label", "a=1", "--label", "a=2"],
        &["vm", "create", "x", "--disk", "image=tiny,path=/a"],
        &["vm", "create", "x", "--disk", "path=/a.raw,shared=no"],
        &["vm", "create", "x", "--nic", "user,tap=t0"],
        &["vm", "lst"],
        &["vm", "list", "-o", "jsn"],
        &["vm", "destroy", "nobody", "sim-11"],
        &["cluster", "set"],
        &["token", "create", "--ttl-s", "0"],
        &["image", "import", "folder", "/"],
        &["--context", "nope", "vm", "list"],
        &["vm", "create", "-bad-"],
        &["vm", "create", "big", "--mem-mib", "1"],
        &["vm", "create", "big", "--cpus", "1000"],
        &["vm", "create", "ide", "--machine", "q35", "--disk", "empty=8,bus=ide"],
        &["vm", "create", "img", "--disk", "image=tinny"],
        &["vm", "create", "sim-1", "--driver", "test"],
        &["vm", "create", "listing", "--xml", &xml],
        &["vm", "migrate", "sim-1", "--to", "host-9"],
        &["vm", "restore", "sim-1"],
        &["vm", "resume", "nobody"],
        &["image", "delete", "nothing"],
        &["host", "remove", "host-1"],
        &["migration", "cancel", "none"],
        &["cluster", "set", "--cpu-overcommit-percent", "1"],
        &["cluster", "set", "--placement", "random"],
        &["cluster", "set", "--balance", "always"],
        &["cluster", "set", "--balance-level", "6"],
        &["cluster", "set", "--weight", "spred=3"],
        &["cluster", "set", "--without", "Memory"],
        &["vm", "create", "ruled", "--rule", "near,with=app=db"],
        &["vm", "create", "ruled", "--rule", "apart,with=app=db,weight=0"],
        &["explain", "vm", "sim-11"],
        &["host", "drain", "host-11", "--dry-run"],
        &["balance", "apply", "nothing"],
    ] {
        said.push_str(&refused(fleet, words)?);
    }
    insta::assert_snapshot!("refusals", said);
    let lables = refused_files(fleet, &xml)?;
    as_programs_see_it(fleet, &lables)
}

/// What a command that must fail says, and how it ends.
fn refused(fleet: &Fleet, words: &[&str]) -> anyhow::Result<String> {
    let output = fleet.run(words)?;
    assert_ne!(output.status, 0, "{words:?} was accepted: {}", output.stdout);
    let typed = words.join(" ").replace(&fleet.scratch().display().to_string(), "SCRATCH");
    let told = normal(fleet, &output.stderr);
    Ok(format!("$ dunlin {typed}\n{told}exit {}\n\n", output.status))
}

/// Files with what does not belong there. Returns the path of the one with a misspelt field.
fn refused_files(fleet: &Fleet, xml: &str) -> anyhow::Result<String> {
    let file = |name: &str, text: &str| -> anyhow::Result<String> {
        std::fs::write(fleet.scratch().join(name), text)?;
        Ok(fleet.scratch().join(name).display().to_string())
    };
    let lables = file("lables.yaml", "metadata: {name: x, lables: {tier: web}}\nspec: {mem_mib: 64}\n")?;
    let disk = "{name: vda, bsu: ide, source: {empty_mib: 1}}";
    let nested = file("nested.yaml", &format!("spec:\n  mem_mib: 64\n  disks: [{disk}]\n"))?;
    let twice = file("twice.json", "{\"spec\": {\"mem_mib\": 64, \"mem_mib\": 128}}")?;
    let text = file("text.yaml", "spec: {mem_mib: plenty}\n")?;
    let uid = fleet.vm("sim-1")?.metadata.uid;
    let taken =
        file("taken.yaml", &format!("metadata: {{name: twin, uid: {uid}}}\nspec: {{mem_mib: 64}}\n"))?;
    let nowhere = fleet.scratch().join("nowhere.yaml").display().to_string();
    let mut said = String::new();
    for words in [
        &["vm", "create", "x", "-f", &lables][..],
        &["vm", "create", "x", "-f", &nested],
        &["vm", "create", "x", "-f", &twice],
        &["vm", "create", "x", "-f", &text],
        &["vm", "create", "-f", &taken],
        &["vm", "create", "x", "-f", &nowhere],
        &["vm", "create", "x", "-f", &lables, "--xml", xml],
        &["up", "--dir", &nowhere, "--controllers", "2"],
        &["up", "--dir", &nowhere, "--port", "65535"],
    ] {
        said.push_str(&refused(fleet, words)?);
    }
    insta::assert_snapshot!("refused_files", said);
    Ok(lables)
}

/// Refusals as JSON, text through pipes, a reader that goes away, endpoints that are none or where nobody is: no panic, no
/// colour where there is no terminal, an end within the documented time.
fn as_programs_see_it(fleet: &Fleet, lables: &str) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(lables)?;
    let piped = fleet.run_with_input(&["vm", "create", "-f", "-", "-o", "json"], &text)?;
    let told: serde_json::Value = serde_json::from_str(&piped.stderr)?;
    assert_eq!((piped.status, &told["error"]["code"]), (2, &serde_json::json!("invalid_argument")));
    assert!(told["error"]["message"].as_str().is_some_and(|m| m.contains("standard input: metadata.lables")));

    // A VM that comes from elsewhere keeps its uid, by XML and by YAML, also after it was deleted.
    let yaml = fleet.ok(&["vm", "show", "sim-2", "-o", "yaml"])?;
    let xml = fleet.ok(&["vm", "xml", "sim-2"])?;
    let uid = fleet.vm("sim-2")?.metadata.uid;
    for (flag, text) in [("-f", yaml), ("--xml", xml)] {
        fleet.ok(&["vm", "delete", "sim-2", "--wait"])?;
        fleet.run_with_input(&["vm", "create", flag, "-", "--start", "--wait"], &text)?.ok()?;
        assert_eq!(fleet.vm("sim-2")?.metadata.uid, uid, "{flag}");
    }

    for words in
        [&["vm", "list"][..], &["vm", "list", "-o", "json"], &["event", "list"], &["completions", "bash"]]
    {
        let mut child = fleet.command(words)?.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        drop(child.stdout.take());
        let output = child.wait_with_output()?;
        assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0), "{words:?} to a closed pipe");
    }
    let coloured = fleet.command(&["vm", "lst"])?.env("NO_COLOR", "1").output()?;
    assert!(!coloured.stderr.contains(&0x1b) && !fleet.run(&["vm", "lst"])?.stderr.contains('\u{1b}'));

    for endpoint in ["nowhere", "https://127.0.0.1", "http://127.0.0.1:7400", "https://127.0.0.1:70000", ""] {
        let refused = fleet.run(&["-e", endpoint, "vm", "list"])?;
        assert_eq!(refused.status, 2, "{endpoint}: {}", refused.stderr);
        assert!(refused.stderr.contains("endpoint: ") && refused.stderr.contains("https://host:port"));
    }
    let (begun, dead) = (Instant::now(), fleet.run(&["-e", "https://127.0.0.1:9", "vm", "list"])?);
    assert_eq!(dead.status, 10, "{}", dead.stderr);
    assert!(dead.stderr.contains("no answer from https://127.0.0.1:9: ") && dead.stderr.contains("refused"));
    assert!(begun.elapsed() < LIMIT, "it took {:?}", begun.elapsed());
    Ok(())
}

/// A VM that fits nowhere waits with the reason per group of hosts, and starts by itself when room appears.
fn pending_until_there_is_room(fleet: &Fleet) -> anyhow::Result<()> {
    fleet.ok(&["vm", "create", "huge", "--driver", "test", "--mem-mib", "65100", "--start"])?;
    fleet.ok(&["vm", "create", "huge-2", "--driver", "test", "--mem-mib", "65100", "--start"])?;
    let waiting = eventually("a VM waits", LIMIT, || {
        let all = ["huge", "huge-2"].map(|name| fleet.vm(name));
        let [first, second] = all.map(|vm| vm.map_err(|e| e.to_string()));
        let pending = [first?, second?]
            .into_iter()
            .find(|vm| vm.status.phase == VmPhase::Pending && !vm.status.message.is_empty());
        pending.ok_or_else(|| "none is Pending with a reason".to_owned())
    })?;
    assert!(waiting.status.message.contains("memory"), "{}", waiting.status.message);
    fleet.ok(&["vm", "delete", "sim-1", "--wait"])?;
    fleet.ok(&["vm", "delete", "sim-2", "--wait"])?;
    fleet.wait_phase("huge", VmPhase::Running, LIMIT)?;
    fleet.wait_phase("huge-2", VmPhase::Running, LIMIT)?;
    Ok(())
}

/// The text without what changes from run to run: uids, times, revisions, this machine.
pub(crate) fn normal(fleet: &Fleet, text: &str) -> String {
    let text = text.replace(&fleet.scratch().display().to_string(), "SCRATCH");
    let lines = text.lines().filter(|line| !machine_line(line)).map(|line| {
        let words = line.split_inclusive([' ', '"', '\'', ',', '/', '=', '<', '>', ':', '\t']);
        narrow(&words.map(normal_word).collect::<String>())
    });
    let text: Vec<String> = lines.collect();
    text.join("\n") + "\n"
}

/// Lines that tell of the machine the test runs on.
fn machine_line(line: &str) -> bool {
    let line = line.trim_start().trim_start_matches('"');
    let starts = [
        "kernel",
        "cpu_model\":",
        "hostname",
        "disk_free_mib",
        "address",
        "revision",
        "created",
        "since",
        "arch",
        // What a host scores depends on what has been measured by then.
        "score\":",
        "score:",
        "points\":",
        "points:",
    ];
    starts.iter().any(|start| line.starts_with(start))
        || line.contains("https://10.")
        || line.contains("https://127.")
        || (line.len() < 24 && line.contains("T") && line.ends_with("Z\""))
}

/// One line with its indentation, but columns two spaces apart and no measured number of milliseconds.
fn narrow(line: &str) -> String {
    let indent = line.len() - line.trim_start().len();
    let mut words: Vec<&str> = line.split_whitespace().collect();
    for at in 1..words.len() {
        if words[at] == "ms" && words[at - 1].parse::<u64>().is_ok() {
            words[at - 1] = "N";
        }
    }
    format!("{}{}", " ".repeat(indent), words.join(" "))
}

fn normal_word(word: &str) -> String {
    let body = word.trim_end_matches([' ', '"', '\'', ',', '/', '=', '<', '>', ':', '\t']);
    let tail = &word[body.len()..];
    let hex = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_hexdigit());
    let uuid = body.len() == 36 && body.split('-').all(hex);
    let migration = body.rsplit_once('-').is_some_and(|(_, end)| end.len() == 8 && hex(end));
    let age = body
        .strip_suffix('s')
        .is_some_and(|count| !count.is_empty() && count.chars().all(|c| c.is_ascii_digit()));
    let name = match (uuid, migration, age, body.len() == 64 && hex(body)) {
        (true, ..) => "UID",
        (_, true, ..) => "NAME-XXXXXXXX",
        (_, _, true, _) => "AGE",
        (.., true) => "SHA256",
        _ => body,
    };
    format!("{name}{tail}")
}
