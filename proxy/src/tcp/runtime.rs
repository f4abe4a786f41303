//! What a TCP proxy's configuration becomes on a worker, once: stats, loggers, Istio's reports, the metadata header.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::{Env, exchange};
use crate::config::filter::{NetworkFilter, TcpProxy};
use crate::config::listener::{Direction, FilterChain};
use crate::stats_struct;
use crate::telemetry::access_log::AccessLogger;
use crate::telemetry::istio::metrics::IstioMetrics;

stats_struct! {
    /// `tcp.<stat_prefix>.…`.
    #[allow(dead_code, reason = "the buffered gauges stand in /stats as in Envoy's; a relay buffers one chunk at most")]
    pub(super) struct TcpStats {
        counter downstream_cx_total,
        counter downstream_cx_no_route,
        counter downstream_cx_tx_bytes_total,
        counter downstream_cx_rx_bytes_total,
        gauge downstream_cx_tx_bytes_buffered,
        gauge downstream_cx_rx_bytes_buffered,
        counter downstream_flow_control_paused_reading_total,
        counter downstream_flow_control_resumed_reading_total,
        counter early_data_received_count_total,
        counter idle_timeout,
        counter max_downstream_connection_duration,
        counter upstream_flush_total,
        gauge upstream_flush_active,
    }
}

stats_struct! {
    /// `metadata_exchange.…`.
    pub(super) struct ExchangeStats {
        counter alpn_protocol_found,
        counter alpn_protocol_not_found,
        counter initial_header_not_found,
        counter header_not_found,
        counter metadata_added,
    }
}

#[derive(Debug)]
pub(super) struct Runtime {
    config: Weak<TcpProxy>,
    pub stats: TcpStats,
    pub logger: AccessLogger,
    pub istio: Option<(IstioMetrics, Duration)>,
    /// ALPN protocol of the downstream exchange.
    pub exchange: Option<Arc<str>>,
    pub exchange_stats: ExchangeStats,
    pub own_header: Vec<u8>,
}

/// `tcp_reporting_duration`'s default.
const REPORTING: Duration = Duration::from_secs(5);

thread_local! {
    static ALL: RefCell<HashMap<usize, Rc<Runtime>>> = RefCell::default();
}

/// The runtime of `config`, which ends `chain`, made at its first use on this worker.
pub(super) fn of<E: Env>(
    config: &Arc<TcpProxy>,
    chain: &FilterChain,
    direction: Direction,
    env: &E,
) -> Rc<Runtime> {
    let key = Arc::as_ptr(config) as usize;
    let found = ALL.with_borrow(|all| all.get(&key).filter(|r| is_of(r, config)).cloned());
    if let Some(found) = found {
        return found;
    }
    let istio = chain.filters.iter().find_map(|f| match f {
        NetworkFilter::IstioStats(s) => {
            let every = s.tcp_reporting_duration.unwrap_or(REPORTING);
            Some((IstioMetrics::new(s, direction, env.stats()), every))
        }
        _ => None,
    });
    let exchange = chain.filters.iter().find_map(|f| match f {
        NetworkFilter::MetadataExchange { protocol, .. } => Some(protocol.clone()),
        _ => None,
    });
    let fresh = Rc::new(Runtime {
        config: Arc::downgrade(config),
        stats: TcpStats::new(env.stats(), &format!("tcp.{}.", config.stat_prefix)),
        logger: AccessLogger::new(&config.access_log, env.logs()),
        istio,
        exchange,
        exchange_stats: ExchangeStats::new(env.stats(), "metadata_exchange."),
        own_header: exchange::own(env.node()),
    });
    ALL.with_borrow_mut(|all| {
        all.retain(|_, r| r.config.strong_count() > 0);
        all.insert(key, fresh.clone());
    });
    fresh
}

fn is_of(runtime: &Runtime, config: &Arc<TcpProxy>) -> bool {
    std::ptr::eq(runtime.config.as_ptr(), Arc::as_ptr(config))
}
