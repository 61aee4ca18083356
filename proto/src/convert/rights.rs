//! Users, roles, bindings, projects and tokens; and what of the Access service must never be printed.

use std::fmt;

use dunlin_model::Invalid;
use dunlin_model::rights as model;

use super::{Wire, missing, read, refuse};
use crate::v1;

choices!(Verb { Read, Create, Update, Delete, Operate, Console, Audit, Any });

records!([default] UserSpec { display_name, groups, disabled, vouched_by });

records!([default] UserStatus { password_set as password_set_ms });

records!([default] RoleSpec { rules });

records!(RoleRule { verbs, kinds, any_kind });

records!([default] RoleStatus { built_in });

records!(BindingSpec { role, users, groups, project });

records!([default] BindingStatus {});

records!(ApiTokenSpec { user, roles, project, expires as expires_ms, session });

records!([default] ApiTokenStatus { last_used as last_used_ms });

mod project {
    use dunlin_model::project as model;

    use super::{Invalid, Wire, missing, read, v1};

    records!([default] ProjectSpec { description, quota });

    records!([default] Quota { vms, vcpus, mem_mib, storage_mib });

    records!([default] ProjectStatus { used });

    records!([default] Used { vms, vcpus, mem_mib, storage_mib });
}

/// What may be said of a message that holds a secret.
macro_rules! hidden {
    ($($name:ident { $($shown:ident),* })*) => {$(
        impl fmt::Debug for v1::$name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name))$(.field(stringify!($shown), &self.$shown))*.finish_non_exhaustive()
            }
        }
    )*};
}

hidden! {
    LoginRequest { user }
    LoginByProviderRequest {}
    Session { user, expires_ms }
    SetPasswordRequest { user }
    CreateApiTokenResponse { object }
    CreateTokenResponse { expires_ms }
}
