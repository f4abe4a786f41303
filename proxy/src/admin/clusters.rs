//! `/clusters`: hosts, their counters and health, as text and as `envoy.admin.v3.Clusters`.

use std::sync::Arc;

use regex::Regex;
use serde_json::{Map, Value, json};

use super::AdminState;
use super::listeners::address_json;
use super::page::Page;
use super::query::Query;
use crate::upstream::host::HealthFlags;
use crate::upstream::{ClusterView, HostView};

pub(super) fn page(state: &Arc<AdminState>, query: &Query) -> Page {
    let filter = match query.get("filter").map(Regex::new) {
        Some(Err(_)) => return Page::error(400, "Invalid re2 regex"),
        Some(Ok(regex)) => Some(regex),
        None => None,
    };
    let mut all = state.shared.clusters.view();
    all.retain(|c| filter.as_ref().is_none_or(|f| f.is_match(&c.name)));
    if query.get("format") == Some("json") {
        let statuses: Vec<Value> = all.iter().map(cluster_json).collect();
        return Page::json(&if statuses.is_empty() {
            json!({})
        } else {
            json!({ "cluster_statuses": statuses })
        });
    }
    let mut out = String::new();
    all.iter().for_each(|c| c.write_text(&mut out));
    Page::text(out)
}

/// A success rate, left out where it is unknown.
fn percent(rate: f64) -> Option<Value> {
    (rate >= 0.0).then(|| json!({ "value": rate }))
}

/// An object of what is there.
struct Message(Map<String, Value>);

impl Message {
    fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.0.insert(key.to_owned(), value.into());
    }

    fn set_some(&mut self, key: &str, value: Option<Value>) {
        if let Some(v) = value {
            self.set(key, v);
        }
    }
}

fn cluster_json(c: &ClusterView) -> Value {
    let mut m = Message(Map::new());
    m.set("name", &*c.name);
    if c.added_via_api {
        m.set("added_via_api", true);
    }
    m.set_some("success_rate_ejection_threshold", c.outlier.and_then(|o| percent(o.external.1)));
    if !c.hosts.is_empty() {
        m.set("host_statuses", c.hosts.iter().map(host_json).collect::<Vec<_>>());
    }
    m.set_some(
        "local_origin_success_rate_ejection_threshold",
        c.outlier.and_then(|o| percent(o.local_origin.1)),
    );
    let thresholds: Vec<Value> = c
        .breakers
        .iter()
        .enumerate()
        .map(|(i, b)| {
            let mut t = Message(Map::new());
            if i == 1 {
                t.set("priority", "HIGH");
            }
            t.set("max_connections", b.max_connections);
            t.set("max_pending_requests", b.max_pending);
            t.set("max_requests", b.max_requests);
            t.set("max_retries", b.max_retries);
            Value::Object(t.0)
        })
        .collect();
    m.set("circuit_breakers", json!({ "thresholds": thresholds }));
    m.set("observability_name", &*c.observability_name);
    m.set_some("eds_service_name", c.eds_service_name.as_ref().map(|n| json!(&**n)));
    Value::Object(m.0)
}

fn host_json(h: &HostView) -> Value {
    let by_kind = |gauges: bool| {
        h.stats.iter().filter(move |(name, _)| name.ends_with("_active") == gauges).map(
            move |(name, value)| {
                let mut s = Message(Map::new());
                if gauges {
                    s.set("type", "GAUGE");
                }
                if *value != 0 {
                    s.set("value", value.to_string());
                }
                s.set("name", *name);
                Value::Object(s.0)
            },
        )
    };
    let mut m = Message(Map::new());
    m.set("address", address_json(&h.address));
    m.set("stats", by_kind(false).chain(by_kind(true)).collect::<Vec<_>>());
    m.set("health_status", health(h.flags));
    m.set_some("success_rate", percent(h.success_rate));
    m.set("weight", h.weight);
    if !h.hostname.is_empty() {
        m.set("hostname", &*h.hostname);
    }
    if h.priority != 0 {
        m.set("priority", h.priority);
    }
    m.set_some("local_origin_success_rate", percent(h.local_origin_success_rate));
    let mut locality = Message(Map::new());
    for (key, value) in
        [("region", &h.locality.region), ("zone", &h.locality.zone), ("sub_zone", &h.locality.sub_zone)]
    {
        if !value.is_empty() {
            locality.set(key, &**value);
        }
    }
    m.set("locality", Value::Object(locality.0));
    Value::Object(m.0)
}

/// `envoy.admin.v3.HostHealthStatus`.
fn health(flags: HealthFlags) -> Value {
    let mut m = Message(Map::new());
    for (flag, name) in [
        (HealthFlags::FAILED_ACTIVE_HC, "failed_active_health_check"),
        (HealthFlags::FAILED_OUTLIER_CHECK, "failed_outlier_check"),
        (HealthFlags::DEGRADED_ACTIVE_HC, "failed_active_degraded_check"),
        (HealthFlags::PENDING_DYNAMIC_REMOVAL, "pending_dynamic_removal"),
        (HealthFlags::PENDING_ACTIVE_HC, "pending_active_hc"),
        (HealthFlags::EXCLUDED_VIA_IMMEDIATE_HC_FAIL, "excluded_via_immediate_hc_fail"),
        (HealthFlags::ACTIVE_HC_TIMEOUT, "active_hc_timeout"),
    ] {
        if flags.has(flag) {
            m.set(name, true);
        }
    }
    m.set(
        "eds_health_status",
        if flags.has(HealthFlags::EDS_STATUS_DRAINING) {
            "DRAINING"
        } else if flags.has(HealthFlags::FAILED_EDS_HEALTH) {
            "UNHEALTHY"
        } else if flags.has(HealthFlags::DEGRADED_EDS_HEALTH) {
            "DEGRADED"
        } else {
            "HEALTHY"
        },
    );
    Value::Object(m.0)
}
