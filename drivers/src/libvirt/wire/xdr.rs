//! XDR (RFC 4506) as libvirt uses it: big-endian words of four bytes, lengths before what has one.

use thiserror::Error;

/// Longest text, bytes.
pub const TEXT_BYTES_MAX: usize = 4 << 20;

/// Why bytes are no value, or a value cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum XdrError {
    /// The bytes end in the middle.
    #[error("{missing} bytes are missing")]
    Short {
        /// How many more it would take, at least.
        missing: usize,
    },
    /// A length beyond its bound.
    #[error("a length of {length} where at most {max} is allowed")]
    TooLong {
        /// What was said.
        length: usize,
        /// The bound.
        max: usize,
    },
    /// A word that stands for nothing here.
    #[error("{word} is no {what}")]
    Word {
        /// What it was read as.
        what: &'static str,
        /// What it was.
        word: u32,
    },
    /// A text that is not UTF-8.
    #[error("a text is not UTF-8")]
    NotUtf8,
    /// Bytes are left over.
    #[error("{0} bytes are left over")]
    Trailing(usize),
}

/// Bytes that are read from the front.
#[derive(Clone, Debug)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Reads these.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// What was not read yet, bytes.
    #[must_use]
    pub fn left(&self) -> usize {
        self.0.len()
    }

    fn word(&mut self) -> Result<[u8; 4], XdrError> {
        let missing = 4 - self.0.len().min(4);
        let (word, rest) = self.0.split_first_chunk().ok_or(XdrError::Short { missing })?;
        self.0 = rest;
        Ok(*word)
    }

    /// A length that is within its bound.
    fn length(&mut self, max: usize) -> Result<usize, XdrError> {
        let length = usize::try_from(u32::from_be_bytes(self.word()?)).unwrap_or(usize::MAX);
        if length > max { Err(XdrError::TooLong { length, max }) } else { Ok(length) }
    }

    /// So many bytes, and those that fill up the last word.
    fn bytes(&mut self, count: usize) -> Result<&'a [u8], XdrError> {
        let padded = count.next_multiple_of(4);
        let short = XdrError::Short { missing: padded.saturating_sub(self.0.len()) };
        let (taken, rest) = self.0.split_at_checked(padded).ok_or(short)?;
        self.0 = rest;
        Ok(&taken[..count])
    }
}

/// A value that can be written and read.
pub trait Xdr: Sized {
    /// Writes it at the end of `out`.
    ///
    /// # Errors
    /// [`XdrError::TooLong`]: it would be refused by any reader.
    fn put(&self, out: &mut Vec<u8>) -> Result<(), XdrError>;

    /// Reads one.
    ///
    /// # Errors
    /// When the bytes are none.
    fn get(from: &mut Reader<'_>) -> Result<Self, XdrError>;

    /// Any value, for property tests.
    #[cfg(test)]
    fn any(dice: &mut super::tests::Dice) -> Self;
}

/// The whole of `bytes` as one value.
///
/// # Errors
/// When they are none, or more than one.
pub fn decode<T: Xdr>(bytes: &[u8]) -> Result<T, XdrError> {
    let mut reader = Reader::new(bytes);
    let value = T::get(&mut reader)?;
    match reader.left() {
        0 => Ok(value),
        left => Err(XdrError::Trailing(left)),
    }
}

/// A value's bytes.
///
/// # Errors
/// [`XdrError::TooLong`].
pub fn encode<T: Xdr>(value: &T) -> Result<Vec<u8>, XdrError> {
    let mut out = Vec::new();
    value.put(&mut out)?;
    Ok(out)
}

fn put_length(length: usize, max: usize, out: &mut Vec<u8>) -> Result<(), XdrError> {
    let too_long = XdrError::TooLong { length, max };
    let word = u32::try_from(length).ok().filter(|_| length <= max).ok_or(too_long)?;
    word.put(out)
}

fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(bytes);
    out.resize(out.len().next_multiple_of(4), 0);
}

macro_rules! words {
    ($($kind:ty),*) => {$(
        impl Xdr for $kind {
            fn put(&self, out: &mut Vec<u8>) -> Result<(), XdrError> {
                out.extend_from_slice(&self.to_be_bytes());
                Ok(())
            }

            fn get(from: &mut Reader<'_>) -> Result<Self, XdrError> {
                let mut bytes = [0; size_of::<Self>()];
                for word in bytes.chunks_exact_mut(4) {
                    word.copy_from_slice(&from.word()?);
                }
                Ok(Self::from_be_bytes(bytes))
            }

            #[cfg(test)]
            fn any(dice: &mut super::tests::Dice) -> Self {
                let bytes: [u8; size_of::<Self>()] = std::array::from_fn(|_| dice.byte());
                // Tests compare, and some doubles are not even equal to themselves.
                let value = Self::from_be_bytes(bytes);
                #[allow(clippy::eq_op)]
                if value == value { value } else { Self::default() }
            }
        }
    )*};
}
words!(i32, u32, i64, u64, f64);

impl Xdr for () {
    fn put(&self, _: &mut Vec<u8>) -> Result<(), XdrError> {
        Ok(())
    }

    fn get(_: &mut Reader<'_>) -> Result<Self, XdrError> {
        Ok(())
    }

    #[cfg(test)]
    fn any(_: &mut super::tests::Dice) -> Self {}
}

impl Xdr for String {
    fn put(&self, out: &mut Vec<u8>) -> Result<(), XdrError> {
        put_length(self.len(), TEXT_BYTES_MAX, out)?;
        put_bytes(self.as_bytes(), out);
        Ok(())
    }

