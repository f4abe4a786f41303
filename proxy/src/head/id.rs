//! Known header names by a one-byte id, so that the data path compares bytes only for names that it does not know.

use std::sync::Arc;

macro_rules! known_headers {
    ($($variant:ident = $name:literal),+ $(,)?) => {
        /// A known header, or `Other`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum HeaderId {
            /// Not in the table: told apart by its name.
            Other,
            $(#[doc = concat!("`", $name, "`")] $variant,)+
        }

        const KNOWN: &[(HeaderId, &str)] = &[$((HeaderId::$variant, $name)),+];

        impl HeaderId {
            /// The name, lower case; `None` for `Other`.
            pub const fn as_str(self) -> Option<&'static str> {
                match self {
                    HeaderId::Other => None,
                    $(HeaderId::$variant => Some($name),)+
                }
            }
        }
    };
}

known_headers! {
    Method = ":method",
    Path = ":path",
    Authority = ":authority",
    Scheme = ":scheme",
    Status = ":status",
    Protocol = ":protocol",
    Host = "host",
    Connection = "connection",
    KeepAlive = "keep-alive",
    ProxyConnection = "proxy-connection",
    TransferEncoding = "transfer-encoding",
    Te = "te",
    Trailer = "trailer",
    Upgrade = "upgrade",
    ContentLength = "content-length",
    ContentType = "content-type",
    ContentEncoding = "content-encoding",
    Accept = "accept",
    AcceptEncoding = "accept-encoding",
    AcceptLanguage = "accept-language",
    UserAgent = "user-agent",
    Server = "server",
    Date = "date",
    Via = "via",
    Expect = "expect",
    Cookie = "cookie",
    SetCookie = "set-cookie",
    Authorization = "authorization",
    ProxyAuthenticate = "proxy-authenticate",
    ProxyAuthorization = "proxy-authorization",
    Location = "location",
    CacheControl = "cache-control",
    Etag = "etag",
    Vary = "vary",
    Origin = "origin",
    Referer = "referer",
    Http2Settings = "http2-settings",
    RetryAfter = "retry-after",
    XForwardedFor = "x-forwarded-for",
    XForwardedProto = "x-forwarded-proto",
    XForwardedHost = "x-forwarded-host",
    XForwardedPort = "x-forwarded-port",
    XForwardedClientCert = "x-forwarded-client-cert",
    XRequestId = "x-request-id",
    XClientTraceId = "x-client-trace-id",
    XEnvoyAttemptCount = "x-envoy-attempt-count",
    XEnvoyDecoratorOperation = "x-envoy-decorator-operation",
    XEnvoyDownstreamServiceCluster = "x-envoy-downstream-service-cluster",
    XEnvoyDownstreamServiceNode = "x-envoy-downstream-service-node",
    XEnvoyExpectedRqTimeoutMs = "x-envoy-expected-rq-timeout-ms",
    XEnvoyExternalAddress = "x-envoy-external-address",
    XEnvoyForceTrace = "x-envoy-force-trace",
    XEnvoyHedgeOnPerTryTimeout = "x-envoy-hedge-on-per-try-timeout",
    XEnvoyImmediateHealthCheckFail = "x-envoy-immediate-health-check-fail",
    XEnvoyInternal = "x-envoy-internal",
    XEnvoyIpTags = "x-envoy-ip-tags",
    XEnvoyIsTimeoutRetry = "x-envoy-is-timeout-retry",
    XEnvoyMaxRetries = "x-envoy-max-retries",
    XEnvoyOriginalDstHost = "x-envoy-original-dst-host",
    XEnvoyOriginalHost = "x-envoy-original-host",
    XEnvoyOriginalMethod = "x-envoy-original-method",
    XEnvoyOriginalPath = "x-envoy-original-path",
    XEnvoyOriginalUrl = "x-envoy-original-url",
    XEnvoyOverloaded = "x-envoy-overloaded",
    XEnvoyLocalOverloaded = "x-envoy-local-overloaded",
    XEnvoyDegraded = "x-envoy-degraded",
    XEnvoyDropOverload = "x-envoy-drop-overload",
    XEnvoyRatelimited = "x-envoy-ratelimited",
    XEnvoyRetriableHeaderNames = "x-envoy-retriable-header-names",
    XEnvoyRetriableStatusCodes = "x-envoy-retriable-status-codes",
    XEnvoyRetryGrpcOn = "x-envoy-retry-grpc-on",
    XEnvoyRetryOn = "x-envoy-retry-on",
    XEnvoyStreamDurationMs = "x-envoy-stream-duration-ms",
    XEnvoyUpstreamAltStatName = "x-envoy-upstream-alt-stat-name",
    XEnvoyUpstreamCanary = "x-envoy-upstream-canary",
    XEnvoyUpstreamHealthcheckedCluster = "x-envoy-upstream-healthchecked-cluster",
    XEnvoyUpstreamRqPerTryTimeoutMs = "x-envoy-upstream-rq-per-try-timeout-ms",
    XEnvoyUpstreamRqTimeoutAltResponse = "x-envoy-upstream-rq-timeout-alt-response",
    XEnvoyUpstreamRqTimeoutMs = "x-envoy-upstream-rq-timeout-ms",
    XEnvoyUpstreamServiceTime = "x-envoy-upstream-service-time",
    XEnvoyUpstreamStreamDurationMs = "x-envoy-upstream-stream-duration-ms",
    XEnvoyPeerMetadata = "x-envoy-peer-metadata",
    XEnvoyPeerMetadataId = "x-envoy-peer-metadata-id",
    XEnvoyFaultAbortRequest = "x-envoy-fault-abort-request",
    XEnvoyFaultAbortRequestPercentage = "x-envoy-fault-abort-request-percentage",
    XEnvoyFaultAbortGrpcRequest = "x-envoy-fault-abort-grpc-request",
    XEnvoyFaultDelayRequest = "x-envoy-fault-delay-request",
    XEnvoyFaultDelayRequestPercentage = "x-envoy-fault-delay-request-percentage",
    XEnvoyFaultThroughputResponse = "x-envoy-fault-throughput-response",
    XEnvoyFaultThroughputResponsePercentage = "x-envoy-fault-throughput-response-percentage",
    XB3Traceid = "x-b3-traceid",
    XB3Spanid = "x-b3-spanid",
    XB3Parentspanid = "x-b3-parentspanid",
    XB3Sampled = "x-b3-sampled",
    XB3Flags = "x-b3-flags",
    XOtSpanContext = "x-ot-span-context",
    Traceparent = "traceparent",
    Tracestate = "tracestate",
    Baggage = "baggage",
    B3 = "b3",
    GrpcTimeout = "grpc-timeout",
    GrpcStatus = "grpc-status",
    GrpcMessage = "grpc-message",
    GrpcEncoding = "grpc-encoding",
    AccessControlAllowOrigin = "access-control-allow-origin",
    AccessControlAllowMethods = "access-control-allow-methods",
    AccessControlAllowHeaders = "access-control-allow-headers",
    AccessControlExposeHeaders = "access-control-expose-headers",
    AccessControlMaxAge = "access-control-max-age",
    AccessControlAllowCredentials = "access-control-allow-credentials",
    AccessControlRequestMethod = "access-control-request-method",
    AccessControlRequestHeaders = "access-control-request-headers",
    AccessControlRequestPrivateNetwork = "access-control-request-private-network",
    AccessControlAllowPrivateNetwork = "access-control-allow-private-network",
}

