//! Whole controllers, spoken to over their own port.

mod agents;
mod blobs;
mod failover;
mod objects;
mod observing;
mod rest;
mod stored;
mod trust;
mod upgrading;
mod watching;
