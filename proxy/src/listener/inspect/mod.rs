//! Runs a listener's filters on a fresh connection. Follows Envoy's "Listener filters". The parsers (`tls`, `http`,
//! `proxy_protocol`) are pure; this file reads for them, within one deadline, and keeps what it read for the chain.

pub mod http;
pub mod proxy_protocol;
pub mod tls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncReadExt;

use crate::config::listener::{DisabledWhen, Listener, ListenerFilterKind};
use crate::net::{Raw, Socket};
use crate::stats_struct;
use crate::telemetry::stats::Stats;

/// What is known of a connection before its chain is chosen.
#[derive(Clone, Debug)]
pub(super) struct Inspected {
    pub remote: SocketAddr,
    pub local: SocketAddr,
    pub local_restored: bool,
    pub server_name: Option<Arc<str>>,
    pub protocols: Vec<Arc<str>>,
    pub transport_protocol: &'static str,
}

/// How the filters ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Done,
    /// The deadline passed and the listener does not continue then.
    TimedOut,
    /// The peer closed first.
    PeerClosed,
    /// A filter refused the connection.
    Refused,
}

stats_struct! {
    struct TlsInspectorStats {
        counter client_hello_too_big,
        counter tls_found,
        counter tls_not_found,
        counter alpn_found,
        counter alpn_not_found,
        counter sni_found,
        counter sni_not_found,
        counter connection_closed,
        histogram(Bytes) bytes_processed,
    }
}

stats_struct! {
    struct HttpInspectorStats {
        counter http10_found,
        counter http11_found,
        counter http2_found,
        counter http_not_found,
    }
}

stats_struct! {
    struct ProxyProtocolStats {
        counter not_found_allowed,
        counter not_found_disallowed,
        counter v1_found = "versions.v1.found",
        counter v1_error = "versions.v1.error",
        counter v2_found = "versions.v2.found",
        counter v2_error = "versions.v2.error",
    }
}

/// One worker's inspector stats; they are global, not a listener's.
#[derive(Debug)]
pub(super) struct InspectorStats {
    tls: TlsInspectorStats,
    http: HttpInspectorStats,
    proxy: ProxyProtocolStats,
}

impl InspectorStats {
    pub(super) fn new(stats: &Stats) -> InspectorStats {
        InspectorStats {
            tls: TlsInspectorStats::new(stats, "tls_inspector."),
            http: HttpInspectorStats::new(stats, "http_inspector."),
            proxy: ProxyProtocolStats::new(stats, "proxy_proto."),
        }
    }
}

/// Runs all filters. What they read is in `raw.prefix` afterwards.
pub(super) async fn run(
    listener: &Listener,
    raw: &mut Raw,
    facts: &mut Inspected,
    stats: &InspectorStats,
) -> Ending {
    if listener.listener_filters.is_empty() {
        return Ending::Done;
    }
    let mut buffer = BytesMut::from(std::mem::take(&mut raw.prefix));
    let ending = {
        let filters = filters(listener, raw, facts, &mut buffer, stats);
        match listener.listener_filters_timeout {
            None => filters.await,
            Some(limit) => match within(limit, filters).await {
                Some(ending) => ending,
                None if listener.continue_on_timeout => Ending::Done,
                None => Ending::TimedOut,
            },
        }
    };
    raw.prefix = buffer.freeze();
    ending
}

/// Most connections bring their first bytes along: the timer is only made for those that do not.
async fn within<F: Future<Output = Ending>>(limit: Duration, filters: F) -> Option<Ending> {
    let mut filters = std::pin::pin!(filters);
    let first = std::future::poll_fn(|cx| std::task::Poll::Ready(filters.as_mut().poll(cx))).await;
    match first {
        std::task::Poll::Ready(ending) => Some(ending),
        std::task::Poll::Pending => tokio::time::timeout(limit, filters).await.ok(),
    }
}

async fn filters(
    listener: &Listener,
    raw: &mut Raw,
    facts: &mut Inspected,
    buffer: &mut BytesMut,
    stats: &InspectorStats,
) -> Ending {
    for filter in &listener.listener_filters {
        if filter.disabled.as_ref().is_some_and(|d| is_disabled(d, facts.local.port())) {
            continue;
        }
        let step = match &filter.kind {
            ListenerFilterKind::OriginalDst => {
                original_destination(&raw.socket, facts);
                continue;
            }
            ListenerFilterKind::TlsInspector { max_read, .. } => {
                inspect_tls(raw, facts, buffer, *max_read, &stats.tls).await
            }
            ListenerFilterKind::HttpInspector => inspect_http(raw, facts, buffer, &stats.http).await,
            ListenerFilterKind::ProxyProtocol { allow_without } => {
                inspect_proxy(raw, facts, buffer, *allow_without, &stats.proxy).await
            }
        };
        if let Err(ending) = step {
            return ending;
        }
    }
    Ending::Done
}

