//! Where retry is decided: whether a response, a reset or a timeout of a try is tried again, and after how long.
//! Follows Envoy's router filter docs (`x-envoy-retry-on`, `x-envoy-max-retries`, retry back-off).

use std::time::Duration;

use rand::Rng;
use rand::rngs::SmallRng;

use crate::config::matcher::{HeaderMatch, HeaderMatcher};
use crate::config::route::{RetryOn, RetryPolicy};
use crate::head::{Head, HeaderId, HeaderName};
use crate::http::codec::ResetReason;
use crate::router::matching::header_matches;

/// The decision about one try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// Try again after this long.
    Retry(Duration),
    /// The outcome is final and was not retriable.
    Final,
    /// Retriable, but all tries are used up: flag URX.
    LimitExceeded,
}

/// Conditions that every reset meets.
const ANY_RESET: RetryOn = RetryOn(RetryOn::RESET.0 | RetryOn::FIVE_XX.0 | RetryOn::GATEWAY_ERROR.0);

/// Retry state of one request.
#[derive(Debug)]
pub struct RetryState {
    on: RetryOn,
    left: u32,
    codes: Vec<u16>,
    headers: Vec<HeaderMatcher>,
    base: Duration,
    max: Duration,
    limited: Option<crate::config::route::RateLimitedBackOff>,
    tries: u32,
}

impl RetryState {
    /// The state for a request, from its route's policy and its own headers; `None` when nothing can be retried. Consumes the
    /// `x-envoy-*` headers, whether or not a policy is there.
    pub fn new(policy: Option<&RetryPolicy>, head: &mut Head) -> Option<RetryState> {
        let mut on = policy.map_or(RetryOn::default(), |p| p.retry_on);
        let mut left = policy.map_or(1, |p| p.num_retries);
        let mut codes = policy.map_or_else(Vec::new, |p| p.retriable_status_codes.clone());
        let mut headers = policy.map_or_else(Vec::new, |p| p.retriable_headers.clone());
        let mut asked = RetryOn::default();
        for id in [HeaderId::XEnvoyRetryOn, HeaderId::XEnvoyRetryGrpcOn] {
            if let Some(v) = head.get_str(id) {
                asked.0 |= RetryOn::parse(v).0.0;
            }
        }
        if asked.0 != 0 {
            on.0 |= asked.0;
        }
        if on.0 != 0 {
            if let Some(v) = head.get_str(HeaderId::XEnvoyRetriableStatusCodes) {
                codes.extend(v.split(',').filter_map(|c| c.trim().parse::<u16>().ok()));
            }
            if let Some(v) = head.get_str(HeaderId::XEnvoyRetriableHeaderNames) {
                headers.extend(v.split(',').map(str::trim).filter(|n| !n.is_empty()).map(|n| {
                    HeaderMatcher {
                        name: HeaderName::new(n),
                        kind: HeaderMatch::Present(true),
                        invert: false,
                        treat_missing_as_empty: false,
                    }
                }));
            }
            if let Some(n) = head.get_str(HeaderId::XEnvoyMaxRetries).and_then(|v| v.parse().ok()) {
                left = n;
            }
        }
        let wanted = policy.is_none_or(|p| {
            p.retriable_request_headers.is_empty()
                || p.retriable_request_headers.iter().any(|m| header_matches(m, head))
        });
        for id in [
            HeaderId::XEnvoyRetryOn,
            HeaderId::XEnvoyRetryGrpcOn,
            HeaderId::XEnvoyMaxRetries,
            HeaderId::XEnvoyRetriableHeaderNames,
            HeaderId::XEnvoyRetriableStatusCodes,
            HeaderId::XEnvoyHedgeOnPerTryTimeout,
        ] {
            head.remove(id);
        }
        if on.0 == 0 || left == 0 || !wanted {
            return None;
        }
        Some(RetryState {
            on,
            left,
            codes,
            headers,
            base: policy.map_or(Duration::from_millis(25), |p| p.base_interval),
            max: policy.map_or(Duration::from_millis(250), |p| p.max_interval),
            limited: policy.and_then(|p| p.rate_limited.clone()),
            tries: 0,
        })
    }

