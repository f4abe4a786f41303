//! Prometheus' text exposition, in Envoy's order: counters, gauges, text readouts, histograms; each by the name without
//! tags, and under a name by the full name.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use super::super::tags::Extracted;
use super::super::{DEFAULT_BUCKETS, HistogramValue, Stat, Tagger, Value};
use super::general;
use crate::telemetry::istio::metrics::NAMESPACE;

type Families<'a> = BTreeMap<Arc<str>, Vec<(Arc<Extracted>, &'a Stat)>>;

pub(super) fn page(all: &[Stat], tagger: &Tagger, text_readouts: bool) -> String {
    let (mut counters, mut gauges, mut texts, mut histograms) =
        (Families::new(), Families::new(), Families::new(), Families::new());
    for stat in all {
        let families = match stat.value {
            Value::Counter(_) => &mut counters,
            Value::Gauge(_) => &mut gauges,
            Value::Text(_) if text_readouts => &mut texts,
            Value::Text(_) => continue,
            Value::Histogram(_) => &mut histograms,
        };
        let extracted = tagger.extract(stat);
        families.entry(extracted.name.clone()).or_default().push((extracted, stat));
    }
    let mut out = String::with_capacity(all.len() * 96);
    for (kind, families) in
        [("counter", counters), ("gauge", gauges), ("gauge", texts), ("histogram", histograms)]
    {
        for (name, series) in families {
            let name = metric_name(&name);
            // Writing into a string cannot fail.
            let _ = writeln!(out, "# TYPE {name} {kind}");
            for (extracted, stat) in series {
                let mut labels = String::new();
                for (tag, value) in &extracted.tags {
                    label(&mut labels, tag, value);
                }
                let _ = match &stat.value {
                    Value::Counter(n) | Value::Gauge(n) => writeln!(out, "{name}{{{labels}}} {n}"),
                    Value::Text(t) => {
                        label(&mut labels, "text_value", t);
                        writeln!(out, "{name}{{{labels}}} 0")
                    }
                    Value::Histogram(h) => {
                        histogram(&mut out, &name, &labels, h);
                        Ok(())
                    }
                };
            }
        }
    }
    out
}

fn histogram(out: &mut String, name: &str, labels: &str, h: &HistogramValue) {
    let comma = if labels.is_empty() { "" } else { "," };
    for bound in h.buckets.as_deref().unwrap_or(&DEFAULT_BUCKETS) {
        let count = h.cumulative.count_below(*bound);
        let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{}\"}} {count}", general(*bound, 32));
    }
    let count = h.cumulative.count();
    let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}");
    let _ = writeln!(out, "{name}_sum{{{labels}}} {}", general(h.cumulative.sum(), 32));
    let _ = writeln!(out, "{name}_count{{{labels}}} {count}");
}

/// `envoy_` and the name with `_` for what Prometheus does not take; Istio's own names stand alone.
fn metric_name(name: &str) -> String {
    match name.strip_prefix(NAMESPACE) {
        Some(own) => sanitized(own),
        None => sanitized(&format!("envoy_{name}")),
    }
}

fn sanitized(name: &str) -> String {
    let mut out: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).collect();
    if out.starts_with(|c: char| c.is_ascii_digit()) {
        out.insert(0, '_');
    }
    out
}

fn label(out: &mut String, name: &str, value: &str) {
    if !out.is_empty() {
        out.push(',');
    }
    out.push_str(&sanitized(name));
    out.push_str("=\"");
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
    out.push('"');
}
