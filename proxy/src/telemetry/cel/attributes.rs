//! Envoy's attributes as CEL values, by their first name.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cel::Value;
use cel::objects::{Key, Map};
use serde_json::Value as Json;

use crate::head::{Head, HeaderId};
use crate::stream_info::{Peer, TlsInfo};
use crate::telemetry::format::{FormatContext, grpc_status};

/// First names of all attributes.
pub(super) const ROOTS: &[&str] = &[
    "request",
    "response",
    "connection",
    "upstream",
    "source",
    "destination",
    "metadata",
    "filter_state",
    "xds",
    "node",
    "upstream_peer",
    "downstream_peer",
];

/// The group `name` of a stream; `None` if the stream has none.
pub(super) fn root(name: &str, ctx: &FormatContext<'_>) -> Option<Value> {
    match name {
        "request" => ctx.request.map(|head| request(head, ctx)),
        "response" => Some(response(ctx)),
        "connection" => Some(connection(ctx)),
        "upstream" => Some(upstream(ctx)),
        "source" => Some(source(ctx)),
        "destination" => Some(destination(ctx)),
        "metadata" => Some(metadata(ctx)),
        "filter_state" => Some(filter_state(ctx)),
        "xds" => Some(xds(ctx)),
        "node" => Some(node()),
        "upstream_peer" => ctx.info.upstream_peer.as_deref().map(peer),
        "downstream_peer" => ctx.info.downstream_peer.as_deref().map(peer),
        _ => None,
    }
}

/// A map under construction.
#[derive(Default)]
struct Group(HashMap<Key, Value>);

impl Group {
    fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.0.insert(Key::String(Arc::new(key.to_owned())), value.into());
    }

    fn set_some(&mut self, key: &str, value: Option<impl Into<Value>>) {
        if let Some(v) = value {
            self.set(key, v);
        }
    }

    fn set_bytes(&mut self, key: &str, value: Option<&[u8]>) {
        self.set_some(key, value.map(|v| String::from_utf8_lossy(v).into_owned()));
    }

    fn set_time(&mut self, key: &str, value: Option<Duration>) {
        self.set_some(key, value.map(|d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX)));
    }

    fn done(self) -> Value {
        Value::Map(Map { map: Arc::new(self.0) })
    }
}

