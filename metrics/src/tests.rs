//! The text is what Prometheus reads.

use std::time::Duration;

use super::*;

static CALLS: Family = Family::new("x_calls_total", "Calls.", &["method", "code"], Cell::Counter);
static TOOK: Histogram = Histogram::new("x_took_seconds", "How long.");
static VERBS: Family = Family::new("x_verb_seconds", "How long by verb.", &["verb"], Cell::Histogram);
static OPEN: Gauge = Gauge::new("x_open", "Open now.");

/// Counters, gauges and histograms read as the text format wants them: buckets add up, values are escaped, units are seconds.
#[test]
fn text_format() {
    CALLS.inc(&["Get", "ok"]);
    CALLS.add(&["a\"b\\c", "no\nt"], 2);
    TOOK.observe(Duration::from_micros(300));
    TOOK.observe(Duration::from_millis(30));
    TOOK.observe(Duration::from_secs(60));
    VERBS.observe(&["start"], Duration::from_micros(1));
    let held = OPEN.held();
    let text = render(&[&[&CALLS, &TOOK, &VERBS, &OPEN]]);
    for line in [
        "# TYPE x_calls_total counter",
        "x_calls_total{method=\"Get\",code=\"ok\"} 1",
        "x_calls_total{method=\"a\\\"b\\\\c\",code=\"no\\nt\"} 2",
        "x_took_seconds_bucket{le=\"0.00025\"} 0",
        "x_took_seconds_bucket{le=\"0.0005\"} 1",
        "x_took_seconds_bucket{le=\"0.05\"} 2",
        "x_took_seconds_bucket{le=\"10\"} 2",
        "x_took_seconds_bucket{le=\"+Inf\"} 3",
        "x_took_seconds_sum 60.0303",
        "x_took_seconds_count 3",
        "x_verb_seconds_bucket{verb=\"start\",le=\"0.0001\"} 1",
        "x_verb_seconds_count{verb=\"start\"} 1",
        "x_open 1",
    ] {
        assert!(text.lines().any(|told| told == line), "{line}\n{text}");
    }
    drop(held);
    assert_eq!(OPEN.get(), 0);
}

/// A family has a bound, whatever its labels are made of; what is set anew forgets what is gone.
#[test]
fn families_are_bounded() {
    static MANY: Family = Family::new("x_many_total", "Many.", &["who"], Cell::Counter);
    for who in 0..2_000 {
        MANY.inc(&[&who.to_string()]);
    }
    let mut text = String::new();
    MANY.write(&mut text);
    assert!(text.lines().count() <= 513, "{}", text.lines().count());
    assert_eq!(MANY.get(&["others"]), 2_000 - 512);
    static NOW: Family = Family::new("x_now", "Now.", &["phase"], Cell::Gauge);
    NOW.set_all([(vec!["Up"], 3), (vec!["Down"], 1)]);
    NOW.set_all([(vec!["Up"], 4)]);
    let mut text = String::new();
    NOW.write(&mut text);
    assert_eq!(text, "x_now{phase=\"Up\"} 4\n");
}

/// The newest durations tell their percentiles, and old ones do not count for ever.
#[test]
fn the_newest_count() {
    static SYNC: Histogram = Histogram::new("x_sync_seconds", "Syncs.");
    assert_eq!(SYNC.recent_us(990), None);
    SYNC.observe(Duration::from_micros(7));
    assert_eq!(SYNC.recent_us(990), Some((7, 1)));
    for took in 1..=1_000 {
        SYNC.observe(Duration::from_micros(took));
    }
    let (p99, of) = SYNC.recent_us(990).unwrap();
    assert_eq!((p99, of), (995, 512));
    assert!(
        !process("9.9").is_empty()
            && render(&[process("9.9")]).contains("dunlin_build_info{version=\"9.9\"} 1")
    );
}
