use dunlin_drivers::hypervisor::{Hypervisor, Launch, LaunchMode};
use dunlin_drivers::simulated::Injection;
use dunlin_model::TaskId;
use dunlin_model::desired::ActOrder;
use dunlin_model::observed::EndCause;
use dunlin_model::task::{Act, TaskPhase};
use dunlin_model::vm::{Disk, DiskBus, DiskFormat, DiskSource};
use dunlin_proto::v1;

use super::*;

/// A guest is started once, follows its power, outlives its agent, ends as it ends, and is not started again under an
/// incarnation that has ended; a stopped one leaves its disks, a discarded one nothing.
#[tokio::test]
async fn a_life() {
    let fake = Fake::start().await;
    let mut house = House::new("n1", &[&fake]);
    house.start().await;
    let (id, one) = (house.id(&fake).await, vm(1));
    let with_disk = |incarnation, role| {
        let mut told = told(one, incarnation, role);
        let (bus, format, source) = (DiskBus::Virtio, DiskFormat::Raw, DiskSource::EmptyMib(4));
        let name = "vda".parse().unwrap();
        told.spec.disks = vec![Disk { name, bus, format, source, shared: false, read_only: false }];
        told
    };

    fake.tell(id, 1, &[with_disk(1, running())], &[]).await;
    assert!(fake.sees("running", id, one, runs_as(1)).await.has_volumes);
    let content = house.sim().memory(one).unwrap().content;
    fake.tell(id, 2, &[with_disk(1, paused())], &[]).await;
    fake.sees("paused", id, one, |seen| seen.process == Process::Paused).await;
    house.restart(&fake).await;
    fake.until("a complete report", |state| (state.hosts.get(&id)?.completes == 2).then_some(())).await;
    fake.sees("still paused", id, one, |seen| seen.process == Process::Paused).await;
    fake.tell(id, 3, &[with_disk(1, running())], &[]).await;
    fake.sees("running again", id, one, runs_as(1)).await;
    assert_eq!(house.sim().memory(one).unwrap().content, content, "it was started afresh");

    house.sim().inject(one, Injection::PowerOff).unwrap();
    let seen = fake.sees("its end", id, one, has_ended).await;
    assert!(matches!(seen.process, Process::Ended { cause: EndCause::GuestShutdown, ever_ran: true, .. }));
    fake.tell(id, 4, &[with_disk(1, running())], &[]).await;
    fake.tell(id, 5, &[with_disk(2, running())], &[]).await;
    fake.sees("running under the next incarnation", id, one, runs_as(2)).await;
    assert_ne!(house.sim().memory(one).unwrap().content, content);

    fake.tell(id, 6, &[with_disk(2, Role::Hold)], &[]).await;
    let seen = fake.sees("stopped", id, one, |seen| seen.process == Process::None).await;
    assert!(seen.has_volumes);
    fake.tell(id, 7, &[with_disk(2, Role::Discard { elsewhere: false })], &[]).await;
    fake.sees_gone(id, one).await;
    assert!(!house.config.data_dir.join("volumes").join(one.to_string()).exists());
    // Asked again, it says so again.
    fake.with(|state| state.hosts.get_mut(&id).unwrap().gone.clear());
    fake.tell(id, 8, &[], &[]).await;
    fake.tell(id, 9, &[with_disk(2, Role::Discard { elsewhere: false })], &[]).await;
    fake.sees_gone(id, one).await;
}

/// The agent may be killed at any moment of a start: afterwards the guest runs, once, and nothing else is there.
#[tokio::test]
async fn killed_while_it_starts_guests() {
    let fake = Fake::start().await;
    let mut house = House::new("n1", &[&fake]);
    house.start().await;
    let id = house.id(&fake).await;
    let vms: Vec<_> = (1..=20).map(vm).collect();
    for round in 1..=6 {
        let all: Vec<_> = vms.iter().map(|vm| told(*vm, round, running())).collect();
        fake.tell(id, round, &all, &[]).await;
        // Each round is cut off a little further on.
        for _ in 0..round * round * 40 {
            tokio::task::yield_now().await;
        }
        house.restart(&fake).await;
        let complete = |state: &mut fake::State| {
            (state.hosts.get(&id)?.completes == u32::try_from(round).unwrap() + 1).then_some(())
        };
        fake.until("a complete report", complete).await;
    }
    let all: Vec<_> = vms.iter().map(|vm| told(*vm, 6, running())).collect();
    fake.tell(id, 6, &all, &[]).await;
    for one in &vms {
        fake.sees("running", id, *one, runs_as(6)).await;
    }
    let guests = house.sim().list().await.unwrap();
    assert_eq!(guests.len(), vms.len());
    assert!(guests.iter().all(|guest| guest.incarnation == Incarnation(6)), "{guests:#?}");
}