fn is_disabled(when: &DisabledWhen, port: u16) -> bool {
    match when {
        DisabledWhen::Any(v) => *v,
        DisabledWhen::DestinationPort(start, end) => (*start..*end).contains(&u32::from(port)),
        DisabledWhen::Not(inner) => !is_disabled(inner, port),
        DisabledWhen::Or(all) => all.iter().any(|w| is_disabled(w, port)),
        DisabledWhen::And(all) => all.iter().all(|w| is_disabled(w, port)),
    }
}

/// `SO_ORIGINAL_DST`: where a REDIRECT rule took the connection from. Without such a rule the kernel answers an error, or
/// the socket's own address, and nothing changes.
fn original_destination(socket: &Socket, facts: &mut Inspected) {
    let Socket::Tcp(tcp) = socket else { return };
    let sock = socket2::SockRef::from(tcp);
    let found = match facts.local {
        SocketAddr::V6(a) if a.ip().to_ipv4_mapped().is_none() => sock.original_dst_v6(),
        _ => sock.original_dst_v4(),
    };
    if let Some(address) = found.ok().and_then(|a| a.as_socket())
        && address != facts.local
    {
        facts.local = address;
        facts.local_restored = true;
    }
}

async fn more(raw: &mut Raw, buffer: &mut BytesMut) -> Result<(), Ending> {
    buffer.reserve(1024);
    match raw.read_buf(buffer).await {
        Ok(n) if n > 0 => Ok(()),
        _ => Err(Ending::PeerClosed),
    }
}

async fn inspect_tls(
    raw: &mut Raw,
    facts: &mut Inspected,
    buffer: &mut BytesMut,
    max: usize,
    stats: &TlsInspectorStats,
) -> Result<(), Ending> {
    loop {
        match tls::inspect(buffer) {
            tls::Verdict::More if buffer.len() >= max => {
                // Envoy refuses a hello that is larger than it reads.
                stats.client_hello_too_big.inc();
                return Err(Ending::Refused);
            }
            tls::Verdict::More => {
                if let Err(e) = more(raw, buffer).await {
                    stats.connection_closed.inc();
                    return Err(e);
                }
            }
            tls::Verdict::NotTls => {
                stats.tls_not_found.inc();
                break;
            }
            tls::Verdict::Hello(hello) => {
                stats.tls_found.inc();
                facts.transport_protocol = "tls";
                if hello.server_name.is_some() {
                    stats.sni_found.inc();
                } else {
                    stats.sni_not_found.inc();
                }
                if hello.protocols.is_empty() {
                    stats.alpn_not_found.inc();
                } else {
                    stats.alpn_found.inc();
                }
                facts.server_name = hello.server_name;
                facts.protocols = hello.protocols;
                break;
            }
        }
    }
    stats.bytes_processed.record(buffer.len() as u64);
    Ok(())
}

async fn inspect_http(
    raw: &mut Raw,
    facts: &mut Inspected,
    buffer: &mut BytesMut,
    stats: &HttpInspectorStats,
) -> Result<(), Ending> {
    if facts.transport_protocol == "tls" {
        return Ok(());
    }
    loop {
        let (counter, protocol) = match http::inspect(buffer) {
            http::Verdict::More => {
                more(raw, buffer).await?;
                continue;
            }
            http::Verdict::NotHttp => {
                stats.http_not_found.inc();
                return Ok(());
            }
            http::Verdict::Http10 => (&stats.http10_found, "http/1.0"),
            http::Verdict::Http11 => (&stats.http11_found, "http/1.1"),
            http::Verdict::Http2 => (&stats.http2_found, "h2c"),
        };
        counter.inc();
        facts.protocols = vec![protocol.into()];
        return Ok(());
    }
}

async fn inspect_proxy(
    raw: &mut Raw,
    facts: &mut Inspected,
    buffer: &mut BytesMut,
    allow_without: bool,
    stats: &ProxyProtocolStats,
) -> Result<(), Ending> {
    loop {
        match proxy_protocol::inspect(buffer) {
            proxy_protocol::Verdict::More => more(raw, buffer).await?,
            proxy_protocol::Verdict::Absent if allow_without => {
                stats.not_found_allowed.inc();
                return Ok(());
            }
            proxy_protocol::Verdict::Absent => {
                stats.not_found_disallowed.inc();
                return Err(Ending::Refused);
            }
            proxy_protocol::Verdict::Malformed => {
                if buffer.starts_with(b"PROXY") {
                    stats.v1_error.inc();
                } else {
                    stats.v2_error.inc();
                }
                return Err(Ending::Refused);
            }
            proxy_protocol::Verdict::Header { version, addresses, len } => {
                if version == 1 {
                    stats.v1_found.inc();
                } else {
                    stats.v2_found.inc();
                }
                let _ = buffer.split_to(len);
                if let Some((source, destination)) = addresses {
                    facts.remote = source;
                    facts.local_restored |= destination != facts.local;
                    facts.local = destination;
                }
                return Ok(());
            }
        }
    }
}
