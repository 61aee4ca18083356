//! What free room is worth to the shapes in use: what is lost when it is cut up.

use crate::score::TERM_MAX;
use crate::snapshot::Amounts;

/// Worth of free room.
#[derive(Clone, Debug, Default)]
pub struct Worths {}

impl Worths {
    /// 0 to [`TERM_MAX`]: how little of the room's worth is lost by cutting this shape out of it.
    #[must_use]
    pub fn kept_whole(&self, _shape: Amounts, _free: Amounts) -> u64 {
        TERM_MAX
    }
}
