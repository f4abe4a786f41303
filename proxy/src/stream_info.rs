//! What is known of a connection and of a stream: the source of access logs, stats, tracing tags, header formats and
//! policy decisions. Follows Envoy's `StreamInfo`.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::config::hcm::Protocol;
use crate::config::route::{Metadata, Route, VirtualHost};

/// Facts of a downstream connection, fixed once its TLS handshake is done. Shared by its streams.
#[derive(Debug)]
pub struct ConnInfo {
    /// `%CONNECTION_ID%`.
    pub id: u64,
    /// The peer, as PROXY protocol or the socket tell it.
    pub remote: SocketAddr,
    /// The peer as the socket tells it.
    pub direct_remote: SocketAddr,
    /// The local address: the original destination where it was restored.
    pub local: SocketAddr,
    /// The local address of the socket.
    pub direct_local: SocketAddr,
    /// Whether an original destination was restored.
    pub local_restored: bool,
    /// Server name from the TLS inspector or the handshake.
    pub sni: Option<Arc<str>>,
    /// `raw_buffer` or `tls`, as an inspector detected it.
    pub transport_protocol: &'static str,
    pub tls: Option<Arc<TlsInfo>>,
    pub listener_name: Arc<str>,
    /// `listener.<this>.` begins the listener's stats.
    pub listener_stat: Arc<str>,
    pub filter_chain_name: Arc<str>,
    pub direction: crate::config::listener::Direction,
    pub start: Instant,
    /// When the connection was accepted, for TCP access logs.
    pub start_time: SystemTime,
    /// Of the Unix socket kind (`remote` and `local` are then unspecified).
    pub is_unix: bool,
}

/// Facts of a TLS session, either side.
#[derive(Debug, Default, Clone)]
pub struct TlsInfo {
    /// `TLSv1.2`, `TLSv1.3`.
    pub version: &'static str,
    /// OpenSSL's cipher name, as Envoy logs it (`TLS_AES_128_GCM_SHA256`, `ECDHE-ECDSA-AES256-GCM-SHA384`).
    pub cipher: &'static str,
    pub alpn: Option<Arc<str>>,
    pub sni: Option<Arc<str>>,
    /// Peer certificate chain, DER, leaf first; empty without a certificate.
    pub peer_chain: Vec<Vec<u8>>,
    /// The peer's chain was verified against roots.
    pub peer_validated: bool,
    pub peer_uri_sans: Vec<Arc<str>>,
    pub peer_dns_sans: Vec<Arc<str>>,
    pub peer_ip_sans: Vec<Arc<str>>,
    /// RFC 2253 order and escapes, as Envoy prints it.
    pub peer_subject: Arc<str>,
    pub peer_issuer: Arc<str>,
    pub peer_serial: Arc<str>,
    /// SHA-256 of the peer's leaf, lower-case hex.
    pub peer_fingerprint_256: Arc<str>,
    /// Validity of the peer's leaf, Unix seconds.
    pub peer_not_before: i64,
    pub peer_not_after: i64,
    pub local_uri_sans: Vec<Arc<str>>,
    pub local_dns_sans: Vec<Arc<str>>,
    pub local_subject: Arc<str>,
    pub session_id: Arc<str>,
}

/// Envoy's response flags as a bit set. Short and long names are in `FLAGS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResponseFlags(pub u64);

