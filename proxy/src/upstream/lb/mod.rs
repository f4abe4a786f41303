//! Load balancing: priority, then panic or health, then locality, then the policy's choice of a host. Follows Envoy's "Load
//! balancing" pages. The way of a choice: `Balancer::choose` → `HostSet::choose_priority` → `source` → a scheduler
//! (`edf`, `slow_start`) or a hash table (`hashing`, `ring_hash`, `maglev`); `subset` comes before all of it. One `Balancer` per worker and cluster.

mod edf;
pub mod hashing;
mod maglev;
mod ring_hash;
mod slow_start;
mod subset;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;

use super::host::Host;
use super::host_set::{Group, HostSet};
use super::stats::TrafficStats;
use crate::config::cluster::{Cluster, LbPolicy, SlowStart};
use crate::head::Head;
use edf::Edf;
use subset::{Choice, Subsets};

/// What a request brings to the choice of a host.
#[derive(Clone, Copy, Debug, Default)]
pub struct LbContext<'a> {
    /// From the route's hash policy.
    pub hash: Option<u64>,
    /// The `envoy.lb` object of the route's `metadata_match`, for subsets.
    pub metadata_match: Option<&'a serde_json::Map<String, serde_json::Value>>,
    /// The restored destination of the downstream connection, for ORIGINAL_DST.
    pub original_dst: Option<SocketAddr>,
    /// The request, for an ORIGINAL_DST cluster that reads a header.
    pub head: Option<&'a Head>,
    /// `previous_hosts`: hosts that a retry would rather not meet again.
    pub avoid: &'a [Arc<Host>],
    /// `host_selection_retry_max_attempts`.
    pub attempts: u32,
}

/// Which hosts of a set a scheduler stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Source {
    All(usize),
    Healthy(usize),
    Degraded(usize),
    LocalityHealthy(usize, usize),
    LocalityDegraded(usize, usize),
}

/// How one source is walked.
#[derive(Debug)]
enum Walk {
    /// All weights are equal: the next index.
    Index(usize),
    Weighted(Edf),
}

/// The balancer of one cluster in one worker.
#[derive(Debug)]
pub struct Balancer {
    info: Arc<Cluster>,
    set: Arc<HostSet>,
    walks: HashMap<Source, Walk>,
    localities: HashMap<(usize, bool), Edf>,
    rng: SmallRng,
    seed: usize,
    subsets: Option<Subsets>,
}

impl Balancer {
    /// A balancer over `set`; `seed` makes its choices repeatable.
    pub fn new(info: Arc<Cluster>, set: Arc<HostSet>, seed: u64, stats: &TrafficStats) -> Balancer {
        let mut balancer = Balancer::plain(info, set, seed);
        balancer.make_subsets(stats);
        balancer
    }

    /// One without subsets.
    fn plain(info: Arc<Cluster>, set: Arc<HostSet>, seed: u64) -> Balancer {
        let mut rng = SmallRng::seed_from_u64(seed);
        let seed = rng.random_range(0..1 << 16);
        Balancer { info, set, walks: HashMap::new(), localities: HashMap::new(), rng, seed, subsets: None }
    }

    fn make_subsets(&mut self, stats: &TrafficStats) {
        let info = self.info.clone();
        if let Some(config) = &info.lb_common.subset {
            let before = self.subsets.as_ref().map_or(0, Subsets::len);
            self.subsets = Some(Subsets::new(&info, config, &self.set, &mut self.rng, before, stats));
        }
    }

    /// Goes over to another set of hosts where it is one.
    pub fn update(&mut self, set: &Arc<HostSet>, stats: &TrafficStats) {
        if Arc::ptr_eq(&self.set, set) {
            return;
        }
        self.set = set.clone();
        self.localities.clear();
        // Weighted walks hold indices into the old set; plain ones go on from where they are.
        self.walks.retain(|_, w| matches!(w, Walk::Index(_)));
        self.make_subsets(stats);
    }

    /// The host set that choices are made from.
    pub fn set(&self) -> &Arc<HostSet> {
        &self.set
    }

