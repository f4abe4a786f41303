//! The attributes of Envoy's spans, in the order in which it sets them.

use std::sync::{Arc, LazyLock};

use serde_json::Value;

use crate::config::trace::{CustomTag, TagSource, Tracing};
use crate::head::{Head, HeaderId};
use crate::stream_info::{FLAGS, StreamInfo};
use crate::telemetry::format::{FormatContext, is_grpc};
use crate::telemetry::node;

type Attributes = Vec<(Arc<str>, String)>;

macro_rules! names {
    ($($konst:ident = $text:literal),+ $(,)?) => {
        $(static $konst: LazyLock<Arc<str>> = LazyLock::new(|| $text.into());)+
    };
}

names! {
    NODE_ID = "node_id", ZONE = "zone", REQUEST_ID = "guid:x-request-id", CLIENT_TRACE_ID = "guid:x-client-trace-id",
    URL = "http.url", METHOD = "http.method", DOWNSTREAM_CLUSTER = "downstream_cluster", USER_AGENT = "user_agent",
    PROTOCOL = "http.protocol", PEER_ADDRESS = "peer.address", REQUEST_SIZE = "request_size",
    RESPONSE_SIZE = "response_size", COMPONENT = "component", UPSTREAM_CLUSTER = "upstream_cluster",
    UPSTREAM_CLUSTER_NAME = "upstream_cluster.name", UPSTREAM_ADDRESS = "upstream_address",
    STATUS = "http.status_code", FLAGS_TAG = "response_flags", ERROR = "error", RETRY_COUNT = "retry.count",
    GRPC_PATH = "grpc.path", GRPC_AUTHORITY = "grpc.authority", GRPC_TYPE = "grpc.content-type",
    GRPC_TIMEOUT = "grpc.timeout", GRPC_STATUS = "grpc.status_code", GRPC_MESSAGE = "grpc.message",
}

/// Attributes of a request's own span.
pub(super) fn downstream(config: &Tracing, ctx: &FormatContext<'_>) -> Attributes {
    let info = ctx.info;
    let own = node::get();
    let mut a = Attributes::with_capacity(20 + config.custom_tags.len());
    set(&mut a, &NODE_ID, own.id.to_string());
    set(&mut a, &ZONE, own.zone.to_string());
    if let Some(request) = ctx.request {
        if let Some(id) = request.get(HeaderId::XRequestId) {
            set(&mut a, &REQUEST_ID, text(id));
        }
        set(&mut a, &URL, url(request, config.max_path_tag_length));
        set(&mut a, &METHOD, text(request.method()));
        set(&mut a, &DOWNSTREAM_CLUSTER, or_dash(request, HeaderId::XEnvoyDownstreamServiceCluster));
        set(&mut a, &USER_AGENT, or_dash(request, HeaderId::UserAgent));
        let protocol = info.protocol.map_or("HTTP/1.0", |p| p.as_str());
        set(&mut a, &PROTOCOL, protocol.to_owned());
        set(&mut a, &PEER_ADDRESS, info.conn.direct_remote.ip().to_string());
        if let Some(id) = request.get(HeaderId::XClientTraceId) {
            set(&mut a, &CLIENT_TRACE_ID, text(id));
        }
        if is_grpc(ctx.request) {
            set(&mut a, &GRPC_PATH, text(request.path()));
            set(&mut a, &GRPC_AUTHORITY, text(request.authority()));
            set_header(&mut a, &GRPC_TYPE, request, HeaderId::ContentType);
            set_header(&mut a, &GRPC_TIMEOUT, request, HeaderId::GrpcTimeout);
        }
    }
    set(&mut a, &REQUEST_SIZE, info.bytes_received.to_string());
    set(&mut a, &RESPONSE_SIZE, info.bytes_sent.to_string());
    common(&mut a, config, ctx, ctx.info.response_code);
    a
}

/// Attributes of one try's span.
pub(super) fn upstream(config: &Tracing, ctx: &FormatContext<'_>, attempt: u32) -> Attributes {
    let up = &ctx.info.upstream;
    let mut a = Attributes::with_capacity(12 + config.custom_tags.len());
    if attempt > 1 {
        set(&mut a, &RETRY_COUNT, (attempt - 1).to_string());
    }
    if let Some(p) = up.protocol {
        set(&mut a, &PROTOCOL, p.as_str().to_owned());
    }
    if let Some(host) = up.host {
        set(&mut a, &UPSTREAM_ADDRESS, host.to_string());
        set(&mut a, &PEER_ADDRESS, host.to_string());
    }
    common(&mut a, config, ctx, try_code(ctx));
    a
}

