//! `envoy.filters.http.cors`: answers preflights and adds the allow headers to responses, by the route's policy.

use std::sync::Arc;

use rand::Rng;

use super::{Ctx, Flow};
use crate::config::filter::{CorsPolicy, FilterOverride};
use crate::head::{Head, HeaderId};
use crate::http::local_reply::LocalReply;
use crate::telemetry::stats::Stats;

crate::stats_struct! {
    /// `http.<stat_prefix>.cors.`
    pub struct CorsStats {
        counter origin_valid,
        counter origin_invalid,
    }
}

/// The filter.
#[derive(Debug)]
pub struct Cors {
    stats: CorsStats,
}

/// Kept between the hooks.
#[derive(Debug, Default)]
pub struct State {
    allowed: Option<(Arc<CorsPolicy>, Vec<u8>)>,
}

impl Cors {
    pub(super) fn new(stat_prefix: &str, stats: &Stats) -> Cors {
        Cors { stats: CorsStats::new(stats, &format!("http.{stat_prefix}.cors.")) }
    }

    pub(super) fn request_head(&self, name: &str, head: &Head, ctx: &mut Ctx<'_>) -> Flow {
        let Some(origin) = head.get(HeaderId::Origin).filter(|o| !o.is_empty()) else {
            return Flow::Continue;
        };
        let policy = match ctx.override_for(name) {
            Some(FilterOverride::Cors(p)) => p.clone(),
            _ => return Flow::Continue,
        };
        let random: u64 = ctx.worker.rng.borrow_mut().random();
        let enforced = policy.enabled.hit(random);
        if !enforced && !policy.shadow_enabled.is_some_and(|s| s.hit(random)) {
            return Flow::Continue;
        }
        let allowed = policy.allow_origin.iter().any(|m| m.matches(origin));
        let preflight = head.method() == b"OPTIONS"
            && head.get(HeaderId::AccessControlRequestMethod).is_some_and(|m| !m.is_empty());
        if allowed {
            self.stats.origin_valid.inc();
        } else {
            self.stats.origin_invalid.inc();
        }
        if !enforced {
            return Flow::Continue;
        }
        if !allowed {
            return match preflight && !policy.forward_not_matching_preflights {
                true => Flow::Local(Box::new(LocalReply::new(200, "", "cors_response"))),
                false => Flow::Continue,
            };
        }
        if !preflight {
            ctx.state.cors.allowed = Some((policy, origin.to_vec()));
            return Flow::Continue;
        }
        let mut reply = LocalReply::new(200, "", "cors_response");
        reply = reply.header(HeaderId::AccessControlAllowOrigin, origin);
        if policy.allow_credentials {
            reply = reply.header(HeaderId::AccessControlAllowCredentials, *b"true");
        }
        for (id, v) in [
            (HeaderId::AccessControlAllowMethods, &policy.allow_methods),
            (HeaderId::AccessControlAllowHeaders, &policy.allow_headers),
            (HeaderId::AccessControlMaxAge, &policy.max_age),
        ] {
            if !v.is_empty() {
                reply = reply.header(id, v.as_bytes());
            }
        }
        if policy.allow_private_network
            && head.get(HeaderId::AccessControlRequestPrivateNetwork) == Some(b"true")
        {
            reply = reply.header(HeaderId::AccessControlAllowPrivateNetwork, *b"true");
        }
        Flow::Local(Box::new(reply))
    }

    pub(super) fn response_head(&self, head: &mut Head, ctx: &mut Ctx<'_>) {
        let Some((policy, origin)) = &ctx.state.cors.allowed else { return };
        head.set(HeaderId::AccessControlAllowOrigin, origin);
        if policy.allow_credentials {
            head.set(HeaderId::AccessControlAllowCredentials, b"true");
        }
        if !policy.expose_headers.is_empty() {
            head.set(HeaderId::AccessControlExposeHeaders, policy.expose_headers.as_bytes());
        }
    }
}
