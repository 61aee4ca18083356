//! Measured CPU use of VMs over days, as the bitbrains archive has it, and fleets drawn from it by lot.
//!
//! ```text
//! vms.csv    vm,...,cpu_count,cpu_mhz_total,mem...     one VM a line; columns are found by their names
//! cpu.csv    vm,timestamp,duration_ms,cpu_count,cpu_mhz   mean use over the time that ends at the stamp (UTC)
//! ```

use std::collections::BTreeMap;

use crate::dice::Dice;
use crate::input::{BadInput, Line, shown};

/// Length of a slot, ms: the sampling period of the archive.
pub const SLOT_MS: u64 = 300_000;

/// Slots of a day.
pub const DAY_SLOTS: usize = 288;

/// A day counts when at least so many of its slots were measured: the others repeat what came before.
const MEASURED_SLOTS_MIN: usize = 260;

/// Longest time one sample may claim to stand for, ms: a quarter of a year.
const SAMPLE_MS_MAX: u64 = 90 * 86_400_000;

/// Longest time one sample is believed to stand for, ms: an hour. What a longer one covers was not measured.
const BELIEVED_MS_MAX: u64 = 3_600_000;

/// vCPUs of a VM.
const CPUS_MAX: u64 = 4_096;

/// Memory of a VM, KiB: 64 TiB.
const MEM_KIB_MAX: u64 = 1 << 36;

/// MHz of a whole VM in thousandths: a million GHz.
const MHZ_MILLI_MAX: u64 = 1_000_000_000_000;

/// One VM of the archive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TracedVm {
    /// Its name there.
    pub name: String,
    /// vCPUs.
    pub cpus: u64,
    /// Memory, MiB.
    pub mem_mib: u64,
    /// Days that were measured, midnight to midnight: CPU used in each slot, thousandths of a CPU.
    pub days: Vec<Vec<u32>>,
}

/// All VMs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadTrace {
    /// In the order of the file; those without a whole day are left out.
    pub vms: Vec<TracedVm>,
}

/// A VM drawn by lot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drawn {
    /// Index of [`LoadTrace::vms`].
    pub vm: usize,
    /// Index of [`TracedVm::days`].
    pub day: usize,
}

impl LoadTrace {
    /// Reads both files. The names are told when a line is bad.
    ///
    /// # Errors
    /// The first line that is not understood.
    pub fn read(vms: (&str, &str), samples: (&str, &str)) -> Result<Self, BadInput> {
        let mut known = read_vms(vms.0, vms.1)?;
        let mut series: BTreeMap<usize, BTreeMap<u64, u32>> = BTreeMap::new();
        let by_name: BTreeMap<String, usize> =
            known.iter().enumerate().map(|(at, (vm, _))| (vm.name.clone(), at)).collect();
        let mut lines = Line::all(samples.0, samples.1);
        let columns = Columns::of(&mut lines, samples.0, &["vm", "timestamp", "duration_ms", "cpu_mhz"])?;
        for line in lines.filter(|line| !line.text.trim().is_empty()) {
            let [name, stamp, duration, mhz] = columns.pick(&line)?;
            let Some(at) = by_name.get(name) else {
                return Err(line.refuse("vm", format!("{} is not in {}", shown(name), vms.0)));
            };
            let end_s = seconds(&line, stamp)?;
            let duration_ms = line.whole("duration_ms", duration, 1..=SAMPLE_MS_MAX)?;
            let used = line.milli("cpu_mhz", mhz, 0..=MHZ_MILLI_MAX)?;
            let (vm, mhz_milli) = &known[*at];
            let cpu_milli = u128::from(used) * u128::from(vm.cpus) * 1_000 / u128::from((*mhz_milli).max(1));
            let cpu_milli = u32::try_from(cpu_milli).unwrap_or(u32::MAX);
            let slots = series.entry(*at).or_default();
            let duration_ms = if duration_ms > BELIEVED_MS_MAX { SLOT_MS } else { duration_ms };
            let (first, last) =
                ((end_s * 1_000).saturating_sub(duration_ms) / SLOT_MS, end_s * 1_000 / SLOT_MS);
            slots.extend((first..last.max(first + 1)).map(|slot| (slot, cpu_milli)));
        }
        for (at, slots) in series {
            known[at].0.days = days(&slots);
        }
        let whole = known.into_iter().map(|(vm, _)| vm).filter(|vm| !vm.days.is_empty());
        Ok(Self { vms: whole.collect() })
    }

    /// Draws that many VMs with one day each. Days keep their hours, so that the mornings of all fall together.
    #[must_use]
    pub fn draw(&self, count: usize, seed: u64) -> Vec<Drawn> {
        let mut dice = Dice::new(seed);
        if self.vms.is_empty() {
            return Vec::new();
        }
        let draw = |_| {
            let vm = dice.below(self.vms.len());
            Drawn { vm, day: dice.below(self.vms[vm].days.len()) }
        };
        (0..count).map(draw).collect()
    }
}

