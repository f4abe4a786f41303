//! `metrics` and `definitions` of the filter: dimensions by CEL expression, tags removed, metrics dropped or added.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use super::labels::LABELS;
use super::{METRICS, Metric, NAMESPACE};
use crate::config::filter::{IstioStats as Config, MetricOverride};
use crate::telemetry::cel::Expression;
use crate::telemetry::format::FormatContext;
use crate::telemetry::stats::{Stats, Tags, Unit};

/// The compiled overrides.
#[derive(Debug)]
pub(super) struct Overrides {
    expressions: Vec<(Arc<str>, Expression)>,
    /// By metric.
    standard: [PerMetric; METRICS.len()],
    custom: Vec<Custom>,
}

#[derive(Debug, Default)]
struct PerMetric {
    dropped: bool,
    /// Tag → the expression that gives its value, or none to remove the tag.
    changed: Vec<(&'static str, Option<usize>)>,
    added: Vec<(Arc<str>, usize)>,
}

#[derive(Debug)]
struct Custom {
    name: Arc<str>,
    value: usize,
    /// 0 counter, 1 gauge, 2 histogram.
    kind: u8,
    added: Vec<(Arc<str>, usize)>,
}

/// The expressions' values for one stream; one that fails is `unknown`.
#[derive(Debug)]
pub(super) struct Values(Vec<Arc<str>>);

impl Values {
    pub(super) fn hash(&self) -> u64 {
        let mut h = DefaultHasher::new();
        self.0.hash(&mut h);
        h.finish()
    }
}

impl Overrides {
    /// `None` if the filter overrides nothing.
    pub(super) fn new(config: &Config) -> Option<Overrides> {
        if config.metrics.is_empty() && config.definitions.is_empty() {
            return None;
        }
        let mut all = Overrides { expressions: Vec::new(), standard: Default::default(), custom: Vec::new() };
        for d in &config.definitions {
            // Istio's own metrics may not be defined anew.
            if METRICS.iter().any(|(_, n)| **n == *d.name) {
                continue;
            }
            if let Some(value) = all.expression(&d.value) {
                let name = format!("{NAMESPACE}istio_{}", d.name).into();
                all.custom.push(Custom { name, value, kind: d.kind, added: Vec::new() });
            }
        }
        for m in &config.metrics {
            all.add(m);
        }
        Some(all)
    }

    fn expression(&mut self, text: &Arc<str>) -> Option<usize> {
        if let Some(at) = self.expressions.iter().position(|(t, _)| t == text) {
            return Some(at);
        }
        match Expression::compile(text) {
            Ok(e) => {
                self.expressions.push((text.clone(), e));
                Some(self.expressions.len() - 1)
            }
            Err(error) => {
                tracing::info!(%error, "istio.stats: expression left out");
                None
            }
        }
    }

    fn add(&mut self, m: &MetricOverride) {
        let concerned: Vec<usize> =
            (0..METRICS.len()).filter(|i| m.name.is_empty() || *m.name == *METRICS[*i].1).collect();
        if m.drop {
            if !m.name.is_empty() {
                concerned.iter().for_each(|i| self.standard[*i].dropped = true);
            }
            return;
        }
        for tag in &m.tags_to_remove {
            if let Some(label) = LABELS.iter().find(|l| ***l == **tag) {
                concerned.iter().for_each(|i| self.standard[*i].change(label, None));
            }
        }
        let mut dimensions: Vec<_> = m.dimensions.iter().collect();
        dimensions.sort_by(|a, b| a.0.cmp(&b.0));
        for (tag, text) in dimensions {
            let Some(id) = self.expression(text) else { continue };
            for i in &concerned {
                match LABELS.iter().find(|l| ***l == **tag) {
                    Some(label) => self.standard[*i].change(label, Some(id)),
                    None => self.standard[*i].added.push((tag.clone(), id)),
                }
            }
            for custom in &mut self.custom {
                if m.name.is_empty() || custom.name.strip_prefix("istiocustom.istio_") == Some(&*m.name) {
                    custom.added.push((tag.clone(), id));
                }
            }
        }
    }

    /// The expressions over a stream.
    pub(super) fn evaluate(&self, ctx: &FormatContext<'_>) -> Values {
        let value = |e: &Expression| e.text(ctx).unwrap_or_else(|| "unknown".to_owned()).into();
        Values(self.expressions.iter().map(|(_, e)| value(e)).collect())
    }

    /// The metric's tags with the overrides; `None` if it is dropped.
    pub(super) fn apply(&self, metric: Metric, tags: &Tags, values: &Values) -> Option<Tags> {
        let o = &self.standard[metric as usize];
        if o.dropped {
            return None;
        }
        let mut out = Vec::with_capacity(tags.len() + o.added.len());
        for (name, value) in tags.iter() {
            match o.changed.iter().find(|(l, _)| **l == **name) {
                Some((_, Some(id))) => out.push((name.clone(), values.0[*id].clone())),
                Some((_, None)) => {}
                None => out.push((name.clone(), value.clone())),
            }
        }
        out.extend(o.added.iter().map(|(tag, id)| (tag.clone(), values.0[*id].clone())));
        Some(out.into())
    }

    /// Counts the custom metrics once, at a stream's end.
    pub(super) fn record_custom(&self, stats: &Stats, values: &Values) {
        for c in &self.custom {
            let tags: Tags = c.added.iter().map(|(tag, id)| (tag.clone(), values.0[*id].clone())).collect();
            let amount = values.0[c.value].parse().unwrap_or(0);
            match c.kind {
                1 => stats.set_tagged_gauge(&c.name, &tags, amount),
                2 => stats.tagged_histogram(&c.name, &tags, Unit::Bytes).record(amount),
                _ => stats.tagged_counter(&c.name, &tags).add(amount),
            }
        }
    }
}

impl PerMetric {
    fn change(&mut self, label: &'static str, to: Option<usize>) {
        self.changed.retain(|(l, _)| *l != label);
        self.changed.push((label, to));
    }
}
