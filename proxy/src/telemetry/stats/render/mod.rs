//! Stats as readers get them: `/stats` in text and JSON, and Prometheus' exposition (Envoy docs: operations/admin,
//! `GET /stats`).

mod json;
mod prometheus;
mod text;

use regex::Regex;

use super::{Stat, Stats, Tagger, Value};

/// What to print.
#[derive(Debug, Default)]
pub struct Query {
    /// Only stats that were written.
    pub used_only: bool,
    pub filter: Option<Regex>,
    pub invert_filter: bool,
    pub kind: Kind,
    pub buckets: Buckets,
    /// Text readouts in Prometheus, as gauges of value 0.
    pub text_readouts: bool,
}

/// `type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    #[default]
    All,
    Counters,
    Gauges,
    Histograms,
    TextReadouts,
}

/// `histogram_buckets`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Buckets {
    /// Quantiles.
    #[default]
    Summary,
    Cumulative,
    Disjoint,
}

impl Query {
    fn select(&self, stats: &Stats) -> Vec<Stat> {
        let mut all = stats.collect();
        all.retain(|s| {
            let kind = match self.kind {
                Kind::All => true,
                Kind::Counters => matches!(s.value, Value::Counter(_)),
                Kind::Gauges => matches!(s.value, Value::Gauge(_)),
                Kind::Histograms => matches!(s.value, Value::Histogram(_)),
                Kind::TextReadouts => matches!(s.value, Value::Text(_)),
            };
            kind && (s.used || !self.used_only)
                && self.filter.as_ref().is_none_or(|f| f.is_match(&s.name) != self.invert_filter)
        });
        all
    }
}

impl Stats {
    /// `/stats`: one line each.
    pub fn text_page(&self, query: &Query) -> String {
        text::page(query.select(self), query.buckets)
    }

    /// `/stats?format=json`.
    pub fn json_page(&self, query: &Query) -> String {
        json::page(query.select(self), query.buckets)
    }

    /// `/stats/prometheus`.
    pub fn prometheus_page(&self, query: &Query, tagger: &Tagger) -> String {
        prometheus::page(&query.select(self), tagger, query.text_readouts)
    }
}

/// Counters and gauges by name as one list, text readouts before and histograms behind: Envoy's order.
fn in_order(mut all: Vec<Stat>) -> Vec<Stat> {
    let rank = |s: &Stat| match s.value {
        Value::Text(_) => 0,
        Value::Counter(_) | Value::Gauge(_) => 1,
        Value::Histogram(_) => 2,
    };
    all.sort_by(|a, b| rank(a).cmp(&rank(b)).then_with(|| a.name.cmp(&b.name)));
    all
}

/// C's `%.{digits}g`.
fn general(x: f64, digits: usize) -> String {
    if x == 0.0 {
        return "0".to_owned();
    }
    if !x.is_finite() {
        return if x.is_nan() {
            "nan"
        } else if x > 0.0 {
            "inf"
        } else {
            "-inf"
        }
        .to_owned();
    }
    let scientific = format!("{:.*e}", digits - 1, x);
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let short = |s: &str| {
        if s.contains('.') { s.trim_end_matches('0').trim_end_matches('.').to_owned() } else { s.to_owned() }
    };
    if exponent < -4 || exponent >= digits as i32 {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{}e{sign}{:02}", short(mantissa), exponent.abs());
    }
    let decimals = usize::try_from(digits as i32 - 1 - exponent).unwrap_or(0);
    short(&format!("{x:.decimals$}"))
}

#[cfg(test)]
mod tests;
