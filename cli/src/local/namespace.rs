//! Network namespaces for the hosts of a local fleet, joined by one bridge that the controllers sit on.

use std::process::Command;

use super::record::FleetRecord;
use crate::failure::Failure;

/// Makes the bridge and every namespace that is not there yet.
pub(super) fn make(plan: &FleetRecord) -> Result<(), Failure> {
    let bridge = plan.bridge();
    if !exists(&["link", "show", &bridge]) {
        ip(&["link", "add", &bridge, "type", "bridge", "forward_delay", "0"])?;
        ip(&["address", "add", &format!("{}/24", plan.controller_host()), "dev", &bridge])?;
        ip(&["link", "set", &bridge, "up"])?;
    }
    for number in 1..=plan.hosts {
        let name = plan.namespace(number);
        let inside = |words: &[&str]| ip(&[&["-n", &name], words].concat());
        if exists(&["-n", &name, "address", "show", "eth0"]) {
            continue;
        }
        if !exists(&["netns", "pids", &name]) {
            ip(&["netns", "add", &name])?;
        }
        let outer = format!("dl{}{number}", plan.tag);
        ip(&["link", "add", &outer, "type", "veth", "peer", "name", "eth0", "netns", &name])?;
        ip(&["link", "set", &outer, "master", &bridge, "up"])?;
        inside(&["address", "add", &format!("{}/24", plan.host_address(number)), "dev", "eth0"])?;
        inside(&["link", "set", "lo", "up"])?;
        inside(&["link", "set", "eth0", "up"])?;
    }
    Ok(())
}

/// Removes what [`make`] made. What is not there is no error.
pub(super) fn remove(plan: &FleetRecord) -> Result<(), Failure> {
    for number in 1..=plan.hosts {
        let name = plan.namespace(number);
        if exists(&["netns", "pids", &name]) {
            ip(&["netns", "delete", &name])?;
        }
    }
    let bridge = plan.bridge();
    if exists(&["link", "show", &bridge]) {
        ip(&["link", "delete", &bridge])?;
    }
    Ok(())
}

fn exists(words: &[&str]) -> bool {
    Command::new("ip").args(words).output().is_ok_and(|output| output.status.success())
}

fn ip(words: &[&str]) -> Result<(), Failure> {
    let output = Command::new("ip")
        .args(words)
        .output()
        .map_err(Failure::io("running ip (Debian package iproute2)"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Failure::Local(format!("ip {}: {}", words.join(" "), said.trim())))
}
