//! The codec against everything: every value survives, and no bytes do harm.

use proptest::prelude::*;

use super::calls::TABLE;
use super::events::{self, EVENTS, Event};
use super::fault::Fault;
use super::frame::{FRAME_BYTES_MAX, Frame, Frames, HEAD_BYTES, Head};
use super::types::{Domain, Param, Value};
use super::xdr::{self, CharArray, Chars, Xdr, XdrError};

/// Random choices for values of any type.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    pub(super) fn byte(&mut self) -> u8 {
        // Marsaglia's xorshift.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.to_be_bytes()[2]
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        usize::from(self.byte()) % bound
    }
}

/// Makes a value up, writes it, reads it, and gives its bytes.
pub(super) fn round_trip<T: Xdr>(dice: &mut Dice) -> Vec<u8> {
    let bytes = xdr::encode(&T::any(dice)).expect("short values have no bound to break");
    let read: T = xdr::decode(&bytes).expect("what was written is read");
    assert_eq!(xdr::encode(&read), Ok(bytes.clone()), "what was read is written as it was");
    bytes
}

/// Reads the bytes as everything there is.
fn feed(bytes: &[u8]) {
    for entry in TABLE {
        let _ = (entry.check_arguments)(bytes);
        let _ = (entry.check_answer)(bytes);
    }
    for (number, _) in EVENTS {
        let _ = Event::decode(*number, bytes);
    }
    let _ = xdr::decode::<Fault>(bytes);
    let _ = Frame::decode(bytes);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Every procedure's arguments and answer, every event and fault come back as they were sent; and no bytes, made up
    /// or bent from good ones, do more than fail.
    #[test]
    fn what_is_sent_arrives_and_no_bytes_do_harm(
        seed in 1..u64::MAX,
        noise in prop::collection::vec(any::<u8>(), 0..200),
        bends in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut dice = Dice(seed);
        let mut good: Vec<Vec<u8>> = TABLE.iter().flat_map(|entry| (entry.round_trip)(&mut dice)).collect();
        for (number, bytes) in events::round_trips(&mut dice) {
            prop_assert!(Event::decode(number, &bytes).expect("good").is_some());
            good.push(bytes);
        }
        good.push(round_trip::<Fault>(&mut dice));
        let frame = Frame { head: Head::any(&mut dice), body: noise.clone() };
        let bytes = frame.encode().expect("short");
        prop_assert_eq!(Frame::decode(&bytes), Ok(Some((frame, bytes.len()))));
        good.push(bytes);
        feed(&noise);
        for mut bytes in good {
            for (at, byte) in &bends {
                if !bytes.is_empty() {
                    let at = at.index(bytes.len());
                    bytes[at] = *byte;
                }
            }
            let half = bytes.len() / 2;
            feed(&bytes);
            feed(&bytes[..half]);
        }
    }

    /// However a stream of frames is cut into pieces, the same frames come out of it.
    #[test]
    fn frames_are_found_in_any_pieces(seed in 1..u64::MAX, piece in 1..64usize) {
        let mut dice = Dice(seed);
        let frames: Vec<Frame> = (0..5)
            .map(|_| Frame { head: Head::any(&mut dice), body: vec![dice.byte(); dice.below(90)] })
            .collect();
        let bytes: Vec<u8> = frames.iter().flat_map(|frame| frame.encode().expect("short")).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
        let found = runtime.block_on(async {
            let (mut sender, receiver) = tokio::io::duplex(piece);
            let mut reader = Frames::new(receiver);
            let sends = async {
                tokio::io::AsyncWriteExt::write_all(&mut sender, &bytes).await.expect("write");
                drop(sender);
            };
            let reads = async {
                let mut found = Vec::new();
                while let Some(frame) = reader.next().await.expect("good frames") {
                    found.push(frame);
                }
                found
            };
            let ((), found) = tokio::join!(sends, reads);
            found
        });
        prop_assert_eq!(found, frames);
    }
}

/// Lengths that lie cost nothing: a list, a text or a frame that says it has gigabytes is refused before they are had.
#[test]
fn lengths_are_not_believed() {
    let lie = [0xff; 4];
    assert!(matches!(xdr::decode::<String>(&lie), Err(XdrError::TooLong { .. })));
    let most = 4u32 << 20;
    assert!(matches!(xdr::decode::<String>(&most.to_be_bytes()), Err(XdrError::Short { .. })));
    let many = 16_384u32.to_be_bytes();
    assert!(matches!(xdr::decode::<xdr::List<Domain, 16_384>>(&many), Err(XdrError::Short { .. })));
    assert!(matches!(Frame::decode(&lie), Err(XdrError::TooLong { .. })));
    assert_eq!(Frame::decode(&27u32.to_be_bytes()), Err(XdrError::Short { missing: 1 }));
    let longest = u32::try_from(FRAME_BYTES_MAX).expect("a word").to_be_bytes();
    assert_eq!(Frame::decode(&longest), Ok(None));
    assert_eq!(HEAD_BYTES, 28);
}

/// The oddities of the wire: characters take a word each, parameters count their types from one, what may be absent has a
/// flag, and a domain's reference is name, UUID and number.
#[test]
fn oddities() {
    assert_eq!(xdr::encode(&CharArray(*b"ab")), Ok(vec![0, 0, 0, b'a', 0, 0, 0, b'b']));
    assert_eq!(xdr::encode(&Chars::<4>(vec![0x80])), Ok(vec![0, 0, 0, 1, 0xff, 0xff, 0xff, 0x80]));
    let param = Param { field: "a".into(), value: Value::Uhyper(5) };
    let bytes = [0, 0, 0, 1, b'a', 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 5];
    assert_eq!(xdr::encode(&param), Ok(bytes.to_vec()));
    assert_eq!(xdr::decode::<Option<u32>>(&[0, 0, 0, 0]), Ok(None));
    assert!(matches!(xdr::decode::<Option<u32>>(&[0, 0, 0, 2]), Err(XdrError::Word { word: 2, .. })));
    let domain = Domain { name: "x".into(), uuid: [7; 16], id: -1 };
    let bytes = xdr::encode(&domain).expect("short");
    assert_eq!((bytes.len(), &bytes[24..]), (28, &[0xff; 4][..]));
    assert_eq!(xdr::decode::<i32>(&bytes[20..]), Err(XdrError::Trailing(4)));
}

/// No number stands twice in the table, and it is in order.
#[test]
fn the_table_is_sound() {
    assert!(TABLE.windows(2).all(|pair| pair[0].number < pair[1].number));
    assert!(TABLE.iter().all(|entry| entry.right.is_empty() || entry.right.contains(':')));
    assert_eq!(TABLE.iter().filter(|entry| entry.streams).count(), 1);
}
