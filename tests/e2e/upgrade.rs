//! A release is rolled out, process by process, under load. The older one is played by the newer that reads less.

use anyhow::ensure;
use dunlin_tests::{Output, eventually};

use crate::operations::{Controllers, Load, wait_host};
use crate::site::{Daemon, LIMIT};

/// The agent of h1; with a token when it is to join.
fn agent(all: &Controllers, token: Option<&str>, level: Option<&str>) -> anyhow::Result<Daemon> {
    let data = all.site.path("h1").display().to_string();
    let endpoints: Vec<_> = all.addresses.values().map(|(api, _)| format!("https://{api}")).collect();
    let mut words = vec!["agent", "--data-dir", &data, "--name", "h1", "--driver", "test"];
    endpoints.iter().for_each(|endpoint| words.extend(["--controller", endpoint]));
    level.iter().for_each(|level| words.extend(["--level", level]));
    let vars: Vec<_> = token.into_iter().map(|token| ("DUNLIN_TOKEN", token)).collect();
    all.site.start("h1", &words, &vars)
}

/// Kills a controller, starts it again as it is now, and waits until it is one of them.
fn replace(all: &mut Controllers, id: u64) -> anyhow::Result<()> {
    all.kill(id)?;
    let member = all.member(id);
    all.start(id, &[member], false)?;
    eventually(&format!("controller {id} answers"), LIMIT, || {
        all.ok_at(id, &["cluster", "show"]).map(drop).map_err(|e| e.to_string())
    })
}

/// Three controllers and a host of the old release are replaced one by one while VMs are made and one runs. Until all of them read
/// the new level it is not raised, who holds it back is named, and what needs it is refused; then it is, and what is too old is kept
/// out: a controller that starts, one that would be taken in, an agent. No write fails on the way, and the guest runs on.
#[test]
fn a_release_is_rolled_out() -> anyhow::Result<()> {
    let mut all = Controllers::found_with(1, &["--level", "1"])?;
    for id in [2, 3] {
        all.join(id)?;
        all.add(&["add"], id)?;
    }
    let token = all.ok(&["token", "create"])?;
    let old = agent(&all, Some(token.trim()), Some("1"))?;
    wait_host(&all, "Up")?;
    all.ok(&["vm", "create", "runs", "--driver", "test", "--mem-mib", "64", "--start", "--wait"])?;
    all.refused(
        &["host", "set", "h1", "--resource", "licence/db=2"],
        &["needs feature level 2, and the cluster is at 1", "dunlin cluster upgrade"],
    )?;
    all.refused(
        &["vm", "set", "runs", "--mem-mib", "96"],
        &["stop it first, or raise the feature level to 2"],
    )?;

    all.more.clear();
    let load = Load::start(&all, "meanwhile");
    let leader = all.voters()?.1;
    let followers: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    replace(&mut all, followers[0])?;
    let held = [format!("controller {} of release", followers[1]), format!("controller {leader} of release")];
    let says: Vec<&str> = held.iter().map(String::as_str).chain(["reads up to level 1, not 2"]).collect();
    all.refused(&["cluster", "upgrade", "--dry-run"], &says)?;
    replace(&mut all, followers[1])?;
    load.more(3)?;
    replace(&mut all, leader)?;
    load.more(3)?;
    wait_host(&all, "Up")?;
    all.refused(
        &["cluster", "upgrade"],
        &["the agent of host h1, of release", "reads up to level 1, not 2"],
    )?;
    old.kill()?;
    let new = agent(&all, None, None)?;
    eventually("the level can be raised", LIMIT, || {
        let told = all.run(&["cluster", "upgrade", "--dry-run"]).and_then(Output::ok);
        told.map(drop).map_err(|e| e.to_string())
    })?;
    let told = all.run(&["doctor"])?;
    ensure!(told.stdout.contains("written at level 1, and all that answer read level 2"), "{told:?}");
    let told = all.ok(&["cluster", "upgrade", "--to", "2"])?;
    ensure!(told.contains("everything is written at level 2 from now on"), "{told}");
    let names = load.end()?;
    let present = all.names()?;
    ensure!(names.iter().all(|name| present.contains(name)), "an acknowledged VM is lost");
    all.ok(&["host", "set", "h1", "--resource", "licence/db=2"])?;
    all.ok(&["vm", "set", "runs", "--mem-mib", "96"])?;
    let vm = all.ok(&["vm", "show", "runs", "-o", "json"])?;
    ensure!(vm.contains("\"phase\": \"Running\""), "{vm}");

    new.kill()?;
    the_old_are_kept_out(&mut all, followers[0])
}

/// An agent, a controller that would join and one that was a member, all of the old release.
fn the_old_are_kept_out(all: &mut Controllers, member: u64) -> anyhow::Result<()> {
    let late = agent(all, None, Some("1"))?;
    eventually("the old agent is sent away", LIMIT, || {
        let said = late.said();
        let why = "this agent of release";
        if said.contains(why) && said.contains("guests go on meanwhile") { Ok(()) } else { Err(said) }
    })?;
    wait_host(all, "Down")?;
    all.more = vec!["--level".to_owned(), "1".to_owned()];
    all.join(4)?;
    let (api, raft) = all.addresses[&4].clone();
    let words = ["controller", "add", "4", &api, &raft];
    all.refused(
        &words,
        &["controller 4 is of release", "reads up to level 1, but everything is written at level 2"],
    )?;
    all.kill(4)?;
    let addresses = all.member(member);
    all.kill(member)?;
    all.start(member, &[addresses], false)?;
    let outdated = all.running.remove(&member).expect("it was started");
    outdated.ends_saying(&["the cluster writes at feature level 2", "reads up to 1: install the release"])
}
