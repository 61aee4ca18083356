//! What has to be new or secret: uids, hardware addresses, names, tokens. The only randomness of a controller.
//!
//! Minted at the edge and carried in the command, so that `apply` needs none.

use dunlin_model::vm::Mac;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::clock;

/// Bytes of a token or key: 256 bits cannot be guessed.
const SECRET_BYTES: usize = 32;

/// QEMU's own unicast prefix, which no card maker uses.
const MAC_PREFIX: [u8; 3] = [0x52, 0x54, 0x00];

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .expect("the kernel's random source works on every system a controller runs on");
    bytes
}

/// A new uid (UUID version 7). It begins with the time, so that objects made together lie together in every map: a
/// random one would touch a node of its own for each.
pub(crate) fn uuid() -> Uuid {
    uuid::Builder::from_unix_timestamp_millis(clock::now().0, &random()).into_uuid()
}

/// A new hardware address.
pub(crate) fn mac() -> Mac {
    let [a, b, c] = random();
    let [x, y, z] = MAC_PREFIX;
    Mac([x, y, z, a, b, c])
}

/// A short tail that makes a generated name unique: eight hex digits.
pub(crate) fn suffix() -> String {
    hex(&random::<4>())
}

/// A key or token, 64 hex digits.
pub(crate) fn secret() -> String {
    hex(&random::<SECRET_BYTES>())
}

/// The salt of a password's hash: as long as RFC 9106 asks for.
pub(crate) fn salt() -> [u8; 16] {
    random()
}

/// A number that only its receiver can know.
pub(crate) fn nonce() -> u64 {
    u64::from_le_bytes(random())
}

/// SHA-256 of a secret, hex: what is stored in its place.
pub(crate) fn sha256_hex(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes()))
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is minted is well-formed and does not repeat.
    #[test]
    fn minted_things_are_well_formed_and_new() {
        assert_ne!(uuid(), uuid());
        assert_eq!(mac().to_string().parse::<Mac>().map(|mac| mac.0[0] & 1), Ok(0));
        assert_eq!(secret().len(), 64);
        assert_eq!(sha256_hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