/// Sets of an older generation and assignments of an older incarnation are refused, after a restart too; what a set
/// does not name is reported and left alone until Discard is said.
#[tokio::test]
async fn fences_and_strays() {
    let fake = Fake::start().await;
    let mut house = House::new("n1", &[&fake]);
    house.start().await;
    let (id, one, stray) = (house.id(&fake).await, vm(1), vm(2));
    fake.tell(id, 10, &[told(one, 3, running())], &[]).await;
    fake.sees("running", id, one, runs_as(3)).await;

    let ours = told(stray, 7, running());
    let launch = Launch {
        vm: stray,
        name: ours.name.clone(),
        incarnation: ours.incarnation,
        spec: ours.spec.clone(),
        disks: Vec::new(),
        kernel: None,
        initrd: None,
        nics: Vec::new(),
        layout: None,
        mode: LaunchMode::Boot,
        paused: false,
    };
    house.sim().start(launch).await.unwrap();
    fake.sees("the stray", id, stray, runs_as(7)).await;

    // A leader of the past: its whole set is refused, and nothing of it is done.
    fake.tell(id, 9, &[told(one, 3, Role::Hold), told(stray, 7, Role::Discard { elsewhere: false })], &[])
        .await;
    fake.tell(id, 11, &[told(one, 2, Role::Hold)], &[]).await;
    fake.until("taken in", |state| (state.hosts.get(&id)?.generation == 11).then_some(())).await;
    house.restart(&fake).await;
    let resumed = |state: &mut fake::State| {
        let heard = state.hosts.get(&id)?;
        (heard.completes == 2).then_some(heard.resumed_at)
    };
    assert!(fake.until("a complete report", resumed).await >= 10);
    fake.tell(
        id,
        9,
        &[
            told(one, 3, Role::Discard { elsewhere: false }),
            told(stray, 7, Role::Discard { elsewhere: false }),
        ],
        &[],
    )
    .await;
    fake.tell(id, 12, &[told(one, 2, running()), told(stray, 6, Role::Discard { elsewhere: false })], &[])
        .await;
    fake.until("taken in", |state| (state.hosts.get(&id)?.generation == 12).then_some(())).await;
    fake.sees("the guest", id, one, runs_as(3)).await;
    fake.sees("the stray", id, stray, runs_as(7)).await;
    assert_eq!(house.sim().list().await.unwrap().len(), 2);

    fake.tell(id, 13, &[told(one, 3, running()), told(stray, 7, Role::Discard { elsewhere: false })], &[])
        .await;
    fake.sees_gone(id, stray).await;
    fake.sees("the guest", id, one, runs_as(3)).await;
    let left = house.sim().list().await.unwrap();
    assert_eq!(left.iter().map(|guest| guest.vm).collect::<Vec<_>>(), [one]);
}

/// A start that the hypervisor refuses, a network nobody knows and a disk that is not there are reported in words, once
/// per incarnation, and the next incarnation is tried afresh.
#[tokio::test]
async fn refused_starts() {
    let fake = Fake::start().await;
    let mut house = House::new("n1", &[&fake]);
    house.start().await;
    let (id, one, two) = (house.id(&fake).await, vm(1), vm(2));
    let mut huge = told(one, 1, running());
    huge.spec.mem_mib = 4 << 20;
    let mut foreign = told(two, 1, running());
    foreign.spec.driver = DriverName::Qemu;
    fake.tell(id, 1, &[huge.clone(), foreign], &[]).await;
    for vm in [one, two] {
        let seen = fake.sees("refused", id, vm, has_ended).await;
        let Process::Ended { cause, message, ever_ran } = seen.process else { unreachable!() };
        assert_eq!((cause, ever_ran), (EndCause::Refused, false), "{message}");
        assert!(message.contains(if vm == one { "MiB" } else { "driver qemu is not enabled" }), "{message}");
    }
    house.restart(&fake).await;
    fake.tell(id, 2, &[huge.clone()], &[]).await;
    fake.until("a complete report", |state| (state.hosts.get(&id)?.completes == 2).then_some(())).await;
    fake.sees("still refused", id, one, has_ended).await;
    assert!(house.sim().list().await.unwrap().is_empty());
    fake.tell(id, 3, &[told(one, 2, running())], &[]).await;
    fake.sees("running", id, one, runs_as(2)).await;
}

