//! The way docs/operating.md describes: three controllers with a bundle, admins, a host; who is put out, and the authority
//! replaced. Real processes on loopback, each with files of its own; simulated guests.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use dunlin_tests::{Output, eventually, fleet};
use serde_json::Value;

use crate::site::{Daemon, LIMIT, Site, free_addresses};

/// Exit statuses of docs/errors.md.
const UNAUTHENTICATED: i32 = 7;
const FORBIDDEN: i32 = 16;

/// Three controllers that were founded with a bundle, and the folder in which people keep who they are.
struct Founded {
    site: Site,
    apis: Vec<String>,
    controllers: Vec<Daemon>,
}

/// A person with a context file of his own.
struct Person<'a> {
    founded: &'a Founded,
    home: PathBuf,
}

impl Founded {
    fn new() -> anyhow::Result<Self> {
        let site = Site::new()?;
        let addresses = free_addresses::<6>()?;
        let (apis, rafts) = addresses.split_at(3);
        let members = apis.iter().zip(rafts).enumerate();
        let members: Vec<_> = members.map(|(at, (api, raft))| format!("{}={api}/{raft}", at + 1)).collect();
        let named: Vec<&str> = members.iter().flat_map(|member| ["--member", member.as_str()]).collect();
        let bundle = site.path("bundle").display().to_string();
        let init = [&["ca", "init", &bundle][..], &named].concat();
        site.ok(&init)?;
        site.refused(&init, 2, &["is there already"])?;
        let mut controllers = Vec::new();
        for (at, (api, raft)) in apis.iter().zip(rafts).enumerate() {
            let id = (at + 1).to_string();
            let data = site.path(&format!("c{id}"));
            std::fs::create_dir(&data)?;
            std::fs::rename(site.path(&format!("bundle/controller-{id}/tls")), data.join("tls"))?;
            let data = data.display().to_string();
            let words = ["controller", "--id", &id, "--data-dir", &data, "--listen", api];
            let words = [&words[..], &["--raft-listen", raft], &named].concat();
            controllers.push(site.start(&format!("c{id}"), &words, &[])?);
        }
        let apis = apis.to_vec();
        Ok(Self { site, apis, controllers })
    }

    fn person(&self, name: &str) -> anyhow::Result<Person<'_>> {
        let home = self.site.path(name);
        std::fs::create_dir(&home)?;
        Ok(Person { founded: self, home })
    }

    fn agent(&self, name: &str, token: Option<&str>) -> anyhow::Result<Daemon> {
        let data = self.site.path(name).display().to_string();
        let controller = format!("https://{}", self.apis[1]);
        let words =
            ["agent", "--data-dir", &data, "--controller", &controller, "--name", name, "--driver", "test"];
        let token: Vec<_> = token.into_iter().map(|token| ("DUNLIN_TOKEN", token)).collect();
        self.site.start(name, &words, &token)
    }
}

impl Person<'_> {
    fn run(&self, words: &[&str], token: &str) -> anyhow::Result<Output> {
        let mut command = Command::new(fleet::binary()?);
        command.args(words).env("DUNLIN_CONFIG", self.home.join("contexts.yaml"));
        command.env_remove("DUNLIN_ENDPOINT").env("DUNLIN_TOKEN", token);
        let output = command.output().context("starting dunlin")?;
        Ok(Output {
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    fn ok(&self, words: &[&str]) -> anyhow::Result<String> {
        self.run(words, "")?.ok().with_context(|| format!("dunlin {}", words.join(" ")))
    }

    fn refused(&self, words: &[&str], token: &str, status: i32, says: &str) -> anyhow::Result<()> {
        let output = self.run(words, token)?;
        println!("$ dunlin {}\n{}", words.join(" "), output.stderr.trim_end());
        ensure!(output.status == status, "{words:?} ended with {}: {}", output.status, output.stderr);
        ensure!(output.stderr.contains(says), "{words:?} does not say {says:?}: {}", output.stderr);
        Ok(())
    }

    fn json(&self, words: &[&str]) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.ok(&[words, &["-o", "json"]].concat())?)?)
    }

    fn token(&self, role: &str) -> anyhow::Result<String> {
        Ok(self.ok(&["token", "create", "--role", role, "--ttl", "600"])?.trim().to_owned())
    }

    /// Becomes a person of this cluster with a token.
    fn join(&self, name: &str, token: &str) -> anyhow::Result<Output> {
        let apis = &self.founded.apis;
        self.run(&["context", "join", "lab", &apis[0], &apis[2], "--name", name], token)
    }

    fn wait_host(&self, name: &str, phase: &str) -> anyhow::Result<()> {
        eventually(&format!("host {name} is {phase}"), LIMIT, || {
            let host = self.json(&["host", "show", name]).map_err(|e| e.to_string())?;
            let is = host["status"]["phase"].as_str().unwrap_or_default().to_owned();
            if is == phase { Ok(()) } else { Err(format!("it is {is}")) }
        })
    }

    /// Authorities that are believed, oldest first.
    fn authorities(&self) -> anyhow::Result<Vec<String>> {
        let found = self.json(&["ca", "show"])?;
        let all = found["authorities"].as_array().context("no authorities")?;
        Ok(all.iter().filter_map(|one| one["id"].as_str().map(str::to_owned)).collect())
    }
}

