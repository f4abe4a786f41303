//! Stats: counters, gauges and histograms under Envoy's dotted names. A handle owns a cell of its own, so the hot path
//! writes memory that no other core writes; readers add the cells of a name up.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

/// The registry, cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    inner: Arc<Mutex<BTreeMap<Arc<str>, Vec<Arc<AtomicU64>>>>>,
}

/// A counter's cell of one owner.
#[derive(Debug, Default)]
pub struct Counter(Arc<AtomicU64>);

/// A gauge's cell of one owner; the gauge is the sum of the cells.
#[derive(Debug, Default)]
pub struct Gauge(Arc<AtomicU64>);

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }
}

impl Gauge {
    /// Adds one.
    pub fn inc(&self) {
        self.0.store(self.0.load(Relaxed).wrapping_add(1), Relaxed);
    }

    /// Takes one away.
    pub fn dec(&self) {
        self.0.store(self.0.load(Relaxed).wrapping_sub(1), Relaxed);
    }
}

impl Stats {
    /// A new cell under `name`.
    pub fn counter(&self, name: &str) -> Counter {
        Counter(self.cell(name))
    }

    /// A new cell under `name`.
    pub fn gauge(&self, name: &str) -> Gauge {
        Gauge(self.cell(name))
    }

    fn cell(&self, name: &str) -> Arc<AtomicU64> {
        let cell = Arc::new(AtomicU64::new(0));
        let mut all = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(name.into()).or_default().push(cell.clone());
        cell
    }
}
