//! Listeners: accept, listener filters, filter chain match, TLS, then the chain's network filters. Follows Envoy's
//! "Listeners", "Listener filters" and "Life of a request" pages.
//!
//! Each worker has a [`Manager`] with sockets of its own (`SO_REUSEPORT`). The way of a connection through the files:
//! `active` accepts it, `connection` drives it: `inspect` runs the listener filters, `chain_match` chooses the chain, the
//! chain's [`crate::tls::ServerContext`] does the handshake, `network` runs its filters and gives the connection to the
//! terminal one through [`Handler`]. `manager` follows the configuration: sockets and connections outlive an update, and a
//! connection sees the current configuration of its chain through [`ActiveChain`]. `shared` holds what workers have in
//! common, `socket` opens sockets, `stats` names `listener.…` and `listener_manager.…`.

mod active;
mod chain;
pub mod chain_match;
mod connection;
pub mod inspect;
mod manager;
mod network;
mod shared;
mod socket;
mod stats;

#[cfg(test)]
mod tests;

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use crate::config::access_log::AccessLog;
use crate::config::filter::{Rbac, TcpProxy};
use crate::config::hcm::Hcm;
use crate::net::Io;
use crate::stream_info::{ConnInfo, StreamInfo};

pub use chain::ActiveChain;
pub use manager::Manager;
pub use shared::{Draining, ListenerView, Shared};
pub use socket::{BindError, check, check_bind};

/// A connection that its terminal filter takes over.
#[derive(Debug)]
pub struct Connection {
    pub io: Io,
    pub info: Rc<ConnInfo>,
    /// The chain it came through, always in its current configuration.
    pub chain: Rc<ActiveChain>,
}

/// Serves one connection until it ends; dropping it closes the connection.
pub type Serving = Pin<Box<dyn Future<Output = ()>>>;

/// Who serves a connection once the listener is done with it. The worker implements it.
pub trait Handler: 'static {
    /// The HTTP connection manager. `hcm` is what the chain ends in now; [`ActiveChain::hcm`] tells later versions.
    fn http(&self, connection: Connection, hcm: Arc<Hcm>) -> Serving;

    /// The TCP proxy. `info` is the connection's stream info, with what earlier filters noted.
    fn tcp_proxy(&self, connection: Connection, config: Arc<TcpProxy>, info: StreamInfo) -> Serving;

    /// The RBAC network filter's verdict: false closes the connection; details are set in `info`.
    fn rbac(&self, config: &Arc<Rbac>, info: &mut StreamInfo) -> bool;

    /// Writes listener access logs, at a connection's end.
    fn log(&self, logs: &[AccessLog], info: &StreamInfo);
}
