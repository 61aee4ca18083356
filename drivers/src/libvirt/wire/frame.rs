//! Frames: a length, a head of six words, and a payload.

use tokio::io::{AsyncRead, AsyncReadExt};

use super::types::records;
use super::xdr::{self, Reader, Xdr, XdrError};

/// The procedures of [`super::calls`].
pub const PROGRAM_REMOTE: u32 = 0x2000_8086;
/// "Are you there", and "yes".
pub const PROGRAM_KEEPALIVE: u32 = 0x6b65_6570;
/// Of every program.
pub const VERSION: u32 = 1;
/// "Are you there?"
pub const PING: i32 = 1;
/// "Yes."
pub const PONG: i32 = 2;

/// Bytes before the payload, the length included.
pub const HEAD_BYTES: usize = 28;
/// Longest frame, bytes.
pub const FRAME_BYTES_MAX: usize = (32 << 20) + 4;
/// Bytes of a stream in one frame, at most: what libvirt's own client sends.
pub const STREAM_BYTES_MAX: usize = 262_120;
/// Bytes asked of the socket at a time. A longer frame makes its buffer grow as its bytes come, not on its word.
const READ_BYTES: usize = 16 << 10;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A question.
    Call,
    /// Its answer.
    Reply,
    /// An event, or keepalive.
    Message,
    /// A piece of a stream, or its end.
    Stream,
    /// A question with file descriptors.
    CallWithFds,
    /// An answer with file descriptors.
    ReplyWithFds,
    /// A hole in a stream.
    StreamHole,
}

const KINDS: [Kind; 7] = [
    Kind::Call,
    Kind::Reply,
    Kind::Message,
    Kind::Stream,
    Kind::CallWithFds,
    Kind::ReplyWithFds,
    Kind::StreamHole,
];

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Well; of a stream: it ends.
    Ok,
    /// Not: the payload is a [`super::Fault`].
    Error,
    /// A stream goes on.
    Continue,
}

const STATUSES: [Status; 3] = [Status::Ok, Status::Error, Status::Continue];

macro_rules! enumerated {
    ($($kind:ty, $all:ident, $what:literal;)*) => {$(
        impl Xdr for $kind {
            fn put(&self, out: &mut Vec<u8>) -> Result<(), XdrError> {
                let place = $all.iter().position(|one| one == self).unwrap_or_default();
                u32::try_from(place).unwrap_or_default().put(out)
            }

            fn get(from: &mut Reader<'_>) -> Result<Self, XdrError> {
                let word = u32::get(from)?;
                let found = usize::try_from(word).ok().and_then(|place| $all.get(place));
                found.copied().ok_or(XdrError::Word { what: $what, word })
            }

            #[cfg(test)]
            fn any(dice: &mut super::tests::Dice) -> Self {
                $all[dice.below($all.len())]
            }
        }
    )*};
}
enumerated! {
    Kind, KINDS, "kind of frame";
    Status, STATUSES, "status";
}

records! {
    /// What stands before the payload, after the length.
    Head { program: u32, version: u32, procedure: i32, kind: Kind, serial: u32, status: Status }
}

/// A frame.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// What it is.
    pub head: Head,
    /// The payload.
    pub body: Vec<u8>,
}

impl Frame {
    /// Its bytes.
    ///
    /// # Errors
    /// [`XdrError::TooLong`].
    pub fn encode(&self) -> Result<Vec<u8>, XdrError> {
        let length = HEAD_BYTES + self.body.len();
        let too_long = XdrError::TooLong { length, max: FRAME_BYTES_MAX };
        let word = u32::try_from(length).ok().filter(|_| length <= FRAME_BYTES_MAX).ok_or(too_long)?;
        let mut out = Vec::with_capacity(length);
        word.put(&mut out)?;
        self.head.put(&mut out)?;
        out.extend_from_slice(&self.body);
        Ok(out)
    }

    /// The frame at the front of `bytes` and its length, or none while it is not whole.
    ///
    /// # Errors
    /// When these bytes will never become a frame.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Self, usize)>, XdrError> {
        let Some(length) = bytes.first_chunk() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if length < HEAD_BYTES {
            return Err(XdrError::Short { missing: HEAD_BYTES - length });
        }
        if length > FRAME_BYTES_MAX {
            return Err(XdrError::TooLong { length, max: FRAME_BYTES_MAX });
        }
        let Some(whole) = bytes.get(..length) else { return Ok(None) };
        let head = xdr::decode(&whole[4..HEAD_BYTES])?;
        Ok(Some((Self { head, body: whole[HEAD_BYTES..].to_vec() }, length)))
    }
}

/// Frames that come from somewhere.
#[derive(Debug)]
pub struct Frames<R> {
    from: R,
    bytes: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Frames<R> {
    /// Reads frames from there.
    pub fn new(from: R) -> Self {
        Self { from, bytes: Vec::new() }
    }

    /// The next. None: the other end has closed between two frames. May be dropped at any await without a loss.
    ///
    /// # Errors
    /// When the other end breaks off, or sends what is no frame.
    pub async fn next(&mut self) -> std::io::Result<Option<Frame>> {
        loop {
            let invalid = |e| std::io::Error::new(std::io::ErrorKind::InvalidData, e);
            if let Some((frame, length)) = Frame::decode(&self.bytes).map_err(invalid)? {
                self.bytes.drain(..length);
                if self.bytes.is_empty() && self.bytes.capacity() > READ_BYTES {
                    self.bytes = Vec::new();
                }
                return Ok(Some(frame));
            }
            self.bytes.reserve(READ_BYTES);
            if self.from.read_buf(&mut self.bytes).await? == 0 {
                let torn = std::io::ErrorKind::UnexpectedEof;
                return if self.bytes.is_empty() { Ok(None) } else { Err(torn.into()) };
            }
        }
    }
}
