//! Builds the bootstrap of a case from its parts, so that a case shows only what it is about: an admin port, one
//! listener (HTTP connection manager or TCP proxy) and a static cluster for each upstream.

use serde_json::{Map, Value, json};

use crate::case::{Case, HttpParts, Protocol, TcpParts};
use crate::ports::Places;

const TYPE: &str = "type.googleapis.com/envoy";
/// Flags, details and byte counts in every HTTP case.
const HTTP_LOG: &str = "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL% %RESPONSE_CODE% %RESPONSE_FLAGS% \
    %RESPONSE_CODE_DETAILS% rx=%BYTES_RECEIVED% tx=%BYTES_SENT% cluster=%UPSTREAM_CLUSTER% host=%UPSTREAM_HOST% \
    attempts=%UPSTREAM_REQUEST_ATTEMPT_COUNT% term=%CONNECTION_TERMINATION_DETAILS% route=%ROUTE_NAME%\n";
const TCP_LOG: &str = "%RESPONSE_FLAGS% rx=%BYTES_RECEIVED% tx=%BYTES_SENT% cluster=%UPSTREAM_CLUSTER% \
    host=%UPSTREAM_HOST% term=%CONNECTION_TERMINATION_DETAILS% sni=%REQUESTED_SERVER_NAME%\n";

/// The text of the bootstrap file and its name.
#[must_use]
pub fn bootstrap(case: &Case, places: &Places) -> (&'static str, String) {
    if let Value::String(text) = &case.bootstrap {
        return ("bootstrap.yaml", text.clone());
    }
    let mut root = json!({
        "admin": {"address": address(places, "admin")},
    });
    let mut clusters: Map<String, Value> = Map::new();
    for (name, upstream) in &case.upstreams {
        clusters.insert(
            name.clone(),
            cluster(name, std::slice::from_ref(name), upstream.protocol == Protocol::Http2, places),
        );
    }
    for (name, fields) in &case.clusters {
        let mut fields = fields.clone();
        let endpoints = fields.as_object_mut().and_then(|f| f.remove("endpoints"));
        let http2 = fields.as_object_mut().and_then(|f| f.remove("http2")) == Some(true.into());
        let tls = fields.as_object_mut().and_then(|f| f.remove("tls"));
        if !clusters.contains_key(name) || endpoints.is_some() {
            let names: Vec<String> = endpoints
                .as_ref()
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(|e| e.as_str().map(str::to_owned))
                .collect();
            clusters.insert(name.clone(), cluster(name, &names, http2, places));
        }
        if let Some(cluster) = clusters.get_mut(name) {
            if let Some(tls) = tls {
                cluster["transport_socket"] =
                    transport_socket("extensions.transport_sockets.tls.v3.UpstreamTlsContext", &tls);
            }
            merge(cluster, &fields);
            // A cluster whose endpoints come from elsewhere has none of its own.
            if let Some(map) = cluster.as_object_mut() {
                map.retain(|_, v| !v.is_null());
            }
        }
    }
    let mut resources = json!({"clusters": clusters.into_iter().map(|(_, c)| c).collect::<Vec<_>>()});
    if let Some(http) = &case.http {
        resources["listeners"] =
            json!([listener(places, &http.listener, &http.filter_chain, http.tls.as_ref(), &hcm(http))]);
    } else if let Some(tcp) = &case.tcp {
        resources["listeners"] =
            json!([listener(places, &tcp.listener, &tcp.filter_chain, tcp.tls.as_ref(), &tcp_proxy(tcp))]);
    }
    root["static_resources"] = resources;
    merge(&mut root, &case.bootstrap);
    ("bootstrap.json", serde_json::to_string_pretty(&root).unwrap_or_default())
}

fn address(places: &Places, port: &str) -> Value {
    json!({"socket_address": {"address": "127.0.0.1", "port_value": places.port(port)}})
}

fn transport_socket(message: &str, tls: &Value) -> Value {
    let mut config = json!({"@type": format!("{TYPE}.{message}")});
    merge(&mut config, tls);
    json!({"name": "envoy.transport_sockets.tls", "typed_config": config})
}

