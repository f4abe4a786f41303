//! What the workers' listener managers have in common: compiled listeners with their TLS contexts, the addresses that port 0
//! became, limits, and how far draining is.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::watch;

use super::chain_match::{ChainTable, Facts};
use super::socket::{self, BindError, Bound};
use crate::config::address::Address;
use crate::config::listener::{Direction, FilterChain, Listener};
use crate::config::snapshot::Store;
use crate::config::tls::{DownstreamTls, TransportSocket};
use crate::telemetry::stats::Stats;
use crate::tls::{ContextError, Secrets, ServerContext};

/// How far draining is. Set by `/drain_listeners`, `/drain` and SIGTERM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Draining {
    #[default]
    Serving,
    /// Connections are asked to end, new ones are still accepted (`graceful`).
    Graceful { inbound_only: bool },
    /// Listeners have stopped accepting.
    Stopped { inbound_only: bool },
}

impl Draining {
    /// Whether a listener of this direction drains.
    pub fn covers(self, direction: Direction) -> bool {
        match self {
            Draining::Serving => false,
            Draining::Graceful { inbound_only } | Draining::Stopped { inbound_only } => {
                !inbound_only || direction == Direction::Inbound
            }
        }
    }
}

/// For admin's `/listeners`.
#[derive(Clone, Debug)]
pub struct ListenerView {
    pub name: Arc<str>,
    /// As bound: the real port where the configuration says 0.
    pub addresses: Vec<Address>,
}

/// Shared by the workers' managers.
#[derive(Debug)]
pub struct Shared {
    pub(super) store: Arc<Store>,
    pub(super) stats: Stats,
    /// How long connections of a removed chain or listener may go on (`--drain-time-s`).
    pub(super) drain_time: Duration,
    max_connections: Option<u64>,
    connections: AtomicU64,
    next_connection: AtomicU64,
    draining: watch::Sender<Draining>,
    compiled: Mutex<HashMap<usize, Weak<Compiled>>>,
    bound: Mutex<HashMap<(Arc<str>, Address), Place>>,
    limits: Mutex<HashMap<Arc<str>, Arc<AtomicU64>>>,
}

/// What is known of an address once a worker has bound it.
#[derive(Debug, Default)]
struct Place {
    actual: Option<SocketAddr>,
    /// Without `reuse_port` all workers accept on one socket.
    single: Option<Bound>,
}

impl Shared {
    /// `max_connections`: the overload manager's limit of downstream connections.
    pub fn new(
        store: Arc<Store>,
        stats: Stats,
        drain_time: Duration,
        max_connections: Option<u64>,
    ) -> Arc<Shared> {
        Arc::new(Shared {
            store,
            stats,
            drain_time,
            max_connections,
            connections: AtomicU64::new(0),
            next_connection: AtomicU64::new(0),
            draining: watch::Sender::new(Draining::Serving),
            compiled: Mutex::default(),
            bound: Mutex::default(),
            limits: Mutex::default(),
        })
    }

    /// Moves draining on; workers and connections follow.
    pub fn drain(&self, to: Draining) {
        self.draining.send_replace(to);
    }

    /// How far draining is, to look at or to wait for.
    pub fn draining(&self) -> watch::Receiver<Draining> {
        self.draining.subscribe()
    }

    /// Downstream connections of all listeners.
    pub fn connections(&self) -> u64 {
        self.connections.load(Relaxed)
    }

