//! Who calls, and may he? The one room for it, asked alike by gRPC and REST.
//!
//! ```text
//!  connection, headers --enter----> Caller --grants(state)--> Grants --may--> yes
//!  (certificate, socket,  once a    in the request's           |      `----> refused, and a line in the audit log
//!   bearer token)         request   extensions                 `-----------> gone, expired, disabled: the same
//! ```
//! `enter` asks the gate of `trust` which services such a one may call at all, and finds out who is meant; what he may do is asked of the state that the request is answered from, so a
//! right that was taken away is gone with the same write. A controller that passes a request on passes on what was shown to
//! it, and the leader judges for itself.
//!
//! Refuses to know what a request is about: whoever carries it out names verb, kind and scope.

mod attempts;
mod caller;
mod id_token;
mod judge;
mod password;
mod provider;
#[cfg(test)]
mod tests;

pub(crate) use attempts::Attempts;
pub(crate) use caller::{AUTHORIZATION, Caller, FORWARDED_KEY, enter};
pub(crate) use judge::{allow, authorise, authorise_all, grants, hide, refuse};
pub(crate) use password::Passwords;
pub(crate) use provider::Provider;
pub use provider::ProviderConfig;