/// Each VM with its MHz in thousandths.
fn read_vms(file: &str, text: &str) -> Result<Vec<(TracedVm, u64)>, BadInput> {
    let mut lines = Line::all(file, text);
    let names = ["vm", "cpu_count", "cpu_mhz_total", "mem_mb_or_unit_as_in_source"];
    let columns = Columns::of(&mut lines, file, &names)?;
    let mut vms: Vec<(TracedVm, u64)> = Vec::new();
    for line in lines.filter(|line| !line.text.trim().is_empty()) {
        let [name, cpus, mhz, mem] = columns.pick(&line)?;
        if vms.iter().any(|(vm, _)| vm.name == name) {
            return Err(line.refuse("vm", format!("{} stands there twice", shown(name))));
        }
        let vm = TracedVm {
            name: name.to_owned(),
            cpus: line.whole("cpu_count", cpus, 1..=CPUS_MAX)?,
            // The archive's memory is in KiB, whatever its column says: VMs of one vCPU have 2,092,352 of it.
            mem_mib: line.whole("mem_mb_or_unit_as_in_source", mem, 0..=MEM_KIB_MAX)?.div_ceil(1_024),
            days: Vec::new(),
        };
        vms.push((vm, line.milli("cpu_mhz_total", mhz, 1..=MHZ_MILLI_MAX)?));
    }
    Ok(vms)
}

