//! Against a daemon that is played.
