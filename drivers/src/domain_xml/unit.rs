//! Sizes with libvirt's units.

/// Units a size may have, and their bytes. libvirt's documentation of `<memory>`; names are compared without case.
const UNITS: &[(&[&str], u64)] = &[
    (&["b", "byte", "bytes"], 1),
    (&["kb"], 1000),
    (&["k", "kib"], 1 << 10),
    (&["mb"], 1_000_000),
    (&["m", "mib"], 1 << 20),
    (&["gb"], 1_000_000_000),
    (&["g", "gib"], 1 << 30),
    (&["tb"], 1_000_000_000_000),
    (&["t", "tib"], 1 << 40),
    (&["pb"], 1_000_000_000_000_000),
    (&["p", "pib"], 1 << 50),
    (&["eb"], 1_000_000_000_000_000_000),
    (&["e", "eib"], 1 << 60),
];

/// What a message says is allowed.
pub(super) const ALLOWED: &str = "a whole number of b, KB, KiB (the default), MB, MiB, GB, GiB, TB or TiB";

/// A size in MiB, rounded up as libvirt does.
pub(super) fn mib(number: &str, unit: &str) -> Result<u64, String> {
    let (_, bytes) = UNITS
        .iter()
        .find(|(names, _)| names.iter().any(|name| name.eq_ignore_ascii_case(unit)))
        .ok_or_else(|| format!("{unit:?} is no unit"))?;
    let number: u64 = number.trim().parse().map_err(|_| format!("{:?} is no size", number.trim()))?;
    let total = number.checked_mul(*bytes).ok_or_else(|| format!("{number} {unit} is too large"))?;
    Ok(total.div_ceil(1 << 20))
}
