//! A listener as one worker runs it: its sockets' accept loops and its current compiled form.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Notify;

use super::chain::ActiveChain;
use super::connection::{self, Arrival};
use super::manager::Manager;
use super::shared::Compiled;
use super::socket::Bound;
use super::stats::{self, AllStats};
use crate::config::address::Address;
use crate::config::listener::{FilterChain, Listener};
use crate::net::Raw;
use crate::tls::TlsStats;

/// Stands where a Unix socket has no address.
const NO_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
/// Pause after an accept that failed for want of descriptors or memory; doubled up to `LONGEST_PAUSE`.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Active {
    pub name: Arc<str>,
    /// The part of its stats' names that stands for it.
    pub stat: Arc<str>,
    pub manager: Weak<Manager>,
    current: RefCell<Rc<Current>>,
    pub stats: AllStats,
    tls_stats: OnceCell<TlsStats>,
    /// Connections that this worker serves for the listener.
    pub connections: Cell<u64>,
    accepting: RefCell<HashMap<Address, Rc<Accepting>>>,
}

/// What a new connection meets.
#[derive(Debug)]
pub(super) struct Current {
    pub compiled: Arc<Compiled>,
    /// As the listener's chains, the default chain last.
    pub chains: Vec<Rc<ActiveChain>>,
    identities: HashMap<String, Rc<ActiveChain>>,
}

/// One socket's accept loop.
#[derive(Debug)]
pub(super) struct Accepting {
    stop: Notify,
    /// As bound.
    pub local: Option<SocketAddr>,
}

impl Active {
    pub(super) fn new(manager: &Rc<Manager>, compiled: Arc<Compiled>) -> Rc<Active> {
        let listener = compiled.listener.clone();
        Rc::new(Active {
            name: listener.name.clone(),
            stat: stats::place(&listener).into(),
            manager: Rc::downgrade(manager),
            stats: AllStats::new(&manager.shared.stats, &listener, manager.worker),
            current: RefCell::new(Rc::new(Current::new(manager, compiled, None))),
            tls_stats: OnceCell::new(),
            connections: Cell::new(0),
            accepting: RefCell::default(),
        })
    }

    pub(super) fn current(&self) -> Rc<Current> {
        self.current.borrow().clone()
    }

    pub(super) fn tls_stats(&self, manager: &Manager) -> &TlsStats {
        self.tls_stats.get_or_init(|| {
            TlsStats::new(&manager.shared.stats, &stats::scope(&self.current().compiled.listener))
        })
    }

    /// Takes a new configuration: chains that stay are told it, the others are returned, retired.
    pub(super) fn update(&self, manager: &Rc<Manager>, compiled: Arc<Compiled>) -> Vec<Rc<ActiveChain>> {
        let old = self.current();
        let new = Rc::new(Current::new(manager, compiled, Some(&old)));
        let gone: Vec<_> = old
            .identities
            .iter()
            .filter(|(id, _)| !new.identities.contains_key(*id))
            .map(|(_, chain)| chain.clone())
            .collect();
        *self.current.borrow_mut() = new;
        gone.iter().for_each(|c| c.retire());
        gone
    }

    /// All chains, retired: the listener is gone.
    pub(super) fn retire(&self) -> Vec<Rc<ActiveChain>> {
        let chains = self.current().chains.clone();
        chains.iter().for_each(|c| c.retire());
        chains
    }

    /// The addresses it accepts on.
    pub(super) fn accepting(&self) -> Vec<(Address, Option<SocketAddr>)> {
        self.accepting.borrow().iter().map(|(a, s)| (a.clone(), s.local)).collect()
    }

    /// Begins to accept on a socket.
    ///
    /// # Errors
    /// When the runtime cannot watch the socket.
    pub(super) fn accept_on(self: &Rc<Self>, address: Address, bound: Bound) -> io::Result<()> {
        let accepting = Rc::new(Accepting { stop: Notify::new(), local: bound.local() });
        let socket = Listening::new(bound)?;
        self.accepting.borrow_mut().insert(address, accepting.clone());
        tokio::task::spawn_local(accept_loop(self.clone(), socket, accepting));
        Ok(())
    }

