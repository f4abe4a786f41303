//! One operator → its value, as Envoy's `StreamInfo` and header formatters print it.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use serde_json::{Map, Value};

use super::{FormatContext, Wrote, grpc, time, tls};
use crate::config::format::{Command, DurationUnit, MetadataKind, Simple, TimePoint};
use crate::head::{Head, HeaderId, HeaderName};
use crate::stream_info::{FLAGS, ResponseFlags, StreamInfo};

/// Writes the command's value. On `Absent` whatever was written is to be taken back.
pub(super) fn write(command: &Command, ctx: &FormatContext<'_>, out: &mut Vec<u8>) -> Wrote {
    let info = ctx.info;
    match command {
        Command::Req(name, or) => header(ctx.request, name, or.as_ref(), out),
        Command::Resp(name, or) => header(ctx.response, name, or.as_ref(), out),
        Command::Trailer(name, or) => header(ctx.trailers, name, or.as_ref(), out),
        Command::Simple(simple) => write_simple(*simple, ctx, out),
        Command::Time(point, format) => match time_of(info, *point) {
            Some(at) => time::write_at(at, format.as_deref(), out),
            None => Wrote::Absent,
        },
        Command::DynamicMetadata(path) => metadata(info.metadata.as_deref(), path, out),
        Command::Metadata(kind, path) => metadata(metadata_of(info, *kind), path, out),
        Command::FilterState(key) => filter_state(info, key, out),
        // Our upstream connections carry no filter state of their own.
        Command::UpstreamFilterState(_) => Wrote::Absent,
        Command::Environment(value) => text(value.as_bytes(), out),
        Command::CommonDuration(start, end, unit) => {
            match (since_start(info, *start), since_start(info, *end)) {
                (Some(a), Some(b)) if b >= a => number(in_unit(b - a, *unit), out),
                _ => Wrote::Absent,
            }
        }
        Command::GrpcStatus(form) => grpc::write_status(*form, ctx, out),
        Command::Cel(expression) => {
            crate::telemetry::cel::write(expression, ctx, out).map_or(Wrote::Absent, |()| Wrote::Text)
        }
    }
}

