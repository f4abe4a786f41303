//! Stats: counters, gauges, histograms and text readouts under Envoy's dotted names (Envoy docs: operations/stats_overview).
//!
//! A handle owns a cell of its own, so the hot path writes memory that no other core writes, without a locked
//! instruction; readers add the cells of a name up. A handle that is dropped leaves its value behind in the entry, which
//! lives until `Stats::remove_scope`. A name that `stats_matcher` rejects gets a handle without a cell.

mod declare;
mod handle;
mod histogram;
mod render;
mod tags;

pub use handle::{Counter, Gauge, Histogram, SharedCounter, SharedGauge, TextReadout};
pub use histogram::{DEFAULT_BUCKETS, QUANTILES, Unit, Values};
pub use render::{Buckets, Kind, Query};
pub use tags::{Extracted, Tagger};

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::config::bootstrap::StatsMatcher;
use crate::config::matcher::StringMatcher;
use handle::{Cell, GaugeCell, TextCell};
use histogram::HistogramCell;

/// Explicit tags of a stat: name and value, in the order in which they are printed.
pub type Tags = Arc<[(Arc<str>, Arc<str>)]>;

/// The registry, cheap to clone.
#[derive(Clone, Default)]
pub struct Stats {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    maps: Mutex<Maps>,
    matcher: StatsMatcher,
    buckets: Vec<(StringMatcher, Arc<[f64]>)>,
}

#[derive(Default)]
struct Maps {
    counters: BTreeMap<Arc<str>, Entry<Cell>>,
    gauges: BTreeMap<Arc<str>, Entry<GaugeCell>>,
    histograms: BTreeMap<Arc<str>, HistogramEntry>,
    texts: BTreeMap<Arc<str>, Arc<TextCell>>,
}

/// The cells of one name and what dropped handles left.
struct Entry<C> {
    cells: Vec<Arc<C>>,
    /// Sum of the cells whose handles are gone.
    folded: u64,
    /// A cell whose handle is gone had been written.
    used: bool,
    /// The sum at the last `reset_counters`.
    base: u64,
    explicit: Option<Explicit>,
}

/// Where the tags were given instead of being taken out of the name.
#[derive(Clone)]
struct Explicit {
    name: Arc<str>,
    tags: Tags,
}

struct HistogramEntry {
    cells: Vec<Arc<HistogramCell>>,
    folded: Values,
    /// What the last flush saw, for the interval figures.
    flushed: Values,
    interval: Values,
    unit: Unit,
    explicit: Option<Explicit>,
}

/// A value that a cell holds and that outlives it.
trait Folds {
    fn value(&self) -> u64;
    fn used(&self) -> bool;
}

impl<C> Default for Entry<C> {
    fn default() -> Self {
        Entry { cells: Vec::new(), folded: 0, used: false, base: 0, explicit: None }
    }
}

impl<C: Folds> Entry<C> {
    /// Takes over the values of cells that nobody else holds.
    fn fold(&mut self) {
        let (folded, used) = (&mut self.folded, &mut self.used);
        self.cells.retain(|c| {
            let alive = Arc::strong_count(c) > 1;
            if !alive {
                *folded = folded.wrapping_add(c.value());
                *used |= c.used();
            }
            alive
        });
    }

    fn sum(&self) -> u64 {
        self.cells.iter().fold(self.folded, |n, c| n.wrapping_add(c.value()))
    }

    fn was_used(&self) -> bool {
        self.used || self.cells.iter().any(|c| c.used())
    }
}

impl HistogramEntry {
    fn fold(&mut self) {
        let folded = &mut self.folded;
        self.cells.retain(|c| {
            let alive = Arc::strong_count(c) > 1;
            if !alive {
                c.add_to(folded);
            }
            alive
        });
    }

    fn sum(&self) -> Values {
        let mut all = self.folded.clone();
        for c in &self.cells {
            c.add_to(&mut all);
        }
        all
    }
}

/// One stat as a reader sees it.
#[derive(Clone, Debug)]
pub struct Stat {
    /// The full dotted name.
    pub name: Arc<str>,
    /// Name and tags where they were given at creation.
    pub explicit: Option<(Arc<str>, Tags)>,
    pub value: Value,
    /// Whether it was ever written.
    pub used: bool,
}

/// A stat's value.
#[derive(Clone, Debug)]
pub enum Value {
    Counter(u64),
    Gauge(u64),
    Text(String),
    Histogram(Box<HistogramValue>),
}

/// A histogram's figures: since the start, and between the last two flushes.
#[derive(Clone, Debug)]
pub struct HistogramValue {
    pub cumulative: Values,
    pub interval: Values,
    pub unit: Unit,
    /// Upper bounds for Prometheus.
    pub buckets: Option<Arc<[f64]>>,
}

/// How many live cells a name may have before a creation looks for dead ones.
const FOLD_ABOVE: usize = 16;

