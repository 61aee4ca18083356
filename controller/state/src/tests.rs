//! Properties of the whole state machine.