    /// Decides about a response head. The caller has asked nobody yet whether the cluster's retry breaker has room.
    pub fn on_response(&mut self, response: &Head, now_unix: u64, rng: &mut SmallRng) -> Verdict {
        if !self.response_is_retriable(response) {
            return Verdict::Final;
        }
        let wait = self.rate_limited(response, now_unix);
        self.spend(wait, rng)
    }

    /// Decides about a try that ended without a response. `request_sent`: any of it may have reached the server.
    pub fn on_reset(&mut self, reason: ResetReason, request_sent: bool, rng: &mut SmallRng) -> Verdict {
        use ResetReason as R;
        let any_reset = self.on.has(ANY_RESET);
        let before_request = self.on.has(RetryOn::RESET_BEFORE_REQUEST) && !request_sent;
        let hit = match reason {
            // A full pool is a decision of ours: trying again would make it fuller.
            R::Overflow | R::OverloadManager => false,
            R::LocalConnectionFailure | R::RemoteConnectionFailure | R::ConnectionTimeout => {
                any_reset || before_request || self.on.has(RetryOn::CONNECT_FAILURE)
            }
            R::RemoteRefusedStreamReset => {
                any_reset || before_request || self.on.has(RetryOn::REFUSED_STREAM)
            }
            R::ConnectionTermination
            | R::RemoteReset
            | R::ProtocolError
            | R::LocalReset
            | R::LocalRefusedStreamReset
            | R::ConnectError => any_reset || before_request,
        };
        if hit { self.spend(None, rng) } else { Verdict::Final }
    }

    /// Decides about a try whose own timeout fired.
    pub fn on_timeout(&mut self, rng: &mut SmallRng) -> Verdict {
        if self.on.has(ANY_RESET) { self.spend(None, rng) } else { Verdict::Final }
    }

    /// Gives a try back that a breaker refused, so that the outcome counts as not retried.
    pub fn refused_by_breaker(&mut self) {
        self.tries = self.tries.saturating_sub(1);
        self.left += 1;
    }

    fn spend(&mut self, wait: Option<Duration>, rng: &mut SmallRng) -> Verdict {
        if self.left == 0 {
            return Verdict::LimitExceeded;
        }
        self.left -= 1;
        self.tries += 1;
        Verdict::Retry(wait.unwrap_or_else(|| self.back_off(rng)))
    }

    /// Fully jittered exponential back-off: uniform in `0..min(base * (2^n - 1), max)`.
    fn back_off(&self, rng: &mut SmallRng) -> Duration {
        let factor = 2u32.checked_pow(self.tries).unwrap_or(u32::MAX) - 1;
        let top = self.base.saturating_mul(factor.max(1)).min(self.max);
        let micros = top.as_micros().min(u128::from(u64::MAX)) as u64;
        Duration::from_micros(if micros == 0 { 0 } else { rng.random_range(0..micros) })
    }

    fn response_is_retriable(&self, response: &Head) -> bool {
        let code = response.status().unwrap_or(0);
        if response.contains(HeaderId::XEnvoyRatelimited) {
            return self.on.has(RetryOn::ENVOY_RATE_LIMITED);
        }
        let on = self.on;
        if (500..600).contains(&code) && on.has(RetryOn::FIVE_XX)
            || (502..=504).contains(&code) && on.has(RetryOn::GATEWAY_ERROR)
            || code == 409 && on.has(RetryOn::RETRIABLE_4XX)
            || on.has(RetryOn::RETRIABLE_STATUS_CODES) && self.codes.contains(&code)
            || on.has(RetryOn::RETRIABLE_HEADERS) && self.headers.iter().any(|m| header_matches(m, response))
        {
            return true;
        }
        // gRPC's own status, in a trailers-only response.
        match response.get(HeaderId::GrpcStatus) {
            Some(b"1") => on.has(RetryOn::GRPC_CANCELLED),
            Some(b"4") => on.has(RetryOn::GRPC_DEADLINE_EXCEEDED),
            Some(b"8") => on.has(RetryOn::GRPC_RESOURCE_EXHAUSTED),
            Some(b"13") => on.has(RetryOn::GRPC_INTERNAL),
            Some(b"14") => on.has(RetryOn::GRPC_UNAVAILABLE),
            _ => false,
        }
    }

