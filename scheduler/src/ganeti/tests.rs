//! Ganeti tests.
