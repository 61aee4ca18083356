//! A machine as it stands beside its spec.

use dunlin_model::vm::Built;
use proptest::prelude::{BoxedStrategy, Strategy};

use super::{vm_spec, words};

pub(super) fn built() -> BoxedStrategy<Built> {
    (vm_spec(), words(), words())
        .prop_map(|(spec, layout, note)| Built { layout, note, ..Built::of(&spec) })
        .boxed()
}
