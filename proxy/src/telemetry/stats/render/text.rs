//! `/stats` as text: `name: value`, histograms with `P50(interval,cumulative)` or buckets.

use std::fmt::Write as _;

use super::super::{DEFAULT_BUCKETS, HistogramValue, QUANTILES, Stat, Value};
use super::{Buckets, general, in_order};

pub(super) fn page(all: Vec<Stat>, buckets: Buckets) -> String {
    let mut out = String::new();
    for stat in in_order(all) {
        // Writing into a string cannot fail.
        let _ = match &stat.value {
            Value::Counter(n) | Value::Gauge(n) => writeln!(out, "{}: {n}", stat.name),
            Value::Text(t) => writeln!(out, "{}: \"{t}\"", stat.name),
            Value::Histogram(h) => writeln!(out, "{}: {}", stat.name, histogram(h, buckets)),
        };
    }
    out
}

fn histogram(h: &HistogramValue, buckets: Buckets) -> String {
    if h.cumulative.count() == 0 {
        return "No recorded values".to_owned();
    }
    let bounds = h.buckets.as_deref().unwrap_or(&DEFAULT_BUCKETS);
    let parts: Vec<String> = match buckets {
        Buckets::Summary => {
            let interval =
                h.interval.quantiles(&QUANTILES).unwrap_or_else(|| vec![f64::NAN; QUANTILES.len()]);
            let cumulative = h.cumulative.quantiles(&QUANTILES).unwrap_or_default();
            let each = QUANTILES.iter().zip(interval.iter().zip(&cumulative));
            each.map(|(q, (i, c))| {
                format!("P{}({},{})", general(q * 100.0, 6), general(*i, 6), general(*c, 6))
            })
            .collect()
        }
        Buckets::Cumulative => bounds
            .iter()
            .map(|b| {
                format!(
                    "B{}({},{})",
                    general(*b, 6),
                    h.interval.count_below(*b),
                    h.cumulative.count_below(*b)
                )
            })
            .collect(),
        Buckets::Disjoint => {
            let (mut i, mut c) = (0, 0);
            let mut part = |b: &f64| {
                let (ni, nc) = (h.interval.count_below(*b), h.cumulative.count_below(*b));
                let text = format!("B{}({},{})", general(*b, 6), ni - i, nc - c);
                (i, c) = (ni, nc);
                text
            };
            bounds.iter().map(&mut part).collect()
        }
    };
    parts.join(" ")
}