macro_rules! response_flags {
    ($($konst:ident = $bit:literal, $short:literal, $long:literal;)+) => {
        impl ResponseFlags {
            $(#[doc = concat!("`", $short, "`, ", $long, ".")] pub const $konst: ResponseFlags = ResponseFlags(1 << $bit);)+
        }
        /// Flag, short name (`%RESPONSE_FLAGS%`), long name (`%RESPONSE_FLAGS_LONG%`), in Envoy's order.
        pub const FLAGS: &[(ResponseFlags, &str, &str)] = &[$((ResponseFlags::$konst, $short, $long)),+];
    };
}

response_flags! {
    FAILED_LOCAL_HEALTH_CHECK = 0, "LH", "FailedLocalHealthCheck";
    NO_HEALTHY_UPSTREAM = 1, "UH", "NoHealthyUpstream";
    UPSTREAM_REQUEST_TIMEOUT = 2, "UT", "UpstreamRequestTimeout";
    LOCAL_RESET = 3, "LR", "LocalReset";
    UPSTREAM_REMOTE_RESET = 4, "UR", "UpstreamRemoteReset";
    UPSTREAM_CONNECTION_FAILURE = 5, "UF", "UpstreamConnectionFailure";
    UPSTREAM_CONNECTION_TERMINATION = 6, "UC", "UpstreamConnectionTermination";
    UPSTREAM_OVERFLOW = 7, "UO", "UpstreamOverflow";
    NO_ROUTE_FOUND = 8, "NR", "NoRouteFound";
    DELAY_INJECTED = 9, "DI", "DelayInjected";
    FAULT_INJECTED = 10, "FI", "FaultInjected";
    RATE_LIMITED = 11, "RL", "RateLimited";
    UNAUTHORIZED = 12, "UAEX", "UnauthorizedExternalService";
    RATE_LIMIT_SERVICE_ERROR = 13, "RLSE", "RateLimitServiceError";
    DOWNSTREAM_CONNECTION_TERMINATION = 14, "DC", "DownstreamConnectionTermination";
    UPSTREAM_RETRY_LIMIT_EXCEEDED = 15, "URX", "UpstreamRetryLimitExceeded";
    STREAM_IDLE_TIMEOUT = 16, "SI", "StreamIdleTimeout";
    INVALID_ENVOY_REQUEST_HEADERS = 17, "IH", "InvalidEnvoyRequestHeaders";
    DOWNSTREAM_PROTOCOL_ERROR = 18, "DPE", "DownstreamProtocolError";
    UPSTREAM_MAX_STREAM_DURATION_REACHED = 19, "UMSDR", "UpstreamMaxStreamDurationReached";
    RESPONSE_FROM_CACHE = 20, "RFCF", "ResponseFromCacheFilter";
    NO_FILTER_CONFIG_FOUND = 21, "NFCF", "NoFilterConfigFound";
    DURATION_TIMEOUT = 22, "DT", "DurationTimeout";
    UPSTREAM_PROTOCOL_ERROR = 23, "UPE", "UpstreamProtocolError";
    NO_CLUSTER_FOUND = 24, "NC", "NoClusterFound";
    OVERLOAD_MANAGER = 25, "OM", "OverloadManagerTerminated";
    DNS_RESOLUTION_FAILED = 26, "DF", "DnsResolutionFailed";
    DROP_OVERLOAD = 27, "DO", "DropOverload";
    DOWNSTREAM_REMOTE_RESET = 28, "DR", "DownstreamRemoteReset";
    UNCONDITIONAL_DROP_OVERLOAD = 29, "UDO", "UnconditionalDropOverload";
}

impl ResponseFlags {
    /// No flag.
    pub const NONE: ResponseFlags = ResponseFlags(0);

    /// Sets the bits of `other`.
    pub fn set(&mut self, other: ResponseFlags) {
        self.0 |= other.0;
    }

    /// Whether any bit of `other` is set.
    pub fn has(self, other: ResponseFlags) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether no flag is set.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// Facts of one HTTP stream, or of a TCP connection that a TCP proxy serves.
#[derive(Debug)]
pub struct StreamInfo {
    pub conn: Rc<ConnInfo>,
    /// Wall clock at the first byte.
    pub start_time: SystemTime,
    pub start: Instant,
    /// Durations since `start`.
    pub times: Times,
    /// The remote address after XFF evaluation (`downstream_remote_address`).
    pub remote: SocketAddr,
    /// `None` for TCP.
    pub protocol: Option<Protocol>,
    /// The response's status as sent downstream.
    pub response_code: Option<u16>,
    /// `%RESPONSE_CODE_DETAILS%`.
    pub details: Option<Cow<'static, str>>,
    /// `%CONNECTION_TERMINATION_DETAILS%`.
    pub termination_details: Option<Cow<'static, str>>,
    pub flags: ResponseFlags,
    /// `%DOWNSTREAM_TRANSPORT_FAILURE_REASON%`: why the client's TLS handshake failed.
    pub downstream_transport_failure: Option<Arc<str>>,
    /// Body bytes.
    pub bytes_received: u64,
    pub bytes_sent: u64,
    pub downstream_wire_received: u64,
    pub downstream_wire_sent: u64,
    pub downstream_header_received: u64,
    pub downstream_header_sent: u64,
    pub upstream: UpstreamInfo,
    pub route: Option<Arc<Route>>,
    pub virtual_host: Option<Arc<VirtualHost>>,
    /// The route's name, or a TCP route's.
    pub route_name: Option<Arc<str>>,
    /// Tries so far.
    pub attempt_count: u32,
    pub health_check: bool,
    /// Whether the trace decision was to sample.
    pub traced: bool,
    /// Set where the decision came from, for the `Traceable` filter.
    pub is_internal: bool,
    pub local_reply_body: Option<Arc<[u8]>>,
    pub trace_id: Option<Arc<str>>,
    pub span_id: Option<Arc<str>>,
    /// Dynamic metadata by namespace; boxed because most streams have none.
    pub metadata: Option<Box<serde_json::Map<String, serde_json::Value>>>,
    /// Filter state objects as their strings; peers' metadata has its own places below.
    pub filter_state: Vec<(Arc<str>, Arc<str>)>,
    /// Istio's peer metadata: who calls (downstream) and who was called (upstream).
    pub downstream_peer: Option<Arc<Peer>>,
    pub upstream_peer: Option<Arc<Peer>>,
}

/// Moments since `StreamInfo::start`; `None`: not reached.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    pub downstream_rx_end: Option<Duration>,
    pub upstream_connect_begin: Option<Duration>,
    pub upstream_connect_end: Option<Duration>,
    pub upstream_tx_begin: Option<Duration>,
    pub upstream_tx_end: Option<Duration>,
    pub upstream_rx_begin: Option<Duration>,
    pub upstream_rx_end: Option<Duration>,
    pub downstream_tx_begin: Option<Duration>,
    pub downstream_tx_end: Option<Duration>,
    /// The stream's end.
    pub complete: Option<Duration>,
}

/// The upstream side of the last try.
#[derive(Debug, Default)]
pub struct UpstreamInfo {
    /// Cluster name; `%UPSTREAM_CLUSTER_RAW%`.
    pub cluster: Option<Arc<str>>,
    /// `alt_stat_name` or the name; `%UPSTREAM_CLUSTER%`.
    pub cluster_stat_name: Option<Arc<str>>,
    pub cluster_metadata: Metadata,
    pub host: Option<SocketAddr>,
    /// For hosts that are no IP address.
    pub host_text: Option<Arc<str>>,
    pub hostname: Option<Arc<str>>,
    pub host_metadata: Metadata,
    pub local: Option<SocketAddr>,
    pub protocol: Option<Protocol>,
    pub tls: Option<Arc<TlsInfo>>,
    pub connection_id: Option<u64>,
    /// `%UPSTREAM_TRANSPORT_FAILURE_REASON%`.
    pub transport_failure: Option<Arc<str>>,
    pub wire_sent: u64,
    pub wire_received: u64,
    pub header_sent: u64,
    pub header_received: u64,
}

/// Istio workload metadata of a peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    pub name: Arc<str>,
    pub namespace: Arc<str>,
    pub workload: Arc<str>,
    pub workload_type: Arc<str>,
    pub canonical_service: Arc<str>,
    pub canonical_revision: Arc<str>,
    pub app: Arc<str>,
    pub version: Arc<str>,
    pub cluster_id: Arc<str>,
    pub identity: Arc<str>,
    pub region: Arc<str>,
    pub zone: Arc<str>,
    pub labels: Vec<(Arc<str>, Arc<str>)>,
}

impl StreamInfo {
    /// A fresh stream of a connection that begins now.
    pub fn new(conn: Rc<ConnInfo>, start: Instant, start_time: SystemTime) -> StreamInfo {
        let remote = conn.remote;
        StreamInfo {
            conn,
            start_time,
            start,
            times: Times::default(),
            remote,
            protocol: None,
            response_code: None,
            details: None,
            termination_details: None,
            flags: ResponseFlags::NONE,
            downstream_transport_failure: None,
            bytes_received: 0,
            bytes_sent: 0,
            downstream_wire_received: 0,
            downstream_wire_sent: 0,
            downstream_header_received: 0,
            downstream_header_sent: 0,
            upstream: UpstreamInfo::default(),
            route: None,
            virtual_host: None,
            route_name: None,
            attempt_count: 0,
            health_check: false,
            traced: false,
            is_internal: false,
            local_reply_body: None,
            trace_id: None,
            span_id: None,
            metadata: None,
            filter_state: Vec::new(),
            downstream_peer: None,
            upstream_peer: None,
        }
    }

    /// Time since the start.
    pub fn elapsed(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.start)
    }
}
