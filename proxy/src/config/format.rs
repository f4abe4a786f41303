//! Compiled substitution format strings: the `%COMMAND%`s of Envoy's access log and header formatting.
//! (Envoy docs: configuration/observability/access_log/usage). `telemetry::format` evaluates them.

use std::sync::Arc;

use crate::head::HeaderName;

/// A format string taken apart.
#[derive(Clone, Debug, Default)]
pub struct Format {
    pub parts: Vec<Part>,
    /// `omit_empty_values`: an absent value is the empty string instead of `-`.
    pub omit_empty: bool,
}

#[derive(Clone, Debug)]
pub enum Part {
    Literal(Arc<str>),
    Command(Command, /* :Z, bytes at most */ Option<usize>),
}

/// One command operator. Names follow Envoy's operators.
#[derive(Clone, Debug)]
pub enum Command {
    /// `REQ(X?Y)`.
    Req(HeaderName, Option<HeaderName>),
    Resp(HeaderName, Option<HeaderName>),
    Trailer(HeaderName, Option<HeaderName>),
    /// Commands without an argument, by Envoy's name.
    Simple(Simple),
    /// `START_TIME(format)` and the other times with a strftime format.
    Time(TimePoint, Option<Arc<str>>),
    /// `DYNAMIC_METADATA(namespace:key…)`.
    DynamicMetadata(Arc<[Arc<str>]>),
    /// `CLUSTER_METADATA`, `UPSTREAM_METADATA`, `ROUTE_METADATA` by kind.
    Metadata(MetadataKind, Arc<[Arc<str>]>),
    /// `FILTER_STATE(key:PLAIN|TYPED|FIELD)`.
    FilterState(Arc<str>),
    /// `UPSTREAM_FILTER_STATE`.
    UpstreamFilterState(Arc<str>),
    /// `ENVIRONMENT(X)`, resolved when the configuration came.
    Environment(Arc<str>),
    /// `REQUEST_HEADERS_BYTES` and the like are in `Simple`; `COMMON_DURATION(start:end:precision)`.
    CommonDuration(TimePoint, TimePoint, DurationUnit),
    /// `GRPC_STATUS(CAMEL_STRING|SNAKE_STRING|NUMBER)`.
    GrpcStatus(GrpcStatusFormat),
    /// `CEL(expression)`.
    Cel(Arc<str>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetadataKind {
    Cluster,
    UpstreamHost,
    Route,
    Listener,
    VirtualHost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrpcStatusFormat {
    Camel,
    Snake,
    Number,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DurationUnit {
    Milliseconds,
    Microseconds,
    Nanoseconds,
}

/// Moments of a stream's life (`COMMON_DURATION`'s names: DS_RX_BEG, US_TX_BEG …).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimePoint {
    Start,
    DownstreamRxEnd,
    UpstreamConnectBegin,
    UpstreamConnectEnd,
    UpstreamTxBegin,
    UpstreamTxEnd,
    UpstreamRxBegin,
    UpstreamRxEnd,
    DownstreamTxBegin,
    DownstreamTxEnd,
    DownstreamPeerCertStart,
    DownstreamPeerCertEnd,
    UpstreamPeerCertStart,
    UpstreamPeerCertEnd,
}

/// Operators without arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Simple {
    Protocol,
    UpstreamProtocol,
    ResponseCode,
    ResponseCodeDetails,
    ResponseFlags,
    ResponseFlagsLong,
    ConnectionTerminationDetails,
    BytesReceived,
    BytesSent,
    UpstreamWireBytesSent,
    UpstreamWireBytesReceived,
    UpstreamHeaderBytesSent,
    UpstreamHeaderBytesReceived,
    DownstreamWireBytesSent,
    DownstreamWireBytesReceived,
    DownstreamHeaderBytesSent,
    DownstreamHeaderBytesReceived,
    RequestHeadersBytes,
    ResponseHeadersBytes,
    ResponseTrailersBytes,
    Duration,
    RequestDuration,
    RequestTxDuration,
    ResponseDuration,
    ResponseTxDuration,
    UpstreamConnectionPoolReadyDuration,
    DownstreamHandshakeDuration,
    RoundtripDuration,
    UpstreamHost,
    UpstreamHostName,
    UpstreamHostNameWithoutPort,
    UpstreamCluster,
    UpstreamClusterRaw,
    UpstreamLocalAddress,
    UpstreamLocalAddressWithoutPort,
    UpstreamLocalPort,
    UpstreamRemoteAddress,
    UpstreamRemoteAddressWithoutPort,
    UpstreamRemotePort,
    UpstreamRequestAttemptCount,
    UpstreamConnectionId,
    UpstreamTransportFailureReason,
    UpstreamTlsVersion,
    UpstreamTlsCipher,
    UpstreamTlsSessionId,
    UpstreamPeerSubject,
    UpstreamPeerIssuer,
    UpstreamPeerUriSan,
    UpstreamPeerDnsSan,
    UpstreamLocalUriSan,
    UpstreamLocalSubject,
    UpstreamPeerCert,
    DownstreamTransportFailureReason,
    DownstreamLocalCloseReason,
    DownstreamDetectedCloseType,
    DownstreamRemoteAddress,
    DownstreamRemoteAddressWithoutPort,
    DownstreamRemotePort,
    DownstreamDirectRemoteAddress,
    DownstreamDirectRemoteAddressWithoutPort,
    DownstreamDirectRemotePort,
    DownstreamLocalAddress,
    DownstreamLocalAddressWithoutPort,
    DownstreamLocalPort,
    DownstreamDirectLocalAddress,
    DownstreamDirectLocalAddressWithoutPort,
    ConnectionId,
    RequestedServerName,
    RouteName,
    VirtualHostName,
    VirtualClusterName,
    FilterChainName,
    ListenerName,
    StreamId,
    UniqueId,
    TraceId,
    SpanId,
    Hostname,
    LocalReplyBody,
    DownstreamLocalUriSan,
    DownstreamLocalDnsSan,
    DownstreamLocalSubject,
    DownstreamPeerUriSan,
    DownstreamPeerDnsSan,
    DownstreamPeerIpSan,
    DownstreamPeerSubject,
    DownstreamPeerIssuer,
    DownstreamPeerSerial,
    DownstreamPeerFingerprint256,
    DownstreamPeerFingerprint1,
    DownstreamPeerCert,
    DownstreamPeerCertVStart,
    DownstreamPeerCertVEnd,
    DownstreamTlsVersion,
    DownstreamTlsCipher,
    DownstreamTlsSessionId,
    DownstreamServerName,
    TlsJa3Fingerprint,
    TlsJa4Fingerprint,
}
