//! One command's id, found again wherever the command led; and what daemons tell of themselves over HTTP.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, ensure};
use dunlin_tests::eventually;
use serde_json::Value;

use crate::site::{LIMIT, Site, free_addresses};

/// The status and body of a plain GET.
fn ask(address: &str, path: &str) -> anyhow::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: here\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("a head")?;
    Ok((head.split(' ').nth(1).context("a status")?.parse()?, body.to_owned()))
}

/// Does a line of a JSON log have this field, in itself or in one of its spans?
fn has(line: &Value, field: &str, value: &str) -> bool {
    let spans = line["spans"].as_array().into_iter().flatten();
    spans.chain([&line["fields"]]).any(|part| part[field] == value)
}

/// The id of a start is in the audit log, in the controller's log, and in the agent's beside the verb of the driver that
/// started the guest, and so is that of a task; a program's own id comes back in the answer. The agent serves its metrics on the
/// loopback, verbs by driver among them, and is ready while it holds a session.
#[test]
fn one_id_from_the_command_to_the_driver() -> anyhow::Result<()> {
    let site = Site::new()?;
    let controller = site.controller_with(&site.path("c"), &["--log-format", "json"])?;
    site.wait_answering()?;
    let token = site.ok(&["token", "create"])?;
    let [metrics] = free_addresses()?;
    let (data, endpoint) = (site.path("h").display().to_string(), format!("https://{}", site.api));
    let words = ["agent", "--data-dir", &data, "--controller", &endpoint, "--name", "h1", "--driver", "test"];
    let more = ["--log-format", "json", "--metrics-listen", &metrics];
    let agent = site.start("h1", &[&words[..], &more].concat(), &[("DUNLIN_TOKEN", token.trim())])?;
    site.wait_host("h1", "Up")?;
    ensure!(ask(&metrics, "/healthz")?.0 == 200 && ask(&metrics, "/readyz")?.0 == 200, "it is up");
    ensure!(ask(&metrics, "/else")?.0 == 404, "nothing else is there");

    site.ok(&["vm", "create", "web", "--driver", "test", "--start"])?;
    site.wait_vm("web", "Running")?;
    site.ok(&["vm", "reboot", "web"])?;
    let audit = site.ok(&["audit", "list", "-o", "json"])?;
    let lines = audit.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    let id = |verb: &str, kind: &str| -> anyhow::Result<String> {
        let line = lines.iter().find(|line| line["verb"] == verb && line["kind"] == kind);
        let line = line.with_context(|| format!("{verb} {kind} in {audit}"))?;
        Ok(line["correlation"].as_str().context("its id")?.to_owned())
    };
    let (create, reboot) = (id("create", "Vm")?, id("operate", "Vm")?);
    ensure!(create != reboot, "each command has its own");
    for (id, verb) in [(&create, "start"), (&reboot, "reboot_on_shutdown")] {
        eventually(&format!("{verb} under {id}"), LIMIT, || {
            let said = agent.said();
            let found = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let mut found = found.filter(|line| has(line, "correlation", id) && has(line, "driver", "test"));
            if found.any(|line| has(&line, "verb", verb)) { Ok(()) } else { Err(said) }
        })?;
    }
    ensure!(controller.said().lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "JSON only");
    let (status, text) = ask(&metrics, "/metrics")?;
    ensure!(status == 200, "{text}");
    for metric in [
        "dunlin_agent_verb_seconds_count{driver=\"test\",verb=\"start\"} 1",
        "dunlin_agent_session 1",
        "dunlin_agent_guests{driver=\"test\"} 1",
    ] {
        ensure!(text.lines().any(|line| line == metric), "{metric} is not in {text}");
    }
    let told = site.json(&["doctor"])?;
    let checks = told["findings"].as_array().context("findings")?.clone();
    ensure!(checks.iter().all(|one| one["grade"] != "error"), "{told}");
    ensure!(checks.iter().any(|one| one["check"] == "quorum" && one["grade"] == "fine"), "{told}");
    ensure!(site.ok(&["cluster", "upgrade"])?.contains("everything is written at level 2"), "all read it");
    ensure!(site.json(&["cluster", "show"])?["status"]["level"] == 2, "and it is shown");
    drop(controller);
    eventually("it is not ready", LIMIT, || match ask(&metrics, "/readyz") {
        Ok((503, _)) => Ok(()),
        other => Err(format!("{other:?}")),
    })
}

/// A host whose agent has gone is an error to the doctor, with what to do and an exit status of its own; a controller of another
/// authority is told from one that is away, and not asked again.
#[test]
fn the_doctor_and_the_stranger() -> anyhow::Result<()> {
    let (site, other) = (Site::new()?, Site::new()?);
    let old = site.controller_with(&site.path("c"), &["--level", "1"])?;
    site.wait_answering()?;
    old.kill()?;
    // Its level could be raised now: that is a warning.
    let _one = site.controller(&site.path("c"))?;
    let _two = other.controller(&other.path("c"))?;
    site.wait_answering()?;
    other.wait_answering()?;
    let token = site.ok(&["token", "create"])?;
    let agent = site.agent("h1", &site.path("h"), Some(token.trim()), "test")?;
    site.wait_host("h1", "Up")?;
    ensure!(site.run(&["doctor"])?.status == 0, "warnings are no failure");
    site.refused(&["doctor", "--strict"], 17, &["the doctor found 0 errors and"])?;
    agent.kill()?;
    site.wait_host("h1", "Down")?;
    let sick = site.run(&["doctor"])?;
    ensure!(sick.status == 17, "{sick:?}");
    ensure!(sick.stdout.starts_with("error    host         host h1: is Down"), "{}", sick.stdout);
    ensure!(sick.stdout.contains("-> is the machine on, its agent running"), "{}", sick.stdout);
    let strange = site.run(&["-e", &other.api, "vm", "list"])?;
    ensure!(strange.stderr.contains("its certificate is of another authority"), "{strange:?}");
    ensure!(!strange.stderr.contains("trying for"), "it was asked again and again: {strange:?}");
    Ok(())
}
