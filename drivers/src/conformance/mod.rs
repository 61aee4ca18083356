//! One suite of checks that every [`Hypervisor`] has to pass, on two hosts.
//!
//! A backend's tests write a [`Fixture`], call [`suite`], print the [`Report`] and fail when [`Report::failures`] is not
//! empty. No check polls: what a guest does is heard as a notice within the fixture's deadline, or the check fails.

mod life;
mod moves;
#[cfg(test)]
pub(crate) mod page;
mod world;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dunlin_model::capabilities::{DriverName, DriverPower};
use dunlin_model::migration::MigrationLimits;
use dunlin_model::{Incarnation, VmId};
use futures_util::future::BoxFuture;

use crate::error::DriverError;
use crate::hypervisor::{DriverResult, Hypervisor, Launch};
use world::World;

/// What a backend has to provide. Hosts are 0 and 1.
#[async_trait]
pub trait Fixture: Send + Sync {
    /// Opens the driver of a host. The suite has dropped every earlier handle of that host; guests must be found again.
    async fn open(&self, host: usize) -> DriverResult<Arc<dyn Hypervisor>>;

    /// A guest that boots and runs, with its files made on that host: mode Boot, not paused. Called again with another
    /// incarnation or host for the same VM.
    fn launch(&self, host: usize, vm: VmId, incarnation: Incarnation) -> Launch;

    /// Address at which that host takes migrations.
    fn listen(&self, host: usize) -> String {
        let _ = host;
        "127.0.0.1".to_owned()
    }

    /// An existing folder of that host to save into.
    fn scratch(&self, host: usize) -> PathBuf;

    /// Longest wait for any one notice.
    fn deadline(&self) -> Duration;

    /// Limits under which a copy lasts longer than the deadline.
    fn slow(&self) -> MigrationLimits {
        MigrationLimits { bandwidth_mib_s: 1, ..MigrationLimits::default() }
    }

    /// Does the guest switch itself off when its power button is pressed?
    fn hears_power_button(&self) -> bool {
        true
    }

    /// Does a machine that restarts keep its process? Where it cannot, it has another one under the same incarnation.
    fn keeps_process(&self) -> bool {
        true
    }

    /// Makes the guest switch itself off from inside, once it is up.
    async fn power_off(&self, host: usize, vm: VmId);

    /// Kills the guest's process behind the driver's back.
    async fn kill(&self, host: usize, vm: VmId);
}

/// How a check failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed(pub String);

impl From<DriverError> for Failed {
    fn from(error: DriverError) -> Self {
        Self(format!("{error} ({:?})", error.kind))
    }
}

type Checked = Result<(), Failed>;

/// Fails the check with the text unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err($crate::conformance::Failed(format!($($text)+)));
        }
    };
}
use ensure;

/// One check: what it holds, the powers it needs, and how.
struct Check {
    property: &'static str,
    verbs: &'static str,
    powers: &'static [DriverPower],
    run: for<'a> fn(&'a mut World<'_>) -> BoxFuture<'a, Checked>,
}

macro_rules! check {
    ($name:ident, $verbs:literal, $property:literal, $powers:expr) => {
        Check { property: $property, verbs: $verbs, powers: $powers, run: |world| Box::pin($name(world)) }
    };
}
use check;

/// What came of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It holds.
    Passed,
    /// The driver has not this power.
    Lacks(DriverPower),
    /// It does not hold.
    Failed(String),
}

/// The verb matrix of one backend.
#[derive(Clone, Debug)]
pub struct Report {
    /// Which backend.
    pub driver: DriverName,
    /// Verbs, the property, and what came of it, in the order they ran.
    pub lines: Vec<(&'static str, &'static str, Outcome)>,
}

impl Report {
    /// The lines that failed.
    pub fn failures(&self) -> impl Iterator<Item = &(&'static str, &'static str, Outcome)> {
        self.lines.iter().filter(|(_, _, outcome)| matches!(outcome, Outcome::Failed(_)))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (verbs, property, outcome) in &self.lines {
            let outcome = match outcome {
                Outcome::Passed => "ok".to_owned(),
                Outcome::Lacks(power) => format!("lacks {power:?}"),
                Outcome::Failed(why) => format!("FAILED: {why}"),
            };
            writeln!(f, "{:<5} {verbs:<44} {property:<76} {outcome}", self.driver)?;
        }
        Ok(())
    }
}

/// Runs every check, each with a guest of its own, and goes on after a failure.
///
/// # Errors
/// When a host cannot be opened at all.
pub async fn suite(fixture: &dyn Fixture) -> DriverResult<Report> {
    let mut world = World::open(fixture).await?;
    let mut report = Report { driver: world.host(0).name(), lines: Vec::new() };
    let powers = world.host(0).probe().await.powers;
    for check in life::CHECKS.iter().chain(moves::CHECKS) {
        let outcome = match check.powers.iter().find(|power| !powers.contains(power)) {
            Some(lacking) => Outcome::Lacks(*lacking),
            None => match (check.run)(&mut world).await {
                Ok(()) => Outcome::Passed,
                Err(Failed(why)) => Outcome::Failed(why),
            },
        };
        report.lines.push((check.verbs, check.property, outcome));
        world.next().await?;
    }
    Ok(report)
}