    /// All listeners with their addresses as bound, by name.
    pub fn view(&self) -> Vec<ListenerView> {
        let snapshot = self.store.load();
        let bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<ListenerView> = snapshot
            .listeners
            .values()
            .map(|l| {
                let actual = |a: &Address| {
                    let place = bound.get(&(l.name.clone(), a.clone()));
                    place.and_then(|p| p.actual).map_or_else(|| a.clone(), Address::Socket)
                };
                ListenerView { name: l.name.clone(), addresses: l.addresses.iter().map(actual).collect() }
            })
            .collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    pub(super) fn connection_id(&self) -> u64 {
        self.next_connection.fetch_add(1, Relaxed)
    }

    /// Takes a place among the connections; false: the global limit is reached.
    pub(super) fn enter(&self, ignore_limit: bool) -> bool {
        let before = self.connections.fetch_add(1, Relaxed);
        let fits = ignore_limit || self.max_connections.is_none_or(|max| before < max);
        if !fits {
            self.connections.fetch_sub(1, Relaxed);
        }
        fits
    }

    pub(super) fn leave(&self) {
        self.connections.fetch_sub(1, Relaxed);
    }

    /// The count of a `connection_limit` filter, over all workers.
    pub(super) fn limit(&self, stat_prefix: &Arc<str>) -> Arc<AtomicU64> {
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        limits.entry(stat_prefix.clone()).or_default().clone()
    }

    /// Opens a worker's socket. Port 0 becomes the same port for all workers.
    pub(super) fn open(&self, listener: &Listener, address: &Address) -> Result<Bound, BindError> {
        let mut bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        let place = bound.entry((listener.name.clone(), address.clone())).or_default();
        let shared_socket = !listener.reuse_port || matches!(address, Address::Pipe(_));
        if shared_socket && let Some(Ok(again)) = place.single.as_ref().map(Bound::try_clone) {
            return Ok(again);
        }
        let wanted = match (place.actual, address) {
            (Some(actual), Address::Socket(a)) if a.port() == 0 => Address::Socket(actual),
            _ => address.clone(),
        };
        let opened = socket::open(listener, &wanted)?;
        place.actual = opened.local();
        if shared_socket {
            place.single = opened.try_clone().ok();
        }
        Ok(opened)
    }

    /// Forgets a listener's socket, so that a shared one is closed.
    pub(super) fn forget(&self, listener: &Arc<str>, address: &Address) {
        let mut bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        bound.remove(&(listener.clone(), address.clone()));
    }

    /// The compiled form of a listener, made by the first worker that asks.
    pub(super) fn compiled(&self, listener: &Arc<Listener>) -> Result<Arc<Compiled>, BindError> {
        let mut all = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        let key = Arc::as_ptr(listener) as usize;
        // An entry that lives holds its listener, so the address cannot have been given to another one.
        if let Some(found) = all.get(&key).and_then(Weak::upgrade) {
            return Ok(found);
        }
        all.retain(|_, c| c.strong_count() > 0);
        let table = ChainTable::new(&listener.filter_chains)
            .map_err(|e| BindError::Chains { listener: listener.name.clone(), cause: e.to_string() })?;
        let tls = (0..=listener.filter_chains.len()).map(|_| OnceLock::new()).collect();
        let compiled = Arc::new(Compiled { listener: listener.clone(), table, tls });
        all.insert(key, Arc::downgrade(&compiled));
        Ok(compiled)
    }
}

/// A listener with its match table and TLS contexts.
#[derive(Debug)]
pub(super) struct Compiled {
    pub listener: Arc<Listener>,
    table: ChainTable,
    /// One per chain, the default chain last; made when a connection first needs it.
    tls: Vec<OnceLock<Result<Arc<ServerContext>, ContextError>>>,
}

impl Compiled {
    /// The index of the chain for a connection; the default chain comes after the others.
    pub(super) fn find(&self, facts: &Facts<'_>) -> Option<usize> {
        let default = self.listener.default_chain.as_ref().map(|_| self.listener.filter_chains.len());
        self.table.find(facts).or(default)
    }

    pub(super) fn chains(&self) -> impl Iterator<Item = &Arc<FilterChain>> {
        self.listener.filter_chains.iter().chain(&self.listener.default_chain)
    }

    /// The chain's TLS context; `None`: plain text.
    pub(super) fn tls(
        &self,
        index: usize,
        secrets: &Secrets,
    ) -> Option<Result<Arc<ServerContext>, ContextError>> {
        let chain = self.chains().nth(index)?;
        let ir = tls_config(&chain.transport)?;
        let context = self.tls[index].get_or_init(|| ServerContext::new(ir.clone(), secrets).map(Arc::new));
        Some(context.clone())
    }
}

/// The TLS configuration of a transport socket.
pub(super) fn tls_config(t: &TransportSocket<DownstreamTls>) -> Option<&Arc<DownstreamTls>> {
    match t {
        TransportSocket::Tls(tls) => Some(tls),
        TransportSocket::RawBuffer => None,
        TransportSocket::ProxyProtocol { inner, .. } => tls_config(inner),
    }
}