fn order(task: u128, vm: VmId, act: Act) -> ActOrder {
    ActOrder { task: TaskId(Uuid::from_u128(task)), vm, incarnation: Incarnation(1), act, cancel: false }
}

/// Acts are done at most once over restarts of the agent and repeated sets, and their results are told again.
#[tokio::test]
async fn acts_happen_once() {
    let fake = Fake::start().await;
    let mut house = House::new("n1", &[&fake]);
    house.start().await;
    let (id, one) = (house.id(&fake).await, vm(1));
    let here = [told(one, 1, running())];
    fake.tell(id, 1, &here, &[]).await;
    fake.sees("running", id, one, runs_as(1)).await;
    let ended = async |task: u128| {
        let task = TaskId(Uuid::from_u128(task));
        let over = |state: &mut fake::State| {
            let act = state.hosts.get(&id)?.acts.get(&task)?;
            act.phase.is_terminal().then(|| (act.phase, act.message.clone()))
        };
        fake.until("the end of an act", over).await
    };

    let reset = order(1, one, Act::Reset);
    fake.tell(id, 2, &here, std::slice::from_ref(&reset)).await;
    assert_eq!(ended(1).await.0, TaskPhase::Succeeded);
    assert_eq!(house.sim().memory(one).unwrap().boots, 2);
    house.restart(&fake).await;
    fake.until("a complete report", |state| (state.hosts.get(&id)?.completes == 2).then_some(())).await;
    fake.tell(id, 2, &here, std::slice::from_ref(&reset)).await;
    let reboot = order(2, one, Act::Reboot { timeout_s: 30 });
    fake.tell(id, 3, &here, &[reset, reboot]).await;
    assert_eq!(ended(1).await.0, TaskPhase::Succeeded);
    assert_eq!(ended(2).await.0, TaskPhase::Succeeded);
    assert_eq!(house.sim().memory(one).unwrap().boots, 3, "the reset was done again");

    house.sim().inject(one, Injection::Deaf(true)).unwrap();
    let mut deaf = order(3, one, Act::Shutdown { timeout_s: 600 });
    fake.tell(id, 4, &here, std::slice::from_ref(&deaf)).await;
    let begun = |state: &mut fake::State| state.hosts.get(&id)?.acts.get(&deaf.task).map(drop);
    fake.until("the shutdown begun", begun).await;
    deaf.cancel = true;
    let impatient = order(4, one, Act::Shutdown { timeout_s: 1 });
    fake.tell(id, 5, &here, &[deaf, impatient]).await;
    assert_eq!(ended(3).await.0, TaskPhase::Cancelled);
    assert_eq!(ended(4).await, (TaskPhase::Failed, "the guest did not power off within 1 s".to_owned()));
    house.sim().inject(one, Injection::Deaf(false)).unwrap();

    let shutdown = order(5, one, Act::Shutdown { timeout_s: 60 });
    fake.tell(id, 6, &here, &[shutdown]).await;
    assert_eq!(ended(5).await.0, TaskPhase::Succeeded);
    fake.sees("off", id, one, has_ended).await;
    // What no set names any more is forgotten.
    fake.tell(id, 7, &here, &[]).await;
    let record = house.config.data_dir.join("vms").join(format!("{one}.json"));
    let forgotten = async || std::fs::read_to_string(&record).unwrap().contains("\"acts\":{}").then_some(());
    eventually("the acts are forgotten", forgotten).await;
}

