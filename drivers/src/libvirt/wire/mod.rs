//! libvirt's remote protocol: what lies on the wire, in both directions.
//!
//! Owns the XDR codec, the frames, the error body, and one table of procedures and events ([`calls`], [`events`]) that
//! a client encodes calls from and a server can decode them by. Knows no socket and no driver. Whatever bytes come in,
//! the answer is a value or an [`XdrError`], never a panic, and memory stays within a small multiple of what came in.
//!
//! ```text
//! u32 length (itself included) | program | version | procedure | type | serial | status | payload
//! ```
//! Numbers and layouts are facts of the protocol; numbers are never used again for something else (libvirt 0.3 to 12).

pub mod calls;
pub mod events;
pub mod fault;
pub mod frame;
#[cfg(test)]
mod tests;
pub mod types;
pub mod xdr;

pub use calls::{Call, Entry, TABLE};
pub use fault::Fault;
pub use frame::{Frame, Head, Kind, Status};
pub use types::{Domain, Param, Value};
pub use xdr::{Xdr, XdrError};
