//! Follows the configuration's listeners on one worker: binds, updates, removes, warms. Follows Envoy's "Listener discovery
//! service" page, except that a changed listener keeps its connections.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Handler;
use super::active::Active;
use super::chain::ActiveChain;
use super::inspect::InspectorStats;
use super::network::ConnectionLimitStats;
use super::shared::{Draining, Shared, tls_config};
use super::socket::BindError;
use super::stats::ManagerStats;
use crate::config::address::Address;
use crate::config::filter::NetworkFilter;
use crate::config::hcm::RouteSource;
use crate::config::listener::Listener;
use crate::config::snapshot::Snapshot;
use crate::config::tls::CertificateSource;

/// `initial_fetch_timeout`: how long a listener waits for its routes and secrets before it serves without them.
const WARMING_LIMIT: Duration = Duration::from_secs(15);

type Listeners = Arc<HashMap<Arc<str>, Arc<Listener>>>;

/// By name.
type Warming = HashMap<Arc<str>, (Arc<Listener>, Instant)>;

/// One worker's listeners.
pub struct Manager {
    pub(super) worker: usize,
    pub(super) shared: Arc<Shared>,
    pub(super) handler: Rc<dyn Handler>,
    pub(super) inspectors: InspectorStats,
    pub(super) limit_stats: RefCell<HashMap<Arc<str>, Rc<ConnectionLimitStats>>>,
    stats: ManagerStats,
    active: RefCell<HashMap<Arc<str>, Rc<Active>>>,
    /// Listeners (new, or new versions) that wait for what they name, and until when.
    warming: RefCell<Warming>,
    by_address: RefCell<HashMap<SocketAddr, Rc<Active>>>,
    /// The map that was applied last.
    applied: RefCell<Option<Listeners>>,
}

impl std::fmt::Debug for Manager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Manager").field("worker", &self.worker).finish_non_exhaustive()
    }
}

impl Manager {
    /// For one worker; it does nothing until [`Self::start`].
    pub fn new(worker: usize, shared: Arc<Shared>, handler: Rc<dyn Handler>) -> Rc<Manager> {
        Rc::new(Manager {
            worker,
            inspectors: InspectorStats::new(&shared.stats),
            stats: ManagerStats::new(&shared.stats, "listener_manager."),
            shared,
            handler,
            limit_stats: RefCell::default(),
            active: RefCell::default(),
            warming: RefCell::default(),
            by_address: RefCell::default(),
            applied: RefCell::default(),
        })
    }

    /// Applies the snapshot as it is now. Called once, at start, within the worker's runtime.
    ///
    /// # Errors
    /// The first listener that could not be bound; Envoy does not start then.
    pub fn start(self: &Rc<Self>) -> Result<(), BindError> {
        if self.worker == 0 {
            self.stats.workers_started.set(1);
        }
        self.apply(&self.shared.store.load())
    }

    /// Follows snapshots and draining until dropped.
    pub async fn run(self: Rc<Self>) {
        let mut changed = self.shared.store.subscribe();
        let mut draining = self.shared.draining();
        // What changed between `start` and now is seen at once.
        changed.mark_changed();
        loop {
            let warm_at = self.warming.borrow().values().map(|(_, until)| *until).min();
            tokio::select! {
                c = changed.changed() => if c.is_err() { return },
                d = draining.changed() => {
                    if d.is_err() { return }
                    let now = *draining.borrow_and_update();
                    if let Draining::Stopped { .. } = now {
                        self.stop_accepting(now);
                    }
                    continue;
                }
                () = sleep_until(warm_at) => {}
            }
            changed.borrow_and_update();
            if let Err(e) = self.apply(&self.shared.store.load()) {
                tracing::error!("{e}");
            }
        }
    }