fn write_simple(simple: Simple, ctx: &FormatContext<'_>, out: &mut Vec<u8>) -> Wrote {
    use Simple as S;
    let info = ctx.info;
    let up = &info.upstream;
    let conn = &info.conn;
    match simple {
        S::Protocol => opt(info.protocol.map(|p| p.as_str()), out),
        S::UpstreamProtocol => opt(up.protocol.map(|p| p.as_str()), out),
        S::ResponseCode => number(u64::from(info.response_code.unwrap_or(0)), out),
        S::ResponseCodeDetails => details(info.details.as_deref(), out),
        S::ResponseFlags => flags(info.flags, |f| f.1, out),
        S::ResponseFlagsLong => flags(info.flags, |f| f.2, out),
        S::ConnectionTerminationDetails => opt(info.termination_details.as_deref(), out),
        S::BytesReceived => number(info.bytes_received, out),
        S::BytesSent => number(info.bytes_sent, out),
        S::UpstreamWireBytesSent => number(up.wire_sent, out),
        S::UpstreamWireBytesReceived => number(up.wire_received, out),
        S::UpstreamHeaderBytesSent => number(up.header_sent, out),
        S::UpstreamHeaderBytesReceived => number(up.header_received, out),
        S::DownstreamWireBytesSent => number(info.downstream_wire_sent, out),
        S::DownstreamWireBytesReceived => number(info.downstream_wire_received, out),
        S::DownstreamHeaderBytesSent => number(info.downstream_header_sent, out),
        S::DownstreamHeaderBytesReceived => number(info.downstream_header_received, out),
        S::RequestHeadersBytes => number(ctx.request.map_or(0, |h| h.byte_size() as u64), out),
        S::ResponseHeadersBytes => number(ctx.response.map_or(0, |h| h.byte_size() as u64), out),
        S::ResponseTrailersBytes => number(ctx.trailers.map_or(0, |h| h.byte_size() as u64), out),
        S::Duration => millis(info.times.complete, out),
        S::RequestDuration => millis(info.times.downstream_rx_end, out),
        S::RequestTxDuration => millis(info.times.upstream_tx_end, out),
        S::ResponseDuration => millis(info.times.upstream_rx_begin, out),
        S::ResponseTxDuration => millis(
            info.times.downstream_tx_end.zip(info.times.upstream_rx_begin).map(|(e, b)| e.saturating_sub(b)),
            out,
        ),
        S::UpstreamConnectionPoolReadyDuration => millis(info.times.upstream_connect_end, out),
        // Moments that are not measured: the handshake lies before the stream, QUIC's round trip does not exist here.
        S::DownstreamHandshakeDuration | S::RoundtripDuration => Wrote::Absent,
        S::UpstreamHost | S::UpstreamRemoteAddress => match &up.host_text {
            Some(t) => text(t.as_bytes(), out),
            None => address(up.host, out),
        },
        S::UpstreamHostName => match &up.hostname {
            Some(t) => text(t.as_bytes(), out),
            None => address(up.host, out),
        },
        S::UpstreamHostNameWithoutPort => match &up.hostname {
            Some(t) => text(t.as_bytes(), out),
            None => ip(up.host, out),
        },
        S::UpstreamCluster => opt(up.cluster_stat_name.as_deref().or(up.cluster.as_deref()), out),
        S::UpstreamClusterRaw => opt(up.cluster.as_deref(), out),
        S::UpstreamLocalAddress => address(up.local, out),
        S::UpstreamLocalAddressWithoutPort => ip(up.local, out),
        S::UpstreamLocalPort => port(up.local, out),
        S::UpstreamRemoteAddressWithoutPort => ip(up.host, out),
        S::UpstreamRemotePort => port(up.host, out),
        S::UpstreamRequestAttemptCount => number(u64::from(info.attempt_count), out),
        S::UpstreamConnectionId => number(up.connection_id.unwrap_or(0), out),
        S::UpstreamTransportFailureReason => reason(up.transport_failure.as_deref(), out),
        S::DownstreamTransportFailureReason => reason(info.downstream_transport_failure.as_deref(), out),
        S::DownstreamLocalCloseReason | S::DownstreamDetectedCloseType => Wrote::Absent,
        S::DownstreamRemoteAddress => address(Some(info.remote), out),
        S::DownstreamRemoteAddressWithoutPort => ip(Some(info.remote), out),
        S::DownstreamRemotePort => port(Some(info.remote), out),
        S::DownstreamDirectRemoteAddress => address(Some(conn.direct_remote), out),
        S::DownstreamDirectRemoteAddressWithoutPort => ip(Some(conn.direct_remote), out),
        S::DownstreamDirectRemotePort => port(Some(conn.direct_remote), out),
        S::DownstreamLocalAddress => address(Some(conn.local), out),
        S::DownstreamLocalAddressWithoutPort => ip(Some(conn.local), out),
        S::DownstreamLocalPort => port(Some(conn.local), out),
        S::DownstreamDirectLocalAddress => address(Some(conn.direct_local), out),
        S::DownstreamDirectLocalAddressWithoutPort => ip(Some(conn.direct_local), out),
        S::ConnectionId => number(conn.id, out),
        S::RequestedServerName | S::DownstreamServerName => opt(conn.sni.as_deref(), out),
        S::RouteName => opt(info.route_name.as_deref(), out),
        S::VirtualHostName => opt(info.virtual_host.as_ref().map(|v| &*v.name), out),
        S::VirtualClusterName => Wrote::Absent,
        S::FilterChainName => opt(Some(&*conn.filter_chain_name), out),
        S::ListenerName => opt(Some(&*conn.listener_name), out),
        S::StreamId => opt_bytes(ctx.request.and_then(|h| h.get(HeaderId::XRequestId)), out),
        S::UniqueId => text(unique_id().as_bytes(), out),
        S::TraceId => opt(info.trace_id.as_deref(), out),
        S::SpanId => opt(info.span_id.as_deref(), out),
        S::Hostname => opt(Some(HOSTNAME.as_str()), out),
        S::LocalReplyBody => text(info.local_reply_body.as_deref().unwrap_or_default(), out),
        S::TlsJa3Fingerprint | S::TlsJa4Fingerprint => Wrote::Absent,
        _ => tls::write(simple, info, out),
    }
}

