//! `vm start` to Running, against launching the same QEMU by hand and asking it over QMP until it says running.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use dunlin_model::vm::VmPhase;
use dunlin_tests::fleet::BOOT_LIMIT;
use dunlin_tests::{Fleet, FleetOptions};

use crate::median_and_worst;

/// Pairs of starts, by hand and by us, in turn.
const PAIRS: usize = 15;

pub(crate) fn run() -> anyhow::Result<()> {
    let fleet = Fleet::start(FleetOptions { controllers: 3, hosts: 1, drivers: "qemu" })?;
    fleet.import_guest()?;
    let vm = fleet.create_ticking("timed", "image=disk,format=raw", &[])?;
    let guest = fleet.guests(&vm).pop().context("no guest process")?;
    let words = by_hand(&guest.words);
    let (mut ours, mut raw) = (Vec::new(), Vec::new());
    for _ in 0..PAIRS {
        fleet.ok(&["vm", "destroy", "timed", "--wait"])?;
        fleet.wait_phase("timed", VmPhase::Stopped, BOOT_LIMIT)?;
        raw.push(launch(&words, fleet.scratch())?.as_secs_f64() * 1e3);
        let started = Instant::now();
        fleet.ok(&["vm", "start", "timed", "--wait"])?;
        ours.push(started.elapsed().as_secs_f64() * 1e3);
    }
    let cli = cli_alone(&fleet)?;
    let (raw, raw_worst) = median_and_worst(raw);
    let (ours, ours_worst) = median_and_worst(ours);
    println!("| | median ms | worst ms |\n| --- | --- | --- |");
    println!("| the same QEMU by hand, exec to QMP `running` | {raw:.1} | {raw_worst:.1} |");
    println!("| `dunlin vm start --wait`, 3 controllers with fsync | {ours:.1} | {ours_worst:.1} |");
    println!("| of which the CLI process alone (`dunlin vm show`) | {cli:.1} | |");
    println!("| difference to by hand | {:+.1} (goal: at most +20) | |", ours - raw);
    Ok(())
}

/// What any call of the CLI costs: process start, connection, one linearizable read.
fn cli_alone(fleet: &Fleet) -> anyhow::Result<f64> {
    let mut times = Vec::new();
    for _ in 0..PAIRS {
        let started = Instant::now();
        fleet.ok(&["vm", "show", "timed"])?;
        times.push(started.elapsed().as_secs_f64() * 1e3);
    }
    Ok(median_and_worst(times).0)
}

/// Our command line with sockets and files of its own: descriptors we hand over cannot be handed over by hand.
fn by_hand(words: &[String]) -> Vec<String> {
    let mut kept = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "-chardev" | "-mon" | "-qmp" | "-serial" | "-add-fd" | "-vnc" => {
                words.next();
            }
            "-S" => {}
            _ => kept.push(word.clone()),
        }
    }
    kept
}

fn launch(words: &[String], scratch: &Path) -> anyhow::Result<Duration> {
    let socket = scratch.join("hand.qmp");
    let _ = std::fs::remove_file(&socket);
    let started = Instant::now();
    let mut child = Command::new(&words[0])
        .args(&words[1..])
        .args(["-qmp", &format!("unix:{},server=on,wait=off", socket.display()), "-serial", "null"])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let running = ask_until_running(&socket, started);
    child.kill()?;
    let output = child.wait_with_output()?;
    running.with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

fn ask_until_running(socket: &Path, started: Instant) -> anyhow::Result<Duration> {
    let stream = loop {
        match UnixStream::connect(socket) {
            Ok(stream) => break stream,
            Err(e) if started.elapsed() > BOOT_LIMIT => return Err(e.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let mut stream = stream;
    lines.next().context("no greeting")??;
    stream.write_all(b"{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"query-status\"}\n")?;
    for line in lines {
        let line = line?;
        if line.contains("\"running\": true") {
            return Ok(started.elapsed());
        }
        if line.contains("\"running\": false") {
            stream.write_all(b"{\"execute\":\"query-status\"}\n")?;
        }
    }
    anyhow::bail!("QEMU went away")
}
