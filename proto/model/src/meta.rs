//! What every object carries: its name, identity, labels and counters.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Generation, Invalid, Revision};

/// Free key/value marks on an object, for selectors and people.
pub type Labels = BTreeMap<String, String>;

/// Longest name, in bytes: it must fit a DNS label and a file name.
pub const NAME_MAX: usize = 63;
/// Most labels on one object; more is a database, not a label set.
pub const LABELS_MAX: usize = 64;
/// Longest label key or value, in bytes.
pub const LABEL_MAX: usize = 253;

/// An object's name: unique within its kind, 1 to 63 of `A-Z a-z 0-9 . _ -`, beginning with a letter or digit.
///
/// Held in place: names are keys of the largest maps of the fleet, whose nodes are copied and compared all the time.
#[derive(Clone, PartialEq, Eq)]
pub struct Name {
    length: u8,
    /// ASCII, zero behind `length`.
    bytes: [u8; NAME_MAX],
}

impl Name {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).expect("only ASCII gets in")
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl FromStr for Name {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let allowed = "1 to 63 of A-Z a-z 0-9 . _ - beginning with a letter or digit";
        let body = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
        let head = text.bytes().next().is_some_and(|c| c.is_ascii_alphanumeric());
        if let Ok(length) = u8::try_from(text.len())
            && head
            && text.len() <= NAME_MAX
            && text.bytes().all(body)
        {
            let mut bytes = [0; NAME_MAX];
            bytes[..text.len()].copy_from_slice(text.as_bytes());
            return Ok(Self { length, bytes });
        }
        Err(Invalid::new("name", format!("{text:?} is not a name"), allowed))
    }
}

/// As text.
impl Ord for Name {
    fn cmp(&self, other: &Self) -> Ordering {
        // No character of a name is zero, so what is shorter sorts first.
        self.bytes.cmp(&other.bytes)
    }
}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Text::deserialize(deserializer)?.0.parse().map_err(serde::de::Error::custom)
    }
}

/// A text that is only looked at, borrowed from its document where that is possible.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// Milliseconds since 1970-01-01T00:00:00Z, as the proposer's clock stamped them. Reads as RFC 3339 in JSON and YAML.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The last one that has RFC 3339 text which reads back: 9999-12-30T22:00:00Z, a calendar less a day of time zones.
    pub const MAX: Self = Self(253_402_207_200_000);

    /// Milliseconds from `earlier` to this, 0 when the clocks disagree.
    #[must_use]
    pub const fn millis_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = i64::try_from(self.0).unwrap_or(i64::MAX);
        match jiff::Timestamp::from_millisecond(millis) {
            Ok(at) => write!(f, "{at:.3}"),
            Err(_) => write!(f, "{millis} ms"),
        }
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let at: jiff::Timestamp = text.parse().map_err(serde::de::Error::custom)?;
        u64::try_from(at.as_millisecond()).map(Self).map_err(serde::de::Error::custom)
    }
}

/// A text that is kept but never shown: `Debug` and `Display` hide it. Only the log and the host that needs it
/// serialise it; the API edge redacts it first.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// What a redacted secret reads as; writing it back keeps the stored one.
    pub const REDACTED: &'static str = "********";

    /// Keeps `text`.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one place that needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::REDACTED)
    }
}

/// The identity card of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata<Id> {
    /// Unique within the kind.
    pub name: Name,
    /// Minted once, never reused.
    pub uid: Id,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    /// Marks for selectors.
    pub labels: Labels,
    /// Counts the changes of the spec.
    pub generation: Generation,
    /// The cluster's revision at this object's last write.
    pub revision: Revision,
    /// When it was created.
    pub created: Timestamp,
}

/// One object: what it is called, what was asked, what is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resource<Id, Spec, Status> {
    /// Identity and counters.
    pub metadata: Metadata<Id>,
    /// What somebody asked for.
    pub spec: Spec,
    /// What the fleet reports. Never written by a user.
    pub status: Status,
}

/// Refuses labels that are too many, too long or have an empty key.
pub fn validate_labels(labels: &Labels) -> Result<(), Invalid> {
    crate::invalid::in_range("metadata.labels", labels.len() as u64, 0..=LABELS_MAX as u64)?;
    for (key, value) in labels {
        if key.is_empty() || key.len() > LABEL_MAX || value.len() > LABEL_MAX {
            let field = format!("metadata.labels[{key:?}]");
            return Err(Invalid::new(
                field,
                "the key is empty, or key or value too long",
                "keys of 1 to 253 bytes, values up to 253",
            ));
        }
    }
    Ok(())
}
