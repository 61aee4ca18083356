//! What end-to-end tests and benches share: a real fleet of real processes, real guests, and how to look at them.
//!
//! Owns no product code. A fleet is started with `dunlin up`, driven with `dunlin`, and looked at from outside: its
//! processes in /proc, its guests' disks on the host. Nothing here knows an internal type's fields but the model's.

#![allow(clippy::print_stdout)] // What a test or bench says is meant for its reader.

pub mod client;
pub mod condition;
pub mod console;
pub mod fleet;
pub mod folders;
pub mod follower;
pub mod libvirtd;
pub mod linear;
pub mod process;
pub mod ring;

pub use condition::eventually;
pub use console::console;
pub use fleet::{Fleet, FleetOptions, Output};
pub use folders::HostFolders;
pub use follower::Follower;
pub use ring::Ring;