/// A saved guest stands in a file, comes back from it as the same guest, and the file goes when it runs.
#[tokio::test]
async fn save_and_restore() {
    let fake = Fake::start().await;
    let mut house = House::new("n1", &[&fake]);
    house.start().await;
    let (id, one) = (house.id(&fake).await, vm(1));
    let here = [told(one, 1, running())];
    fake.tell(id, 1, &here, &[]).await;
    fake.sees("running", id, one, runs_as(1)).await;
    let content = house.sim().memory(one).unwrap().content;
    fake.tell(id, 2, &here, &[order(1, one, Act::Save)]).await;
    let seen = fake.sees("saved", id, one, |seen| seen.saved.is_some() && has_ended(seen)).await;
    assert!(matches!(seen.process, Process::Ended { cause: EndCause::Told, .. }), "{seen:?}");
    let saved = seen.saved.unwrap();
    assert_eq!(saved.incarnation, Incarnation(1));
    let (file, size_bytes) = (saved.path, saved.size_bytes);
    assert_eq!(std::fs::metadata(&file).unwrap().len(), size_bytes);

    fake.tell(id, 3, &[told(one, 1, Role::Hold)], &[]).await;
    fake.sees("held", id, one, |seen| seen.process == Process::None && seen.saved.is_some()).await;
    house.restart(&fake).await;
    let restore = Role::Run { power: Power::Running, restore_from: Some(file.clone()), received: false };
    fake.tell(id, 4, &[told(one, 2, restore)], &[]).await;
    fake.sees("restored", id, one, |seen| runs_as(2)(seen) && seen.saved.is_none()).await;
    assert_eq!(house.sim().memory(one).unwrap().content, content, "it booted instead");
    assert!(!std::path::Path::new(&file).exists());
}

/// A console carries bytes both ways; its log is read to the end and followed; what cannot be opened says why.
#[tokio::test]
async fn consoles() {
    let fake = Fake::start().await;
    let mut house = House::new("n1", &[&fake]);
    house.start().await;
    let (id, one) = (house.id(&fake).await, vm(1));
    fake.tell(id, 1, &[told(one, 1, running())], &[]).await;
    fake.sees("running", id, one, runs_as(1)).await;
    let open = async |tunnel: &str, vm: VmId, mode: v1::ConsoleMode| {
        let (tunnel, vm_uid) = (tunnel.to_owned(), vm.to_string());
        let asked = v1::OpenTunnel { tunnel, vm_uid, mode: mode.into(), places: Vec::new() };
        fake.say(id, v1::to_agent::Message::OpenTunnel(asked)).await;
    };
    let reads = async |tunnel: &str, words: &str| {
        let said = |state: &mut fake::State| {
            let (_, data, _) = state.tunnels.get(tunnel)?;
            String::from_utf8_lossy(data).contains(words).then_some(())
        };
        fake.until(words, said).await;
    };
    let closed = async |tunnel: &str| {
        fake.until("closed", |state| state.tunnels.get(tunnel).filter(|(.., closed)| *closed).cloned()).await
    };

    open("follow", one, v1::ConsoleMode::LogFollow).await;
    fake.until("dialled", |state| state.tunnels.get("follow").map(drop)).await;
    open("talk", one, v1::ConsoleMode::Interactive).await;
    fake.until("dialled", |state| state.tunnels.get("talk").map(drop)).await;
    let line = fake.with(|state| state.to_tunnels.remove("talk").unwrap());
    let typed = v1::TunnelChunk { data: b"hello there\n".to_vec(), ..Default::default() };
    line.send(Ok(typed)).await.unwrap();
    reads("talk", "hello there").await;
    reads("follow", "hello there").await;
    open("log", one, v1::ConsoleMode::Log).await;
    reads("log", "hello there").await;
    fake.with(|state| state.to_tunnels.clear());
    closed("log").await;
    closed("follow").await;
    drop(line);
    closed("talk").await;

    // Off, its log is still there; discarded, whoever follows it has read everything and is told that it is over.
    fake.tell(id, 2, &[told(one, 1, Role::Hold)], &[]).await;
    fake.sees("off", id, one, |seen| seen.process == Process::None).await;
    open("kept", one, v1::ConsoleMode::LogFollow).await;
    reads("kept", "hello there").await;
    fake.tell(id, 3, &[told(one, 1, Role::Discard { elsewhere: false })], &[]).await;
    fake.sees_gone(id, one).await;
    closed("kept").await;

    open("nobody", vm(9), v1::ConsoleMode::Interactive).await;
    let (error, ..) = fake.until("refused", |state| state.tunnels.get("nobody").cloned()).await;
    assert_eq!(error, "this VM is not on this host");
}