/// What `curl`, or another client that is not ours, gets for a path: the status and the problem.
fn curl(api: &str, path: &str, more: &[&Path]) -> anyhow::Result<(String, String)> {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--write-out", "\n%{http_code}"]);
    for (flag, file) in ["--cacert", "--cert"].iter().zip(more) {
        command.arg(flag).arg(file);
    }
    let output = command.arg(format!("https://{api}{path}")).output().context("starting curl")?;
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = told.rsplit_once('\n').context("curl said nothing")?;
    ensure!(output.status.success(), "curl: {}", String::from_utf8_lossy(&output.stderr));
    Ok((status.to_owned(), body.to_owned()))
}

/// As the operating manual says: three controllers found a cluster, the first admin comes by the socket, another by a token, a
/// host by a token; each token is good once and for its role. A host and an admin who are revoked are out, and the host comes
/// back with a new token while its guest runs on; the authority is replaced under them; a stranger's certificate is told.
#[test]
fn people_and_hosts_come_and_are_put_out() -> anyhow::Result<()> {
    let founded = Founded::new()?;
    let (ada, bob) = (founded.person("ada")?, founded.person("bob")?);
    let data = founded.site.path("c1").display().to_string();
    eventually("ada is admin", LIMIT, || {
        let enroll = ["admin", "enroll", "--data-dir", &data, "--name", "ada", "--as", "lab"];
        ada.ok(&enroll).map_err(|e| e.to_string())
    })?;
    ensure!(ada.ok(&["context", "show"])?.contains("admin/ada"));
    refused_tokens(&founded, &ada, &bob)?;

    let token = ada.token("host")?;
    let agent = founded.agent("h1", Some(&token))?;
    ada.wait_host("h1", "Up")?;
    founded.agent("h2", Some(&token))?.ends_saying(&["the token was refused", "used before"])?;
    let sim = ["--driver", "test", "--mem-mib", "64", "--start", "--wait"];
    bob.ok(&[&["vm", "create", "web"], &sim[..]].concat())?;

    rotated(&founded, &ada, &bob)?;

    bob.ok(&["host", "revoke", "h1"])?;
    ada.wait_host("h1", "Down")?;
    eventually("the agent is told", LIMIT, || {
        let said = agent.said();
        if said.contains("dismissed this host") && said.contains("revoked") { Ok(()) } else { Err(said) }
    })?;
    agent.kill()?;
    founded.agent("h1", None)?.ends_saying(&["revoked"])?;
    let again = founded.agent("h1", Some(&ada.token("host")?))?;
    ada.wait_host("h1", "Up")?;
    ensure!(ada.json(&["vm", "show", "web"])?["status"]["host_name"] == "h1");

    ada.ok(&["ca", "revoke", "admin/bob"])?;
    eventually("bob is out", LIMIT, || {
        bob.refused(&["vm", "list"], "", UNAUTHENTICATED, "revoked").map_err(|e| e.to_string())
    })?;
    let (cert, roots) = (bob.home.join("lab.pem"), bob.home.join("lab-ca.pem"));
    let (status, problem) = curl(&founded.apis[0], "/v1/vms", &[&roots, &cert])?;
    ensure!(status == "401" && problem.contains("unauthenticated"), "{status} {problem}");
    drop(again);
    strangers(&founded, &ada)
}

