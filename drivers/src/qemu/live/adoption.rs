//! What a new agent finds of an old one: guests as they are, ends as they were, and nothing half-made.

use dunlin_model::observed::EndCause;

use super::{Fleet, close, is_alive, kill};
use crate::hypervisor::{Hypervisor, Run};
use crate::qemu::record::{RECORD_VERSION, Record, STALE};
use crate::run_dir::RunDir;

/// A guest does not notice that its agent is gone, and the next agent has it back as it is: same process, same
/// console, same verbs; what happened in between is found out.
#[tokio::test(flavor = "multi_thread")]
async fn guests_outlive_the_driver() {
    let fleet = Fleet::new();
    let first = fleet.ticking("a").await;
    let before = fleet.guest(&first).await;
    close(first).await;
    fleet.assert_goes_on("a").await;

    let second = fleet.driver("a");
    let after = fleet.guest(&second).await;
    assert_eq!((after.pid, &after.run, after.ever_ran), (before.pid, &Run::Running, true));
    fleet.say(&second, "ping x").await;
    fleet.wait_serial("a", "pong x").await;
    second.pause(fleet.vm).await.expect("pause");
    close(second).await;
    let third = fleet.driver("a");
    assert_eq!(fleet.guest(&third).await.run, Run::Paused);
    third.resume(fleet.vm).await.expect("resume");
    let (console, _) = third.console(fleet.vm).expect("console");
    third.reboot_on_shutdown(fleet.vm, true).await.expect("flag");
    close(third).await;

    // It powers off with nobody there: restarted by the next agent, because that was wanted.
    {
        use tokio::io::AsyncWriteExt;
        let mut stream = tokio::net::UnixStream::connect(&console).await.expect("console");
        stream.write_all(b"poweroff\n").await.expect("write");
        fleet.wait_serial("a", "bye poweroff").await;
    }
    let fourth = fleet.driver("a");
    assert_eq!(fleet.guest(&fourth).await.pid, before.pid);
    fleet.wait_serial("a", "boot 2 ").await;
    fleet.assert_goes_on("a").await;
    close(fourth).await;
    // And again, this time for good.
    {
        use tokio::io::AsyncWriteExt;
        let mut stream = tokio::net::UnixStream::connect(&console).await.expect("console");
        stream.write_all(b"poweroff\n").await.expect("write");
        let twice = async {
            while std::fs::read_to_string(fleet.serial("a")).expect("log").matches("bye poweroff").count() < 2
            {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(super::PATIENCE, twice).await.expect("powers off again");
    }
    let fifth = fleet.driver("a");
    fifth.list().await.expect("adopts");
    let ended = fleet.until_ended(&fifth).await;
    assert!(matches!(ended.run, Run::Ended(EndCause::GuestShutdown, _)), "{ended:?}");
    close(fifth).await;
    let sixth = fleet.driver("a");
    assert_eq!(fleet.guest(&sixth).await.run, ended.run, "an end is remembered until it is forgotten");
    fleet.end(&sixth).await;
}

/// Whatever an agent that was killed leaves behind is found: dead processes as dead, half-made ones not at all.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_agent_leaves_is_found() {
    let fleet = Fleet::new();
    let first = fleet.driver("a");
    let mut launch = fleet.launch(&fleet.disk("a"), false);
    launch.paused = true;
    let guest = first.start(launch.clone()).await.expect("start");
    let pid = guest.pid.expect("pid");
    close(first).await;

    // Killed between the fork and the note of the process: only the lock and the command line tell.
    let dir = RunDir::new(&fleet.path("a"), fleet.vm);
    let whole = dir.load::<Record>(RECORD_VERSION).expect("load").expect("record");
    let mut intent = whole.clone();
    (intent.process, intent.started) = (None, false);
    dir.store(&intent, false).expect("store");
    assert!(dir.lock().expect("lock").is_none(), "the process holds the lock");
    let second = fleet.driver("a");
    assert!(second.list().await.expect("list").is_empty(), "a half-made guest was never there");
    assert!(!is_alive(pid));
    assert!(!dir.file("guest.json").exists());

    // Killed after the intent: no process at all. And a folder without a record.
    for record in [Some(&intent), None] {
        dir.prepare(STALE).expect("prepare");
        record.into_iter().for_each(|record| dir.store(record, false).expect("store"));
        let third = fleet.driver("a");
        assert!(third.list().await.expect("list").is_empty());
        let guest = third.start(launch.clone()).await.expect("the start is repeated");
        // Killed with its process: it was there, and has died without ever having run.
        close(third).await;
        kill(guest.pid.expect("pid"));
        let fourth = fleet.driver("a");
        let guest = fleet.guest(&fourth).await;
        assert!(matches!(guest.run, Run::Ended(EndCause::Died, _)) && !guest.ever_ran, "{guest:?}");
        fleet.end(&fourth).await;
    }

    // The pid belongs to somebody else by now: ours is gone, and the stranger is left alone.
    let fifth = fleet.driver("a");
    let guest = fifth.start(launch).await.expect("start");
    close(fifth).await;
    kill(guest.pid.expect("pid"));
    let mut stranger = std::process::Command::new("sleep").arg("1000").spawn().expect("spawn");
    let mut record = dir.load::<Record>(RECORD_VERSION).expect("load").expect("record");
    record.process.as_mut().expect("noted").pid = stranger.id();
    dir.store(&record, false).expect("store");
    let sixth = fleet.driver("a");
    let guest = fleet.guest(&sixth).await;
    assert!(matches!(guest.run, Run::Ended(EndCause::Died, _)), "{guest:?}");
    sixth.destroy(fleet.vm).await.expect("destroy");
    assert!(is_alive(stranger.id()), "a process that only has the pid is not ours to kill");
    stranger.kill().expect("kill");
    stranger.wait().expect("wait");
    fleet.end(&sixth).await;
}
