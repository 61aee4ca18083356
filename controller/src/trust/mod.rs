//! Who may speak to this controller, and as whom it speaks itself.
//!
//! ```text
//!   tls/identity.pem, ca.pem --open--> Keys: what is shown and believed --> both ports, calls to other controllers
//!                                       ^ renewed, rotated, revocations
//!   replicated trust --------------- keep (every controller) ------> drops an authority nobody uses (leader)
//!   connection: handshake -> Arrival -> gate (each request): Peer, or a refusal with its code -> the services
//! ```
//! DECISION: founding controllers get their identities from a bundle that is made before there is a cluster (`dunlin ca init`,
//! or by a lone founder for itself), later ones join by a token. The alternative, one founder that the others join by
//! tokens, would need membership changes, and an order of starting, before a cluster of three has its first quorum. The
//! bundle holds the authority's key, which lies on every controller anyway once the cluster is founded (`dunlin_state::trust`).
//!
//! Roles are all that is decided here. Who of the admins may do what is for whoever reads [`Peer`] from the request.

mod access;
mod bundle;
mod issue;
mod join;
mod keep;
mod keys;

pub(crate) use access::{Arrival, CALLER_KEY, LOCAL_ADMIN, Peer, gate, refused};
pub use bundle::{Bundle, bundle};
pub(crate) use issue::{Certified, certify, certify_restored, rotate};
pub(crate) use keep::keep;
pub use keys::KeysError;
pub(crate) use keys::{AUTHORITIES, FOLDER, IDENTITY, Keys};
