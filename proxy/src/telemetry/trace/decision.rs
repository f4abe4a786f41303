//! Whether a request is traced, and where that is written: the 15th character of `x-request-id` (Envoy docs:
//! configuration/http/http_conn_man/headers#x-request-id).

use crate::config::matcher::Fraction;
use crate::config::trace::Tracing;
use crate::head::{Head, HeaderId};
use crate::stats_struct;
use crate::telemetry::access_log::request_id_number;

/// Why a request is traced, or that it is not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reason {
    #[default]
    NotTraceable,
    Sampling,
    /// `x-envoy-force-trace` of an internal request.
    ServiceForced,
    /// `x-client-trace-id`.
    ClientForced,
}

impl Reason {
    /// Whether spans are sent.
    pub fn traced(self) -> bool {
        self != Reason::NotTraceable
    }

    fn from_id(id: &[u8]) -> Reason {
        match id.get(14) {
            Some(b'9') => Reason::Sampling,
            Some(b'a') => Reason::ServiceForced,
            Some(b'b') => Reason::ClientForced,
            _ => Reason::NotTraceable,
        }
    }

    fn character(self) -> u8 {
        match self {
            Reason::NotTraceable => b'4',
            Reason::Sampling => b'9',
            Reason::ServiceForced => b'a',
            Reason::ClientForced => b'b',
        }
    }
}

/// What a decision needs besides the request.
#[derive(Clone, Copy, Debug)]
pub struct Sampling {
    pub client: Fraction,
    pub random: Fraction,
    pub overall: Fraction,
    /// `pack_trace_reason` of the request id extension.
    pub pack_reason: bool,
    /// `use_request_id_for_trace_sampling`.
    pub by_request_id: bool,
}

stats_struct! {
    /// `http.<prefix>.tracing.*`: requests by decision.
    pub struct TracingStats {
        counter random_sampling,
        counter service_forced,
        counter client_enabled,
        counter not_traceable,
        counter health_check,
    }
}

impl TracingStats {
    /// Counts a finished request.
    pub fn count(&self, reason: Reason, health_check: bool) {
        match reason {
            _ if health_check => self.health_check.inc(),
            Reason::Sampling => self.random_sampling.inc(),
            Reason::ServiceForced => self.service_forced.inc(),
            Reason::ClientForced => self.client_enabled.inc(),
            Reason::NotTraceable => self.not_traceable.inc(),
        }
    }
}

impl Sampling {
    /// The connection manager's sampling, or the route's own.
    pub fn new(
        config: &Tracing,
        route: Option<&[Fraction; 3]>,
        pack_reason: bool,
        by_request_id: bool,
    ) -> Sampling {
        let [client, random, overall] =
            route.copied().unwrap_or([config.client, config.random, config.overall]);
        Sampling { client, random, overall, pack_reason, by_request_id }
    }

    /// Decides, and writes the decision into `x-request-id`. Without a request id nothing is traced.
    pub fn decide(&self, request: &mut Head, is_internal: bool) -> Reason {
        let Some(id) = request.get(HeaderId::XRequestId).map(<[u8]>::to_vec) else {
            return Reason::NotTraceable;
        };
        let number = if self.by_request_id { request_id_number(Some(request)) } else { Some(rand::random()) };
        let mut reason = Reason::from_id(&id);
        if !reason.traced() {
            if request.contains(HeaderId::XClientTraceId) && self.client.hit(rand::random()) {
                reason = Reason::ClientForced;
            } else if is_internal && request.contains(HeaderId::XEnvoyForceTrace) {
                reason = Reason::ServiceForced;
            } else if number.is_some_and(|n| self.random.hit(n)) {
                reason = Reason::Sampling;
            }
        }
        if reason.traced() && !self.overall.hit(number.unwrap_or_else(rand::random)) {
            reason = Reason::NotTraceable;
        }
        // Only a UUID has a version digit to carry the decision.
        if self.pack_reason && id.len() == 36 && id[14] != reason.character() {
            let mut id = id;
            id[14] = reason.character();
            request.set(HeaderId::XRequestId, &id);
        }
        reason
    }
}
