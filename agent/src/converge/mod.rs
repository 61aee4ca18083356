//! Making the host what it was told to be.
//!
//! A pure core, [`plan`](plan::plan) and [`plan_act`](act::plan_act), says the next step for one VM; a thin shell, one
//! [worker](worker) for each VM that has something to do, carries it out and asks again. Everything in between stands
//! on the [board]. Level-triggered: a worker looks at the newest of everything before each step, so messages
//! may be lost and the process may die anywhere.

pub(crate) mod act;
pub(crate) mod board;
pub(crate) mod execute;
mod foreign;
pub(crate) mod observe;
pub(crate) mod plan;
pub(crate) mod refit;
pub(crate) mod start;
mod targets;
pub(crate) mod worker;
