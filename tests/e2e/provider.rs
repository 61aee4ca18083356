//! Logging in by an identity provider, from the CLI to the bindings: a real issuer on the loopback, a browser that follows links.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use dunlin_tests::fleet;

use crate::issuer::{self, Issuer};
use crate::site::Site;

/// Logs in at the provider as whoever it says; what the CLI said in the end.
fn login(site: &Site, who: &str, print: &str) -> anyhow::Result<(bool, String)> {
    let mut command = Command::new(fleet::binary()?);
    command.args(["login", "--controller", &site.api, "--authority", print, "--as", "lab"]);
    command.env("DUNLIN_CONFIG", site.path(who).join("contexts.yaml")).env_remove("DUNLIN_ENDPOINT");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("starting dunlin")?;
    let mut said = BufReader::new(child.stderr.take().context("what it says")?);
    let mut link = String::new();
    while !link.starts_with("http://") {
        link.clear();
        if said.read_line(&mut link)? == 0 {
            break;
        }
    }
    if !link.is_empty() {
        ensure!(issuer::browse(link.trim())?.contains("go back to the terminal"), "the browser is told so");
    }
    let output = child.wait_with_output()?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    said.read_to_string(&mut text)?;
    Ok((output.status.success(), text))
}

fn as_user(site: &Site, who: &str, words: &[&str]) -> anyhow::Result<(i32, String)> {
    let mut command = Command::new(fleet::binary()?);
    command
        .args(words)
        .env("DUNLIN_CONFIG", site.path(who).join("contexts.yaml"))
        .env_remove("DUNLIN_ENDPOINT");
    let output = command.stdin(Stdio::null()).output()?;
    let text = [output.stdout, output.stderr].concat();
    Ok((output.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned()))
}

/// Whoever the provider vouches for is a user with the groups it names, and may what is bound to them; groups that it names
/// no more are gone with the next login; a user of the cluster's own, or another person, of the same name is not taken over.
#[test]
fn the_identity_provider_vouches() -> anyhow::Result<()> {
    let (site, issuer) = (Site::new()?, Issuer::start()?);
    let data = site.path("controller");
    let words = ["--oidc-issuer", issuer.url.as_str(), "--oidc-client-id", issuer::CLIENT];
    let controller = site.controller_with(&data, &words)?;
    site.wait_answering()?;
    site.ok(&["binding", "create", "web-looks", "--role", "viewer", "--group", "web-team"])?;
    let print =
        site.json(&["ca", "show"])?["authorities"][0]["fingerprint"].as_str().context("a print")?.to_owned();

    issuer.person("7", "Ada.L", &["web-team"]);
    let (done, said) = login(&site, "ada", &print)?;
    ensure!(done && said.contains("logged in as ada-l until"), "{said}");
    let (_, me) = as_user(&site, "ada", &["whoami"])?;
    ensure!(me.contains("in web-team") && me.contains("may viewer in the whole fleet"), "{me}");
    ensure!(as_user(&site, "ada", &["vm", "list"])?.0 == 0, "a viewer looks");
    let (status, said) = as_user(&site, "ada", &["vm", "create", "w1", "--driver", "test"])?;
    ensure!(status == 16 && said.contains("ada-l may not"), "{said}");

    // What the provider takes away is gone for the session that is open too.
    issuer.person("7", "Ada.L", &["others"]);
    ensure!(login(&site, "again", &print)?.0, "she logs in again");
    ensure!(as_user(&site, "ada", &["vm", "list"])?.0 == 16, "nothing is bound to her now");

    issuer.person("8", "ada-l", &["web-team"]);
    let (done, said) = login(&site, "mallory", &print)?;
    ensure!(!done && said.contains("not the one this identity provider vouches for"), "{said}");
    let lines = site.ok(&["audit", "list", "--verb", "login", "-o", "json"])?;
    let outcomes: Vec<_> = lines.lines().map(|line| line.contains("\"outcome\":\"ok\"")).collect();
    ensure!(outcomes == [true, true, false], "{lines}");
    drop(controller);
    Ok(())
}
