//! What can run a guest on this host: one contract, [`Hypervisor`], and its backends.
//!
//! Knows one host, never the cluster: no lease, no placement, no task. The agent tells it what to do with one guest at
//! a time, and hears of everything else through [`Notice`]s. Verbs are idempotent and keyed by (vm, incarnation).

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod domain_xml;
pub mod error;
pub mod footprint;
pub mod hypervisor;
mod keep;
pub mod libvirt;
mod logs;
pub mod lxc;
mod process;
pub mod qemu;
mod run_dir;
pub mod simulated;
pub mod uml;

pub use error::DriverError;
pub use hypervisor::{Guest, Hypervisor, Launch, LaunchMode, Notice};
