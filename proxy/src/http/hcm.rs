//! A connection manager's runtime form, built once per worker and configuration: stats, filters, loggers, codec options.

use std::cell::RefCell;
use std::sync::Arc;

use crate::config::hcm::{Hcm, RouteSource};
use crate::config::listener::Direction;
use crate::config::route::RouteConfig;
use crate::config::trace::Tracing;
use crate::head::Head;
use crate::http::codec::{h1, h2};
use crate::http::filters::Chain;
use crate::http::stats::{HcmStats, ListenerHttpStats};
use crate::telemetry::access_log::AccessLogger;
use crate::telemetry::trace::{Tracer, TracingStats};
use crate::worker::Worker;

/// The runtime form.
#[derive(Debug)]
pub struct HcmRuntime {
    pub config: Arc<Hcm>,
    pub stats: HcmStats,
    pub listener_stats: ListenerHttpStats,
    pub chain: Chain,
    pub log: AccessLogger,
    pub tracing: Option<HcmTracing>,
    pub h1: Arc<h1::Options>,
    pub h2: Arc<h2::Options>,
    pub direction: Direction,
    /// Heads of finished requests, for the next ones.
    heads: RefCell<Vec<Head>>,
}

/// Tracing of a connection manager.
#[derive(Debug)]
pub struct HcmTracing {
    pub config: Arc<Tracing>,
    pub tracer: Tracer,
    pub stats: TracingStats,
}

/// Most heads kept for reuse by a connection manager of a worker.
const KEPT_HEADS: usize = 128;

impl HcmRuntime {
    /// Whether an HTTP/1 connection outlives a 400 of our own: `stream_error_on_invalid_http_message`.
    pub fn keeps_open_on_error(&self) -> bool {
        self.config.http1.keep_open_on_error.unwrap_or(self.config.stream_error_on_invalid_http)
    }

    /// Builds it. `listener` is the listener's stat prefix.
    pub fn new(config: &Arc<Hcm>, worker: &Worker, listener: &str, direction: Direction) -> HcmRuntime {
        let h1 = h1::Options {
            http1: config.http1.clone(),
            max_headers_kb: config.max_request_headers_kb,
            max_headers_count: config.max_headers_count,
        };
        let h2 = h2::Options {
            http2: config.http2.clone(),
            max_headers_kb: config.max_request_headers_kb,
            max_headers_count: config.max_headers_count,
        };
        HcmRuntime {
            stats: HcmStats::of(&worker.stats, &config.stat_prefix),
            listener_stats: ListenerHttpStats::new(
                &worker.stats,
                &format!("listener.{listener}.http.{}.", config.stat_prefix),
            ),
            chain: Chain::new(config, worker, direction),
            log: AccessLogger::new(&config.access_log, &worker.logs),
            h1: Arc::new(h1),
            h2: Arc::new(h2),
            tracing: config.tracing.as_ref().map(|t| {
                let t = Arc::new(t.clone());
                HcmTracing {
                    tracer: Tracer::new(t.clone(), worker.shared.spans.clone()),
                    stats: TracingStats::new(&worker.stats, &format!("http.{}.tracing.", config.stat_prefix)),
                    config: t,
                }
            }),
            direction,
            heads: RefCell::default(),
            config: config.clone(),
        }
    }

    /// The route configuration as it is now; `None` while RDS has not delivered it.
    pub fn routes(&self, worker: &Worker) -> Option<Arc<RouteConfig>> {
        match &self.config.routes {
            RouteSource::Static(r) => Some(r.clone()),
            RouteSource::Rds(name) => worker.with_snapshot(|s| s.routes.get(name).cloned()),
        }
    }

    /// An empty head, with memory of an earlier one if there is one.
    pub fn head(&self) -> Head {
        self.heads.borrow_mut().pop().unwrap_or_default()
    }

    /// Takes a head back.
    pub fn recycle(&self, mut head: Head) {
        head.clear();
        let mut heads = self.heads.borrow_mut();
        if heads.len() < KEPT_HEADS {
            heads.push(head);
        }
    }
}
