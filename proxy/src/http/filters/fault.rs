//! `envoy.filters.http.fault`: delays and aborts, fixed or by request headers.
//! (Envoy docs: configuration/http/http_filters/fault_filter.)

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;

use super::{Ctx, Flow};
use crate::config::filter::{Fault as Config, FaultAbort, FilterOverride};
use crate::config::matcher::Fraction;
use crate::head::{Head, HeaderId};
use crate::http::local_reply::LocalReply;
use crate::router::matching::header_matches;
use crate::stream_info::ResponseFlags;
use crate::telemetry::stats::Stats;

crate::stats_struct! {
    /// `http.<stat_prefix>.fault.`
    pub struct FaultStats {
        counter aborts_injected,
        counter delays_injected,
        counter faults_overflow,
        counter response_rl_injected,
        gauge active_faults,
    }
}

/// The filter.
#[derive(Debug)]
pub struct Fault {
    config: Arc<Config>,
    stats: FaultStats,
    active: std::rc::Rc<std::cell::Cell<u32>>,
}

/// Kept between the hooks.
#[derive(Debug, Default)]
pub struct State {
    active: bool,
    /// Response rate limit, KiB/s.
    pub rate: Option<u64>,
}

impl Fault {
    pub(super) fn new(config: &Arc<Config>, stat_prefix: &str, stats: &Stats) -> Fault {
        Fault {
            config: config.clone(),
            stats: FaultStats::new(stats, &format!("http.{stat_prefix}.fault.")),
            active: std::rc::Rc::default(),
        }
    }

    pub(super) fn request_head(&self, name: &str, head: &Head, ctx: &mut Ctx<'_>) -> Flow {
        let config = match ctx.override_for(name) {
            Some(FilterOverride::Fault(f)) => f.clone(),
            _ => self.config.clone(),
        };
        if !config.headers.iter().all(|m| header_matches(m, head)) {
            return Flow::Continue;
        }
        if let Some(want) = &config.upstream_cluster {
            let cluster = ctx.info.upstream.cluster.as_deref();
            if cluster != Some(want) {
                return Flow::Continue;
            }
        }
        if !config.downstream_nodes.is_empty() {
            let node = head.get_str(HeaderId::XEnvoyDownstreamServiceNode).unwrap_or_default();
            if !config.downstream_nodes.iter().any(|n| &**n == node) {
                return Flow::Continue;
            }
        }
        if config.max_active.is_some_and(|max| self.active.get() >= max) {
            self.stats.faults_overflow.inc();
            return Flow::Continue;
        }
        let rng = || -> u64 { ctx.worker.rng.borrow_mut().random() };
        let delay = fixed_or_header(config.delay, rng()).or_else(|| {
            let share = config.header_delay?;
            let ms = number(head, HeaderId::XEnvoyFaultDelayRequest)?;
            let share = header_share(head, HeaderId::XEnvoyFaultDelayRequestPercentage, share);
            share.hit(rng()).then(|| Duration::from_millis(ms))
        });
        let abort = fixed_or_header(config.abort, rng()).or_else(|| {
            let share = config.header_abort?;
            let share = header_share(head, HeaderId::XEnvoyFaultAbortRequestPercentage, share);
            let what = match number(head, HeaderId::XEnvoyFaultAbortRequest) {
                Some(code @ 200..=599) => FaultAbort::Http(code as u16),
                Some(_) => return None,
                None => FaultAbort::Grpc(number(head, HeaderId::XEnvoyFaultAbortGrpcRequest)? as u32),
            };
            share.hit(rng()).then_some(what)
        });
        if let Some((kib, share)) = config.response_rate
            && share.hit(rng())
        {
            self.stats.response_rl_injected.inc();
            ctx.state.fault.rate = Some(kib);
        }
        if delay.is_none() && abort.is_none() && ctx.state.fault.rate.is_none() {
            return Flow::Continue;
        }
        self.stats.active_faults.inc();
        self.active.set(self.active.get() + 1);
        ctx.state.fault.active = true;
        let reply = abort.map(|a| {
            self.stats.aborts_injected.inc();
            let (status, grpc) = match a {
                FaultAbort::Http(s) => (s, None),
                FaultAbort::Grpc(g) => (200, Some(g)),
            };
            let mut reply = LocalReply::new(status, "fault filter abort", "fault_filter_abort")
                .flags(ResponseFlags::FAULT_INJECTED);
            reply.grpc_status = grpc;
            Box::new(reply)
        });
        match delay {
            Some(d) => {
                self.stats.delays_injected.inc();
                ctx.info.flags.set(ResponseFlags::DELAY_INJECTED);
                Flow::Await(Box::pin(async move {
                    tokio::time::sleep(d).await;
                    reply.map_or(Flow::Continue, Flow::Local)
                }))
            }
            None => reply.map_or(Flow::Continue, Flow::Local),
        }
    }

    pub(super) fn response_head(&self, _head: &mut Head, _ctx: &mut Ctx<'_>) {}

    pub(super) fn complete(&self, ctx: &mut Ctx<'_>) {
        if std::mem::take(&mut ctx.state.fault.active) {
            self.stats.active_faults.dec();
            self.active.set(self.active.get() - 1);
        }
    }
}

fn fixed_or_header<T>(fixed: Option<(T, Fraction)>, random: u64) -> Option<T> {
    fixed.filter(|(_, share)| share.hit(random)).map(|(v, _)| v)
}

fn number(head: &Head, id: HeaderId) -> Option<u64> {
    head.get_str(id)?.trim().parse().ok()
}

/// The header may lower the configured share, never raise it.
fn header_share(head: &Head, id: HeaderId, share: Fraction) -> Fraction {
    match number(head, id) {
        Some(n) => Fraction { numerator: share.numerator.min(n.min(u64::from(u32::MAX)) as u32), ..share },
        None => share,
    }
}
