//! The three shapes of a conversion, each said once: `choices` for enums, `records` for messages, `oneofs` for enums
//! that carry something.

/// Enums of bare names. With `default`, the unspecified number reads as the model's default inside a message; alone, as
/// in `Power::try_from`, it is always refused.
macro_rules! choices {
    ($([$default:ident])? $name:ident { $($model:ident $(= $wire:ident)?),* $(,)? }) => {
        impl From<model::$name> for v1::$name {
            fn from(value: model::$name) -> Self {
                match value { $(model::$name::$model => choices!(@wire v1::$name, $model $($wire)?),)* }
            }
        }

        impl TryFrom<v1::$name> for model::$name {
            type Error = Invalid;

            fn try_from(value: v1::$name) -> Result<Self, Invalid> {
                match value {
                    $(choices!(@wire v1::$name, $model $($wire)?) => Ok(Self::$model),)*
                    v1::$name::Unspecified => {
                        Err(refuse("is not set", concat!("one of", $(" ", stringify!($model)),*)))
                    }
                }
            }
        }

        impl Wire<i32> for model::$name {
            fn to_wire(self) -> i32 {
                v1::$name::from(self).into()
            }

            fn from_wire(number: i32) -> Result<Self, Invalid> {
                let named = v1::$name::try_from(number).map_err(|_| {
                    let problem = format!(concat!("{} is no ", stringify!($name)), number);
                    refuse(problem, concat!("one of", $(" ", stringify!($model)),*))
                })?;
                $(if named == v1::$name::Unspecified {
                    return Ok(Self::$default());
                })?
                named.try_into()
            }
        }
    };
    (@wire v1::$name:ident, $model:ident) => { v1::$name::$model };
    (@wire v1::$name:ident, $model:ident $wire:ident) => { v1::$name::$wire };
}

/// What every message gets from its `From` and `TryFrom`: it stands in lists as itself, and in fields as an `Option`.
macro_rules! message {
    ($([$default:ident])? $name:ident) => {
        impl Wire<v1::$name> for model::$name {
            fn to_wire(self) -> v1::$name {
                self.into()
            }

            fn from_wire(wire: v1::$name) -> Result<Self, Invalid> {
                wire.try_into()
            }
        }

        impl Wire<Option<v1::$name>> for model::$name {
            fn to_wire(self) -> Option<v1::$name> {
                Some(self.into())
            }

            fn from_wire(wire: Option<v1::$name>) -> Result<Self, Invalid> {
                $(if wire.is_none() {
                    return Ok(Self::$default());
                })?
                wire.ok_or_else(missing)?.try_into()
            }
        }
    };
}

/// Structs. `field as wire_field` when the names differ, `field or value` when an absent one has a default of its own,
/// and after the fields `; check` for what is to hold between them.
macro_rules! records {
    (@read $wire:expr, $field:ident) => { read($wire.$field, stringify!($field))? };
    (@read $wire:expr, $field:ident as $sent:ident) => { read($wire.$sent, stringify!($sent))? };
    (@read $wire:expr, $field:ident or $value:expr) => {
        read::<Option<_>, _>($wire.$field, stringify!($field))?.unwrap_or($value)
    };
    (@write $out:ident, $field:ident) => { $out.$field = Wire::to_wire($field) };
    (@write $out:ident, $field:ident as $sent:ident) => { $out.$sent = Wire::to_wire($field) };
    (@write $out:ident, $field:ident or $value:expr) => { $out.$field = Wire::to_wire(Some($field)) };
    ($([$default:ident])? $name:ident {
        $($field:ident $(as $sent:ident)? $(or $value:expr)?),* $(,)?
    } $(; $check:expr)?) => {
        impl From<model::$name> for v1::$name {
            // Every model field is taken apart by name, so that a new one cannot be forgotten here.
            #[allow(clippy::field_reassign_with_default)]
            fn from(value: model::$name) -> Self {
                let model::$name { $($field),* } = value;
                #[allow(unused_mut)]
                let mut out = Self::default();
                $(records!(@write out, $field $(as $sent)? $(or $value)?);)*
                out
            }
        }

        impl TryFrom<v1::$name> for model::$name {
            type Error = Invalid;

            #[allow(unused_variables)]
            fn try_from(wire: v1::$name) -> Result<Self, Invalid> {
                let value = Self { $($field: records!(@read wire, $field $(as $sent)? $(or $value)?)),* };
                $({
                    let check: fn(&Self) -> Result<(), Invalid> = $check;
                    check(&value)?;
                })?
                Ok(value)
            }
        }

        message!($([$default])? $name);
    };
}

/// Enums whose variants carry something: `Name "sent_name"` nothing, `(x)` one value, `{ a, b } as room::Message` fields.
macro_rules! oneofs {
    (@write) => { v1::Unit {} };
    (@write ($value:ident)) => { Wire::to_wire($value) };
    (@write { $($field:ident),* } $room:ident $message:ident) => {
        v1::$room::$message { $($field: Wire::to_wire($field)),* }
    };
    (@read $name:ident $variant:ident $sent:literal $wire:ident) => {{
        let v1::Unit {} = $wire;
        model::$name::$variant {}
    }};
    (@read $name:ident $variant:ident $sent:literal $wire:ident ($value:ident)) => {
        model::$name::$variant { 0: read($wire, $sent)? }
    };
    (@read $name:ident $variant:ident $sent:literal $wire:ident { $($field:ident),* }) => {
        model::$name::$variant {
            $($field: read($wire.$field, stringify!($field)).map_err(|e| e.under($sent))?),*
        }
    };
    ($([$default:ident])? $name:ident in $room:ident {
        $($variant:ident $sent:literal $(($value:ident))? $({ $($field:ident),* } as $message:ident)?),* $(,)?
    }) => {
        impl From<model::$name> for v1::$name {
            fn from(value: model::$name) -> Self {
                let choice = match value {
                    $(model::$name::$variant { $(0: $value)? $($($field),*)? } => {
                        v1::$room::Choice::$variant(
                            oneofs!(@write $(($value))? $({ $($field),* } $room $message)?)
                        )
                    })*
                };
                Self { choice: Some(choice) }
            }
        }

        impl TryFrom<v1::$name> for model::$name {
            type Error = Invalid;

            fn try_from(wire: v1::$name) -> Result<Self, Invalid> {
                let Some(choice) = wire.choice else {
                    $(return Ok(Self::$default());)?
                    #[allow(unreachable_code)]
                    return Err(refuse("is not set", concat!("one of", $(" ", $sent),*)));
                };
                Ok(match choice {
                    $(v1::$room::Choice::$variant(wire) => {
                        oneofs!(@read $name $variant $sent wire $(($value))? $({ $($field),* })?)
                    })*
                })
            }
        }

        message!($([$default])? $name);
    };
}