    /// The wait that the upstream asks for in a reset header, if configured, sensible, and within bounds.
    fn rate_limited(&self, response: &Head, now_unix: u64) -> Option<Duration> {
        let limited = self.limited.as_ref()?;
        limited.headers.iter().find_map(|(name, unix)| {
            let n: u64 = std::str::from_utf8(response.get_name(name)?).ok()?.trim().parse().ok()?;
            let secs = if *unix { n.checked_sub(now_unix)? } else { n };
            Some(Duration::from_secs(secs)).filter(|d| *d <= limited.max_interval)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    fn policy(on: &str, n: u32) -> RetryPolicy {
        RetryPolicy {
            retry_on: RetryOn::parse(on).0,
            num_retries: n,
            per_try_timeout: None,
            per_try_idle_timeout: None,
            retriable_status_codes: vec![429],
            retriable_headers: vec![],
            retriable_request_headers: vec![],
            base_interval: Duration::from_millis(25),
            max_interval: Duration::from_millis(250),
            rate_limited: None,
            avoid_previous_hosts: false,
            omit_canary_hosts: false,
            omit_host_metadata: None,
            host_selection_attempts: 1,
            previous_priorities: None,
        }
    }

    fn response(code: u16) -> Head {
        let mut h = Head::new();
        h.set_status(code);
        h
    }

    #[test]
    fn conditions_decide_which_outcomes_are_tried_again() {
        let mut rng = SmallRng::seed_from_u64(1);
        let table = [
            ("5xx", 500, true),
            ("5xx", 404, false),
            ("gateway-error", 500, false),
            ("gateway-error", 503, true),
            ("retriable-4xx", 409, true),
            ("retriable-4xx", 404, false),
            ("retriable-status-codes", 429, true),
            ("connect-failure", 503, false),
        ];
        for (on, code, want) in table {
            let mut s = RetryState::new(Some(&policy(on, 2)), &mut Head::new()).unwrap();
            let v = s.on_response(&response(code), 0, &mut rng);
            assert_eq!(matches!(v, Verdict::Retry(_)), want, "{on} {code}");
        }
        use ResetReason as R;
        let resets = [
            ("connect-failure", R::RemoteConnectionFailure, false, true),
            ("connect-failure", R::ConnectionTermination, true, false),
            ("reset", R::RemoteReset, true, true),
            ("reset-before-request", R::ConnectionTermination, true, false),
            ("reset-before-request", R::ConnectionTermination, false, true),
            ("refused-stream", R::RemoteRefusedStreamReset, true, true),
            ("5xx", R::Overflow, false, false),
        ];
        for (on, reset, sent, want) in resets {
            let mut s = RetryState::new(Some(&policy(on, 2)), &mut Head::new()).unwrap();
            let v = s.on_reset(reset, sent, &mut rng);
            assert_eq!(matches!(v, Verdict::Retry(_)), want, "{on} {reset:?}");
        }
    }

    #[test]
    fn tries_run_out_and_request_headers_are_consumed() {
        let mut rng = SmallRng::seed_from_u64(1);
        let mut head = Head::new();
        head.append(b"x-envoy-retry-on", b"5xx");
        head.append(b"x-envoy-max-retries", b"2");
        let mut s = RetryState::new(None, &mut head).unwrap();
        assert!(head.is_empty());
        for _ in 0..2 {
            let Verdict::Retry(d) = s.on_response(&response(503), 0, &mut rng) else { panic!() };
            assert!(d < Duration::from_millis(250));
        }
        assert_eq!(s.on_response(&response(503), 0, &mut rng), Verdict::LimitExceeded);
        assert_eq!(s.on_response(&response(200), 0, &mut rng), Verdict::Final);
    }
}
