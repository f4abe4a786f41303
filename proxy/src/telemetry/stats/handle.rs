//! Handles to stats' cells. The plain ones have one writer: they load, add and store without a locked instruction, and are
//! `Send` but not `Sync`, so that the compiler keeps it so. The shared ones add atomically.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::Folds;
use super::histogram::{HistogramCell, Unit};

/// Keeps a handle on one thread at a time.
type OneWriter = PhantomData<std::cell::Cell<()>>;

#[derive(Debug, Default)]
pub(super) struct Cell(AtomicU64);

#[derive(Debug, Default)]
pub(super) struct GaugeCell {
    value: AtomicU64,
    used: AtomicBool,
}

#[derive(Debug, Default)]
pub(super) struct TextCell(Mutex<String>);

impl Folds for Cell {
    fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
    fn used(&self) -> bool {
        self.value() != 0
    }
}

impl Folds for GaugeCell {
    fn value(&self) -> u64 {
        self.value.load(Relaxed)
    }
    fn used(&self) -> bool {
        self.used.load(Relaxed)
    }
}

impl TextCell {
    pub(super) fn read(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A counter's cell of one owner.
#[derive(Debug, Default)]
pub struct Counter(Option<Arc<Cell>>, OneWriter);

/// A gauge's cell of one owner; the gauge is the sum of the cells.
#[derive(Debug, Default)]
pub struct Gauge(Option<Arc<GaugeCell>>, OneWriter);

/// A histogram's cell of one owner.
#[derive(Debug, Default)]
pub struct Histogram(Option<Arc<HistogramCell>>, OneWriter);

/// A counter that several threads write.
#[derive(Clone, Debug, Default)]
pub struct SharedCounter(Option<Arc<Cell>>);

/// A gauge that several threads write.
#[derive(Clone, Debug, Default)]
pub struct SharedGauge(Option<Arc<GaugeCell>>);

/// A text value.
#[derive(Clone, Debug, Default)]
pub struct TextReadout(Option<Arc<TextCell>>);

impl Counter {
    pub(super) fn new(cell: Option<Arc<Cell>>) -> Counter {
        Counter(cell, PhantomData)
    }

    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        if let Some(Cell(c)) = self.0.as_deref() {
            c.store(c.load(Relaxed).wrapping_add(n), Relaxed);
        }
    }

    /// What this handle has counted; 0 if its name is rejected by `stats_matcher`.
    pub fn own(&self) -> u64 {
        self.0.as_ref().map_or(0, |c| c.value())
    }
}

impl Gauge {
    pub(super) fn new(cell: Option<Arc<GaugeCell>>) -> Gauge {
        Gauge(cell, PhantomData)
    }

    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Takes one away.
    pub fn dec(&self) {
        self.sub(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.change(|v| v.wrapping_add(n));
    }

    /// Takes `n` away.
    pub fn sub(&self, n: u64) {
        self.change(|v| v.wrapping_sub(n));
    }

    /// Sets this owner's part.
    pub fn set(&self, n: u64) {
        self.change(|_| n);
    }

    fn change(&self, f: impl FnOnce(u64) -> u64) {
        if let Some(c) = self.0.as_deref() {
            c.value.store(f(c.value.load(Relaxed)), Relaxed);
            c.used.store(true, Relaxed);
        }
    }
}

impl Histogram {
    pub(super) fn new(cell: Option<Arc<HistogramCell>>) -> Histogram {
        Histogram(cell, PhantomData)
    }

    /// Records one value in the histogram's unit.
    pub fn record(&self, value: u64) {
        if let Some(c) = &self.0 {
            c.record(value);
        }
    }

    /// Records a time in the histogram's unit: whole milliseconds, or microseconds for `Unit::Microseconds`.
    pub fn record_time(&self, time: Duration, unit: Unit) {
        if self.0.is_some() {
            let n = if unit == Unit::Microseconds { time.as_micros() } else { time.as_millis() };
            self.record(u64::try_from(n).unwrap_or(u64::MAX));
        }
    }
}

impl SharedCounter {
    pub(super) fn new(cell: Option<Arc<Cell>>) -> SharedCounter {
        SharedCounter(cell)
    }

    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        if let Some(Cell(c)) = self.0.as_deref() {
            c.fetch_add(n, Relaxed);
        }
    }
}

impl SharedGauge {
    pub(super) fn new(cell: Option<Arc<GaugeCell>>) -> SharedGauge {
        SharedGauge(cell)
    }

    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Takes one away.
    pub fn dec(&self) {
        self.sub(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        if let Some(c) = self.0.as_deref() {
            c.value.fetch_add(n, Relaxed);
            c.used.store(true, Relaxed);
        }
    }

    /// Takes `n` away.
    pub fn sub(&self, n: u64) {
        if let Some(c) = self.0.as_deref() {
            c.value.fetch_sub(n, Relaxed);
            c.used.store(true, Relaxed);
        }
    }

    /// Sets this handle's part (all of it, where the name has one handle).
    pub fn set(&self, n: u64) {
        if let Some(c) = self.0.as_deref() {
            c.value.store(n, Relaxed);
            c.used.store(true, Relaxed);
        }
    }
}

impl TextReadout {
    pub(super) fn new(cell: Option<Arc<TextCell>>) -> TextReadout {
        TextReadout(cell)
    }

    /// Replaces the text.
    pub fn set(&self, text: &str) {
        if let Some(c) = &self.0 {
            let mut t = c.0.lock().unwrap_or_else(PoisonError::into_inner);
            t.clear();
            t.push_str(text);
        }
    }
}