fn cluster(name: &str, upstreams: &[String], http2: bool, places: &Places) -> Value {
    let endpoints: Vec<_> = upstreams
        .iter()
        .map(|u| json!({"endpoint": {"address": address(places, &format!("upstream.{u}"))}}))
        .collect();
    let mut cluster = json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
    });
    if http2 {
        cluster["typed_extension_protocol_options"] = json!({
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": format!("{TYPE}.extensions.upstreams.http.v3.HttpProtocolOptions"),
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        });
    }
    cluster
}

fn listener(places: &Places, over: &Value, chain_over: &Value, tls: Option<&Value>, filter: &Value) -> Value {
    let mut chain = json!({"filters": [filter]});
    if let Some(tls) = tls {
        chain["transport_socket"] =
            transport_socket("extensions.transport_sockets.tls.v3.DownstreamTlsContext", tls);
    }
    merge(&mut chain, chain_over);
    let mut listener =
        json!({"name": "listener", "address": address(places, "listener"), "filter_chains": [chain]});
    merge(&mut listener, over);
    listener
}

fn file_log(format: &str) -> Value {
    json!([{
        "name": "envoy.access_loggers.file",
        "typed_config": {
            "@type": format!("{TYPE}.extensions.access_loggers.file.v3.FileAccessLog"),
            "path": "{{dir}}/access.log",
            "log_format": {"text_format_source": {"inline_string": format}},
        }
    }])
}

fn hcm(parts: &HttpParts) -> Value {
    let hosts = parts.virtual_hosts.clone().unwrap_or_else(|| {
        let routes = parts
            .routes
            .clone()
            .unwrap_or_else(|| json!([{"match": {"prefix": "/"}, "route": {"cluster": "upstream"}}]));
        json!([{"name": "all", "domains": ["*"], "routes": routes}])
    });
    let mut route_config = json!({"name": "local_route", "virtual_hosts": hosts});
    merge(&mut route_config, &parts.route_config);
    let mut router = json!({"@type": format!("{TYPE}.extensions.filters.http.router.v3.Router")});
    merge(&mut router, &parts.router);
    let mut filters = parts.filters.clone();
    filters.push(json!({"name": "envoy.filters.http.router", "typed_config": router}));
    let mut config = json!({
        "@type": format!("{TYPE}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "ingress",
        // Envoy's second of lingering would make the end of a connection depend on the observer's patience.
        "delayed_close_timeout": "0.1s",
        "access_log": file_log(parts.log_format.as_deref().unwrap_or(HTTP_LOG)),
        "http_filters": filters,
    });
    if !parts.hcm.get("rds").is_some_and(Value::is_object) {
        config["route_config"] = route_config;
    }
    merge(&mut config, &parts.hcm);
    json!({"name": "envoy.filters.network.http_connection_manager", "typed_config": config})
}

fn tcp_proxy(parts: &TcpParts) -> Value {
    let mut config = json!({
        "@type": format!("{TYPE}.extensions.filters.network.tcp_proxy.v3.TcpProxy"),
        "stat_prefix": "tcp",
        "access_log": file_log(parts.log_format.as_deref().unwrap_or(TCP_LOG)),
    });
    merge(&mut config, &parts.proxy);
    if config.get("cluster").is_none() && config.get("weighted_clusters").is_none() {
        config["cluster"] = "upstream".into();
    }
    json!({"name": "envoy.filters.network.tcp_proxy", "typed_config": config})
}

/// Objects are merged, everything else is replaced.
pub fn merge(into: &mut Value, over: &Value) {
    match (into, over) {
        (_, Value::Null) => {}
        (Value::Object(into), Value::Object(over)) => {
            for (key, value) in over {
                match into.get_mut(key) {
                    Some(present) if present.is_object() && value.is_object() => merge(present, value),
                    _ => {
                        into.insert(key.clone(), value.clone());
                    }
                }
            }
        }
        (into, over) => *into = over.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_overrides_one_field_and_keeps_its_neighbours() {
        let mut value = json!({"a": {"b": 1, "c": 2}, "l": [1]});
        merge(&mut value, &json!({"a": {"c": 3}, "l": [2, 3]}));
        assert_eq!(value, json!({"a": {"b": 1, "c": 3}, "l": [2, 3]}));
    }
}
