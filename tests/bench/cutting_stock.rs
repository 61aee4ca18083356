//! The least number of equal hosts that any placement needs for a set of VMs, from below: the linear programme of
//! Gilmore and Gomory, by column generation.
//!
//! DECISION: our own 80 lines and not HiGHS: a fresh clone then needs no solver. The bound does not rest on the simplex
//! being right: whatever prices it ends with, an exact dynamic programme finds the dearest pattern under them, and the
//! sum of prices divided by that pattern's is a lower bound (Farley).

/// CPUs and quarters of a GiB.
pub(crate) type Shape = (usize, usize);

/// Patterns added before it gives up improving; the bound holds anyway.
const ROUNDS_MAX: usize = 2_000;

/// Hosts needed at least, as a fraction.
pub(crate) fn bound(shapes: &[Shape], counts: &[f64], host: Shape) -> f64 {
    let size = shapes.len();
    let mut inverse = vec![vec![0.0; size]; size];
    let mut used = vec![0.0; size];
    for (at, shape) in shapes.iter().enumerate() {
        let copies = (host.0 / shape.0).min(host.1 / shape.1) as f64;
        inverse[at][at] = 1.0 / copies;
        used[at] = counts[at] / copies;
    }
    let mut best: f64 = 0.0;
    for _ in 0..ROUNDS_MAX {
        let prices: Vec<f64> =
            (0..size).map(|at| inverse.iter().map(|row| row[at]).sum::<f64>().max(0.0)).collect();
        let (worth, pattern) = dearest(shapes, &prices, host);
        let sum: f64 = prices.iter().zip(counts).map(|(price, count)| price * count).sum();
        best = best.max(sum / worth.max(1.0));
        if worth <= 1.0 + 1e-7 {
            break;
        }
        let column: Vec<f64> =
            inverse.iter().map(|row| row.iter().zip(&pattern).map(|(a, b)| a * b).sum()).collect();
        let ratios = (0..size).filter(|at| column[*at] > 1e-9).map(|at| (used[at] / column[at], at));
        let Some((step, leaves)) = ratios.min_by(|a, b| a.0.total_cmp(&b.0)) else { break };
        for (at, value) in used.iter_mut().enumerate() {
            *value = if at == leaves { step } else { *value - step * column[at] };
        }
        let pivot: Vec<f64> = inverse[leaves].iter().map(|value| value / column[leaves]).collect();
        for (at, row) in inverse.iter_mut().enumerate().filter(|(at, _)| *at != leaves) {
            row.iter_mut().zip(&pivot).for_each(|(value, pivot)| *value -= column[at] * pivot);
        }
        inverse[leaves] = pivot;
    }
    best
}

/// The pattern that fits a host and is worth most, exactly.
fn dearest(shapes: &[Shape], prices: &[f64], host: Shape) -> (f64, Vec<f64>) {
    let width = host.1 + 1;
    let cell = |cpus: usize, quarters: usize| cpus * width + quarters;
    let mut worth = vec![0.0_f64; (host.0 + 1) * width];
    let mut last = vec![usize::MAX; worth.len()];
    for cpus in 0..=host.0 {
        for quarters in 0..=host.1 {
            for (at, shape) in shapes.iter().enumerate().filter(|(_, s)| s.0 <= cpus && s.1 <= quarters) {
                let with = worth[cell(cpus - shape.0, quarters - shape.1)] + prices[at];
                if with > worth[cell(cpus, quarters)] {
                    worth[cell(cpus, quarters)] = with;
                    last[cell(cpus, quarters)] = at;
                }
            }
        }
    }
    let mut pattern = vec![0.0; shapes.len()];
    let (mut cpus, mut quarters) = host;
    while let Some(shape) = shapes.get(last[cell(cpus, quarters)]) {
        pattern[last[cell(cpus, quarters)]] += 1.0;
        (cpus, quarters) = (cpus - shape.0, quarters - shape.1);
    }
    (worth[cell(host.0, host.1)], pattern)
}