/// The status of a try's own response: the stream's may not be known yet, or be another try's.
pub(super) fn try_code(ctx: &FormatContext<'_>) -> Option<u16> {
    ctx.response.and_then(Head::status)
}

/// Whether the span is an error's: no response, a 5xx, or a gRPC status that is not OK.
pub(super) fn is_error(ctx: &FormatContext<'_>, code: Option<u16>) -> bool {
    code.is_none_or(|c| c >= 500)
        || grpc_head(ctx).and_then(|h| h.get(HeaderId::GrpcStatus)).is_some_and(|s| s != b"0")
}

fn common(a: &mut Attributes, config: &Tracing, ctx: &FormatContext<'_>, code: Option<u16>) {
    let info = ctx.info;
    set(a, &COMPONENT, "proxy".to_owned());
    if let Some(cluster) = &info.upstream.cluster {
        set(a, &UPSTREAM_CLUSTER, cluster.to_string());
        let stat_name = info.upstream.cluster_stat_name.as_ref().unwrap_or(cluster);
        set(a, &UPSTREAM_CLUSTER_NAME, stat_name.to_string());
    }
    set(a, &STATUS, code.unwrap_or(0).to_string());
    let flags: Vec<&str> = FLAGS.iter().filter(|f| info.flags.has(f.0)).map(|f| f.1).collect();
    set(a, &FLAGS_TAG, if flags.is_empty() { "-".to_owned() } else { flags.join(",") });
    if let Some(head) = grpc_head(ctx) {
        set_header(a, &GRPC_STATUS, head, HeaderId::GrpcStatus);
        set_header(a, &GRPC_MESSAGE, head, HeaderId::GrpcMessage);
    }
    if is_error(ctx, code) {
        set(a, &ERROR, "true".to_owned());
    }
    for tag in &config.custom_tags {
        if let Some(value) = custom(tag, ctx) {
            a.push((tag.tag.clone(), value));
        }
    }
}

/// Where a gRPC response's status stands: its trailers, or its head where there are none.
fn grpc_head<'a>(ctx: &FormatContext<'a>) -> Option<&'a Head> {
    [ctx.trailers, ctx.response].into_iter().flatten().find(|h| h.contains(HeaderId::GrpcStatus))
}

fn set(a: &mut Attributes, name: &Arc<str>, value: String) {
    a.push((name.clone(), value));
}

fn set_header(a: &mut Attributes, name: &Arc<str>, head: &Head, id: HeaderId) {
    if let Some(value) = head.get(id) {
        set(a, name, text(value));
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn or_dash(head: &Head, id: HeaderId) -> String {
    head.get(id).map_or_else(|| "-".to_owned(), text)
}

/// The request's URL as the client asked it, its path cut.
fn url(request: &Head, max_path: usize) -> String {
    let scheme =
        request.get(HeaderId::XForwardedProto).or_else(|| request.get(HeaderId::Scheme)).unwrap_or_default();
    let path = request.get(HeaderId::XEnvoyOriginalPath).unwrap_or_else(|| request.path());
    let path = &path[..path.len().min(max_path)];
    format!("{}://{}{}", text(scheme), text(request.authority()), text(path))
}

fn custom(tag: &CustomTag, ctx: &FormatContext<'_>) -> Option<String> {
    let info: &StreamInfo = ctx.info;
    let (found, default) = match &tag.source {
        TagSource::Literal(value) => return Some(value.to_string()),
        TagSource::RequestHeader { name, default } => {
            (ctx.request.and_then(|h| h.get_name(name)).map(text), default)
        }
        TagSource::RequestMetadata { path, default } => (at(info.metadata.as_deref(), path), default),
        TagSource::RouteMetadata { path, default } => {
            (at(info.route.as_ref().and_then(|r| r.metadata.as_deref()), path), default)
        }
        TagSource::ClusterMetadata { path, default } => {
            (at(info.upstream.cluster_metadata.as_deref(), path), default)
        }
        TagSource::HostMetadata { path, default } => {
            (at(info.upstream.host_metadata.as_deref(), path), default)
        }
    };
    found.or_else(|| default.as_ref().map(|d| d.to_string())).filter(|v| !v.is_empty())
}

fn at(map: Option<&serde_json::Map<String, Value>>, path: &[Arc<str>]) -> Option<String> {
    let (first, rest) = path.split_first()?;
    let mut value = map?.get(&**first)?;
    for key in rest {
        value = value.get(&**key)?;
    }
    match value {
        Value::Null => None,
        Value::String(s) => Some(s.clone()),
        other => Some(other.to_string()),
    }
}
