//! Whole controllers, spoken to over their own port.

mod agents;
mod blobs;
mod failover;
mod objects;
mod rest;
mod trust;
mod watching;
