//! What becomes of a seed: lines and words moved about, numbers made extreme, bytes flipped, files cut off and joined.

use dunlin_scheduler::dice::Dice;

/// Changes to one input at most.
const CHANGES_MAX: usize = 6;

/// Longest input: long enough for every field to come several times, short enough for many cases.
const BYTES_MAX: usize = 4_096;

/// Numbers that break what is not careful, and what is no number.
const NUMBERS: [&str; 22] = [
    "0",
    "1",
    "-1",
    "-0",
    "255",
    "256",
    "65535",
    "65536",
    "2147483648",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "18446744073709551615",
    "18446744073709551616",
    "1e308",
    "1e-9",
    "NaN",
    "inf",
    ".",
    "0.0005",
    "00000000000000000000001",
    "1099511627776",
];

/// One input.
pub(crate) fn mutated(dice: &mut Dice, seeds: &[&[u8]], words: &[&str]) -> Vec<u8> {
    let mut bytes = one_of(dice, seeds).map_or_else(Vec::new, |seed| seed.to_vec());
    for _ in 0..=dice.below(CHANGES_MAX) {
        match dice.below(9) {
            0 => {
                let at = dice.below(bytes.len());
                bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << dice.below(8));
            }
            1 => bytes.truncate(dice.below(bytes.len() + 1)),
            2 => put(dice, &mut bytes, &NUMBERS),
            3 => put(dice, &mut bytes, words),
            4 => swap_number(dice, &mut bytes),
            5 => lines(dice, &mut bytes),
            6 => cut(dice, &mut bytes),
            7 => copy(dice, &mut bytes),
            _ => {
                let other = one_of(dice, seeds).copied().unwrap_or_default();
                bytes.extend(&other[dice.below(other.len())..]);
            }
        }
        bytes.truncate(BYTES_MAX);
    }
    bytes
}

fn one_of<'a, T>(dice: &mut Dice, all: &'a [T]) -> Option<&'a T> {
    all.get(dice.below(all.len()))
}

/// Some bytes of the input: where they begin, and one past their end.
fn part(dice: &mut Dice, bytes: &[u8], longest: usize) -> (usize, usize) {
    let from = dice.below(bytes.len() + 1);
    (from, (from + dice.below(longest + 1)).min(bytes.len()))
}

fn put(dice: &mut Dice, bytes: &mut Vec<u8>, words: &[&str]) {
    let word = one_of(dice, words).copied().unwrap_or("\0");
    let (from, to) = part(dice, bytes, 4);
    bytes.splice(from..to, word.bytes());
}

/// A number that stands there becomes another.
fn swap_number(dice: &mut Dice, bytes: &mut Vec<u8>) {
    let start = dice.below(bytes.len() + 1);
    let digit = |byte: &u8| byte.is_ascii_digit();
    let Some(from) = bytes.iter().skip(start).position(digit).map(|at| at + start) else { return };
    let to = bytes.iter().skip(from).position(|byte| !digit(byte)).map_or(bytes.len(), |at| at + from);
    let number = one_of(dice, &NUMBERS).copied().unwrap_or("0");
    bytes.splice(from..to, number.bytes());
}

/// A line goes, comes twice, or changes places.
fn lines(dice: &mut Dice, bytes: &mut Vec<u8>) {
    let mut lines: Vec<Vec<u8>> = bytes.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    if lines.is_empty() {
        return;
    }
    let (one, other) = (dice.below(lines.len()), dice.below(lines.len()));
    match dice.below(3) {
        0 => drop(lines.remove(one)),
        1 => lines.insert(other, lines[one].clone()),
        _ => lines.swap(one, other),
    }
    *bytes = lines.concat();
}

fn cut(dice: &mut Dice, bytes: &mut Vec<u8>) {
    let (from, to) = part(dice, bytes, 24);
    bytes.drain(from..to);
}

fn copy(dice: &mut Dice, bytes: &mut Vec<u8>) {
    let (from, to) = part(dice, bytes, 24);
    let piece = bytes[from..to].to_vec();
    let at = dice.below(bytes.len() + 1);
    bytes.splice(at..at, piece);
}
