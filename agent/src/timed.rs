//! A driver whose verbs are timed, and told when they fail, each under the thread of the command that led to it.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use dunlin_drivers::Hypervisor;
use dunlin_drivers::error::DriverErrorKind;
use dunlin_drivers::hypervisor::{
    Device, DeviceName, DriverResult, Foreign, Guest, Launch, Notice, Presence,
};
use dunlin_model::capabilities::{DriverCapabilities, DriverName};
use dunlin_model::migration::{Endpoint, MigrationLimits};
use dunlin_model::observed::Sample;
use dunlin_model::{Incarnation, VmId};
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::metrics;

/// Verbs that only look, again and again.
const QUIET: [&str; 4] = ["list", "foreign", "sample", "trim_logs"];

/// One driver of this host.
#[derive(Debug)]
pub(crate) struct Timed(pub(crate) Arc<dyn Hypervisor>);

/// Runs a verb.
async fn timed<T>(
    driver: DriverName,
    verb: &'static str,
    work: impl Future<Output = DriverResult<T>>,
) -> DriverResult<T> {
    let (began, name) = (Instant::now(), driver.to_string());
    let span = match QUIET.contains(&verb) {
        true => tracing::Span::none(),
        false => tracing::info_span!("verb", driver = name, verb),
    };
    let done = work.instrument(span).await;
    metrics::VERB.observe(&[&name, verb], began.elapsed());
    let took_ms = began.elapsed().as_millis();
    match &done {
        Ok(_) if QUIET.contains(&verb) => {}
        Ok(_) => tracing::info!(driver = name, verb, took_ms, "a verb is done"),
        Err(error) => {
            metrics::VERB_FAILED.inc(&[&name, verb, word(error.kind)]);
            tracing::debug!(driver = name, verb, took_ms, %error, "a verb failed");
        }
    }
    done
}

const fn word(kind: DriverErrorKind) -> &'static str {
    match kind {
        DriverErrorKind::NotFound => "not found",
        DriverErrorKind::Busy => "busy",
        DriverErrorKind::Unsupported => "unsupported",
        DriverErrorKind::Transient => "transient",
        DriverErrorKind::Refused => "refused",
        DriverErrorKind::Deadline => "deadline",
    }
}

macro_rules! verbs {
    ($($verb:ident($($argument:ident: $kind:ty),*) -> $answer:ty;)*) => {
        #[async_trait]
        impl Hypervisor for Timed {
            fn name(&self) -> DriverName {
                self.0.name()
            }

            async fn probe(&self) -> DriverCapabilities {
                self.0.probe().await
            }

            fn presence(&self) -> watch::Receiver<Presence> {
                self.0.presence()
            }

            fn notices(&self) -> broadcast::Receiver<Notice> {
                self.0.notices()
            }

            fn serial_log(&self, vm: VmId) -> PathBuf {
                self.0.serial_log(vm)
            }

            fn console(&self, vm: VmId) -> DriverResult<(PathBuf, PathBuf)> {
                self.0.console(vm)
            }

            $(async fn $verb(&self $(, $argument: $kind)*) -> DriverResult<$answer> {
                timed(self.name(), stringify!($verb), self.0.$verb($($argument),*)).await
            })*
        }
    };
}

verbs! {
    list() -> Vec<Guest>;
    foreign() -> Vec<Foreign>;
    adopt(vm: VmId, incarnation: Incarnation) -> Guest;
    release(vm: VmId) -> ();
    start(launch: Launch) -> Guest;
    shutdown(vm: VmId) -> ();
    reboot_on_shutdown(vm: VmId, reboot: bool) -> ();
    reset(vm: VmId) -> ();
    destroy(vm: VmId) -> ();
    forget(vm: VmId) -> ();
    erase_log(vm: VmId) -> ();
    pause(vm: VmId) -> Guest;
    resume(vm: VmId) -> Guest;
    plug(vm: VmId, device: Device) -> ();
    unplug(vm: VmId, device: DeviceName) -> ();
    adopt_incarnation(vm: VmId, incarnation: Incarnation) -> ();
    save(vm: VmId, file: PathBuf) -> u64;
    migrate_out(vm: VmId, endpoint: Endpoint, limits: MigrationLimits) -> ();
    migrate_switch(vm: VmId) -> ();
    migrate_cancel(vm: VmId) -> ();
    trim_logs() -> ();
    sample() -> Vec<Sample>;
}
