//! Histograms with two significant decimal digits, as Envoy's (libcircllhist): the figures that a reader computes from the
//! bins (sum, count below a bound, quantiles) are the same approximations, so that Prometheus sees the same numbers.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Envoy's default bucket bounds for Prometheus.
pub const DEFAULT_BUCKETS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1000.0,
    2500.0,
    5000.0,
    10000.0,
    30000.0,
    60000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

/// The quantiles that `/stats` prints.
pub const QUANTILES: [f64; 10] = [0.0, 0.25, 0.5, 0.75, 0.90, 0.95, 0.99, 0.995, 0.999, 1.0];

/// What a histogram counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Unspecified,
    Bytes,
    Microseconds,
    Milliseconds,
}

/// Bins of one power of ten: mantissas 1.0 to 9.9.
const PER_DECADE: usize = 90;
/// Powers of ten that a `u64` reaches.
const DECADES: usize = 20;

type Decade = OnceLock<Box<[AtomicU64; PER_DECADE]>>;

/// One writer's bins, allocated a decade at a time when a value falls there.
#[derive(Debug, Default)]
pub(super) struct HistogramCell {
    zeros: AtomicU64,
    decades: OnceLock<Box<[Decade; DECADES]>>,
}

impl HistogramCell {
    /// Counts `value`; single writer.
    pub(super) fn record(&self, value: u64) {
        let cell = if value == 0 {
            &self.zeros
        } else {
            let (decade, bin) = place(value);
            let decades = self.decades.get_or_init(Box::default);
            let new = || Box::new(std::array::from_fn(|_| AtomicU64::new(0)));
            &decades[decade].get_or_init(new)[bin]
        };
        cell.store(cell.load(Relaxed).wrapping_add(1), Relaxed);
    }

    /// Adds the bins to `values`.
    pub(super) fn add_to(&self, values: &mut Values) {
        values.add(0, self.zeros.load(Relaxed));
        let Some(decades) = self.decades.get() else { return };
        for (d, bins) in decades.iter().enumerate() {
            let Some(bins) = bins.get() else { continue };
            for (b, n) in bins.iter().enumerate() {
                values.add((d * PER_DECADE + b + 1) as u16, n.load(Relaxed));
            }
        }
    }
}

/// Power of ten and bin in it of a value above zero.
fn place(value: u64) -> (usize, usize) {
    let decade = value.ilog10() as usize;
    let mantissa = if decade == 0 { value * 10 } else { value / 10u64.pow(decade as u32 - 1) };
    (decade, mantissa as usize - 10)
}

/// Counts by bin, 0 being the value zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Values(BTreeMap<u16, u64>);

impl Values {
    fn add(&mut self, bin: u16, n: u64) {
        if n > 0 {
            *self.0.entry(bin).or_default() += n;
        }
    }

    /// What was added since `before`.
    pub fn since(&self, before: &Values) -> Values {
        let mut diff = Values::default();
        for (bin, n) in &self.0 {
            diff.add(*bin, n.saturating_sub(before.0.get(bin).copied().unwrap_or(0)));
        }
        diff
    }

    /// Number of values.
    pub fn count(&self) -> u64 {
        self.0.values().sum()
    }

    /// Lower bound and width of a bin.
    fn bounds(bin: u16) -> (f64, f64) {
        if bin == 0 {
            return (0.0, 0.0);
        }
        let (decade, i) = (usize::from(bin - 1) / PER_DECADE, usize::from(bin - 1) % PER_DECADE);
        let width = if decade == 0 { 0.1 } else { 10f64.powi(decade as i32 - 1) };
        let mantissa = (i + 10) as f64;
        (if decade == 0 { mantissa / 10.0 } else { mantissa * width }, width)
    }

    /// Approximate sum: each value counts as the harmonic middle of its bin.
    pub fn sum(&self) -> f64 {
        self.0
            .iter()
            .map(|(bin, n)| {
                let (low, width) = Values::bounds(*bin);
                if low == 0.0 {
                    return 0.0;
                }
                let high = low + width;
                2.0 * low * high / (low + high) * *n as f64
            })
            .sum()
    }

    /// Number of values at or below `bound`, as bins tell them.
    pub fn count_below(&self, bound: f64) -> u64 {
        let mut n = 0;
        for (bin, count) in &self.0 {
            let (low, width) = Values::bounds(*bin);
            if low + width > bound && low != bound {
                break;
            }
            n += count;
        }
        n
    }

    /// The quantiles `q` (ascending), `None` without values.
    pub fn quantiles(&self, q: &[f64]) -> Option<Vec<f64>> {
        let total = self.count();
        if total == 0 {
            return None;
        }
        let mut out = Vec::with_capacity(q.len());
        for q in q {
            let rank = ((q * total as f64).ceil() as u64).clamp(1, total);
            let mut before = 0;
            for (bin, n) in &self.0 {
                if before + n >= rank {
                    let (low, width) = Values::bounds(*bin);
                    out.push(low + width * (rank - before) as f64 / (*n + 1) as f64);
                    break;
                }
                before += n;
            }
        }
        Some(out)
    }
}
