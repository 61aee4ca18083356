//! End to end: the real binary as controllers and agents, real QEMU guests under emulation, each host a network
//! namespace, and kill -9. Every test has a fleet of its own and takes it down.

#![allow(clippy::print_stdout)] // What a test or bench says is meant for its reader.

mod adoption;
mod advice;
mod balance;
mod certificates;
mod declare;
mod environment;
mod faults;
mod full_disk;
mod input;
mod issuer;
mod lifecycle;
mod linear;
mod migration;
mod observe;
mod operations;
mod provider;
mod restart;
mod rights;
mod site;
mod traces;
mod upgrade;
