//! `/stats?format=json`: `{"stats":[{"name":…,"value":…},…,{"histograms":{…}}]}`.

use serde_json::{Value as Json, json};

use super::super::{DEFAULT_BUCKETS, HistogramValue, QUANTILES, Stat, Value, Values};
use super::{Buckets, in_order};

pub(super) fn page(all: Vec<Stat>, buckets: Buckets) -> String {
    let mut out = Vec::with_capacity(all.len());
    let mut histograms = Vec::new();
    for stat in in_order(all) {
        match &stat.value {
            Value::Counter(n) | Value::Gauge(n) => out.push(json!({"name": &*stat.name, "value": n})),
            Value::Text(t) => out.push(json!({"name": &*stat.name, "value": t})),
            Value::Histogram(h) => histograms.push(histogram(&stat.name, h, buckets)),
        }
    }
    if !histograms.is_empty() {
        let quantiles: Vec<Json> = QUANTILES.iter().map(|q| number(q * 100.0)).collect();
        out.push(match buckets {
            Buckets::Summary => {
                json!({"histograms": {"supported_quantiles": quantiles, "computed_quantiles": histograms}})
            }
            Buckets::Cumulative | Buckets::Disjoint => json!({ "histograms": histograms }),
        });
    }
    json!({ "stats": out }).to_string()
}

/// Whole numbers without a fraction.
fn number(x: f64) -> Json {
    // Percentages such as 99.9 are not exact products: round what is no digit of theirs.
    let x = (x * 1e9).round() / 1e9;
    if x.fract() == 0.0 && x.abs() < 9e15 { json!(x as i64) } else { json!(x) }
}

fn histogram(name: &str, h: &HistogramValue, buckets: Buckets) -> Json {
    let bounds = h.buckets.as_deref().unwrap_or(&DEFAULT_BUCKETS);
    if buckets == Buckets::Summary {
        let of = |v: &Values| v.quantiles(&QUANTILES);
        let (interval, cumulative) = (of(&h.interval), of(&h.cumulative));
        let at = |v: &Option<Vec<f64>>, i: usize| v.as_ref().map_or(Json::Null, |v| number(v[i]));
        let values: Vec<Json> = (0..QUANTILES.len())
            .map(|i| json!({"cumulative": at(&cumulative, i), "interval": at(&interval, i)}))
            .collect();
        return json!({"name": name, "values": values});
    }
    let mut before = (0, 0);
    let each: Vec<Json> = bounds
        .iter()
        .map(|b| {
            let now = (h.interval.count_below(*b), h.cumulative.count_below(*b));
            let (i, c) =
                if buckets == Buckets::Disjoint { (now.0 - before.0, now.1 - before.1) } else { now };
            before = now;
            json!({"upper_bound": number(*b), "interval": i, "cumulative": c})
        })
        .collect();
    json!({"name": name, "buckets": each})
}