    fn get(from: &mut Reader<'_>) -> Result<Self, XdrError> {
        let length = from.length(TEXT_BYTES_MAX)?;
        let text = str::from_utf8(from.bytes(length)?).map_err(|_| XdrError::NotUtf8)?;
        Ok(text.to_owned())
    }

    #[cfg(test)]
    fn any(dice: &mut super::tests::Dice) -> Self {
        let length = dice.below(9);
        (0..length).map(|_| char::from_u32(u32::from(dice.byte()) * 3).unwrap_or('?')).collect()
    }
}

impl<T: Xdr> Xdr for Option<T> {
    fn put(&self, out: &mut Vec<u8>) -> Result<(), XdrError> {
        match self {
            None => 0u32.put(out),
            Some(value) => {
                1u32.put(out)?;
                value.put(out)
            }
        }
    }

    fn get(from: &mut Reader<'_>) -> Result<Self, XdrError> {
        match u32::get(from)? {
            0 => Ok(None),
            1 => T::get(from).map(Some),
            word => Err(XdrError::Word { what: "flag of what may be absent", word }),
        }
    }

    #[cfg(test)]
    fn any(dice: &mut super::tests::Dice) -> Self {
        (dice.below(2) == 1).then(|| T::any(dice))
    }
}

/// A list of at most `MAX`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct List<T, const MAX: usize>(pub Vec<T>);

impl<T: Xdr, const MAX: usize> Xdr for List<T, MAX> {
    fn put(&self, out: &mut Vec<u8>) -> Result<(), XdrError> {
        put_length(self.0.len(), MAX, out)?;
        self.0.iter().try_for_each(|item| item.put(out))
    }

    fn get(from: &mut Reader<'_>) -> Result<Self, XdrError> {
        let count = from.length(MAX)?;
        // No capacity on somebody's word: an item takes a word at least, so the list ends with the bytes.
        let mut items = Vec::new();
        for _ in 0..count {
            items.push(T::get(from)?);
        }
        Ok(Self(items))
    }

    #[cfg(test)]
    fn any(dice: &mut super::tests::Dice) -> Self {
        let count = dice.below(4).min(MAX);
        Self((0..count).map(|_| T::any(dice)).collect())
    }
}

/// Bytes, at most `MAX`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opaque<const MAX: usize>(pub Vec<u8>);

impl<const MAX: usize> Xdr for Opaque<MAX> {
    fn put(&self, out: &mut Vec<u8>) -> Result<(), XdrError> {
        put_length(self.0.len(), MAX, out)?;
        put_bytes(&self.0, out);
        Ok(())
    }

    fn get(from: &mut Reader<'_>) -> Result<Self, XdrError> {
        let length = from.length(MAX)?;
        Ok(Self(from.bytes(length)?.to_vec()))
    }

    #[cfg(test)]
    fn any(dice: &mut super::tests::Dice) -> Self {
        let count = dice.below(9).min(MAX);
        Self((0..count).map(|_| dice.byte()).collect())
    }
}

/// A C `char` as XDR has it: a word of its own, with the sign the compiler of the sender gave it.
fn get_char(from: &mut Reader<'_>) -> Result<u8, XdrError> {
    let [_, _, _, byte] = from.word()?;
    Ok(byte)
}

fn put_char(byte: u8, out: &mut Vec<u8>) -> Result<(), XdrError> {
    i32::from(byte.cast_signed()).put(out)
}

/// An array of C characters without a length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CharArray<const LENGTH: usize>(pub [u8; LENGTH]);

impl<const LENGTH: usize> CharArray<LENGTH> {
    /// The text before the first NUL.
    #[must_use]
    pub fn text(&self) -> String {
        let text = self.0.split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(text).into_owned()
    }
}

impl<const LENGTH: usize> Xdr for CharArray<LENGTH> {
    fn put(&self, out: &mut Vec<u8>) -> Result<(), XdrError> {
        self.0.iter().try_for_each(|byte| put_char(*byte, out))
    }

    fn get(from: &mut Reader<'_>) -> Result<Self, XdrError> {
        let mut bytes = [0; LENGTH];
        for byte in &mut bytes {
            *byte = get_char(from)?;
        }
        Ok(Self(bytes))
    }

    #[cfg(test)]
    fn any(dice: &mut super::tests::Dice) -> Self {
        Self(std::array::from_fn(|_| dice.byte()))
    }
}

/// Characters with a length, at most `MAX`: four bytes on the wire for each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chars<const MAX: usize>(pub Vec<u8>);

impl<const MAX: usize> Xdr for Chars<MAX> {
    fn put(&self, out: &mut Vec<u8>) -> Result<(), XdrError> {
        put_length(self.0.len(), MAX, out)?;
        self.0.iter().try_for_each(|byte| put_char(*byte, out))
    }

    fn get(from: &mut Reader<'_>) -> Result<Self, XdrError> {
        let count = from.length(MAX)?;
        (0..count).map(|_| get_char(from)).collect::<Result<_, _>>().map(Self)
    }

    #[cfg(test)]
    fn any(dice: &mut super::tests::Dice) -> Self {
        let count = dice.below(9).min(MAX);
        Self((0..count).map(|_| dice.byte()).collect())
    }
}

/// A UUID: sixteen bytes without a length.
impl Xdr for [u8; 16] {
    fn put(&self, out: &mut Vec<u8>) -> Result<(), XdrError> {
        out.extend_from_slice(self);
        Ok(())
    }

    fn get(from: &mut Reader<'_>) -> Result<Self, XdrError> {
        let bytes = from.bytes(16)?;
        Ok(std::array::from_fn(|at| bytes[at]))
    }

    #[cfg(test)]
    fn any(dice: &mut super::tests::Dice) -> Self {
        std::array::from_fn(|_| dice.byte())
    }
}