    /// Chooses a host; a retry that names hosts to avoid gets several tries at another one.
    pub fn choose(&mut self, ctx: &LbContext<'_>, stats: &TrafficStats) -> Option<Arc<Host>> {
        let mut last = None;
        for attempt in 0..=ctx.attempts {
            let host = self.choose_among_subsets(ctx, attempt, stats)?;
            if !ctx.avoid.iter().any(|h| h.same(&host)) {
                return Some(host);
            }
            last = Some(host);
        }
        last
    }

    fn choose_among_subsets(
        &mut self,
        ctx: &LbContext<'_>,
        attempt: u32,
        stats: &TrafficStats,
    ) -> Option<Arc<Host>> {
        let info = self.info.clone();
        if let (Some(subsets), Some(config)) = (&mut self.subsets, &info.lb_common.subset) {
            match subsets.choose(config, ctx, attempt, stats) {
                Choice::Host(host) => return host,
                Choice::Any => {}
            }
        }
        self.choose_once(ctx, attempt, stats)
    }

    fn choose_once(&mut self, ctx: &LbContext<'_>, attempt: u32, stats: &TrafficStats) -> Option<Arc<Host>> {
        let info = self.info.clone();
        let hashing = matches!(info.lb, LbPolicy::RingHash { .. } | LbPolicy::Maglev { .. });
        let random = match ctx.hash {
            Some(h) if hashing => h,
            _ => self.rng.random(),
        };
        let set = self.set.clone();
        let (priority, degraded) = set.choose_priority(random);
        let level = set.priorities.get(priority)?;
        if level.panic {
            stats.lb_healthy_panic.inc();
        }
        if hashing {
            let table = level.table.get_or_init(|| Arc::new(hashing::HashTable::build(&info, level)));
            return table.choose(random, attempt, info.lb_common.hash_balance_factor).cloned();
        }
        let source = self.source(&set, priority, degraded)?;
        let hosts = hosts_of(&set, source);
        match &info.lb {
            LbPolicy::RoundRobin { slow_start } => self.round_robin(source, hosts, slow_start.as_ref()),
            LbPolicy::LeastRequest { choices, bias, slow_start, full_scan } => {
                let shape = LeastRequest { choices: *choices, bias: *bias, full_scan: *full_scan };
                self.least_request(source, hosts, shape, slow_start.as_ref())
            }
            LbPolicy::Random => {
                (!hosts.is_empty()).then(|| hosts[self.rng.random_range(0..hosts.len())].clone())
            }
            // The hash tables were asked above; a cluster that provides its own hosts does not come here.
            LbPolicy::RingHash { .. } | LbPolicy::Maglev { .. } | LbPolicy::ClusterProvided => None,
        }
    }

    fn source(&mut self, set: &Arc<HostSet>, priority: usize, degraded: bool) -> Option<Source> {
        let level = set.priorities.get(priority)?;
        if level.panic {
            return (!self.info.lb_common.fail_traffic_on_panic).then_some(Source::All(priority));
        }
        if self.info.lb_common.locality_weighted
            && let Some(i) = self.locality(set, priority, degraded)
        {
            return Some(if degraded {
                Source::LocalityDegraded(priority, i)
            } else {
                Source::LocalityHealthy(priority, i)
            });
        }
        Some(if degraded { Source::Degraded(priority) } else { Source::Healthy(priority) })
    }

    /// The next locality by weight; `None` where no locality has a weight and a host.
    fn locality(&mut self, set: &HostSet, priority: usize, degraded: bool) -> Option<usize> {
        let level = set.priorities.get(priority)?;
        let edf = self.localities.entry((priority, degraded)).or_insert_with(|| {
            let weights: Vec<f64> = level
                .localities
                .iter()
                .map(|l| {
                    let part = if degraded { &l.group.degraded } else { &l.group.healthy };
                    locality_weight(l.weight, part.len(), l.group.all.len(), set.overprovisioning)
                })
                .collect();
            Edf::new(weights.into_iter().enumerate().filter(|(_, w)| *w > 0.0), self.seed)
        });
        edf.pick(|_, w| w)
    }

