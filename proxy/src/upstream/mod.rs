//! Upstream: clusters, their hosts, balancing, pools. Follows Envoy's "Upstream clusters" pages.
//!
//! Two halves. Shared by all workers, on the first use of a cluster: `manager` (which clusters have been built), `shared` (one
//! cluster: hosts, breakers, outlier detector), `host`, `host_set` (priorities, localities, panic), `breaker`, `outlier/`,
//! `dns`, `transport`, `view` (for `/clusters`). Per worker: `health_check/` (the first
//! worker's), `cluster` (what others hold), `lb/` (a file per policy), `pool/`,
//! `original_dst`, `stats`.
//!
//! The way of a request: `LocalClusters::get` → `Cluster::pick` → `Cluster::checkout` → `Lease::open` → the codec. The lease
//! gives the connection back; `Cluster::report` tells outlier detection how it went.

pub mod breaker;
mod cluster;
mod control;
mod dns;
mod health_check;
pub mod host;
pub mod host_set;
pub mod lb;
mod manager;
mod original_dst;
pub mod outlier;
mod pool;
mod shared;
pub mod stats;
#[cfg(test)]
mod testing;
mod transport;
mod view;

pub use breaker::Priority;
pub use cluster::{Cluster, ConnectSpec, LocalClusters, NoHost};
pub use host::Host;
pub use lb::LbContext;
pub use manager::ClusterManager;
pub use outlier::Outcome;
pub use pool::{Checkout, ConnFacts, Lease, PoolError, ProxyAddresses, TcpLease};
pub use shared::SharedCluster;
pub use stats::{ClusterStats, Origin};
pub use view::{ClusterView, HostView, OutlierView};
