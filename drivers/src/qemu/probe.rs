//! What QEMU and KVM can do on this host, found out by making them do it.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::Duration;

use dunlin_model::capabilities::{Accel, AccelProbe, DriverCapabilities, DriverName, DriverPower};
use dunlin_model::vm::MachineType;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::time::{Instant, timeout};

use super::qmp::{Qmp, QmpError};
use super::{Site, kvm};

/// How long a probe may take. QEMU's start takes 0.1 s, its firmware's first words as long again under TCG.
const PROBE_DEADLINE: Duration = Duration::from_secs(20);
/// Bytes of firmware output that prove that a vCPU runs.
const WORDS_BYTES: usize = 8;

/// Everything at once. Never an error: what does not work is told as such.
pub(super) async fn probe(site: &Site) -> DriverCapabilities {
    let (offers, kvm, tcg) = tokio::join!(offers(site), kvm(site), boots(site, Accel::Tcg));
    let mut found =
        DriverCapabilities { name: DriverName::Qemu, accels: vec![kvm, tcg], ..Default::default() };
    match offers {
        Ok(offers) => {
            found.version = offers.version;
            found.machines = offers.machines;
            found.cpu_models = offers.cpu_models;
            found.powers = offers.powers;
        }
        Err(why) => {
            for accel in &mut found.accels {
                accel.usable = false;
                accel.evidence = format!("{} does not answer: {why}", site.config.binary.display());
            }
        }
    }
    found
}

/// Whether KVM runs a vCPU here. Found out once: it cannot change while the kernel runs.
pub(super) async fn kvm(site: &Site) -> AccelProbe {
    let find = || async {
        let device = site.config.kvm.clone();
        let verdict = tokio::task::spawn_blocking(move || kvm::try_vcpu(&device)).await;
        match verdict.expect("the KVM probe does not panic") {
            Err(evidence) => AccelProbe { accel: Accel::Kvm, usable: false, evidence },
            Ok(evidence) => {
                let boots = boots(site, Accel::Kvm).await;
                AccelProbe { evidence: format!("{evidence}; {}", boots.evidence), ..boots }
            }
        }
    };
    site.kvm.get_or_init(find).await.clone()
}

struct Offers {
    version: String,
    machines: BTreeSet<String>,
    cpu_models: BTreeSet<String>,
    powers: BTreeSet<DriverPower>,
}

/// Asks a QEMU without a machine.
async fn offers(site: &Site) -> Result<Offers, String> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(|e| e.to_string())?;
    // QEMU talks over its standard input, which is a socket for it alone.
    let mut qemu = Command::new(&site.config.binary);
    qemu.args([
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-S",
        "-machine",
        "none",
        "-accel",
        "tcg",
    ]);
    qemu.args(["-chardev", "socket,id=qmp,fd=0", "-mon", "chardev=qmp,mode=control"]);
    qemu.stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs))).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = qemu.kill_on_drop(true).spawn().map_err(|e| e.to_string())?;
    // The command holds our end of what QEMU has; without it the end of the stream would never come.
    drop(qemu);
    ours.set_nonblocking(true).map_err(|e| e.to_string())?;
    let stream = UnixStream::from_std(ours).map_err(|e| e.to_string())?;
    let asked = async {
        let (qmp, _) = Qmp::over(stream, Instant::now() + PROBE_DEADLINE).await?;
        let machines = qmp.run("query-machines", json!({})).await?;
        let models = qmp.run("query-cpu-definitions", json!({})).await?;
        let commands = qmp.run("query-commands", json!({})).await?;
        let ports = qmp.run("qom-list-types", json!({ "implements": "pcie-root-port" })).await?;
        Ok::<_, QmpError>((qmp.greeting.as_ref().clone(), machines, models, commands, ports))
    };
    let answer = asked.await;
    let _ = child.start_kill();
    match answer {
        Ok((version, machines, models, commands, ports)) => Ok(Offers {
            version: version_text(&version),
            machines: known_machines(&machines),
            cpu_models: models.as_array().into_iter().flatten().filter_map(|m| text(&m["name"])).collect(),
            powers: powers(&commands, ports.as_array().is_some_and(|ports| !ports.is_empty())),
        }),
        Err(e) => {
            let mut words = String::new();
            if let Some(stderr) = &mut child.stderr {
                let _ = timeout(Duration::from_secs(1), stderr.read_to_string(&mut words)).await;
            }
            let words = words.trim();
            Err(if words.is_empty() { e.to_string() } else { words.to_owned() })
        }
    }
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn version_text(version: &Value) -> String {
    let part = |key: &str| version["qemu"][key].as_u64().unwrap_or(0);
    format!("{}.{}.{}", part("major"), part("minor"), part("micro"))
}