/// Where the columns are that are wanted.
struct Columns<const N: usize>([(usize, &'static str); N]);

impl<const N: usize> Columns<N> {
    fn of<'t>(
        lines: &mut impl Iterator<Item = Line<'t>>,
        file: &str,
        names: &[&'static str; N],
    ) -> Result<Self, BadInput> {
        let missing = |line: usize, name: &str| BadInput {
            file: file.to_owned(),
            line,
            field: name.to_owned(),
            reason: format!("no column of that name; wanted: {}", names.join(", ")),
        };
        let header = lines.next().ok_or_else(|| missing(0, names[0]))?;
        let mut places = [(0, ""); N];
        for (slot, name) in places.iter_mut().zip(names) {
            let at = header.text.split(',').position(|column| column.trim() == *name);
            *slot = (at.ok_or_else(|| missing(header.number, name))?, name);
        }
        Ok(Self(places))
    }

    fn pick<'t>(&self, line: &Line<'t>) -> Result<[&'t str; N], BadInput> {
        let mut values = [""; N];
        for (value, (at, name)) in values.iter_mut().zip(&self.0) {
            let cell = line.text.split(',').nth(*at);
            *value =
                cell.ok_or_else(|| line.refuse(name, format!("the line has no column {}", at + 1)))?.trim();
        }
        Ok(values)
    }
}

/// `2013-08-12 13:40:46+00:00` in seconds since 1970.
fn seconds(line: &Line<'_>, text: &str) -> Result<u64, BadInput> {
    let refuse =
        || line.refuse("timestamp", format!("{} is not like 2013-08-12 13:40:46+00:00", shown(text)));
    let stamp = text.strip_suffix("+00:00").ok_or_else(refuse)?;
    let (date, time) = stamp.split_once(' ').ok_or_else(refuse)?;
    let numbers = |text: &str, by: char| -> Option<[u64; 3]> {
        let parts: Vec<u64> = text.split(by).map(str::parse).collect::<Result<_, _>>().ok()?;
        parts.try_into().ok()
    };
    let [year, month, day] = numbers(date, '-').ok_or_else(refuse)?;
    let [hour, minute, second] = numbers(time, ':').ok_or_else(refuse)?;
    let sane = (1970..=9_999).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !sane || hour > 23 || minute > 59 || second > 60 {
        return Err(refuse());
    }
    // Years that begin in March put the leap day last: the day number is then a polynomial (Hinnant, 2013).
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    Ok((days - 719_468) * 86_400 + hour * 3_600 + minute * 60 + second)
}

fn days(slots: &BTreeMap<u64, u32>) -> Vec<Vec<u32>> {
    let mut days: BTreeMap<u64, Vec<Option<u32>>> = BTreeMap::new();
    for (slot, used) in slots {
        let (day, at) = (slot / DAY_SLOTS as u64, slot % DAY_SLOTS as u64);
        let day = days.entry(day).or_insert_with(|| vec![None; DAY_SLOTS]);
        day[usize::try_from(at).unwrap_or(0)] = Some(*used);
    }
    let measured = days.into_values().filter(|day| day.iter().flatten().count() >= MEASURED_SLOTS_MIN);
    let filled = measured.map(|day| {
        let mut last = day.iter().flatten().next().copied().unwrap_or(0);
        day.into_iter()
            .map(|used| {
                last = used.unwrap_or(last);
                last
            })
            .collect()
    });
    filled.collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const VMS: &str = "vm,start_time,cpu_count,cpu_mhz_total,mem_mb_or_unit_as_in_source\n7,x,2,5200.000,4194304\n9,x,1,2600,1\n";

    /// A day of VM 7 in five-minute samples, one of them covering two slots and one a gap of days.
    fn samples() -> String {
        let mut text = "vm,timestamp,duration_ms,cpu_count,cpu_mhz\n".to_owned();
        for slot in 1..=DAY_SLOTS {
            let (hour, minute) = (slot / 12, slot % 12 * 5);
            let stamp = match hour {
                24 => "2013-09-02 00:00:00+00:00".to_owned(),
                _ => format!("2013-09-01 {hour:02}:{minute:02}:00+00:00"),
            };
            match slot {
                3 => {}
                4 => text.push_str(&format!("7,{stamp},600000,2,2600.0\n")),
                1 => text.push_str(&format!("7,{stamp},400538000,2,1300\n")),
                _ => text.push_str(&format!("7,{stamp},300000,2,5200\n")),
            }
        }
        text
    }

    /// Samples become slots of a day, by the time they stand for; a gap stands for one slot only.
    #[test]
    fn samples_fill_the_slots_they_stand_for() {
        let trace = LoadTrace::read(("vms", VMS), ("cpu", &samples())).unwrap();
        assert_eq!(trace.vms.len(), 1, "VM 9 was never measured");
        let vm = &trace.vms[0];
        assert_eq!((vm.name.as_str(), vm.cpus, vm.mem_mib, vm.days.len()), ("7", 2, 4_096, 1));
        assert_eq!(vm.days[0][..6], [500, 2_000, 1_000, 1_000, 2_000, 2_000]);
        assert_eq!(trace.draw(100, 1), trace.draw(100, 1));
    }

    /// A bad line is told by file, line, field and reason.
    #[test]
    fn bad_traces_are_refused_with_their_line() {
        let check = |vms: &str, samples: &str, expected: &str| {
            let error = LoadTrace::read(("vms.csv", vms), ("cpu.csv", samples)).unwrap_err();
            assert_eq!(error.to_string(), expected);
        };
        let head = "vm,timestamp,duration_ms,cpu_mhz\n";
        let one = |line: &str| format!("{head}{line}\n");
        check(
            "vm,cpu_count\n",
            head,
            "vms.csv:1: cpu_mhz_total: no column of that name; wanted: vm, cpu_count, \
               cpu_mhz_total, mem_mb_or_unit_as_in_source",
        );
        check(
            "",
            head,
            "vms.csv:0: vm: no column of that name; wanted: vm, cpu_count, cpu_mhz_total, \
               mem_mb_or_unit_as_in_source",
        );
        check(
            &VMS.replace("7,x,2", "7,x,0"),
            head,
            "vms.csv:2: cpu_count: 0 is out of range; allowed: 1 to 4096",
        );
        check(VMS, &one("8,2013-09-01 00:05:00+00:00,1,1"), "cpu.csv:2: vm: \"8\" is not in vms.csv");
        check(
            VMS,
            &one("7,yesterday,1,1"),
            "cpu.csv:2: timestamp: \"yesterday\" is not like 2013-08-12 13:40:46+00:00",
        );
        check(
            VMS,
            &one("7,2013-09-01 00:05:00+00:00,1,-3"),
            "cpu.csv:2: cpu_mhz: \"-3\" is not a decimal number",
        );
        check(VMS, &one("7,2013-09-01 00:05:00+00:00,1"), "cpu.csv:2: cpu_mhz: the line has no column 4");
    }

    proptest! {
        /// Whatever is done to the files, they are read or refused.
        #[test]
        fn no_text_breaks_the_reader(cuts in proptest::collection::vec((any::<u16>(), any::<u8>(), "[0-9,.: +\n-]{0,5}"), 1..5)) {
            let (mut vms, mut samples) = (VMS.to_owned(), samples());
            for (at, length, with) in &cuts {
                for text in [&mut vms, &mut samples] {
                    let from = usize::from(*at) % (text.len() + 1);
                    let to = (from + usize::from(*length) % 16).min(text.len());
                    text.replace_range(from..to, with);
                }
            }
            if let Ok(trace) = LoadTrace::read(("vms", &vms), ("cpu", &samples)) {
                prop_assert!(trace.vms.iter().all(|vm| vm.days.iter().all(|day| day.len() == DAY_SLOTS)));
            }
        }
    }
}