/// Longest known name, bytes.
const LONGEST: usize = 48;

/// For each name length, the table rows of that length.
static BY_LENGTH: std::sync::LazyLock<[Vec<(HeaderId, &'static [u8])>; LONGEST + 1]> =
    std::sync::LazyLock::new(|| {
        std::array::from_fn(|len| {
            KNOWN.iter().filter(|(_, n)| n.len() == len).map(|(id, n)| (*id, n.as_bytes())).collect()
        })
    });

impl HeaderId {
    /// Finds the id of a name in any case.
    pub fn lookup(name: &[u8]) -> HeaderId {
        let Some(rows) = BY_LENGTH.get(name.len()) else { return HeaderId::Other };
        let last = name.last().map_or(0, u8::to_ascii_lowercase);
        rows.iter()
            .find(|(_, n)| n.last() == Some(&last) && n.eq_ignore_ascii_case(name))
            .map_or(HeaderId::Other, |(id, _)| *id)
    }

    /// Whether it is a pseudo-header.
    pub const fn is_pseudo(self) -> bool {
        matches!(
            self,
            HeaderId::Method
                | HeaderId::Path
                | HeaderId::Authority
                | HeaderId::Scheme
                | HeaderId::Status
                | HeaderId::Protocol
        )
    }
}

/// A header name prepared for comparison: lower case, with its id.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HeaderName {
    id: HeaderId,
    name: Arc<str>,
}

impl HeaderName {
    /// Prepares a name given in any case. `Host` becomes `:authority`, as in Envoy.
    pub fn new(name: &str) -> HeaderName {
        let lower = name.to_ascii_lowercase();
        let lower = if lower == "host" { ":authority".to_owned() } else { lower };
        HeaderName { id: HeaderId::lookup(lower.as_bytes()), name: lower.into() }
    }

    /// The id, `Other` when unknown.
    pub fn id(&self) -> HeaderId {
        self.id
    }

    /// The lower-case name.
    pub fn as_str(&self) -> &str {
        &self.name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_name_is_found_and_fits_the_table() {
        for (id, name) in KNOWN {
            assert!(name.len() <= LONGEST, "{name}");
            assert_eq!(HeaderId::lookup(name.to_uppercase().as_bytes()), *id);
        }
        assert_eq!(HeaderId::lookup(b"x-unknown"), HeaderId::Other);
    }
}
