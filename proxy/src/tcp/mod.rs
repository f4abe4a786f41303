//! The TCP proxy: `envoy.filters.network.tcp_proxy`, with Istio's TCP metadata exchange and metrics around it.
//!
//! `proxy` drives a connection: cluster, host, connect, relay, log. `pump` moves bytes one way with one pooled buffer;
//! `relay` polls both ways and the timers in a single task. `exchange` is Istio's metadata header, `runtime` what is made
//! once per configuration on a worker, `pool` the buffers.

mod exchange;
mod pool;
mod proxy;
mod pump;
mod relay;
mod runtime;

#[cfg(test)]
mod tests;

use std::rc::Rc;

use crate::config::bootstrap::Node;
use crate::telemetry::access_log::WorkerFiles;
use crate::telemetry::stats::Stats;
use crate::upstream::LocalClusters;

pub use exchange::{Parsed, parse as parse_exchange};
pub use proxy::serve;

/// What the TCP proxy needs of its worker.
pub trait Env: 'static {
    fn clusters(&self) -> &LocalClusters;
    fn stats(&self) -> &Stats;
    fn logs(&self) -> &Rc<WorkerFiles>;
    /// Uniform over `u64`, for weighted clusters.
    fn random(&self) -> u64;
    /// For the metadata exchange.
    fn node(&self) -> &Node;
}