    /// Stops accepting at `address`; connections that wait in the backlog are still served.
    pub(super) fn stop(&self, address: &Address) {
        if let Some(a) = self.accepting.borrow_mut().remove(address) {
            a.stop.notify_one();
        }
    }

    /// Stops accepting everywhere.
    pub(super) fn stop_all(&self) {
        for (_, a) in self.accepting.borrow_mut().drain() {
            a.stop.notify_one();
        }
    }

    /// Whether another connection fits the listener's own limit.
    pub(super) fn has_room(&self, listener: &Listener) -> bool {
        listener.max_connections.is_none_or(|max| self.connections.get() < max)
    }
}

impl Current {
    fn new(manager: &Manager, compiled: Arc<Compiled>, old: Option<&Current>) -> Current {
        let direction = compiled.listener.direction;
        let mut identities = HashMap::new();
        let mut chains = Vec::new();
        for chain in compiled.chains() {
            let id = identity(chain);
            let active = match old.and_then(|o| o.identities.get(&id)) {
                Some(stays) => {
                    stays.replace(chain.clone());
                    stays.clone()
                }
                None => ActiveChain::new(chain.clone(), direction, manager.shared.draining()),
            };
            identities.insert(id, active.clone());
            chains.push(active);
        }
        Current { compiled, chains, identities }
    }
}

/// What makes a chain the same over an update. Names alone do not: Istio gives one name to a service's TLS and plain chains.
fn identity(chain: &FilterChain) -> String {
    format!("{}\n{:?}", chain.name, chain.matcher)
}

/// A socket under the runtime.
#[derive(Debug)]
enum Listening {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listening {
    fn new(bound: Bound) -> io::Result<Listening> {
        Ok(match bound {
            Bound::Tcp(l) => Listening::Tcp(TcpListener::from_std(l)?),
            Bound::Unix(l) => Listening::Unix(UnixListener::from_std(l)?),
        })
    }

    async fn accept(&self) -> io::Result<(Raw, Option<SocketAddr>)> {
        match self {
            Listening::Tcp(l) => l.accept().await.map(|(s, peer)| (s.into(), Some(peer))),
            Listening::Unix(l) => l.accept().await.map(|(s, _)| (s.into(), None)),
        }
    }
}

async fn accept_loop(active: Rc<Active>, socket: Listening, accepting: Rc<Accepting>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            () = accepting.stop.notified() => break,
        };
        match accepted {
            Ok((raw, peer)) => {
                pause = FIRST_PAUSE;
                arrive(&active, raw, peer, accepting.local);
            }
            Err(e) if is_peers_fault(&e) => {}
            Err(e) => {
                tracing::warn!("listener '{}': accept: {e}", active.name);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
    // Connections the kernel has completed would be reset when the socket closes.
    while let Some(Ok((raw, peer))) = futures_util::FutureExt::now_or_never(socket.accept()) {
        arrive(&active, raw, peer, accepting.local);
    }
}

fn arrive(active: &Rc<Active>, raw: Raw, peer: Option<SocketAddr>, bound: Option<SocketAddr>) {
    let mut local = bound.unwrap_or(NO_ADDRESS);
    if let crate::net::Socket::Tcp(tcp) = &raw.socket {
        // Proxies write whole messages; waiting for more would only cost latency.
        let _ = tcp.set_nodelay(true);
        if local.ip().is_unspecified() {
            local = tcp.local_addr().unwrap_or(local);
        }
    }
    let arrival = Arrival {
        raw,
        remote: peer.map_or(NO_ADDRESS, canonical),
        local: canonical(local),
        is_unix: peer.is_none(),
    };
    tokio::task::spawn_local(connection::serve(active.clone(), arrival));
}

/// An IPv4 peer of an IPv6 socket is told as IPv4, as Envoy does.
fn canonical(a: SocketAddr) -> SocketAddr {
    SocketAddr::new(a.ip().to_canonical(), a.port())
}

fn is_peers_fault(e: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(e.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}
