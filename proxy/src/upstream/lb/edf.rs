//! Earliest deadline first: the weighted walk of round robin, least request and localities, as Envoy's `EdfScheduler`.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// A schedule over indices.
#[derive(Debug, Default)]
pub(super) struct Edf {
    queue: BinaryHeap<Reverse<Entry>>,
    now: f64,
    order: u64,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    deadline: f64,
    /// Entries with equal deadlines come in the order in which they were added.
    order: u64,
    index: usize,
    weight: f64,
}

impl Edf {
    /// A schedule over `entries` (index, weight above zero), as it stands after `picks` picks modulo its length, so that
    /// workers do not all begin with the same host.
    pub(super) fn new(entries: impl Iterator<Item = (usize, f64)>, picks: usize) -> Edf {
        let mut edf = Edf::default();
        for (index, weight) in entries {
            edf.add(index, weight);
        }
        for _ in 0..picks % edf.queue.len().max(1) {
            edf.pick(|_, w| w);
        }
        edf
    }

    fn add(&mut self, index: usize, weight: f64) {
        let weight = weight.max(f64::MIN_POSITIVE);
        let entry = Entry { deadline: self.now + 1.0 / weight, order: self.order, index, weight };
        self.order += 1;
        self.queue.push(Reverse(entry));
    }

    /// The next index; it goes back into the schedule with the weight that `weight` gives it.
    pub(super) fn pick(&mut self, weight: impl FnOnce(usize, f64) -> f64) -> Option<usize> {
        let Reverse(entry) = self.queue.pop()?;
        self.now = entry.deadline;
        self.add(entry.index, weight(entry.index, entry.weight));
        Some(entry.index)
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        self.deadline.total_cmp(&other.deadline).then(self.order.cmp(&other.order))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}
