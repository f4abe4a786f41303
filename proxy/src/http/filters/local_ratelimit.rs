//! `envoy.filters.http.local_ratelimit`: a token bucket shared by all workers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rand::Rng;
use tokio::time::Instant;

use super::{Ctx, Flow};
use crate::config::filter::{FilterOverride, LocalRateLimit as Config};
use crate::head::{Head, HeaderId};
use crate::http::local_reply::LocalReply;
use crate::router::mutate;
use crate::stream_info::ResponseFlags;
use crate::telemetry::format::{self, FormatContext};
use crate::telemetry::stats::Stats;

crate::stats_struct! {
    /// `<stat_prefix>.http_local_rate_limit.`
    pub struct LimitStats {
        counter enabled,
        counter enforced,
        counter rate_limited,
        counter ok,
    }
}

/// The filter.
#[derive(Debug)]
pub struct LocalRateLimit {
    config: Arc<Config>,
    stats: LimitStats,
    registry: Stats,
}

/// Tokens and when they were last filled.
#[derive(Debug)]
struct Bucket {
    tokens: u32,
    filled: Instant,
}

/// Buckets by the configuration that they belong to: workers share them, and they go with it.
static BUCKETS: Mutex<Option<HashMap<usize, (Weak<Config>, Arc<Mutex<Bucket>>)>>> = Mutex::new(None);

fn bucket(config: &Arc<Config>, now: Instant) -> Arc<Mutex<Bucket>> {
    let mut all = BUCKETS.lock().unwrap_or_else(PoisonError::into_inner);
    let all = all.get_or_insert_default();
    let key = Arc::as_ptr(config) as usize;
    if let Some((weak, b)) = all.get(&key)
        && weak.strong_count() > 0
    {
        return b.clone();
    }
    all.retain(|_, (weak, _)| weak.strong_count() > 0);
    let b = Arc::new(Mutex::new(Bucket { tokens: config.max_tokens, filled: now }));
    all.insert(key, (Arc::downgrade(config), b.clone()));
    b
}

impl LocalRateLimit {
    pub(super) fn new(config: &Arc<Config>, stats: &Stats) -> LocalRateLimit {
        let prefix = format!("{}.http_local_rate_limit.", config.stat_prefix);
        LocalRateLimit {
            config: config.clone(),
            stats: LimitStats::new(stats, &prefix),
            registry: stats.clone(),
        }
    }

    pub(super) fn request_head(&self, name: &str, head: &mut Head, ctx: &mut Ctx<'_>) -> Flow {
        let (config, own);
        match ctx.override_for(name) {
            Some(FilterOverride::LocalRateLimit(c)) => {
                own = Some(LimitStats::new(
                    &self.registry,
                    &format!("{}.http_local_rate_limit.", c.stat_prefix),
                ));
                config = c.clone();
            }
            _ => {
                own = None;
                config = self.config.clone();
            }
        }
        let stats = own.as_ref().unwrap_or(&self.stats);
        let random: u64 = ctx.worker.rng.borrow_mut().random();
        if config.max_tokens == 0 || !config.enabled.hit(random) {
            return Flow::Continue;
        }
        stats.enabled.inc();
        let now = Instant::now();
        let taken = bucket(&config, now).lock().unwrap_or_else(PoisonError::into_inner).take(&config, now);
        if taken {
            stats.ok.inc();
            return Flow::Continue;
        }
        stats.rate_limited.inc();
        if !config.enforced.hit(random) {
            mutate::add(head, &config.request_headers, |call, head| {
                format::write(call.format, &FormatContext::request(head, ctx.info), call.out);
            });
            return Flow::Continue;
        }
        stats.enforced.inc();
        let mut reply = LocalReply::new(config.status, "local_rate_limited", "local_rate_limited")
            .flags(ResponseFlags::RATE_LIMITED)
            .header(HeaderId::XEnvoyRatelimited, *b"true");
        reply.grpc_status = config.grpc_resource_exhausted.then_some(8);
        Flow::Local(Box::new(reply))
    }

    pub(super) fn response_head(&self, _head: &mut Head, _ctx: &mut Ctx<'_>) {}
}

impl Bucket {
    fn take(&mut self, config: &Config, now: Instant) -> bool {
        let interval = config.fill_interval.as_nanos().max(1);
        let fills = now.saturating_duration_since(self.filled).as_nanos() / interval;
        if fills > 0 {
            let gained = fills.saturating_mul(u128::from(config.tokens_per_fill));
            self.tokens =
                u128::from(self.tokens).saturating_add(gained).min(u128::from(config.max_tokens)) as u32;
            self.filled += config.fill_interval.saturating_mul(fills.min(u128::from(u32::MAX)) as u32);
        }
        match self.tokens.checked_sub(1) {
            Some(left) => {
                self.tokens = left;
                true
            }
            None => false,
        }
    }
}