static HOSTNAME: LazyLock<String> = LazyLock::new(|| {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim_end().to_owned()
});

fn unique_id() -> String {
    let mut b: [u8; 16] = rand::random();
    b[6] = b[6] & 0x0f | 0x40;
    b[8] = b[8] & 0x3f | 0x80;
    let n = u128::from_be_bytes(b);
    let hex = format!("{n:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

pub(super) fn text(value: &[u8], out: &mut Vec<u8>) -> Wrote {
    out.extend_from_slice(value);
    Wrote::Text
}

/// An empty string counts as absent, as in Envoy's string formatters.
pub(super) fn opt(value: Option<&str>, out: &mut Vec<u8>) -> Wrote {
    opt_bytes(value.map(str::as_bytes), out)
}

/// A reason's text with its spaces as underscores, so that it stays one field of a line.
fn reason(value: Option<&str>, out: &mut Vec<u8>) -> Wrote {
    let start = out.len();
    let wrote = opt(value, out);
    out[start..].iter_mut().filter(|b| **b == b' ').for_each(|b| *b = b'_');
    wrote
}

fn opt_bytes(value: Option<&[u8]>, out: &mut Vec<u8>) -> Wrote {
    match value {
        Some(v) if !v.is_empty() => text(v, out),
        _ => Wrote::Absent,
    }
}

pub(super) fn number(n: u64, out: &mut Vec<u8>) -> Wrote {
    out.extend_from_slice(itoa::Buffer::new().format(n).as_bytes());
    Wrote::Number
}

fn millis(d: Option<Duration>, out: &mut Vec<u8>) -> Wrote {
    match d {
        Some(d) => number(in_unit(d, DurationUnit::Milliseconds), out),
        None => Wrote::Absent,
    }
}

fn in_unit(d: Duration, unit: DurationUnit) -> u64 {
    let n = match unit {
        DurationUnit::Milliseconds => d.as_millis(),
        DurationUnit::Microseconds => d.as_micros(),
        DurationUnit::Nanoseconds => d.as_nanos(),
    };
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// Details are one word in a log: white space becomes `_`.
fn details(value: Option<&str>, out: &mut Vec<u8>) -> Wrote {
    let start = out.len();
    let wrote = opt(value, out);
    for b in &mut out[start..] {
        if b.is_ascii_whitespace() {
            *b = b'_';
        }
    }
    wrote
}

type FlagRow = (ResponseFlags, &'static str, &'static str);

fn flags(set: ResponseFlags, name: impl Fn(&FlagRow) -> &'static str, out: &mut Vec<u8>) -> Wrote {
    if set.is_empty() {
        // A value of its own in Envoy, not the placeholder: it stands in JSON, and with `omit_empty_values`.
        return text(b"-", out);
    }
    let start = out.len();
    for row in FLAGS.iter().filter(|f| set.has(f.0)) {
        if out.len() > start {
            out.push(b',');
        }
        out.extend_from_slice(name(row).as_bytes());
    }
    Wrote::Text
}

/// Writing into a `Vec` cannot fail; the result of `write!` says nothing here.
fn display(value: impl std::fmt::Display, out: &mut Vec<u8>) -> Wrote {
    let _ = write!(out, "{value}");
    Wrote::Text
}

fn address(addr: Option<SocketAddr>, out: &mut Vec<u8>) -> Wrote {
    addr.map_or(Wrote::Absent, |a| display(a, out))
}

fn ip(addr: Option<SocketAddr>, out: &mut Vec<u8>) -> Wrote {
    addr.map_or(Wrote::Absent, |a| display(a.ip(), out))
}

fn port(addr: Option<SocketAddr>, out: &mut Vec<u8>) -> Wrote {
    addr.map_or(Wrote::Absent, |a| number(u64::from(a.port()), out))
}

fn header(head: Option<&Head>, name: &HeaderName, or: Option<&HeaderName>, out: &mut Vec<u8>) -> Wrote {
    let Some(head) = head else { return Wrote::Absent };
    match head.get_name(name).or_else(|| or.and_then(|n| head.get_name(n))) {
        Some(value) => text(value, out),
        None => Wrote::Absent,
    }
}

fn metadata_of(info: &StreamInfo, kind: MetadataKind) -> Option<&Map<String, Value>> {
    match kind {
        MetadataKind::Cluster => info.upstream.cluster_metadata.as_deref(),
        MetadataKind::UpstreamHost => info.upstream.host_metadata.as_deref(),
        MetadataKind::Route => info.route.as_ref().and_then(|r| r.metadata.as_deref()),
        MetadataKind::VirtualHost => info.virtual_host.as_ref().and_then(|v| v.metadata.as_deref()),
        // A listener's metadata is not kept on its connections.
        MetadataKind::Listener => None,
    }
}

/// Walks `path` (namespace first); a string comes bare, anything else as JSON.
fn metadata(map: Option<&Map<String, Value>>, path: &[Arc<str>], out: &mut Vec<u8>) -> Wrote {
    let Some((first, rest)) = path.split_first() else { return Wrote::Absent };
    let Some(mut value) = map.and_then(|m| m.get(&**first)) else { return Wrote::Absent };
    for key in rest {
        match value.get(&**key) {
            Some(v) => value = v,
            None => return Wrote::Absent,
        }
    }
    match value {
        Value::Null => Wrote::Absent,
        Value::String(s) => text(s.as_bytes(), out),
        other => {
            display(other, out);
            Wrote::Json
        }
    }
}

fn filter_state(info: &StreamInfo, key: &str, out: &mut Vec<u8>) -> Wrote {
    let peer = match key {
        "downstream_peer" => &info.downstream_peer,
        "upstream_peer" => &info.upstream_peer,
        _ => {
            let found = info.filter_state.iter().find(|(k, _)| **k == *key);
            return opt(found.map(|(_, v)| &**v), out);
        }
    };
    match peer {
        Some(peer) => {
            crate::telemetry::istio::peer::write_baggage(peer, out);
            Wrote::Text
        }
        None => Wrote::Absent,
    }
}

/// The moment's distance from the stream's start.
fn since_start(info: &StreamInfo, point: TimePoint) -> Option<Duration> {
    let t = &info.times;
    match point {
        TimePoint::Start => Some(Duration::ZERO),
        TimePoint::DownstreamRxEnd => t.downstream_rx_end,
        TimePoint::UpstreamConnectBegin => t.upstream_connect_begin,
        TimePoint::UpstreamConnectEnd => t.upstream_connect_end,
        TimePoint::UpstreamTxBegin => t.upstream_tx_begin,
        TimePoint::UpstreamTxEnd => t.upstream_tx_end,
        TimePoint::UpstreamRxBegin => t.upstream_rx_begin,
        TimePoint::UpstreamRxEnd => t.upstream_rx_end,
        TimePoint::DownstreamTxBegin => t.downstream_tx_begin,
        TimePoint::DownstreamTxEnd => t.downstream_tx_end,
        TimePoint::DownstreamPeerCertStart
        | TimePoint::DownstreamPeerCertEnd
        | TimePoint::UpstreamPeerCertStart
        | TimePoint::UpstreamPeerCertEnd => None,
    }
}

/// The moment as wall-clock time since the epoch.
fn time_of(info: &StreamInfo, point: TimePoint) -> Option<Duration> {
    let secs = |s: i64| u64::try_from(s).ok().filter(|s| *s > 0).map(Duration::from_secs);
    let down = || info.conn.tls.as_deref();
    let up = || info.upstream.tls.as_deref();
    match point {
        TimePoint::DownstreamPeerCertStart => secs(down()?.peer_not_before),
        TimePoint::DownstreamPeerCertEnd => secs(down()?.peer_not_after),
        TimePoint::UpstreamPeerCertStart => secs(up()?.peer_not_before),
        TimePoint::UpstreamPeerCertEnd => secs(up()?.peer_not_after),
        _ => {
            let start = info.start_time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            Some(start + since_start(info, point)?)
        }
    }
}
