//! The timeouts of a request: the route's, the `x-envoy-*` request headers', gRPC's, and the headers that tell the upstream.
//! (Envoy: configuration/http/http_filters/router_filter, `x-envoy-expected-rq-timeout-ms`.)

use std::time::Duration;

use crate::config::route::{Forward, RetryPolicy};
use crate::head::{Head, HeaderId};
use crate::router::matching::is_grpc;

/// What applies to a request. `None`: no such timeout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    pub global: Option<Duration>,
    pub per_try: Option<Duration>,
    pub per_try_idle: Option<Duration>,
    /// Of the whole stream, from the route (`max_stream_duration`).
    pub max_stream: Option<Duration>,
}

/// Evaluates and consumes the request headers, and writes `x-envoy-expected-rq-timeout-ms`.
pub fn evaluate(
    forward: &Forward,
    retry: Option<&RetryPolicy>,
    head: &mut Head,
    respect_expected: bool,
    suppress_envoy_headers: bool,
) -> Timeouts {
    let mut t = Timeouts { global: forward.timeout, ..Timeouts::default() };
    let grpc_requested = is_grpc(head).then(|| grpc_timeout(head)).flatten();
    if let (true, Some(max)) = (is_grpc(head), forward.max_grpc_timeout) {
        // Zero or absent `grpc-timeout` counts as infinite; a zero maximum does not bound it.
        let asked = grpc_requested.unwrap_or(Duration::ZERO);
        t.global = bounded(asked, max).map(|d| match forward.grpc_timeout_offset {
            Some(off) if off < d => d - off,
            _ => d,
        });
    }
    if let Some(m) = forward.max_stream_duration {
        let header = is_grpc(head).then(|| m.grpc_timeout_header_max.zip(grpc_requested)).flatten();
        t.max_stream = match header {
            Some((max, asked)) => bounded(asked, max).map(|d| match m.grpc_timeout_header_offset {
                Some(off) if off < d => d - off,
                _ => d,
            }),
            None => m.max.filter(|d| !d.is_zero()),
        };
    }
    t.per_try = retry.and_then(|r| r.per_try_timeout).filter(|d| !d.is_zero());
    t.per_try_idle = retry.and_then(|r| r.per_try_idle_timeout).filter(|d| !d.is_zero());

    let expected = respect_expected.then(|| millis(head, HeaderId::XEnvoyExpectedRqTimeoutMs)).flatten();
    if let Some(ms) = expected.or_else(|| millis(head, HeaderId::XEnvoyUpstreamRqTimeoutMs)) {
        t.global = (ms > 0).then(|| Duration::from_millis(ms));
    }
    if let Some(ms) = millis(head, HeaderId::XEnvoyUpstreamRqPerTryTimeoutMs) {
        t.per_try = (ms > 0).then(|| Duration::from_millis(ms));
    }
    head.remove(HeaderId::XEnvoyUpstreamRqTimeoutMs);
    head.remove(HeaderId::XEnvoyUpstreamRqPerTryTimeoutMs);
    // A try that may last as long as the whole request needs no timer of its own.
    if let (Some(g), Some(p)) = (t.global, t.per_try)
        && p >= g
    {
        t.per_try = None;
    }
    if !suppress_envoy_headers {
        let tell = t.per_try.filter(|_| !forward.hedge_on_per_try_timeout).or(t.global);
        if let Some(d) = tell {
            head.set(
                HeaderId::XEnvoyExpectedRqTimeoutMs,
                itoa::Buffer::new().format(d.as_millis()).as_bytes(),
            );
        }
    }
    t
}

fn bounded(asked: Duration, max: Duration) -> Option<Duration> {
    match (asked.is_zero(), max.is_zero()) {
        (true, true) => None,
        (true, false) => Some(max),
        (false, true) => Some(asked),
        (false, false) => Some(asked.min(max)),
    }
}

fn millis(head: &Head, id: HeaderId) -> Option<u64> {
    head.get_str(id)?.parse().ok()
}

/// `grpc-timeout`: up to eight digits and a unit (gRPC over HTTP/2, "Timeout").
pub fn grpc_timeout(head: &Head) -> Option<Duration> {
    let text = head.get_str(HeaderId::GrpcTimeout)?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        // Envoy rounds up to whole milliseconds.
        "u" => Duration::from_millis(n.div_ceil(1000)),
        "n" => Duration::from_millis(n.div_ceil(1_000_000)),
        _ => return None,
    })
}