impl Stats {
    /// A registry that keeps what `matcher` lets through; `buckets` are `histogram_bucket_settings`.
    pub fn new(matcher: StatsMatcher, buckets: Vec<(StringMatcher, Vec<f64>)>) -> Stats {
        let buckets = buckets.into_iter().map(|(m, b)| (m, b.into())).collect();
        Stats { inner: Arc::new(Inner { maps: Mutex::default(), matcher, buckets }) }
    }

    fn maps(&self) -> MutexGuard<'_, Maps> {
        // A panic while the lock is held leaves whole entries only: every step inside is a single insertion.
        self.inner.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `stats_matcher` keeps a stat of this name.
    pub fn accepts(&self, name: &str) -> bool {
        let any = |m: &[StringMatcher]| m.iter().any(|p| p.matches(name.as_bytes()));
        match &self.inner.matcher {
            StatsMatcher::All => true,
            StatsMatcher::RejectAll => false,
            StatsMatcher::Exclude(patterns) => !any(patterns),
            StatsMatcher::Include(patterns) => any(patterns),
        }
    }

    /// A new counter cell under `name`.
    pub fn counter(&self, name: &str) -> Counter {
        Counter::new(self.counter_cell(name, None))
    }

    /// A counter that threads may share; one atomic addition per write.
    pub fn shared_counter(&self, name: &str) -> SharedCounter {
        SharedCounter::new(self.counter_cell(name, None))
    }

    /// A new gauge cell under `name`; the gauge is the sum of its cells.
    pub fn gauge(&self, name: &str) -> Gauge {
        Gauge::new(self.gauge_cell(name))
    }

    /// A gauge that threads may share.
    pub fn shared_gauge(&self, name: &str) -> SharedGauge {
        SharedGauge::new(self.gauge_cell(name))
    }

    /// A new histogram cell under `name`.
    pub fn histogram(&self, name: &str, unit: Unit) -> Histogram {
        Histogram::new(self.histogram_cell(name, unit, None))
    }

    /// A text readout.
    pub fn text(&self, name: &str) -> TextReadout {
        TextReadout::new(self.accepts(name).then(|| {
            let mut maps = self.maps();
            maps.texts.entry(name.into()).or_default().clone()
        }))
    }

    /// A counter named `name` with tags of its own; its full name is `name.tag.value.tag.value…`.
    pub fn tagged_counter(&self, name: &Arc<str>, tags: &Tags) -> Counter {
        Counter::new(self.counter_cell(&full_name(name, tags), Some((name, tags))))
    }

    /// A histogram with tags of its own, as `tagged_counter`.
    pub fn tagged_histogram(&self, name: &Arc<str>, tags: &Tags, unit: Unit) -> Histogram {
        Histogram::new(self.histogram_cell(&full_name(name, tags), unit, Some((name, tags))))
    }

    /// Sets a gauge with tags of its own, whoever else has set it: for values that are nobody's sum.
    pub fn set_tagged_gauge(&self, name: &Arc<str>, tags: &Tags, value: u64) {
        let full = full_name(name, tags);
        if !self.accepts(&full) {
            return;
        }
        let mut maps = self.maps();
        let entry = entry(&mut maps.gauges, &full);
        entry.explicit.get_or_insert_with(|| Explicit { name: name.clone(), tags: tags.clone() });
        entry.cells.clear();
        entry.folded = value;
        entry.used = true;
    }

    fn counter_cell(&self, name: &str, explicit: Option<(&Arc<str>, &Tags)>) -> Option<Arc<Cell>> {
        if !self.accepts(name) {
            return None;
        }
        let cell = Arc::new(Cell::default());
        let mut maps = self.maps();
        let entry = entry(&mut maps.counters, name);
        if let (None, Some((name, tags))) = (&entry.explicit, explicit) {
            entry.explicit = Some(Explicit { name: name.clone(), tags: tags.clone() });
        }
        entry.cells.push(cell.clone());
        if entry.cells.len() > FOLD_ABOVE {
            entry.fold();
        }
        Some(cell)
    }

    fn gauge_cell(&self, name: &str) -> Option<Arc<GaugeCell>> {
        if !self.accepts(name) {
            return None;
        }
        let cell = Arc::new(GaugeCell::default());
        let mut maps = self.maps();
        let entry = entry(&mut maps.gauges, name);
        entry.cells.push(cell.clone());
        if entry.cells.len() > FOLD_ABOVE {
            entry.fold();
        }
        Some(cell)
    }

