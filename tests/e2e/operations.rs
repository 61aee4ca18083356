//! Controllers that come and go under load, and backups that are brought back. Real processes, no guests.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, ensure};
use dunlin_tests::{Output, eventually, fleet};

use crate::site::{Daemon, LIMIT, Site, free_addresses};

/// Runs `dunlin restore` on a file into a folder, with more words.
type Restore<'a> = dyn Fn(&str, &Path, &[&str]) -> anyhow::Result<Output> + 'a;

/// VMs created before the first controller is added: enough that it comes up to date while more are made.
const BEFORE: usize = 40;

/// Several controllers on loopback, started one by one.
pub(crate) struct Controllers {
    pub(crate) site: Site,
    pub(crate) running: BTreeMap<u64, Daemon>,
    pub(crate) addresses: BTreeMap<u64, (String, String)>,
    /// What those are told besides that are started from now on.
    pub(crate) more: Vec<String>,
}

impl Controllers {
    /// Controllers 1 to `count` as one new cluster.
    fn found(count: u64) -> anyhow::Result<Self> {
        Self::found_with(count, &[])
    }

    /// The same, by controllers that are told more.
    pub(crate) fn found_with(count: u64, more: &[&str]) -> anyhow::Result<Self> {
        let more = more.iter().map(|word| (*word).to_owned()).collect();
        let mut this = Self { more, ..Self::none()? };
        for id in 1..=count {
            this.address(id)?;
        }
        let members: Vec<_> = (1..=count).map(|id| this.member(id)).collect();
        for id in 1..=count {
            this.start(id, &members, false)?;
        }
        this.wait_answering()?;
        Ok(this)
    }