/// Tokens are good once, for one role, and for who has the right authority.
fn refused_tokens(founded: &Founded, ada: &Person<'_>, bob: &Person<'_>) -> anyhow::Result<()> {
    let token = ada.token("admin")?;
    founded.agent("h0", Some(&token))?.ends_saying(&["the token was refused", "not for a host"])?;
    bob.join("bob", &token)?.ok()?;
    ensure!(bob.ok(&["context", "show"])?.contains("admin/bob"));
    let eve = founded.person("eve")?;
    let replayed = eve.join("eve", &token)?;
    ensure!(replayed.status == UNAUTHENTICATED, "{}: {}", replayed.status, replayed.stderr);
    ensure!(replayed.stderr.contains("used before"), "{}", replayed.stderr);
    // Of the right form, and of nobody.
    let digit = if token.ends_with('0') { '1' } else { '0' };
    let other = format!("{}{digit}", &token[..token.len() - 1]);
    let foreign = eve.join("eve", &other)?;
    ensure!(
        foreign.status != 0 && foreign.stderr.contains("no controller of this cluster"),
        "{}",
        foreign.stderr
    );
    let host = eve.join("eve", &ada.token("host")?)?;
    ensure!(host.status == 2 && host.stderr.contains("a token for an admin"), "{}", host.stderr);
    ensure!(!eve.home.join("lab.pem").exists(), "nothing is left of a join that was refused");
    Ok(())
}

/// Both authorities are believed until everybody has gone over, by himself: controllers, the agent over its session, people at
/// their next call.
fn rotated(founded: &Founded, ada: &Person<'_>, bob: &Person<'_>) -> anyhow::Result<()> {
    let before = ada.authorities()?;
    ada.ok(&["ca", "rotate"])?;
    eventually("the old authority is dropped", LIMIT, || {
        // What they ask does not matter: their own certificates are renewed by it.
        bob.ok(&["vm", "list"]).map_err(|e| e.to_string())?;
        let now = ada.authorities().map_err(|e| e.to_string())?;
        if now.len() == 1 && now != before { Ok(()) } else { Err(format!("{now:?}")) }
    })?;
    ada.wait_host("h1", "Up")?;
    let mut said = founded.controllers.iter().map(Daemon::said);
    ensure!(said.any(|said| said.contains("dropped an authority that nobody uses")));
    bob.ok(&["vm", "create", "after", "--driver", "test"]).map(drop)
}

/// Another cluster's admin is nobody here, nor is who shows nothing; what is public is for everybody; and a host's certificate
/// opens nothing but what hosts need.
fn strangers(founded: &Founded, ada: &Person<'_>) -> anyhow::Result<()> {
    let api = &founded.apis[2];
    let roots = ada.home.join("lab-ca.pem");
    let (status, problem) = curl(api, "/v1/vms", &[&roots])?;
    ensure!(status == "401" && problem.contains("no certificate was shown"), "{status} {problem}");
    ensure!(curl(api, "/healthz", &[&roots])?.0 == "200");
    let (status, _) = curl(api, "/v1/vms", &[&roots, &ada.home.join("lab.pem")])?;
    ensure!(status == "200", "{status}");
    let host = founded.site.path("h1/identity.pem");
    let (status, problem) = curl(api, "/v1/vms", &[&roots, &host])?;
    ensure!(status == "403" && problem.contains("forbidden"), "{status} {problem}");

    let elsewhere = Founded::new()?;
    let mallory = elsewhere.person("mallory")?;
    let data = elsewhere.site.path("c1").display().to_string();
    eventually("mallory is admin of another cluster", LIMIT, || {
        mallory
            .ok(&["admin", "enroll", "--data-dir", &data, "--name", "ada", "--as", "lab"])
            .map_err(|e| e.to_string())
    })?;
    // He finds no controller of his there; and whom he makes believe ours, ours do not believe.
    let output = mallory.run(&["-e", &format!("https://{api}"), "vm", "list"], "")?;
    ensure!(
        output.status != 0 && output.stderr.contains("no controller of this cluster"),
        "{}",
        output.stderr
    );
    std::fs::copy(&roots, mallory.home.join("lab-ca.pem"))?;
    let there = format!("https://{api}");
    mallory.refused(&["-e", &there, "vm", "list"], "", UNAUTHENTICATED, "not of this cluster's authority")?;
    // A host is no admin, whatever program it calls with.
    let eve = founded.person("h1-as-eve")?;
    std::fs::copy(&host, eve.home.join("lab.pem"))?;
    std::fs::copy(&roots, eve.home.join("lab-ca.pem"))?;
    eve.ok(&["context", "set", "lab", &there])?;
    eve.refused(&["vm", "list"], "", FORBIDDEN, "")
}
