//! Names that are nearly the one asked for, for "did you mean".

use dunlin_model::{ErrorCode, Kind, Name};

use crate::{Rejected, State, Typed};

/// Names offered at most: more is a list, not a hint.
pub const NEAR_MAX: usize = 3;

/// Edits (insert, delete, replace, swap neighbours) that turn `a` into `b`, upper and lower case alike.
#[must_use]
pub fn distance(a: &str, b: &str) -> usize {
    let a = a.to_ascii_lowercase().into_bytes();
    let b = b.to_ascii_lowercase().into_bytes();
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replace = above[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replace.min(above[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

impl State {
    /// Names of that kind that are nearly `text`, the nearest first.
    #[must_use]
    pub fn near_names(&self, kind: Kind, text: &str) -> Vec<Name> {
        let close = (text.len() / 3).max(1);
        let lower = text.to_ascii_lowercase();
        let mut found: Vec<(usize, &Name)> = self
            .objects_of(kind)
            .map(|object| (distance(text, object.name().as_str()), object.name()))
            .filter(|(distance, name)| {
                *distance <= close
                    || (lower.len() > 2 && name.as_str().to_ascii_lowercase().starts_with(&lower))
            })
            .collect();
        found.sort();
        found.into_iter().take(NEAR_MAX).map(|(_, name)| name.clone()).collect()
    }

    /// The refusal of a name that nothing carries.
    #[must_use]
    pub fn unknown(&self, kind: Kind, text: &str) -> Rejected {
        let near: Vec<String> = self.near_names(kind, text).iter().map(ToString::to_string).collect();
        let noun = kind.to_string().to_ascii_lowercase();
        let hint =
            if near.is_empty() { String::new() } else { format!("; did you mean {}?", near.join(", ")) };
        Rejected::new(ErrorCode::NotFound, format!("no {noun} is called {text:?}{hint}"))
    }

    /// The object of that type and name, or a refusal with near matches.
    pub fn find<T: Typed>(&self, name: &Name) -> Result<&T, Rejected> {
        self.named::<T>(name).ok_or_else(|| self.unknown(T::KIND, name.as_str()))
    }
}
