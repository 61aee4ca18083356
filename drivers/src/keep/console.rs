//! The console's unix socket: carries what people type into the guest, and what the guest says to them.
//!
//! Served by the agent, not by the guest's process: while no agent is there nobody can type, and the guest runs on; what
//! it says is kept in its log all the same, by the process itself.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::termios::{LocalModes, tcgetattr};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::backend::{ConsoleInput, Fault, Place};

/// The socket's name in the guest's folder.
pub(super) const SOCKET: &str = "console.sock";
/// Conversations with one guest at a time; the next one waits until one of them ends.
const CLIENTS_MAX: usize = 8;
/// Bytes carried at a time: a serial console is slow.
const CHUNK_BYTES: usize = 4096;
/// Between two looks at a log that has nothing new, while somebody watches: quicker than people type.
const LOOK_EVERY: Duration = Duration::from_millis(30);

/// How long a program may take to set its terminal up.
const SET_UP_DEADLINE: Duration = Duration::from_secs(10);
/// Between two looks whether it has.
const SET_UP_EVERY: Duration = Duration::from_millis(5);

/// Serves the socket until the tasks are dropped.
pub(super) fn serve(place: &Place, input: ConsoleInput) -> Result<JoinSet<()>, Fault> {
    let path = place.socket(SOCKET);
    // Left by an earlier agent; nobody answers it any more.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).map_err(|e| Fault::file("listen on", &path, &e))?;
    let log = place.dir.serial_log();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut clients = JoinSet::new();
        loop {
            if clients.len() >= CLIENTS_MAX {
                clients.join_next().await;
            }
            while clients.try_join_next().is_some() {}
            let Ok((client, _)) = listener.accept().await else {
                tokio::time::sleep(LOOK_EVERY).await;
                continue;
            };
            let (input, log) = (input.clone(), log.clone());
            clients.spawn(async move {
                let carried = match input {
                    ConsoleInput::Pipe(pipe) => through_pipe(client, &pipe, log).await,
                    ConsoleInput::Program(words) => through_program(client, words).await,
                };
                if let Err(error) = carried {
                    tracing::debug!(%error, "a console has ended");
                }
            });
        }
    });
    Ok(tasks)
}

/// Types into the pipe, and reads the log from where it is now.
async fn through_pipe(client: UnixStream, path: &Path, log: PathBuf) -> io::Result<()> {
    let mut typed = pipe::OpenOptions::new().read_write(true).open_sender(path)?;
    let mut said = File::open(log).await?;
    said.seek(io::SeekFrom::End(0)).await?;
    let (mut from, mut to) = client.into_split();
    let outwards = async {
        let mut bytes = [0; CHUNK_BYTES];
        loop {
            match said.read(&mut bytes).await? {
                0 => tokio::time::sleep(LOOK_EVERY).await,
                count => to.write_all(&bytes[..count]).await?,
            }
        }
    };
    tokio::select! {
        done = outwards => done,
        done = tokio::io::copy(&mut from, &mut typed) => done.map(drop),
    }
}

/// Runs the program on a terminal of ours, which carries both ways until either end is gone.
async fn through_program(client: UnixStream, mut words: VecDeque<String>) -> io::Result<()> {
    let (ours, theirs) = terminal()?;
    let program = words.pop_front().ok_or_else(|| io::Error::other("no program"))?;
    let mut command = tokio::process::Command::new(program);
    command.args(words).stdin(theirs.try_clone()?).stdout(theirs.try_clone()?).stderr(theirs);
    let mut child = command.kill_on_drop(true).spawn()?;
    // The command holds their end of the terminal; without it the end would never be seen.
    drop(command);
    // It throws away what was typed before it has set the terminal up as it wants it: byte by byte.
    let is_set = || Ok::<_, io::Error>(!tcgetattr(&ours)?.local_modes.contains(LocalModes::ICANON));
    let deadline = Instant::now() + SET_UP_DEADLINE;
    while !is_set()? && Instant::now() < deadline && child.try_wait()?.is_none() {
        tokio::time::sleep(SET_UP_EVERY).await;
    }
    let mut said = pipe::Receiver::from_owned_fd_unchecked(ours.try_clone()?)?;
    let mut typed = pipe::Sender::from_owned_fd_unchecked(ours)?;
    let (mut from, mut to) = client.into_split();
    let carried = tokio::select! {
        done = tokio::io::copy(&mut said, &mut to) => done.map(drop),
        done = tokio::io::copy(&mut from, &mut typed) => done.map(drop),
        ended = child.wait() => ended.map(drop),
    };
    let _ = child.kill().await;
    carried
}

/// Both ends of a new terminal, ours not blocking.
fn terminal() -> io::Result<(OwnedFd, OwnedFd)> {
    let (mut ours, mut theirs) = (0, 0);
    // SAFETY: openpty writes two descriptors to the places given and reads nothing through the null pointers, which it
    // takes for "no name, no settings, no size"; source: openpty(3).
    let made = unsafe {
        libc::openpty(
            &raw mut ours,
            &raw mut theirs,
            std::ptr::null_mut(),
            std::ptr::null(),
            std::ptr::null(),
        )
    };
    if made != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: openpty has just made both descriptors, and nobody else knows of them.
    let (ours, theirs) = unsafe { (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) };
    for end in [&ours, &theirs] {
        rustix::io::fcntl_setfd(end, rustix::io::FdFlags::CLOEXEC)?;
    }
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((ours, theirs))
}
