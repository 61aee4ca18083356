//! Arrivals of one Azure region slice, as the file `azure2017-dev.csv` has them:
//! `vm,arrival_s,tenant_batch,vcpus,mem_gib,life_lo_s,life_hi_s,censored`.

use std::collections::BTreeMap;

use super::lines::{BadLine, table};
use super::{Arrival, Draw, Trace};
use crate::snapshot::{Amounts, Demand};

const COLUMNS: [&str; 8] =
    ["vm", "arrival_s", "tenant_batch", "vcpus", "mem_gib", "life_lo_s", "life_hi_s", "censored"];

/// Latest moment of a trace, seconds: a thousand years, so that sums of two never overflow.
const TIME_S_MAX: u64 = 1_000 * 366 * 86_400;

/// Reads the arrivals. A lifetime is known to its bin: it is drawn from there, by the seed.
///
/// # Errors
/// The first line that is not right.
pub fn read(file: &str, bytes: &[u8], seed: u64) -> Result<Trace, BadLine> {
    let mut draw = Draw(seed);
    let mut trace = Trace::default();
    let mut known: BTreeMap<(u64, u64), usize> = BTreeMap::new();
    for row in table(file, bytes, COLUMNS)? {
        let (at, [_, arrival, batch, vcpus, mem, lo, hi, censored]) = row?;
        let at_s = at.number("arrival_s", arrival, 0, TIME_S_MAX)?;
        let batch = at.number("tenant_batch", batch, 0, u32::MAX.into())?;
        let cpus = at.number("vcpus", vcpus, 1, 4_096)?;
        let mem_mib = at.milli("mem_gib", mem, 1, 1 << 30)? * 1_024 / 1_000;
        let stays = at.number("censored", censored, 0, 1)? == 1;
        let lo = at.number("life_lo_s", lo, 0, TIME_S_MAX)?;
        // A VM that outlived the window has no upper end.
        let hi = if stays { lo } else { at.number("life_hi_s", hi, lo, TIME_S_MAX)? };
        let life_s = draw.within(lo, hi).max(1);
        let demand = *known.entry((cpus, mem_mib)).or_insert_with(|| {
            trace.demands.push(Demand { amounts: Amounts::new(cpus * 1_000, mem_mib), ..Demand::default() });
            trace.demands.len() - 1
        });
        let batch = u32::try_from(batch).unwrap_or(u32::MAX);
        trace.arrivals.push(Arrival { at_s, leaves_s: (!stays).then_some(at_s + life_s), demand, batch });
    }
    trace.arrivals.sort_by_key(|arrival| arrival.at_s);
    Ok(trace)
}
