//! Roles of holders of certificates.

use dunlin_model::Invalid;

use super::{Wire, refuse};
use crate::v1;

mod model {
    pub(super) use dunlin_model::Role as IdentityRole;
}

choices!([default] IdentityRole { Controller, Host, Admin });