    fn round_robin(
        &mut self,
        source: Source,
        hosts: &[Arc<Host>],
        slow: Option<&SlowStart>,
    ) -> Option<Arc<Host>> {
        let now = Instant::now();
        let weight = |h: &Host| slow_start::weight(h, slow, now);
        let i = match self.walk(source, hosts, slow, now, &weight) {
            Walk::Index(next) => {
                let i = *next % hosts.len().max(1);
                *next = next.wrapping_add(1);
                i
            }
            Walk::Weighted(edf) => edf.pick(|i, _| weight(&hosts[i]))?,
        };
        hosts.get(i).cloned()
    }

    fn least_request(
        &mut self,
        source: Source,
        hosts: &[Arc<Host>],
        shape: LeastRequest,
        slow: Option<&SlowStart>,
    ) -> Option<Arc<Host>> {
        let now = Instant::now();
        let weight = |h: &Host| {
            let w = slow_start::weight(h, slow, now);
            if shape.bias == 0.0 { w } else { w / (active(h) + 1.0).powf(shape.bias) }
        };
        if let Walk::Weighted(edf) = self.walk(source, hosts, slow, now, &weight) {
            return edf.pick(|i, _| weight(&hosts[i])).and_then(|i| hosts.get(i).cloned());
        }
        if hosts.is_empty() {
            return None;
        }
        if shape.full_scan {
            // Ties are broken at random, as a scan from the start would favour the first host.
            let start = self.rng.random_range(0..hosts.len());
            let order = (0..hosts.len()).map(|i| &hosts[(start + i) % hosts.len()]);
            return order.min_by_key(|h| h.state.stats.rq_active.get()).cloned();
        }
        let mut best: Option<&Arc<Host>> = None;
        for _ in 0..shape.choices.max(1) {
            let sample = &hosts[self.rng.random_range(0..hosts.len())];
            let fewer = |b: &&Arc<Host>| sample.state.stats.rq_active.get() < b.state.stats.rq_active.get();
            if best.as_ref().is_none_or(fewer) {
                best = Some(sample);
            }
        }
        best.cloned()
    }

    fn walk(
        &mut self,
        source: Source,
        hosts: &[Arc<Host>],
        slow: Option<&SlowStart>,
        now: Instant,
        weight: &dyn Fn(&Host) -> f64,
    ) -> &mut Walk {
        let seed = self.seed;
        self.walks.entry(source).or_insert_with(|| {
            let equal = hosts.windows(2).all(|w| w[0].weight == w[1].weight);
            if equal && !hosts.iter().any(|h| slow_start::active(h, slow, now)) {
                Walk::Index(seed)
            } else {
                Walk::Weighted(Edf::new(hosts.iter().map(|h| weight(h)).enumerate(), seed))
            }
        })
    }
}

/// The parameters of least request.
#[derive(Clone, Copy, Debug)]
struct LeastRequest {
    choices: u32,
    bias: f64,
    full_scan: bool,
}

#[allow(clippy::cast_precision_loss)] // requests in flight
fn active(h: &Host) -> f64 {
    h.state.stats.rq_active.get() as f64
}

/// A locality's weight, less what its unhealthy hosts cannot carry.
#[allow(clippy::cast_precision_loss)] // counts of hosts
fn locality_weight(weight: u32, eligible: usize, all: usize, overprovisioning: u32) -> f64 {
    if all == 0 {
        return 0.0;
    }
    let available = f64::from(overprovisioning) / 100.0 * eligible as f64 / all as f64;
    f64::from(weight) * available.min(1.0)
}

fn hosts_of(set: &HostSet, source: Source) -> &[Arc<Host>] {
    let level = |p: usize| set.priorities.get(p);
    let locality = |p: usize, l: usize| level(p).and_then(|p| p.localities.get(l)).map(|l| &l.group);
    let found = match source {
        Source::All(p) => level(p).map(|l| &l.group.all),
        Source::Healthy(p) => level(p).map(|l| &l.group.healthy),
        Source::Degraded(p) => level(p).map(|l| &l.group.degraded),
        Source::LocalityHealthy(p, l) => locality(p, l).map(|g: &Group| &g.healthy),
        Source::LocalityDegraded(p, l) => locality(p, l).map(|g: &Group| &g.degraded),
    };
    found.map_or(&[], Vec::as_slice)
}