    fn histogram_cell(
        &self,
        name: &str,
        unit: Unit,
        explicit: Option<(&Arc<str>, &Tags)>,
    ) -> Option<Arc<HistogramCell>> {
        if !self.accepts(name) {
            return None;
        }
        let cell = Arc::new(HistogramCell::default());
        let mut maps = self.maps();
        let fresh = || HistogramEntry {
            cells: Vec::new(),
            folded: Values::default(),
            flushed: Values::default(),
            interval: Values::default(),
            unit,
            explicit: explicit.map(|(n, t)| Explicit { name: n.clone(), tags: t.clone() }),
        };
        let entry = match maps.histograms.get_mut(name) {
            Some(e) => e,
            None => maps.histograms.entry(name.into()).or_insert_with(fresh),
        };
        entry.cells.push(cell.clone());
        if entry.cells.len() > FOLD_ABOVE {
            entry.fold();
        }
        Some(cell)
    }

    /// Forgets every stat whose name starts with `prefix` (`cluster.x.`). Handles that live on write unseen.
    pub fn remove_scope(&self, prefix: &str) {
        fn remove<V>(map: &mut BTreeMap<Arc<str>, V>, prefix: &str) {
            let names: Vec<Arc<str>> = map
                .range::<str, _>((std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded))
                .take_while(|(n, _)| n.starts_with(prefix))
                .map(|(n, _)| n.clone())
                .collect();
            for n in names {
                map.remove(&n);
            }
        }
        let mut maps = self.maps();
        remove(&mut maps.counters, prefix);
        remove(&mut maps.gauges, prefix);
        remove(&mut maps.histograms, prefix);
        remove(&mut maps.texts, prefix);
    }

    /// Forgets one stat by its full name.
    pub fn remove(&self, name: &str) {
        let mut maps = self.maps();
        maps.counters.remove(name);
        maps.gauges.remove(name);
        maps.histograms.remove(name);
        maps.texts.remove(name);
    }

    /// Sets all counters to zero, as `/reset_counters` does. Writers are not disturbed.
    pub fn reset_counters(&self) {
        let mut maps = self.maps();
        for e in maps.counters.values_mut() {
            e.base = e.sum();
        }
    }

    /// Ends the histograms' interval, once per `stats_flush_interval`.
    pub fn flush(&self) {
        let mut maps = self.maps();
        for e in maps.histograms.values_mut() {
            e.fold();
            let now = e.sum();
            e.interval = now.since(&e.flushed);
            e.flushed = now;
        }
    }

    /// A counter's or gauge's value by name.
    pub fn value(&self, name: &str) -> Option<u64> {
        let maps = self.maps();
        let counter = maps.counters.get(name).map(|e| e.sum().wrapping_sub(e.base));
        counter.or_else(|| maps.gauges.get(name).map(Entry::sum))
    }

    /// All stats: text readouts, then counters, gauges, histograms, each sorted by name.
    pub fn collect(&self) -> Vec<Stat> {
        let mut maps = self.maps();
        let maps = &mut *maps;
        let mut all = Vec::with_capacity(
            maps.texts.len() + maps.counters.len() + maps.gauges.len() + maps.histograms.len(),
        );
        for (name, t) in &maps.texts {
            let value = t.read();
            let used = !value.is_empty();
            all.push(Stat { name: name.clone(), explicit: None, value: Value::Text(value), used });
        }
        let given = |e: &Option<Explicit>| e.as_ref().map(|e| (e.name.clone(), e.tags.clone()));
        for (name, e) in &mut maps.counters {
            e.fold();
            let value = Value::Counter(e.sum().wrapping_sub(e.base));
            all.push(Stat { name: name.clone(), explicit: given(&e.explicit), value, used: e.was_used() });
        }
        for (name, e) in &mut maps.gauges {
            e.fold();
            let value = Value::Gauge(e.sum());
            all.push(Stat { name: name.clone(), explicit: given(&e.explicit), value, used: e.was_used() });
        }
        for (name, e) in &mut maps.histograms {
            e.fold();
            let cumulative = e.sum();
            let used = cumulative.count() > 0;
            let found = self.inner.buckets.iter().find(|(m, _)| m.matches(name.as_bytes()));
            let value = HistogramValue {
                cumulative,
                interval: e.interval.clone(),
                unit: e.unit,
                buckets: found.map(|(_, b)| b.clone()),
            };
            let value = Value::Histogram(Box::new(value));
            all.push(Stat { name: name.clone(), explicit: given(&e.explicit), value, used });
        }
        all
    }
}

fn entry<'a, C>(map: &'a mut BTreeMap<Arc<str>, Entry<C>>, name: &str) -> &'a mut Entry<C> {
    if !map.contains_key(name) {
        map.insert(name.into(), Entry::default());
    }
    map.entry(name.into()).or_default()
}

fn full_name(name: &str, tags: &Tags) -> String {
    let mut full = name.to_owned();
    for (tag, value) in tags.iter() {
        full.push('.');
        full.push_str(tag);
        full.push('.');
        full.push_str(value);
    }
    full
}

impl std::fmt::Debug for Stats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stats").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
