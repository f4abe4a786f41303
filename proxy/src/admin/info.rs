//! Pages about the server itself.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::page::Page;
use super::query::Query;
use super::server_stats::resident_bytes;
use super::{AdminState, DumpQuery, Phase};

/// The version of Envoy whose behaviour we keep, which dashboards and istioctl look for.
const ENVOY_VERSION: &str = "1.40.0";
/// There is no hot restart here; the number is Envoy's, for tools that ask.
const HOT_RESTART_VERSION: &str = "11.104";

/// `revision/version/status/build/TLS library`, Envoy's five parts.
pub(super) fn version() -> String {
    format!("outrigger-{}/{ENVOY_VERSION}/Clean/RELEASE/AWS-LC", env!("CARGO_PKG_VERSION"))
}

pub(super) fn ready(state: &AdminState) -> Page {
    let phase = state.phase();
    Page::error(if phase == Phase::Live { 200 } else { 503 }, format!("{}\n", phase.as_str()))
}

pub(super) fn server_info(state: &AdminState) -> Page {
    let node = &state.shared.node;
    let uptime = format!("{}s", state.life.uptime().as_secs());
    let mut about = Map::new();
    let mut set = |key: &str, value: Value| {
        about.insert(key.to_owned(), value);
    };
    set("id", json!(&*node.id));
    set("cluster", json!(&*node.cluster));
    if let Some(metadata) = &node.metadata {
        set("metadata", Value::Object((**metadata).clone()));
    }
    set("locality", json!({"region": &*node.region, "zone": &*node.zone, "sub_zone": &*node.sub_zone}));
    set("user_agent_name", json!("envoy"));
    let mut numbers = ENVOY_VERSION.split('.').map(|n| n.parse::<u32>().unwrap_or(0));
    set(
        "user_agent_build_version",
        json!({
            "version": {
                "major_number": numbers.next(),
                "minor_number": numbers.next(),
                "patch": numbers.next(),
            },
            "metadata": {
                "build.type": "RELEASE",
                "revision.sha": format!("outrigger-{}", env!("CARGO_PKG_VERSION")),
                "revision.status": "Clean",
                "ssl.version": "AWS-LC",
            },
        }),
    );
    Page::json(&json!({
        "version": version(),
        "state": state.phase().as_str(),
        "uptime_current_epoch": uptime,
        "uptime_all_epochs": uptime,
        "hot_restart_version": HOT_RESTART_VERSION,
        "command_line_options": state.options,
        "node": about,
        "hot_restart_initializing": false,
    }))
}

/// Memory as the kernel counts it: the allocator's own figures are not read.
pub(super) fn memory() -> Page {
    let resident = resident_bytes().to_string();
    Page::json(&json!({
        "allocated": resident,
        "heap_size": resident,
        "pageheap_unmapped": "0",
        "pageheap_free": "0",
        "total_thread_cache": "0",
        "total_physical_bytes": resident,
    }))
}

pub(super) fn runtime(state: &AdminState) -> Page {
    if state.runtime.is_empty() {
        return Page::json(&json!({"entries": {}, "layers": []}));
    }
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    let mut all: Vec<_> = state.runtime.iter().collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    let entries: Map<String, Value> = all
        .iter()
        .map(|(k, v)| (k.to_string(), json!({"layer_values": [text(v)], "final_value": text(v)})))
        .collect();
    Page::json(&json!({"layers": ["static"], "entries": entries}))
}

pub(super) fn config_dump(state: &Arc<AdminState>, query: &Query) -> Page {
    let text = |name: &str| query.get(name).map(str::to_owned);
    let dump = DumpQuery {
        resource: text("resource"),
        mask: text("mask"),
        name_regex: text("name_regex"),
        include_eds: query.has("include_eds"),
    };
    match state.config_dump.as_ref().map(|source| source.dump(&dump)) {
        Some(Ok(json)) => Page::json_text(json),
        Some(Err(reason)) => Page::error(400, reason),
        None => Page::error(404, "this process keeps no configuration to dump\n"),
    }
}

pub(super) fn init_dump() -> Page {
    // Initialization waits on nothing that could be named once admin answers.
    Page::json(&json!({}))
}

pub(super) fn contention() -> Page {
    Page::text(
        "Mutex contention tracing is not enabled. To enable, run Envoy with flag --enable-mutex-tracing.",
    )
}

pub(super) fn hot_restart_version() -> Page {
    Page::text(HOT_RESTART_VERSION)
}
