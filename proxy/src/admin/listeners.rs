//! `/listeners`: names and addresses as bound.

use std::sync::Arc;

use serde_json::{Value, json};

use super::AdminState;
use super::page::Page;
use super::query::Query;
use crate::config::address::Address;

pub(super) fn page(state: &Arc<AdminState>, query: &Query) -> Page {
    let all = state.shared.listeners.view();
    if query.get("format") != Some("json") {
        let lines: Vec<String> =
            all.iter().flat_map(|l| l.addresses.iter().map(|a| format!("{}::{a}\n", l.name))).collect();
        return Page::text(lines.concat());
    }
    let statuses: Vec<Value> = all
        .iter()
        .map(|l| {
            let mut addresses = l.addresses.iter().map(address_json);
            let mut status = json!({"name": &*l.name, "local_address": addresses.next()});
            let more: Vec<Value> = addresses.collect();
            if !more.is_empty() {
                status["additional_local_addresses"] = more.into();
            }
            status
        })
        .collect();
    let body = if statuses.is_empty() { json!({}) } else { json!({ "listener_statuses": statuses }) };
    Page::json(&body)
}

/// `envoy.config.core.v3.Address`.
pub(super) fn address_json(address: &Address) -> Value {
    match address {
        Address::Socket(a) => {
            json!({"socket_address": {"address": a.ip().to_string(), "port_value": a.port()}})
        }
        Address::Name(name, port) => json!({"socket_address": {"address": &**name, "port_value": port}}),
        Address::Pipe(path) => json!({"pipe": {"path": &**path}}),
        Address::Internal(name) => json!({"envoy_internal_address": {"server_listener_name": &**name}}),
    }
}