    fn none() -> anyhow::Result<Self> {
        let (running, addresses) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self { site: Site::new()?, running, addresses, more: Vec::new() })
    }

    fn address(&mut self, id: u64) -> anyhow::Result<()> {
        let [api, raft] = free_addresses()?;
        self.addresses.insert(id, (api, raft));
        Ok(())
    }

    pub(crate) fn member(&self, id: u64) -> String {
        let (api, raft) = &self.addresses[&id];
        format!("{id}={api}/{raft}")
    }

    pub(crate) fn start(&mut self, id: u64, members: &[String], join: bool) -> anyhow::Result<()> {
        let token = match join {
            true => self.ok(&["token", "create", "--role", "controller"])?.trim().to_owned(),
            false => String::new(),
        };
        let vars: &[(&str, &str)] = if join { &[("DUNLIN_TOKEN", &token)] } else { &[] };
        let controllers: Vec<_> = self.running.keys().map(|id| self.addresses[id].0.clone()).collect();
        let data = self.site.path(&format!("c{id}")).display().to_string();
        let (number, (api, raft)) = (id.to_string(), &self.addresses[&id]);
        let mut words =
            vec!["controller", "--id", &number, "--data-dir", &data, "--listen", api, "--raft-listen", raft];
        members.iter().for_each(|member| words.extend(["--member", member]));
        if join {
            words.push("--join");
            controllers.iter().for_each(|api| words.extend(["--controller", api]));
        }
        words.extend(self.more.iter().map(String::as_str));
        let daemon = self.site.start(&format!("c{id}"), &words, vars)?;
        self.running.insert(id, daemon);
        Ok(())
    }

    /// A controller that waits to be taken in.
    pub(crate) fn join(&mut self, id: u64) -> anyhow::Result<()> {
        self.address(id)?;
        let member = self.member(id);
        self.start(id, &[member], true)
    }

    pub(crate) fn kill(&mut self, id: u64) -> anyhow::Result<()> {
        self.running.remove(&id).context("it does not run")?.kill()
    }

    fn endpoints(&self) -> String {
        let apis = self.running.keys().map(|id| self.addresses[id].0.as_str());
        apis.collect::<Vec<_>>().join(",")
    }

    pub(crate) fn run(&self, words: &[&str]) -> anyhow::Result<Output> {
        run(&self.site, &self.endpoints(), words)
    }

    pub(crate) fn ok(&self, words: &[&str]) -> anyhow::Result<String> {
        let told = self.run(words)?.ok().with_context(|| format!("dunlin {}", words.join(" ")))?;
        println!("$ dunlin {}\n{}", words.join(" "), told.trim_end());
        Ok(told)
    }

    /// The same, at one controller alone.
    pub(crate) fn ok_at(&self, id: u64, words: &[&str]) -> anyhow::Result<String> {
        run(&self.site, &self.addresses[&id].0, words)?.ok()
    }

    pub(crate) fn refused(&self, words: &[&str], says: &[&str]) -> anyhow::Result<()> {
        let output = self.run(words)?;
        println!("$ dunlin {}\n{}", words.join(" "), output.stderr.trim_end());
        ensure!(output.status != 0, "{words:?} was not refused");
        says.iter().try_for_each(|part| {
            ensure!(output.stderr.contains(part), "{words:?} does not say {part:?}: {}", output.stderr);
            Ok(())
        })
    }

    pub(crate) fn add(&self, verb: &[&str], id: u64) -> anyhow::Result<String> {
        let (number, (api, raft)) = (id.to_string(), &self.addresses[&id]);
        self.ok(&[&["controller"][..], verb, &[&number, api, raft]].concat())
    }

    fn wait_answering(&self) -> anyhow::Result<()> {
        eventually("the controllers answer", LIMIT, || {
            // Anew each time: a cluster that was brought back may have another authority.
            let data = self.site.path("c1").display().to_string();
            let enroll = ["admin", "enroll", "--data-dir", &data];
            self.run(&enroll).and_then(Output::ok).map_err(|e| e.to_string())?;
            self.run(&["cluster", "show"]).and_then(Output::ok).map(drop).map_err(|e| e.to_string())
        })
    }

    /// Who votes, and who leads.
    pub(crate) fn voters(&self) -> anyhow::Result<(Vec<u64>, u64)> {
        let told = self.run(&["controller", "list", "-o", "json"])?.ok()?;
        let told: serde_json::Value = serde_json::from_str(&told)?;
        let items = told["items"].as_array().context("no items")?;
        let voters = items.iter().filter(|one| one["votes"] == true).filter_map(|one| one["id"].as_u64());
        let leader = items.iter().find(|one| one["leads"] == true).and_then(|one| one["id"].as_u64());
        Ok((voters.collect(), leader.context("nobody leads")?))
    }

    pub(crate) fn names(&self) -> anyhow::Result<Vec<String>> {
        let told = self.run(&["vm", "list", "-o", "json"])?.ok()?;
        let told: serde_json::Value = serde_json::from_str(&told)?;
        let items = told["items"].as_array().into_iter().flatten();
        Ok(items.filter_map(|item| item["metadata"]["name"].as_str().map(str::to_owned)).collect())
    }
}

fn run(site: &Site, endpoints: &str, words: &[&str]) -> anyhow::Result<Output> {
    run_as(&site.path("contexts.yaml"), endpoints, words)
}

/// Runs `dunlin` as who one is by that context file.
fn run_as(contexts: &Path, endpoints: &str, words: &[&str]) -> anyhow::Result<Output> {
    let mut command = std::process::Command::new(fleet::binary()?);
    command.env("DUNLIN_CONFIG", contexts);
    let output = command.args(["-e", endpoints]).args(words).env_remove("DUNLIN_ENDPOINT").output()?;
    Ok(Output {
        status: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Creates VMs one after the other until told to stop; returns the names of those that were acknowledged.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    made: Arc<AtomicUsize>,
    thread: JoinHandle<anyhow::Result<Vec<String>>>,
}

impl Load {
    pub(crate) fn start(all: &Controllers, called: &str) -> Self {
        let (contexts, endpoints) = (all.site.path("contexts.yaml"), all.endpoints());
        let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, count, called) = (Arc::clone(&stop), Arc::clone(&made), called.to_owned());
        let thread = std::thread::spawn(move || {
            let mut names = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let name = format!("{called}-{}", names.len());
                let words = ["vm", "create", &name, "--driver", "test", "--mem-mib", "64"];
                run_as(&contexts, &endpoints, &words)?.ok()?;
                names.push(name);
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok(names)
        });
        Self { stop, made, thread }
    }

    /// Waits until so many more were made.
    pub(crate) fn more(&self, many: usize) -> anyhow::Result<()> {
        let goal = self.made.load(Ordering::Relaxed) + many;
        eventually("the load goes on", LIMIT, || {
            let made = self.made.load(Ordering::Relaxed);
            if made >= goal || self.thread.is_finished() { Ok(()) } else { Err(format!("{made} of {goal}")) }
        })
    }

    pub(crate) fn end(self) -> anyhow::Result<Vec<String>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the load panicked"))?
    }
}

