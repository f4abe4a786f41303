//! What all workers share of a cluster: hosts, breakers, outlier detector, transports. Built on the first use of a cluster,
//! fed by discovery, read without a lock.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::breaker::{Priority, Resources};
use super::host::{Host, HostState, Locality};
use super::host_set::{HostSet, SetOptions};
use super::manager::Common;
use super::outlier::{Decision, Detector, Outcome};
use super::stats::{self, MembershipStats};
use super::transport::Transports;
use crate::config::address::Address;
use crate::config::cluster::{Cluster, Discovery, Endpoints};
use crate::tls::Secrets;

/// Weights of localities by priority.
type Weights = HashMap<(u32, Arc<Locality>), u32>;

/// The shared half of a cluster.
#[derive(Debug)]
pub struct SharedCluster {
    pub(super) info: Arc<Cluster>,
    pub(super) common: Arc<Common>,
    pub(super) hosts: Arc<ArcSwap<HostSet>>,
    pub(super) breakers: [Arc<Resources>; 2],
    pub(super) transports: Transports,
    pub(super) membership: MembershipStats,
    outlier: Option<Mutex<Detector>>,
    members: Mutex<Members>,
    tasks: Mutex<Vec<AbortHandle>>,
    /// Hosts of an ORIGINAL_DST cluster, kept by the workers that use them.
    originals: Mutex<HashMap<Address, Weak<Host>>>,
}

/// What discovery has said so far.
#[derive(Debug, Default)]
struct Members {
    endpoints: Option<Arc<Endpoints>>,
    /// Version of the snapshot that `endpoints` came from; an older one does not overwrite it.
    version: u64,
    resolved: HashMap<Arc<str>, Vec<IpAddr>>,
    states: HashMap<Address, Arc<HostState>>,
    hosts: Vec<Arc<Host>>,
    weights: Weights,
}

impl Drop for SharedCluster {
    fn drop(&mut self) {
        let tasks = self.tasks.get_mut().unwrap_or_else(PoisonError::into_inner);
        tasks.iter().for_each(AbortHandle::abort);
    }
}

impl SharedCluster {
    /// Builds the cluster, with the host states of `before`, an earlier version of it.
    pub(super) fn new(
        info: &Arc<Cluster>,
        common: &Arc<Common>,
        secrets: &Secrets,
        before: Option<&SharedCluster>,
    ) -> Arc<SharedCluster> {
        let prefix = stats::prefix(&info.stat_name);
        let breakers =
            Priority::ALL.map(|p| Resources::new(&info.breakers[p as usize], &common.stats, &prefix, p));
        let outlier = info.outlier.as_ref().map(|c| Mutex::new(Detector::new(c, &common.stats, &prefix)));
        let states = before.map(|b| b.members().states.clone()).unwrap_or_default();
        let shared = Arc::new(SharedCluster {
            info: info.clone(),
            common: common.clone(),
            hosts: Arc::default(),
            breakers,
            transports: Transports::new(info, secrets),
            membership: MembershipStats::new(&common.stats, &prefix),
            outlier,
            members: Mutex::new(Members { states, ..Members::default() }),
            tasks: Mutex::default(),
            originals: Mutex::default(),
        });
        match &info.discovery {
            Discovery::Static(e) | Discovery::StrictDns(e) | Discovery::LogicalDns(e) => {
                shared.apply(e, 0, Instant::now());
            }
            Discovery::Eds { .. } | Discovery::OriginalDst { .. } | Discovery::Aggregate(_) => {
                shared.publish(&mut shared.members());
            }
        }
        shared.start_outlier();
        shared
    }

    /// The configuration.
    pub fn info(&self) -> &Arc<Cluster> {
        &self.info
    }

    /// The hosts now.
    pub fn hosts(&self) -> Arc<HostSet> {
        self.hosts.load_full()
    }

    /// The resources of a priority.
    pub fn breaker(&self, priority: Priority) -> &Arc<Resources> {
        &self.breakers[priority as usize]
    }