fn int(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// Header names and values; several of one name joined with `,`.
fn headers(head: &Head) -> Value {
    let mut all: HashMap<Key, Value> = HashMap::with_capacity(head.len());
    for (_, name, value) in head.iter() {
        let key = Key::String(Arc::new(String::from_utf8_lossy(name).into_owned()));
        let text = String::from_utf8_lossy(value);
        let joined = match all.get(&key) {
            Some(Value::String(first)) => format!("{first},{text}"),
            _ => text.into_owned(),
        };
        all.insert(key, joined.into());
    }
    Value::Map(Map { map: Arc::new(all) })
}

fn request(head: &Head, ctx: &FormatContext<'_>) -> Value {
    let info = ctx.info;
    let mut g = Group::default();
    let path = head.path();
    let cut = path.iter().position(|b| *b == b'?').unwrap_or(path.len());
    g.set_bytes("path", Some(path));
    g.set_bytes("url_path", Some(&path[..cut]));
    g.set_bytes("query", Some(path.get(cut + 1..).unwrap_or_default()));
    g.set_bytes("host", head.get(HeaderId::Authority));
    g.set_bytes("scheme", head.get(HeaderId::Scheme));
    g.set_bytes("method", Some(head.method()));
    g.set_bytes("referer", head.get(HeaderId::Referer));
    g.set_bytes("useragent", head.get(HeaderId::UserAgent));
    g.set_bytes("id", head.get(HeaderId::XRequestId));
    g.set("headers", headers(head));
    g.set_some("protocol", info.protocol.map(|p| p.as_str()));
    g.set_time("duration", info.times.complete);
    g.set("size", int(info.bytes_received));
    g.set("total_size", int(info.bytes_received + head.byte_size() as u64));
    let start = info.start_time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    g.set_time("time", Some(start));
    g.done()
}

fn response(ctx: &FormatContext<'_>) -> Value {
    let info = ctx.info;
    let mut g = Group::default();
    g.set_some("code", info.response_code.map(i64::from));
    g.set_some("code_details", info.details.as_deref());
    g.set("flags", int(info.flags.0));
    g.set_some("grpc_status", grpc_status(ctx).map(i64::from));
    g.set("size", int(info.bytes_sent));
    let heads = ctx.response.map_or(0, Head::byte_size) + ctx.trailers.map_or(0, Head::byte_size);
    g.set("total_size", int(info.bytes_sent + heads as u64));
    g.set("headers", ctx.response.map_or_else(|| Group::default().done(), headers));
    g.set("trailers", ctx.trailers.map_or_else(|| Group::default().done(), headers));
    let latency = info.times.downstream_tx_end.zip(info.times.upstream_rx_begin);
    g.set_time("backend_latency", latency.map(|(end, begin)| end.saturating_sub(begin)));
    g.done()
}

fn tls(g: &mut Group, tls: &TlsInfo) {
    let first = |names: &[Arc<str>]| names.first().map(|n| n.to_string());
    g.set("tls_version", tls.version);
    g.set("subject_local_certificate", &*tls.local_subject);
    g.set("subject_peer_certificate", &*tls.peer_subject);
    g.set_some("uri_san_local_certificate", first(&tls.local_uri_sans));
    g.set_some("uri_san_peer_certificate", first(&tls.peer_uri_sans));
    g.set_some("dns_san_local_certificate", first(&tls.local_dns_sans));
    g.set_some("dns_san_peer_certificate", first(&tls.peer_dns_sans));
    g.set("sha256_peer_certificate_digest", &*tls.peer_fingerprint_256);
}

fn connection(ctx: &FormatContext<'_>) -> Value {
    let conn = &ctx.info.conn;
    let mut g = Group::default();
    g.set("id", Value::UInt(conn.id));
    g.set("mtls", conn.tls.as_ref().is_some_and(|t| !t.peer_chain.is_empty()));
    g.set_some("requested_server_name", conn.sni.as_deref());
    g.set_some("termination_details", ctx.info.termination_details.as_deref());
    if let Some(t) = &conn.tls {
        tls(&mut g, t);
    }
    g.done()
}

fn upstream(ctx: &FormatContext<'_>) -> Value {
    let up = &ctx.info.upstream;
    let mut g = Group::default();
    if let Some(host) = up.host {
        g.set("address", host.to_string());
        g.set("port", i64::from(host.port()));
    }
    g.set_some("local_address", up.local.map(|a| a.to_string()));
    g.set_some("transport_failure_reason", up.transport_failure.as_deref());
    g.set("request_attempt_count", i64::from(ctx.info.attempt_count));
    if let Some(t) = &up.tls {
        tls(&mut g, t);
    }
    g.done()
}

fn address(g: &mut Group, addr: SocketAddr) {
    g.set("address", addr.to_string());
    g.set("port", i64::from(addr.port()));
}

fn source(ctx: &FormatContext<'_>) -> Value {
    let mut g = Group::default();
    address(&mut g, ctx.info.remote);
    let san = ctx.info.conn.tls.as_ref().and_then(|t| t.peer_uri_sans.first());
    g.set_some("principal", san.map(|s| s.to_string()));
    g.done()
}

fn destination(ctx: &FormatContext<'_>) -> Value {
    let mut g = Group::default();
    address(&mut g, ctx.info.conn.local);
    let san = ctx.info.conn.tls.as_ref().and_then(|t| t.local_uri_sans.first());
    g.set_some("principal", san.map(|s| s.to_string()));
    g.done()
}

fn from_map(map: Option<&serde_json::Map<String, Json>>) -> Value {
    let mut g = Group::default();
    for (k, v) in map.into_iter().flatten() {
        g.set(k, from_json(v));
    }
    g.done()
}

fn metadata(ctx: &FormatContext<'_>) -> Value {
    let mut g = Group::default();
    g.set("filter_metadata", from_map(ctx.info.metadata.as_deref()));
    g.done()
}

fn filter_state(ctx: &FormatContext<'_>) -> Value {
    let mut g = Group::default();
    for (k, v) in &ctx.info.filter_state {
        g.set(k, &**v);
    }
    g.set_some("upstream_peer", ctx.info.upstream_peer.as_deref().map(peer));
    g.set_some("downstream_peer", ctx.info.downstream_peer.as_deref().map(peer));
    g.done()
}

/// A peer under the names of Istio's workload metadata object.
fn peer(peer: &Peer) -> Value {
    let mut g = Group::default();
    for (name, value) in crate::telemetry::istio::peer::fields(peer) {
        if !value.is_empty() {
            g.set(name, value);
        }
    }
    let mut labels = Group::default();
    for (k, v) in &peer.labels {
        labels.set(k, &**v);
    }
    g.set("labels", labels.done());
    g.done()
}

fn with_namespaces(map: Option<&serde_json::Map<String, Json>>) -> Value {
    let mut g = Group::default();
    g.set("filter_metadata", from_map(map));
    g.done()
}

fn xds(ctx: &FormatContext<'_>) -> Value {
    let info = ctx.info;
    let mut g = Group::default();
    g.set("node", node());
    g.set_some("cluster_name", info.upstream.cluster.as_deref());
    g.set("cluster_metadata", with_namespaces(info.upstream.cluster_metadata.as_deref()));
    g.set("upstream_host_metadata", with_namespaces(info.upstream.host_metadata.as_deref()));
    g.set_some("route_name", info.route_name.as_deref());
    g.set("route_metadata", with_namespaces(info.route.as_ref().and_then(|r| r.metadata.as_deref())));
    g.set_some("virtual_host_name", info.virtual_host.as_ref().map(|v| v.name.to_string()));
    let vhost = info.virtual_host.as_ref().and_then(|v| v.metadata.as_deref());
    g.set("virtual_host_metadata", with_namespaces(vhost));
    g.set("filter_chain_name", &*info.conn.filter_chain_name);
    g.set("listener_direction", info.conn.direction as i64);
    g.done()
}

fn node() -> Value {
    let node = crate::telemetry::node::get();
    let mut g = Group::default();
    g.set("id", &*node.id);
    g.set("cluster", &*node.cluster);
    g.set("metadata", from_map(node.metadata.as_deref()));
    let mut locality = Group::default();
    locality.set("region", &*node.region);
    locality.set("zone", &*node.zone);
    locality.set("sub_zone", &*node.sub_zone);
    g.set("locality", locality.done());
    g.done()
}

/// `google.protobuf.Value` as CEL sees it: every number is a double.
fn from_json(json: &Json) -> Value {
    match json {
        Json::Null => Value::Null,
        Json::Bool(b) => (*b).into(),
        Json::Number(n) => n.as_f64().unwrap_or(0.0).into(),
        Json::String(s) => s.as_str().into(),
        Json::Array(items) => Value::List(Arc::new(items.iter().map(from_json).collect())),
        Json::Object(map) => from_map(Some(map)),
    }
}