/// Those among the machines Dunlin knows that this QEMU has, by name or alias.
fn known_machines(machines: &Value) -> BTreeSet<String> {
    let known = [MachineType::Q35, MachineType::Pc, MachineType::Microvm].map(MachineType::as_str);
    let all = machines.as_array().into_iter().flatten();
    let names = all.flat_map(|machine| [text(&machine["name"]), text(&machine["alias"])]).flatten();
    names.filter(|name| known.contains(&name.as_str())).collect()
}

/// A power is there when every command it is made of is; and to give a q35 more devices takes ports.
fn powers(commands: &Value, ports: bool) -> BTreeSet<DriverPower> {
    let has: BTreeSet<&str> =
        commands.as_array().into_iter().flatten().filter_map(|command| command["name"].as_str()).collect();
    let needs: [(DriverPower, &[&str]); 9] = [
        (DriverPower::Pause, &["stop", "cont"]),
        (DriverPower::Shutdown, &["system_powerdown"]),
        (DriverPower::Reset, &["system_reset"]),
        (DriverPower::Save, &["migrate", "migrate-incoming", "getfd"]),
        (DriverPower::Migrate, &["migrate", "migrate-incoming", "migrate-continue", "migrate_cancel"]),
        (
            DriverPower::MigrateStorage,
            &[
                "nbd-server-start",
                "block-export-add",
                "blockdev-mirror",
                "block-job-cancel",
                "migrate-continue",
            ],
        ),
        (DriverPower::Console, &["query-chardev"]),
        (DriverPower::Vnc, &["query-vnc", "set_password"]),
        (
            DriverPower::HotPlug,
            &[
                "device_add",
                "device_del",
                "blockdev-add",
                "blockdev-del",
                "netdev_add",
                "netdev_del",
                "qom-list",
            ],
        ),
    ];
    let complete = needs.iter().filter(|(_, needed)| needed.iter().all(|command| has.contains(command)));
    let complete = complete.map(|(power, _)| *power);
    complete.filter(|power| ports || *power != DriverPower::HotPlug).collect()
}

/// Lets the firmware say its first word, which takes a vCPU.
async fn boots(site: &Site, accel: Accel) -> AccelProbe {
    let name = if accel == Accel::Kvm { "kvm" } else { "tcg" };
    let mut qemu = Command::new(&site.config.binary);
    qemu.args([
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-machine",
        "pc",
        "-m",
        "16",
        "-accel",
        name,
    ]);
    // SeaBIOS writes what it does to this port when somebody listens there.
    qemu.args([
        "-chardev",
        "stdio,id=words,signal=off",
        "-device",
        "isa-debugcon,iobase=0x402,chardev=words",
    ]);
    qemu.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let told = timeout(PROBE_DEADLINE, first_words(qemu)).await;
    let (usable, evidence) = match told {
        Ok(Ok(words)) => (true, format!("QEMU's firmware ran under {name} and said {words:?}")),
        Ok(Err(why)) => (false, format!("QEMU does not run under {name}: {why}")),
        Err(_) => (false, format!("QEMU's firmware said nothing under {name} within {PROBE_DEADLINE:?}")),
    };
    AccelProbe { accel, usable, evidence }
}

async fn first_words(mut qemu: Command) -> Result<String, String> {
    let mut child = qemu.spawn().map_err(|e| e.to_string())?;
    let mut words = Vec::new();
    let stdout = child.stdout.take().ok_or("no output")?;
    stdout.take(WORDS_BYTES as u64).read_to_end(&mut words).await.map_err(|e| e.to_string())?;
    if words.len() == WORDS_BYTES {
        let _ = child.kill().await;
        return Ok(String::from_utf8_lossy(&words).into_owned());
    }
    let mut complaint = String::new();
    if let Some(stderr) = &mut child.stderr {
        let _ = stderr.read_to_string(&mut complaint).await;
    }
    let status = child.wait().await.map_err(|e| e.to_string())?;
    Err(format!("{} ({status})", complaint.trim()))
}