/// A cluster of one grows to three and four under load, hands its leadership over, loses a member and replaces it, and
/// shrinks again; every step says how it goes, nothing acknowledged is lost, and what would stop it is refused.
#[test]
fn controllers_come_and_go_under_load() -> anyhow::Result<()> {
    let mut all = Controllers::found(1)?;
    let load = Load::start(&all, "growing");
    load.more(BEFORE)?;
    for id in 2..=4 {
        all.join(id)?;
        let told = all.add(&["add"], id)?;
        ensure!(told.contains(&format!("controller {id} has caught up")), "{told}");
        load.more(3)?;
    }
    assert_eq!(all.voters()?.0, [1, 2, 3, 4]);
    // Once more is no harm; another controller under the same number is.
    all.add(&["add"], 4)?;
    all.refused(
        &["controller", "add", "4", "127.0.0.1:1", "127.0.0.1:2"],
        &["controller 4 is a member already"],
    )?;

    let names = load.end()?;
    let load = Load::start(&all, "moving");
    let told = all.ok(&["controller", "transfer", "3"])?;
    ensure!(told.contains("leads"), "{told}");
    eventually("controller 3 leads", LIMIT, || {
        let leader = all.voters().map_err(|e| e.to_string())?.1;
        if leader == 3 { Ok(()) } else { Err(format!("controller {leader} leads")) }
    })
    .or_else(|_| all.ok(&["controller", "transfer", "3"]).map(drop))?;
    assert_eq!(load.end().err().map(|e| e.to_string()), None, "no write failed while the leadership moved");

    all.ok(&["controller", "remove", "4"])?;
    all.kill(4)?;
    assert_eq!(all.voters()?.0, [1, 2, 3]);

    all.kill(2)?;
    all.refused(&["controller", "remove", "1"], &["without controller 1", "lose its quorum", "--force"])?;
    all.join(5)?;
    all.add(&["replace", "2"], 5)?;
    assert_eq!(all.voters()?.0, [1, 3, 5]);

    // The leader may leave too.
    let leader = all.voters()?.1;
    all.ok(&["controller", "remove", &leader.to_string()])?;
    all.kill(leader)?;
    assert_eq!(all.voters()?.0.len(), 2);
    all.ok(&["vm", "create", "last", "--driver", "test"])?;
    let present = all.names()?;
    for name in names.iter().map(String::as_str).chain(["last"]) {
        ensure!(present.iter().any(|one| one == name), "{name} was acknowledged and is lost");
    }
    Ok(())
}