    /// The listener whose address is `destination`, else one on all addresses with its port.
    pub(super) fn at(&self, destination: SocketAddr) -> Option<Rc<Active>> {
        let map = self.by_address.borrow();
        let any: IpAddr = match destination.ip() {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let wildcard = |ip| map.get(&SocketAddr::new(ip, destination.port()));
        map.get(&destination)
            .or_else(|| wildcard(any))
            // An IPv6 wildcard listener takes IPv4 destinations where `ipv4_compat` says so.
            .or_else(|| {
                wildcard(Ipv6Addr::UNSPECIFIED.into()).filter(|a| a.current().compiled.listener.ipv4_compat)
            })
            .cloned()
    }

    fn apply(self: &Rc<Self>, snapshot: &Snapshot) -> Result<(), BindError> {
        let mut first_error = Ok(());
        let unchanged = self.applied.borrow().as_ref().is_some_and(|a| Arc::ptr_eq(a, &snapshot.listeners));
        if !unchanged {
            self.remove_missing(&snapshot.listeners);
            let until = Instant::now() + WARMING_LIMIT;
            for listener in snapshot.listeners.values() {
                let same = |l: &Arc<Listener>| Arc::ptr_eq(l, listener);
                let served = self
                    .active
                    .borrow()
                    .get(&listener.name)
                    .is_some_and(|a| same(&a.current().compiled.listener));
                let mut warming = self.warming.borrow_mut();
                let waits = warming.get(&listener.name).is_some_and(|(l, _)| same(l));
                if served {
                    warming.remove(&listener.name);
                } else if !waits {
                    warming.insert(listener.name.clone(), (listener.clone(), until));
                }
            }
            *self.applied.borrow_mut() = Some(snapshot.listeners.clone());
        }
        let now = Instant::now();
        let mut warm: Vec<Arc<Listener>> = self
            .warming
            .borrow()
            .values()
            .filter(|(l, until)| *until <= now || is_warm(l, snapshot))
            .map(|(l, _)| l.clone())
            .collect();
        warm.sort_by(|a, b| a.name.cmp(&b.name));
        for listener in warm {
            self.warming.borrow_mut().remove(&listener.name);
            match self.serve(&listener) {
                Ok(()) => self.stats.listener_create_success.inc(),
                Err(e) => {
                    self.stats.listener_create_failure.inc();
                    if first_error.is_ok() {
                        first_error = Err(e);
                    } else {
                        tracing::error!("{e}");
                    }
                }
            }
        }
        first_error
    }

    /// Begins to serve a listener, or moves a served one to a new version.
    fn serve(self: &Rc<Self>, listener: &Arc<Listener>) -> Result<(), BindError> {
        let compiled = self.shared.compiled(listener)?;
        let known = self.active.borrow().get(&listener.name).cloned();
        let active = match &known {
            Some(active) => active.clone(),
            None => Active::new(self, compiled.clone()),
        };
        // Sockets first: when one cannot be had, the version before stays in use.
        let before: Vec<Address> = active.accepting().into_iter().map(|(a, _)| a).collect();
        let mut opened = Vec::new();
        if listener.bind_to_port && !self.is_stopped(listener) {
            for address in listener.addresses.iter().filter(|a| !before.contains(a)) {
                self.refuse_duplicate(listener, address)?;
                opened.push((address.clone(), self.shared.open(listener, address)?));
            }
        }
        if known.is_some() {
            let gone = active.update(self, compiled);
            self.retire_later(gone);
        }
        for (address, bound) in opened {
            let text = address.to_string();
            active.accept_on(address, bound).map_err(|e| BindError::Bind {
                listener: listener.name.clone(),
                address: text,
                cause: e.to_string(),
            })?;
        }
        for address in before.iter().filter(|a| !listener.bind_to_port || !listener.addresses.contains(a)) {
            active.stop(address);
            self.shared.forget(&listener.name, address);
        }
        if self.worker == 0 && known.is_some() {
            // Sockets and connections stay, which is what Envoy calls an update in place.
            self.stats.listener_in_place_updated.inc();
        }
        self.active.borrow_mut().insert(listener.name.clone(), active);
        self.index();
        Ok(())
    }

    fn refuse_duplicate(&self, listener: &Listener, address: &Address) -> Result<(), BindError> {
        // Port 0 is a different port each time.
        if address.socket().is_some_and(|a| a.port() == 0) {
            return Ok(());
        }
        let taken = self
            .active
            .borrow()
            .values()
            .any(|a| a.name != listener.name && a.accepting().iter().any(|(other, _)| other == address));
        if taken {
            return Err(BindError::Duplicate {
                listener: listener.name.clone(),
                address: address.to_string(),
            });
        }
        Ok(())
    }

    fn remove_missing(self: &Rc<Self>, listeners: &HashMap<Arc<str>, Arc<Listener>>) {
        self.warming.borrow_mut().retain(|name, _| listeners.contains_key(name));
        let gone: Vec<Rc<Active>> = {
            let mut active = self.active.borrow_mut();
            let names: Vec<_> = active.keys().filter(|n| !listeners.contains_key(*n)).cloned().collect();
            names.iter().filter_map(|n| active.remove(n)).collect()
        };
        for listener in gone {
            for (address, _) in listener.accepting() {
                self.shared.forget(&listener.name, &address);
            }
            listener.stop_all();
            self.retire_later(listener.retire());
            if self.worker == 0 {
                self.stats.total_listeners_draining.inc();
                let manager = self.clone();
                tokio::task::spawn_local(async move {
                    tokio::time::sleep(manager.shared.drain_time).await;
                    manager.stats.total_listeners_draining.dec();
                });
            }
        }
        self.index();
    }

    /// Connections of chains that are gone may go on for the drain time.
    fn retire_later(self: &Rc<Self>, chains: Vec<Rc<ActiveChain>>) {
        if chains.is_empty() {
            return;
        }
        let count = chains.len() as u64;
        self.stats.total_filter_chains_draining.add(count);
        let manager = self.clone();
        tokio::task::spawn_local(async move {
            tokio::time::sleep(manager.shared.drain_time).await;
            chains.iter().for_each(|c| c.close());
            manager.stats.total_filter_chains_draining.sub(count);
        });
    }

    fn stop_accepting(&self, draining: Draining) {
        for active in self.active.borrow().values() {
            if draining.covers(active.current().compiled.listener.direction) && !active.accepting().is_empty()
            {
                active.stop_all();
                if self.worker == 0 {
                    self.stats.listener_stopped.inc();
                }
            }
        }
    }

    fn is_stopped(&self, listener: &Listener) -> bool {
        let now = *self.shared.draining().borrow();
        matches!(now, Draining::Stopped { .. }) && now.covers(listener.direction)
    }

    /// Rebuilds the table of addresses for connections that are handed on.
    fn index(&self) {
        let mut map = HashMap::new();
        for active in self.active.borrow().values() {
            for address in &active.current().compiled.listener.addresses {
                if let Some(a) = address.socket() {
                    map.insert(a, active.clone());
                }
            }
        }
        *self.by_address.borrow_mut() = map;
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Whether the routes and secrets that a listener names are there.
fn is_warm(listener: &Listener, snapshot: &Snapshot) -> bool {
    listener.filter_chains.iter().chain(&listener.default_chain).all(|chain| {
        let routes = chain.filters.iter().all(|f| match f {
            NetworkFilter::Hcm(hcm) => match &hcm.routes {
                RouteSource::Rds(name) => snapshot.routes.contains_key(name),
                _ => true,
            },
            _ => true,
        });
        let secrets = tls_config(&chain.transport).is_none_or(|tls| {
            let has = |name: &Arc<str>| snapshot.secrets.contains_key(name);
            tls.common.certificates.iter().all(|c| match c {
                CertificateSource::Sds(name) => has(name),
                CertificateSource::Inline(_) => true,
            }) && tls.common.validation.as_ref().and_then(|v| v.sds.as_ref()).is_none_or(has)
        });
        routes && secrets
    })
}
