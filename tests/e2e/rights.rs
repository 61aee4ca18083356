//! Users, roles, quotas and the audit log, by the verbs an administrator types. Simulated guests, one controller.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use dunlin_tests::{Output, fleet};

use crate::site::Site;

/// What is planted, and must not be read anywhere.
const PASSWORD: &str = "planted-password-42";

/// Types `words` as somebody with a folder of contexts of his own, and `input` where a password is asked for.
fn typed(site: &Site, who: &str, words: &[&str], input: &str) -> anyhow::Result<Output> {
    let mut command = Command::new(fleet::binary()?);
    command.args(words).env_remove("DUNLIN_ENDPOINT").env_remove("DUNLIN_API_TOKEN");
    command.env("DUNLIN_CONFIG", contexts(site, who));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("starting dunlin")?;
    // A command that ends without reading its input closes the pipe; what it said is what counts.
    let _ = child.stdin.take().context("its input")?.write_all(format!("{input}\n").as_bytes());
    let output = child.wait_with_output()?;
    Ok(Output {
        status: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

fn contexts(site: &Site, who: &str) -> std::path::PathBuf {
    site.path(who).join("contexts.yaml")
}

fn ok(site: &Site, who: &str, words: &[&str]) -> anyhow::Result<String> {
    typed(site, who, words, PASSWORD)?.ok().with_context(|| format!("{who}: dunlin {}", words.join(" ")))
}

fn refused(site: &Site, who: &str, words: &[&str], status: i32, says: &str) -> anyhow::Result<()> {
    let output = typed(site, who, words, PASSWORD)?;
    ensure!(output.status == status, "{who} {words:?} ended with {}: {}", output.status, output.stderr);
    ensure!(output.stderr.contains(says), "{who} {words:?} does not say {says:?}: {}", output.stderr);
    Ok(())
}

/// The first users are made over the local socket, which needs no password; they log in from elsewhere, knowing the fingerprint of
/// the cluster's authority and their passwords; a viewer cannot write, a project has its quota, a token reaches no further than
/// it was made to, and the audit log has it all, without a password, and shows when somebody has changed it.
#[test]
fn users_quotas_and_the_audit_log() -> anyhow::Result<()> {
    let site = Site::new()?;
    let data = site.path("controller");
    let controller = site.controller(&data)?;
    site.wait_answering()?;
    let socket = format!("unix:{}", data.join("admin.sock").display());
    let near = |words: &[&str]| ok(&site, "founder", &[&["-e", &socket], words].concat());
    for words in [
        &["user", "create", "ada", "--display-name", "Ada"][..],
        &["user", "create", "eve"],
        &["binding", "create", "admins", "--role", "admin", "--user", "ada"],
        &["project", "create", "web", "--vms", "1"],
        &["binding", "create", "eve-looks", "--role", "viewer", "--user", "eve"],
        &["role", "create", "starter", "--allow", "operate:Vm"],
    ] {
        near(words)?;
    }
    ensure!(near(&["whoami"])?.contains("admin/local-socket, by socket"), "whoever holds the machine");
    let shown: serde_json::Value = serde_json::from_str(&near(&["ca", "show", "-o", "json"])?)?;
    logins(&site, shown["authorities"][0]["fingerprint"].as_str().context("a fingerprint")?)?;
    let mode = std::fs::metadata(contexts(&site, "ada"))?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "the context file has mode {mode:o}");
    ensure!(ok(&site, "eve", &["whoami"])?.contains("may viewer in the whole fleet"), "eve is a viewer");

    let create = ["vm", "create", "w1", "--driver", "test", "--project", "web"];
    refused(&site, "eve", &create, 16, "the verb create on Vm in project web [forbidden] (correlation ")?;
    refused(&site, "eve", &["audit", "list"], 16, "the verb audit on Cluster")?;
    refused(&site, "eve", &["user", "passwd", "ada"], 3, "not for eve to see")?;
    ok(&site, "ada", &create)?;
    let more = ["vm", "create", "w2", "--driver", "test", "--project", "web"];
    refused(&site, "ada", &more, 14, "project web may have 1 vms, has 1, and would have 2 [quota_exceeded]")?;
    ensure!(ok(&site, "ada", &["project", "list"])?.contains("1/1"), "its use is shown");
    ok(&site, "ada", &["project", "set", "web", "--vms", "none"])?;
    ok(&site, "ada", &more)?;

    let token = ok(&site, "ada", &["api-token", "create", "ci", "--role", "starter", "--project", "web"])?;
    let with_token = |words: &[&str]| -> anyhow::Result<Output> {
        let mut command = Command::new(fleet::binary()?);
        command
            .args(words)
            .env("DUNLIN_API_TOKEN", token.trim())
            .env("DUNLIN_CONFIG", contexts(&site, "eve"));
        let output = command.stdin(Stdio::null()).output()?;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok(Output { status: output.status.code().unwrap_or(-1), stdout: String::new(), stderr })
    };
    ensure!(with_token(&["vm", "delete", "w1"])?.status == 16, "it may not delete");
    ok(&site, "ada", &["api-token", "delete", "ci"])?;
    ensure!(with_token(&["vm", "list"])?.status == 7, "it was revoked");
    ok(&site, "ada", &["user", "disable", "eve"])?;
    refused(&site, "eve", &["vm", "list"], 7, "disabled")?;
    ok(&site, "ada", &["logout"])?;
    refused(&site, "ada", &["vm", "list"], 7, "log in first")?;
    ok(&site, "ada", &["login", "ada"])?;
    audit(&site, &data, &[token.trim()])?;
    ensure!(
        !controller.said().contains(PASSWORD) && !controller.said().contains(token.trim()),
        "it is in the log"
    );
    Ok(())
}

/// By the fingerprint of the authority and a password, and not without the right ones.
fn logins(site: &Site, print: &str) -> anyhow::Result<()> {
    let login = |who: &str, print: &str, password: &str| {
        let words = ["login", who, "--controller", &site.api, "--authority", print, "--as", "lab"];
        typed(site, who, &words, password)
    };
    let foreign = login("ada", &"0".repeat(print.len()), PASSWORD)?;
    ensure!(foreign.status != 0 && foreign.stdout.is_empty(), "a password goes to nobody else");
    let wrong = login("ada", print, "wrong-password")?;
    ensure!(
        wrong.status == 7 && wrong.stderr.contains("the user or the password is wrong"),
        "{}",
        wrong.stderr
    );
    refused(site, "ada", &["-e", &site.api, "vm", "list"], 7, "you are nobody")?;
    ensure!(login("ada", print, PASSWORD)?.ok()?.contains("logged in as ada until"), "it says so");
    login("eve", print, PASSWORD)?.ok()?;
    Ok(())
}

fn audit(site: &Site, data: &std::path::Path, secrets: &[&str]) -> anyhow::Result<()> {
    let lines = ok(site, "ada", &["audit", "list", "--user", "eve", "--outcome", "forbidden", "-o", "json"])?;
    let verbs: Vec<String> = lines
        .lines()
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line)
                .map(|line| line["verb"].as_str().unwrap_or("").to_owned())
        })
        .collect::<Result<_, _>>()?;
    ensure!(verbs == ["create", "audit"], "{lines}");
    let exported = site.path("audit.jsonl");
    ok(site, "ada", &["audit", "export", &exported.display().to_string()])?;
    let text = std::fs::read_to_string(&exported)?;
    ensure!(text.contains("\"quota_exceeded\"") && text.contains("\"verb\":\"login\""), "{text}");
    let events = ok(site, "ada", &["event", "list", "-o", "json"])?;
    let users = ok(site, "ada", &["user", "list", "-o", "yaml"])?;
    for secret in secrets.iter().chain([&PASSWORD, &"argon2id"]) {
        ensure!(![&text, &events, &users].iter().any(|text| text.contains(*secret)), "{secret} is seen");
    }
    ensure!(ok(site, "ada", &["audit", "verify"])?.contains("all as they were written"), "it is whole");
    let files = std::fs::read_dir(data.join("audit"))?.flatten().map(|entry| entry.path());
    let file =
        files.into_iter().find(|path| path.extension().is_some_and(|e| e == "jsonl")).context("a file")?;
    let forged = std::fs::read_to_string(&file)?.replacen("\"eve\"", "\"ada\"", 1);
    std::fs::write(&file, forged)?;
    refused(site, "ada", &["audit", "verify"], 1, "not as it was written")
}