/// A backup taken from a running cluster is restored into an empty directory and grows to a cluster again, with the same
/// identity (its agents come back, its hosts are cordoned) or as another; a damaged or foreign file, and a directory in
/// use, are refused by name.
#[test]
fn a_backup_is_brought_back() -> anyhow::Result<()> {
    let mut all = Controllers::found(1)?;
    let token = all.ok(&["token", "create"])?;
    let site = &all.site;
    let controller = format!("https://{}", all.addresses[&1].0);
    let h1 = site.path("h1").display().to_string();
    let words = ["agent", "--data-dir", &h1, "--controller", &controller, "--name", "h1", "--driver", "test"];
    let agent = site.start("h1", &words, &[("DUNLIN_TOKEN", token.trim())])?;
    wait_host(&all, "Up")?;
    all.ok(&["vm", "create", "runs", "--driver", "test", "--mem-mib", "64", "--start", "--wait"])?;
    all.ok(&["vm", "create", "rests", "--driver", "test"])?;
    let file = site.path("fleet.backup").display().to_string();
    let told = all.ok(&["backup", &file])?;
    ensure!(told.contains("2 VMs, 1 hosts"), "{told}");
    all.ok(&["vm", "create", "later", "--driver", "test"])?;

    let (member, contexts) = (all.member(1), site.path("contexts.yaml"));
    let restore = |file: &str, data: &Path, more: &[&str]| {
        let data = data.display().to_string();
        run_as(
            &contexts,
            "",
            &[&["restore", file, "--member", &member, "--data-dir", &data][..], more].concat(),
        )
    };
    damaged(&file, site, &restore)?;
    let used = restore(&file, &site.path("c1"), &[])?;
    ensure!(used.status != 0 && used.stderr.contains("not empty"), "{}", used.stderr);

    all.kill(1)?;
    std::fs::remove_dir_all(all.site.path("c1"))?;
    println!("{}", restore(&file, &all.site.path("c1"), &[])?.ok()?);
    all.start(1, std::slice::from_ref(&member), false)?;
    all.wait_answering()?;
    assert_eq!(all.names()?, ["rests", "runs"]);
    wait_host(&all, "Up")?;
    let host = all.ok(&["host", "show", "h1", "-o", "json"])?;
    ensure!(host.contains("\"cordoned\": true"), "a host of a restored cluster takes guests: {host}");
    // The guest ran all the time, and is known to.
    eventually("the guest is known to run", LIMIT, || {
        let vm =
            all.run(&["vm", "show", "runs", "-o", "json"]).and_then(Output::ok).map_err(|e| e.to_string())?;
        if vm.contains("\"phase\": \"Running\"") { Ok(()) } else { Err(vm) }
    })?;
    all.ok(&["vm", "start", "rests"])?;
    all.ok(&["host", "uncordon", "h1"])?;
    all.ok(&["vm", "start", "rests", "--wait"])?;
    all.join(2)?;
    all.add(&["add"], 2)?;
    assert_eq!(all.voters()?.0, [1, 2]);
    drop(agent);

    let mut other = Controllers::none()?;
    other.address(1)?;
    let (member, data) = (other.member(1), other.site.path("c1").display().to_string());
    println!(
        "{}",
        run(
            &other.site,
            "",
            &["restore", &file, "--member", &member, "--data-dir", &data, "--new-identity"]
        )?
        .ok()?
    );
    other.start(1, &[member], false)?;
    other.wait_answering()?;
    assert_eq!(other.names()?, ["rests", "runs"]);
    ensure!(other.ok(&["host", "list", "-o", "json"])?.contains("\"items\": []"), "hosts were carried over");
    Ok(())
}

pub(crate) fn wait_host(all: &Controllers, phase: &str) -> anyhow::Result<()> {
    eventually(&format!("h1 is {phase}"), LIMIT, || {
        let told =
            all.run(&["host", "show", "h1", "-o", "json"]).and_then(Output::ok).map_err(|e| e.to_string())?;
        if told.contains(&format!("\"phase\": \"{phase}\"")) { Ok(()) } else { Err(told) }
    })
}

/// Wherever a backup was cut or altered, it is refused, and nothing is made of it.
fn damaged(file: &str, site: &Site, restore: &Restore<'_>) -> anyhow::Result<()> {
    let whole = std::fs::read(file)?;
    let bad = site.path("bad.backup");
    let check = |bytes: &[u8], says: &str| -> anyhow::Result<()> {
        std::fs::write(&bad, bytes)?;
        let data = site.path("never");
        let output = restore(&bad.display().to_string(), &data, &[])?;
        ensure!(
            output.status != 0 && output.stderr.contains("bad.backup cannot be restored"),
            "{}",
            output.stderr
        );
        ensure!(output.stderr.contains(says), "it does not say {says:?}: {}", output.stderr);
        ensure!(!data.exists(), "something was made of it");
        Ok(())
    };
    let altered = |at: usize, bit: u8| {
        let mut bytes = whole.clone();
        bytes[at] ^= bit;
        bytes
    };
    check(&whole[..whole.len() - 1], "its length is not what it says")?;
    check(&whole[..10], "too short")?;
    check(&altered(whole.len() / 2, 1), "its checksum does not match")?;
    check(&altered(0, 1), "does not begin like a Dunlin backup")?;
    check(b"a letter to a friend, and not a short one either", "does not begin like a Dunlin backup")
}