    /// Keeps a task that ends with the cluster.
    pub(super) fn own(&self, task: AbortHandle) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).push(task);
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        // Each critical section computes first and assigns whole values.
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what snapshot `version` says of the endpoints of an EDS cluster. Cheap when nothing changed.
    pub(super) fn sync_endpoints(&self, endpoints: Option<&Arc<Endpoints>>, version: u64) {
        let Some(endpoints) = endpoints else { return };
        {
            let mut m = self.members();
            if m.version > version || m.endpoints.as_ref().is_some_and(|e| Arc::ptr_eq(e, endpoints)) {
                m.version = m.version.max(version);
                return;
            }
        }
        self.membership.update_attempt.inc();
        self.membership.update_success.inc();
        if endpoints.localities.iter().all(|l| l.endpoints.is_empty()) {
            self.membership.update_empty.inc();
        }
        self.apply(endpoints, version, Instant::now());
    }

    /// Addresses of a DNS name. Returns whether the hosts changed.
    pub(super) fn resolved(&self, name: &Arc<str>, addresses: Vec<IpAddr>) -> bool {
        let endpoints = {
            let mut m = self.members();
            if m.resolved.get(name) == Some(&addresses) {
                return false;
            }
            m.resolved.insert(name.clone(), addresses);
            m.endpoints.clone()
        };
        if let Some(e) = endpoints {
            self.apply(&e, 0, Instant::now());
        }
        true
    }

    fn apply(&self, endpoints: &Arc<Endpoints>, version: u64, now: Instant) {
        let mut m = self.members();
        let (mut hosts, mut weights, mut states) = (Vec::new(), Weights::new(), HashMap::new());
        let mut seen = HashSet::new();
        let is_static = matches!(self.info.discovery, Discovery::Static(_));
        for group in &endpoints.localities {
            let locality = Arc::new(Locality::of(group));
            weights.insert((group.priority, locality.clone()), group.weight.unwrap_or(0));
            for endpoint in &group.endpoints {
                for address in self.addresses(&endpoint.address, &m.resolved) {
                    // One address is one host, as in Envoy; only a static list may repeat itself.
                    if !seen.insert(address.clone()) && !is_static {
                        continue;
                    }
                    let state = m.states.get(&address).or_else(|| states.get(&address)).cloned();
                    let state = state.unwrap_or_else(|| HostState::new(now));
                    states.insert(address.clone(), state.clone());
                    hosts.push(Arc::new(Host::new(endpoint, group, locality.clone(), address, state)));
                }
            }
        }
        let changed = states.len() != m.states.len()
            || states.keys().any(|a| !m.states.contains_key(a))
            || hosts.len() != m.hosts.len();
        if changed {
            self.membership.membership_change.inc();
        } else if !is_static {
            self.membership.update_no_rebuild.inc();
        }
        m.endpoints = Some(endpoints.clone());
        m.version = m.version.max(version);
        (m.hosts, m.weights, m.states) = (hosts, weights, states);
        if let Some(detector) = &self.outlier {
            let states: Vec<&HostState> = m.states.values().map(|s| &**s).collect();
            lock(detector).adopt(&states);
        }
        self.publish(&mut m);
    }

    fn addresses(&self, address: &Address, resolved: &HashMap<Arc<str>, Vec<IpAddr>>) -> Vec<Address> {
        match address {
            Address::Name(name, port) => {
                let ips = resolved.get(name).map_or(&[][..], Vec::as_slice);
                // LOGICAL_DNS uses the first address alone.
                let logical = matches!(self.info.discovery, Discovery::LogicalDns(_));
                let take = if logical { 1 } else { ips.len() };
                ips.iter().take(take).map(|ip| Address::Socket((*ip, *port).into())).collect()
            }
            other => vec![other.clone()],
        }
    }

    /// Makes a new host set out of the members and lets the workers see it.
    fn publish(&self, m: &mut Members) {
        let empty = Endpoints { overprovisioning: 140, ..Endpoints::default() };
        let e = m.endpoints.as_deref().unwrap_or(&empty);
        let options = SetOptions {
            overprovisioning: if e.overprovisioning == 0 { 140 } else { e.overprovisioning },
            panic_threshold: self.info.lb_common.panic_threshold,
            weighted_priority_health: e.weighted_priority_health,
            ignore_new_until_first_hc: self.info.lb_common.ignore_new_hosts_until_first_hc,
        };
        let weights = |p: u32, l: &Locality| {
            // Locality weights are few; the map is keyed by an `Arc`, so the lookup compares.
            m.weights.iter().find(|((wp, wl), _)| *wp == p && **wl == *l).map_or(0, |(_, w)| *w)
        };
        let set = HostSet::new(&m.hosts, &weights, &options);
        let [total, healthy, degraded, excluded] = set.membership();
        self.membership.membership_total.set(total);
        self.membership.membership_healthy.set(healthy);
        self.membership.membership_degraded.set(degraded);
        self.membership.membership_excluded.set(excluded);
        if !matches!(self.info.discovery, Discovery::Static(_)) {
            let heaviest = m.hosts.iter().map(|h| h.weight).max().unwrap_or(0);
            self.membership.max_host_weight.set(u64::from(heaviest));
        }
        self.hosts.store(Arc::new(set));
    }

    /// Health flags changed: the host set is sorted anew.
    pub(super) fn health_changed(&self) {
        self.publish(&mut self.members());
    }

    /// Takes the outcome of a request or connection for outlier detection.
    pub fn report(&self, host: &Host, outcome: Outcome) {
        let Some(config) = &self.info.outlier else { return };
        let met = host.state.monitor.record(outcome, config);
        if met == [None, None] {
            return;
        }
        let Some(detector) = &self.outlier else { return };
        let now = Instant::now();
        let mut decisions = Vec::new();
        {
            let (m, mut detector) = (self.members(), lock(detector));
            // The host may have left meanwhile.
            if !m.states.get(&host.address).is_some_and(|s| Arc::ptr_eq(s, &host.state)) {
                return;
            }
            for kind in met.into_iter().flatten() {
                let d = detector.on_consecutive(now, &host.state, kind, m.states.len(), &mut rand::random);
                decisions.extend(d);
            }
        }
        self.log(decisions.iter().map(|d| (&host.address, d)));
        if decisions.iter().any(takes_effect) {
            self.health_changed();
        }
    }

    /// The one host of an original destination, whichever worker asks.
    pub(super) fn original_host(&self, address: Address, now: Instant) -> Arc<Host> {
        let mut originals = self.originals.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(host) = originals.get(&address).and_then(Weak::upgrade) {
            return host;
        }
        originals.retain(|_, h| h.strong_count() > 0);
        let host = Arc::new(Host::bare(address.clone(), now));
        originals.insert(address, Arc::downgrade(&host));
        self.membership.membership_change.inc();
        self.membership.membership_total.set(originals.len() as u64);
        self.membership.membership_healthy.set(originals.len() as u64);
        host
    }

    /// Every host, those of an ORIGINAL_DST cluster included.
    pub fn all_hosts(&self) -> Vec<Arc<Host>> {
        let mut all: Vec<Arc<Host>> = self.hosts().hosts().cloned().collect();
        let originals = self.originals.lock().unwrap_or_else(PoisonError::into_inner);
        all.extend(originals.values().filter_map(Weak::upgrade));
        all
    }

    /// Success rate average and threshold of outlier detection; see `Detector::averages`.
    pub(super) fn outlier_averages(&self) -> Option<[(f64, f64); 2]> {
        self.outlier.as_ref().map(|d| lock(d).averages())
    }

    fn start_outlier(self: &Arc<Self>) {
        let Some(config) = &self.info.outlier else { return };
        let (weak, interval) = (Arc::downgrade(self), config.interval);
        self.own(self.common.control.spawn(outlier_loop(weak, interval)).abort_handle());
    }

    fn outlier_interval(&self, now: Instant) {
        let Some(detector) = &self.outlier else { return };
        let m = self.members();
        let (addresses, states): (Vec<_>, Vec<_>) =
            m.states.iter().map(|(a, s)| (a.clone(), s.clone())).unzip();
        let watched: Vec<&HostState> = states.iter().map(|s| &**s).collect();
        let decisions = lock(detector).on_interval(now, &watched, &mut rand::random);
        drop(m);
        self.log(decisions.iter().map(|(i, d)| (&addresses[*i], d)));
        if decisions.iter().any(|(_, d)| takes_effect(d)) {
            self.health_changed();
        }
    }

    /// An active health check succeeded, which may end an ejection.
    pub(super) fn health_check_succeeded(&self, host: &Host) {
        let Some(detector) = &self.outlier else { return };
        let decision = lock(detector).on_health_check_success(Instant::now(), &host.state);
        if let Some(d) = decision {
            self.log([(&host.address, &d)].into_iter());
            self.health_changed();
        }
    }

    fn log<'a>(&self, decisions: impl Iterator<Item = (&'a Address, &'a Decision)>) {
        for (address, decision) in decisions {
            tracing::debug!(cluster = %self.info.name, host = %address, ?decision, "outlier");
            if let Some(log) = &self.common.event_log {
                log.write(SystemTime::now(), &self.info.name, &address.to_string(), decision);
            }
        }
    }
}

async fn outlier_loop(cluster: Weak<SharedCluster>, interval: std::time::Duration) {
    loop {
        tokio::time::sleep(interval).await;
        let Some(cluster) = cluster.upgrade() else { return };
        cluster.outlier_interval(Instant::now());
    }
}

fn takes_effect(d: &Decision) -> bool {
    match d {
        Decision::Ejected { enforced, .. } => *enforced,
        Decision::Unejected { .. } => true,
    }
}

fn lock(detector: &Mutex<Detector>) -> MutexGuard<'_, Detector> {
    // A panic inside would leave at worst a gauge one off.
    detector.lock().unwrap_or_else(PoisonError::into_inner)
}
