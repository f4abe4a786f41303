//! Routing: which virtual host and route a request takes, what the route changes in it, and what is tried again.
//!
//! Decisions only: nothing here has a socket or a timer. The way of a request: `host` finds the virtual host, `matching` the
//! route, `cluster` the cluster, `mutate`, `rewrite` and `redirect` change the head, `timeouts` and `retry` say how long and
//! how often. Follows Envoy's docs intro/arch_overview/http/http_routing and configuration/http/http_filters/router_filter.

pub mod cluster;
pub mod hash;
pub mod host;
pub mod matching;
pub mod mutate;
pub mod redirect;
pub mod retry;
pub mod rewrite;
pub mod timeouts;
