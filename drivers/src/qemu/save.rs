//! Memory to a file and back. The file is complete or it is not there.
//!
//! QEMU 7.2 has no `file:` address and a shell must not see a path, so the open file is handed over.

use std::fs::File;
use std::path::{Path, PathBuf};

use dunlin_model::observed::EndCause;
use serde_json::json;

use super::incoming::set_capabilities;
use super::owner::{Answer, Fault, Owner, Reply};
use super::qmp::Qmp;
use super::record::Saving;

/// A save under way.
#[derive(Debug, Default)]
pub(super) struct Save {
    waiting: Vec<Reply>,
}

fn part(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".part");
    name.into()
}

fn failed(verb: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Fault {
    move |source| Fault::File { verb, path: path.to_owned(), source }
}

/// Makes the written file durable under its name. Its length, bytes.
fn seal(file: &Path) -> Result<u64, Fault> {
    let written = part(file);
    if !written.exists()
        && let Ok(found) = std::fs::metadata(file)
    {
        // Sealed before, by an agent that died before it could say so. A save begins by removing an older file.
        return Ok(found.len());
    }
    let seal = || {
        let open = File::open(&written)?;
        open.sync_all()?;
        std::fs::rename(&written, file)?;
        File::open(file.parent().unwrap_or(Path::new("/")))?.sync_all()?;
        Ok(open.metadata()?.len())
    };
    seal().map_err(failed("cannot make durable", file))
}

/// Begins to read memory from `file`.
pub(super) async fn restore(qmp: &Qmp, file: &Path) -> Result<(), Fault> {
    set_capabilities(qmp, false).await?;
    let open = File::open(file).map_err(failed("cannot open", file))?;
    qmp.give("restore", open.into()).await?;
    qmp.run("migrate-incoming", json!({ "uri": "fd:restore" })).await?;
    Ok(())
}

impl Owner {
    /// Begins a save, or joins the one of the same file. The reply comes when it is done.
    pub(super) async fn save(&mut self, file: PathBuf, reply: Reply) {
        if self.record.ending == Some(EndCause::Told)
            && self.record.saving.as_ref().is_some_and(|saving| saving.file == file)
            && let Ok(sealed) = std::fs::metadata(&file)
        {
            // Sealed already; its process is on its way out.
            return self.at_end.push((reply, Answer::Bytes(sealed.len())));
        }
        let under_way = self.record.saving.as_ref().map(|saving| saving.file == file);
        let result = match (under_way, &mut self.save) {
            (Some(true), Some(save)) => return save.waiting.push(reply),
            (Some(_), _) => Err(Fault::Busy("another save is under way".to_owned())),
            (None, _) => self.begin_save(&file).await,
        };
        match (result, &mut self.save) {
            (Ok(()), Some(save)) => save.waiting.push(reply),
            (Ok(()), None) => drop(reply),
            // The one who asked may have given up.
            (Err(fault), _) => drop(reply.send(Err(fault.of("save")))),
        }
        self.publish();
    }

    async fn begin_save(&mut self, file: &Path) -> Result<(), Fault> {
        if self.sending.as_ref().is_some_and(|sending| sending.is_under_way() || sending.has_left()) {
            return Err(Fault::Busy("it is being sent to another host".to_owned()));
        }
        if self.record.incoming && !self.record.ever_ran {
            return Err(Fault::Refused("it has not arrived yet".to_owned()));
        }
        let written = part(file);
        match std::fs::remove_file(file) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(failed("cannot replace", file)(e));
            }
            _ => {}
        }
        let open = File::create(&written).map_err(failed("cannot create", &written))?;
        self.record.saving = Some(Saving { file: file.to_owned(), was_running: self.running });
        self.store(false).await?;
        self.save = Some(Save::default());
        let begun = self.write_memory(open).await;
        if let Err(fault) = begun {
            self.break_off().await?;
            return Err(fault);
        }
        Ok(())
    }

    async fn write_memory(&mut self, file: File) -> Result<(), Fault> {
        self.qmp.run("stop", json!({})).await?;
        self.running = false;
        set_capabilities(&self.qmp, false).await?;
        self.qmp.run("migrate-set-parameters", json!({ "max-bandwidth": 0 })).await?;
        self.qmp.give("save", file.into()).await?;
        self.qmp.run("migrate", json!({ "uri": "fd:save" })).await?;
        Ok(())
    }

    /// After a restart of the agent: takes up what the record says.
    pub(super) fn look_at_save(&mut self) {
        if self.record.saving.is_some() && self.save.is_none() {
            self.save = Some(Save::default());
        }
    }

    pub(super) async fn advance_save(&mut self) -> Result<(), Fault> {
        let answer = self.qmp.run("query-migrate", json!({})).await?;
        let why = match answer["status"].as_str() {
            Some("setup" | "active" | "device" | "cancelling" | "wait-unplug") => return Ok(()),
            Some("completed") => match self.complete_save().await {
                Ok(()) => return Ok(()),
                Err(fault) => super::owner::chain(&fault),
            },
            // Without a status nothing was begun: the agent died in between.
            status => answer["error-desc"].as_str().or(status).unwrap_or("it was not begun").to_owned(),
        };
        let waiting = self.save.take().map(|save| save.waiting).unwrap_or_default();
        let resumed = self.break_off().await;
        for reply in waiting {
            // The one who asked may have given up.
            let _ = reply.send(Err(Fault::Refused(format!("saving failed: {why}")).of("save")));
        }
        self.publish();
        resumed
    }

    async fn complete_save(&mut self) -> Result<(), Fault> {
        let Some(Saving { file, .. }) = self.record.saving.clone() else { return Ok(()) };
        let bytes = tokio::task::spawn_blocking(move || seal(&file)).await.expect("seal does not panic")?;
        let waiting = self.save.take().map(|save| save.waiting).unwrap_or_default();
        self.at_end.extend(waiting.into_iter().map(|reply| (reply, Answer::Bytes(bytes))));
        self.end(EndCause::Told).await
    }

    /// The guest goes on as it was, and the file is gone.
    async fn break_off(&mut self) -> Result<(), Fault> {
        self.save = None;
        let Some(Saving { file, was_running }) = self.record.saving.take() else { return Ok(()) };
        // Not there when the agent died before it was made.
        let _ = std::fs::remove_file(part(&file));
        self.store(false).await?;
        if was_running {
            self.qmp.run("cont", json!({})).await?;
            self.running = true;
        }
        Ok(())
    }
}
