//! Whether containers work here, found out by running one.

use std::path::Path;

use dunlin_model::capabilities::{Accel, AccelProbe, DriverCapabilities, DriverName};

use super::Lxc;
use super::tools::run_words;
use crate::keep::{Backend, Fault};

/// What the trial may use: enough for a program that does nothing.
const TRIAL_BYTES: u64 = 64 << 20;

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Everything at once. Never an error: what does not work is told as such.
pub(super) async fn probe(lxc: &Lxc) -> DriverCapabilities {
    let version = run_words(&words(&["lxc-start", "--version"])).await;
    let ran = match &version {
        Ok(_) => try_out(lxc).await,
        Err(fault) => Err(fault.clone()),
    };
    let criu = match run_words(&words(&["criu", "check"])).await {
        Ok(_) => "CRIU works, but the driver does not build on it".to_owned(),
        Err(fault) => format!("no saving and no migration, for want of CRIU: {}", tail(&fault.message)),
    };
    let usable = ran.is_ok();
    let evidence = match ran {
        Ok(groups) => format!("a container ran and ended, in control groups of {groups}; {criu}"),
        Err(fault) => fault.message,
    };
    let powers = if usable { Lxc::POWERS } else { &[] };
    DriverCapabilities {
        name: DriverName::Lxc,
        version: version.map(|version| version.trim().to_owned()).unwrap_or_default(),
        accels: vec![AccelProbe { accel: Accel::Container, usable, evidence }],
        powers: powers.iter().copied().collect(),
        ..Default::default()
    }
}

/// The last line of a tool's words, which has its reason.
fn tail(words: &str) -> &str {
    words.trim_end().lines().last().unwrap_or_default()
}

/// Runs a program of the host in a container that shares the host's files, read-only, and nothing else of it.
async fn try_out(lxc: &Lxc) -> Result<&'static str, Fault> {
    let dir = lxc.dir().join(format!("probe.{}", std::process::id()));
    let made = std::fs::create_dir_all(dir.join("trial/rootfs"));
    made.map_err(|e| Fault::file("make", &dir, &e))?;
    let done = run_trial(&dir).await;
    let cleared = super::groups::clear("trial").await;
    let _ = std::fs::remove_dir_all(&dir);
    done?;
    cleared?;
    Ok(match super::groups::Version::of_host() {
        super::groups::Version::V1 => "version 1",
        super::groups::Version::V2 => "version 2",
    })
}

async fn run_trial(dir: &Path) -> Result<(), Fault> {
    let config = dir.join("trial/config");
    let root = dir.join("trial/rootfs");
    // With a bound, as every guest has one: where the control groups are hidden, as in `ip netns exec`, a container
    // without bounds still runs.
    let bound = match super::groups::Version::of_host() {
        super::groups::Version::V1 => "lxc.cgroup.memory.limit_in_bytes",
        super::groups::Version::V2 => "lxc.cgroup2.memory.max",
    };
    let text = format!(
        "lxc.rootfs.path = dir:/\nlxc.rootfs.options = ro\nlxc.rootfs.mount = {}\nlxc.net.0.type = empty\n\
         lxc.cgroup.dir = {}\n{bound} = {TRIAL_BYTES}\n",
        root.display(),
        super::groups::of("trial"),
    );
    std::fs::write(&config, text).map_err(|e| Fault::file("write", &config, &e))?;
    let dir = dir.to_string_lossy();
    run_words(&words(&["lxc-execute", "-n", "trial", "-P", &dir, "--", "/bin/true"])).await.map(drop)
}
