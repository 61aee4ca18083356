//! Daemons started by hand, each with a data folder of the test's choice, on loopback ports that were free.

use std::cell::RefCell;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use dunlin_tests::{Output, eventually, fleet};

/// Until a daemon must have said what it has to say, or done what was asked.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// A folder, a controller's addresses, and a CLI that talks to it.
pub(crate) struct Site {
    pub(crate) root: tempfile::TempDir,
    pub(crate) api: String,
    raft: String,
    /// The folder of the last controller that was started here: its socket is how the user becomes somebody.
    data: RefCell<Option<PathBuf>>,
}

/// A process of ours and the file with its log. Killed when dropped.
pub(crate) struct Daemon {
    child: Child,
    pub(crate) log: PathBuf,
}

impl Site {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let root = tempfile::Builder::new().prefix("dl").tempdir()?;
        let [api, raft] = free_addresses()?;
        Ok(Self { root, api, raft, data: RefCell::default() })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// A controller that is a cluster of its own, on this site's addresses.
    pub(crate) fn controller(&self, data: &Path) -> anyhow::Result<Daemon> {
        self.controller_with(data, &[])
    }

    /// The same, with more words.
    pub(crate) fn controller_with(&self, data: &Path, more: &[&str]) -> anyhow::Result<Daemon> {
        let member = format!("1={}/{}", self.api, self.raft);
        self.data.replace(Some(data.to_owned()));
        let data = data.display().to_string();
        let words = ["controller", "--id", "1", "--data-dir", &data, "--listen", &self.api];
        self.start(
            "controller",
            &[&words[..], &["--raft-listen", &self.raft, "--member", &member], more].concat(),
            &[],
        )
    }

    /// An agent; with a token when it is to join.
    pub(crate) fn agent(
        &self,
        name: &str,
        data: &Path,
        token: Option<&str>,
        driver: &str,
    ) -> anyhow::Result<Daemon> {
        let (data, controller) = (data.display().to_string(), format!("https://{}", self.api));
        let words =
            ["agent", "--data-dir", &data, "--controller", &controller, "--name", name, "--driver", driver];
        let token: Vec<_> = token.into_iter().map(|token| ("DUNLIN_TOKEN", token)).collect();
        self.start(name, &words, &token)
    }

    /// Any daemon, its log in a file of this site.
    pub(crate) fn start(&self, name: &str, words: &[&str], vars: &[(&str, &str)]) -> anyhow::Result<Daemon> {
        let log = self.path(&format!("{name}.log"));
        let file = std::fs::File::create(&log)?;
        let mut command = Command::new(fleet::binary()?);
        command.args(words).env_remove("RUST_LOG").envs(vars.iter().copied());
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        Ok(Daemon { child: command.spawn()?, log })
    }

    pub(crate) fn run(&self, words: &[&str]) -> anyhow::Result<Output> {
        let mut command = Command::new(fleet::binary()?);
        command.args(words).env("DUNLIN_CONFIG", self.path("contexts.yaml"));
        command.env_remove("DUNLIN_ENDPOINT").stdin(Stdio::null());
        let output = command.output().context("starting dunlin")?;
        Ok(Output {
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    pub(crate) fn ok(&self, words: &[&str]) -> anyhow::Result<String> {
        self.run(words)?.ok().with_context(|| format!("dunlin {}", words.join(" ")))
    }

    /// Fails with that exit status, saying every one of these.
    pub(crate) fn refused(&self, words: &[&str], status: i32, says: &[&str]) -> anyhow::Result<()> {
        let output = self.run(words)?;
        ensure!(output.status == status, "{words:?} ended with {}: {}", output.status, output.stderr);
        for part in says {
            ensure!(output.stderr.contains(part), "{words:?} does not say {part:?}: {}", output.stderr);
        }
        Ok(())
    }

    pub(crate) fn json(&self, words: &[&str]) -> anyhow::Result<serde_json::Value> {
        Ok(serde_json::from_str(&self.ok(&[words, &["-o", "json"]].concat())?)?)
    }

    /// Names of all objects of a kind.
    pub(crate) fn names(&self, noun: &str) -> anyhow::Result<Vec<String>> {
        let list = self.json(&[noun, "list"])?;
        let names = list["items"].as_array().into_iter().flatten();
        Ok(names.filter_map(|item| item["metadata"]["name"].as_str().map(str::to_owned)).collect())
    }

    pub(crate) fn wait_answering(&self) -> anyhow::Result<()> {
        eventually("the controller answers", LIMIT, || {
            if !self.path("contexts.yaml").exists() {
                let data = self.data.borrow().clone().ok_or("no controller was started")?;
                let data = data.display().to_string();
                self.ok(&["admin", "enroll", "--data-dir", &data]).map_err(|e| e.to_string())?;
            }
            self.ok(&["cluster", "show"]).map(drop).map_err(|e| e.to_string())
        })
    }

    pub(crate) fn wait_host(&self, name: &str, phase: &str) -> anyhow::Result<()> {
        eventually(&format!("host {name} is {phase}"), LIMIT, || {
            let host = self.json(&["host", "show", name]).map_err(|e| e.to_string())?;
            let is = host["status"]["phase"].as_str().unwrap_or_default().to_owned();
            if is == phase { Ok(()) } else { Err(format!("it is {is}")) }
        })
    }

    /// Waits for a VM's phase; returns what it says of it.
    pub(crate) fn wait_vm(&self, name: &str, phase: &str) -> anyhow::Result<String> {
        eventually(&format!("vm {name} is {phase}"), LIMIT, || {
            let vm = self.json(&["vm", "show", name]).map_err(|e| e.to_string())?;
            let is = vm["status"]["phase"].as_str().unwrap_or_default().to_owned();
            let message = vm["status"]["message"].as_str().unwrap_or_default().to_owned();
            if is == phase { Ok(message) } else { Err(format!("it is {is}: {message}")) }
        })
    }
}

impl Daemon {
    pub(crate) fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    pub(crate) fn alive(&mut self) -> anyhow::Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until it has ended by itself, which must be with a failure whose last words hold every one of these.
    pub(crate) fn ends_saying(mut self, says: &[&str]) -> anyhow::Result<()> {
        let status = eventually("the daemon ends", LIMIT, || match self.child.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err("it runs".to_owned()),
            Err(e) => Err(e.to_string()),
        })?;
        let said = self.said();
        let last = said.lines().last().unwrap_or_default();
        ensure!(!status.success(), "it ended well: {said}");
        for part in says {
            ensure!(last.contains(part), "it does not end with {part:?}: {said}");
        }
        println!("{last}");
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Fails for one that has ended, and then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() || std::env::var_os("DUNLIN_LOGS").is_some() {
            println!("--- {}\n{}", self.log.display(), self.said());
        }
    }
}

/// Loopback addresses with ports that nobody has at this moment.
pub(crate) fn free_addresses<const N: usize>() -> anyhow::Result<[String; N]> {
    let listeners = [(); N].map(|()| TcpListener::bind("127.0.0.1:0"));
    let mut addresses = Vec::new();
    for listener in &listeners {
        let listener = listener.as_ref().map_err(|e| anyhow::anyhow!("binding: {e}"))?;
        addresses.push(listener.local_addr()?.to_string());
    }
    addresses.try_into().map_err(|_| anyhow::anyhow!("as many as were asked for"))
}
