//! Two hosts with real guests of a kept kind, for the conformance suite; and a small userland for them.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use dunlin_model::{Incarnation, VmId};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep};

use super::record::{RECORD_VERSION, Record};
use super::{Backend, Keep};
use crate::conformance::Fixture;
use crate::hypervisor::{DriverResult, Hypervisor, Launch};
use crate::process::Process;
use crate::run_dir::RunDir;

/// Everything here is done within a second or two; a busy builder may need ten times that.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);

/// How long a line may take to be heard, before it is said again.
const SAY_EVERY: Duration = Duration::from_secs(1);

/// Process 1 of every test guest: does what the console says, a line at a time.
pub(crate) const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc 2>/dev/null
/bin/busybox mount -t devtmpfs dev /dev 2>/dev/null
/bin/busybox mkdir -p /sys; /bin/busybox mount -t sysfs sys /sys 2>/dev/null
trap '/bin/busybox poweroff -f' PWR
trap '/bin/busybox reboot -f' INT
echo guest is up
while :; do
    read -r line || { /bin/busybox sleep 0.1; continue; }
    echo "heard $line"
    case $line in
    poweroff) /bin/busybox poweroff -f ;;
    reboot) /bin/busybox reboot -f ;;
    crash) echo c >/proc/sysrq-trigger ;;
    *) /bin/busybox sh -c "$line" ;;
    esac
done
"#;

/// A folder with busybox and [`INIT`] in it.
pub(crate) fn userland(at: &Path) {
    let busybox =
        ["/usr/bin/busybox", "/bin/busybox"].map(PathBuf::from).into_iter().find(|path| path.exists());
    for folder in ["bin", "sbin", "proc", "dev", "sys", "tmp"] {
        std::fs::create_dir_all(at.join(folder)).expect("folder");
    }
    std::fs::copy(busybox.expect("busybox-static is installed"), at.join("bin/busybox")).expect("copy");
    for init in ["init", "sbin/init"] {
        std::fs::write(at.join(init), INIT).expect("write");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(at.join(init), mode).expect("mode");
    }
}

/// Two hosts.
pub(crate) struct Hosts<B: Backend> {
    pub(crate) dir: TempDir,
    open: Mutex<[std::sync::Weak<Keep<B>>; 2]>,
    lives: Mutex<Vec<(usize, std::sync::Weak<dyn std::any::Any + Send + Sync>)>>,
    driver: fn(&Path) -> Keep<B>,
    launch: fn(&Path, VmId) -> Launch,
}

impl<B: Backend> Hosts<B> {
    /// `driver` opens one in a folder; `launch` makes a guest's files in a folder.
    pub(crate) fn new(driver: fn(&Path) -> Keep<B>, launch: fn(&Path, VmId) -> Launch) -> Self {
        let dir = tempfile::tempdir().expect("dir");
        Self { dir, open: Mutex::default(), lives: Mutex::default(), driver, launch }
    }

    fn host(&self, host: usize) -> PathBuf {
        self.dir.path().join(format!("host{host}"))
    }

    fn keep(&self, host: usize) -> Arc<Keep<B>> {
        self.open.lock().expect("lock")[host].upgrade().expect("the host is open")
    }

    /// Types a line at a guest's console, again until it was heard: a guest that boots hears nothing yet.
    pub(crate) async fn say(&self, driver: &dyn Hypervisor, vm: VmId, line: &str) {
        let heard = || {
            let said = std::fs::read(driver.serial_log(vm)).unwrap_or_default();
            String::from_utf8_lossy(&said).matches(&format!("heard {line}")).count()
        };
        let (before, deadline) = (heard(), Instant::now() + PATIENCE);
        while heard() == before {
            assert!(Instant::now() < deadline, "{line:?} is not heard");
            let (socket, _) = driver.console(vm).expect("console");
            let mut console = tokio::net::UnixStream::connect(socket).await.expect("connect");
            console.write_all(format!("{line}\n").as_bytes()).await.expect("write");
            let again = Instant::now() + SAY_EVERY;
            // Held open until it was read.
            while heard() == before && Instant::now() < again {
                sleep(Duration::from_millis(10)).await;
            }
        }
    }

    /// Waits until a guest has said something.
    pub(crate) async fn until_said(&self, driver: &dyn Hypervisor, vm: VmId, part: &str) {
        let deadline = Instant::now() + PATIENCE;
        let said = || {
            let bytes = std::fs::read(driver.serial_log(vm)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        while !said().contains(part) {
            assert!(Instant::now() < deadline, "{part:?} was not said: {}", said());
            sleep(Duration::from_millis(10)).await;
        }
    }
}

impl<B: Backend> Drop for Hosts<B> {
    fn drop(&mut self) {
        // A failed test leaves guests behind.
        for host in 0..2 {
            for dir in RunDir::all(&self.host(host)).unwrap_or_default() {
                let Ok(Some(record)) = dir.load::<Record>(RECORD_VERSION) else { continue };
                if tokio::runtime::Handle::try_current().is_ok()
                    && let Some(id) = record.process
                {
                    Process::of_session(&id).iter().for_each(Process::kill);
                }
            }
        }
    }
}

#[async_trait]
impl<B: Backend> Fixture for Hosts<B> {
    async fn open(&self, host: usize) -> DriverResult<Arc<dyn Hypervisor>> {
        // What is left of the earlier driver ends by itself; a killed agent would leave nothing.
        let mine = |lives: &Vec<(usize, std::sync::Weak<_>)>| {
            lives.iter().filter(|(at, life)| *at == host && life.strong_count() > 0).count()
        };
        while mine(&self.lives.lock().expect("lock")) > 0 {
            sleep(Duration::from_millis(1)).await;
        }
        let driver = Arc::new((self.driver)(&self.host(host)));
        self.open.lock().expect("lock")[host] = Arc::downgrade(&driver);
        self.lives.lock().expect("lock").push((host, driver.life()));
        Ok(driver)
    }

    fn launch(&self, host: usize, vm: VmId, incarnation: Incarnation) -> Launch {
        let at = self.host(host).join("files");
        std::fs::create_dir_all(&at).expect("folder");
        Launch { vm, incarnation, ..(self.launch)(&at, vm) }
    }

    fn scratch(&self, _host: usize) -> PathBuf {
        self.dir.path().to_owned()
    }

    fn deadline(&self) -> Duration {
        PATIENCE
    }

    fn keeps_process(&self) -> bool {
        false
    }

    async fn power_off(&self, host: usize, vm: VmId) {
        self.say(&*self.keep(host), vm, "poweroff").await;
    }

    async fn kill(&self, host: usize, vm: VmId) {
        let guests = self.keep(host).list().await.expect("list");
        let pid = guests.into_iter().find(|guest| guest.vm == vm).and_then(|guest| guest.pid);
        let pid = i32::try_from(pid.expect("a process")).ok().and_then(rustix::process::Pid::from_raw);
        rustix::process::kill_process(pid.expect("pid"), rustix::process::Signal::KILL).expect("kill");
    }
}
