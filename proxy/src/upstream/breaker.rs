//! Circuit breakers: the resources of one priority of a cluster, shared by all workers, with guards that give back what
//! they took. Follows Envoy's "Circuit breaking" page and `config.cluster.v3.CircuitBreakers`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use crate::config::cluster::Breaker;
use crate::stats_struct;
use crate::telemetry::stats::Stats;

/// `envoy.config.core.v3.RoutingPriority`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Priority {
    #[default]
    Default,
    High,
}

impl Priority {
    /// Both, in the order of `Cluster::breakers`.
    pub const ALL: [Priority; 2] = [Priority::Default, Priority::High];

    /// As it stands in stat names and in `/clusters`.
    pub fn as_str(self) -> &'static str {
        match self {
            Priority::Default => "default",
            Priority::High => "high",
        }
    }
}

stats_struct! {
    /// `circuit_breakers.<priority>.`
    pub struct BreakerStats {
        shared_gauge cx_open,
        shared_gauge cx_pool_open,
        shared_gauge rq_pending_open,
        shared_gauge rq_open,
        shared_gauge rq_retry_open,
        shared_gauge remaining_cx,
        shared_gauge remaining_cx_pools,
        shared_gauge remaining_pending,
        shared_gauge remaining_rq,
        shared_gauge remaining_retries,
    }
}

/// What a guard holds one of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    Connections,
    Pending,
    Requests,
    Retries,
}

#[derive(Debug, Default)]
struct Count {
    used: AtomicU64,
    open: AtomicBool,
}

/// The resources of one priority.
#[derive(Debug)]
pub struct Resources {
    config: Breaker,
    counts: [Count; 4],
    stats: BreakerStats,
}

/// One unit of a resource, given back on drop.
#[derive(Debug)]
#[must_use = "dropping the permit gives the resource back"]
pub struct Permit {
    from: Arc<Resources>,
    resource: Resource,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.from.counts[self.resource as usize].used.fetch_sub(1, Relaxed);
        self.from.publish(self.resource);
    }
}

impl Resources {
    /// Fresh resources; `prefix` is the cluster's, with the dot.
    pub fn new(config: &Breaker, stats: &Stats, prefix: &str, priority: Priority) -> Arc<Resources> {
        let stats = BreakerStats::new(stats, &format!("{prefix}circuit_breakers.{}.", priority.as_str()));
        let r = Arc::new(Resources { config: config.clone(), counts: Default::default(), stats });
        for resource in [Resource::Connections, Resource::Pending, Resource::Requests, Resource::Retries] {
            r.publish(resource);
        }
        if config.track_remaining {
            r.stats.remaining_cx_pools.set(u64::from(config.max_connection_pools));
        }
        r
    }

    /// The configuration that these resources enforce.
    pub fn config(&self) -> &Breaker {
        &self.config
    }

    /// How many units are out.
    pub fn used(&self, resource: Resource) -> u64 {
        self.counts[resource as usize].used.load(Relaxed)
    }

    /// The limit now: a retry budget follows the requests in flight.
    pub fn limit(&self, resource: Resource) -> u64 {
        match resource {
            Resource::Connections => u64::from(self.config.max_connections),
            Resource::Pending => u64::from(self.config.max_pending),
            Resource::Requests => u64::from(self.config.max_requests),
            Resource::Retries => match self.config.retry_budget {
                None => u64::from(self.config.max_retries),
                Some((percent, min)) => {
                    let active = self.used(Resource::Requests) + self.used(Resource::Pending);
                    #[allow(
                        clippy::cast_possible_truncation,
                        clippy::cast_sign_loss,
                        clippy::cast_precision_loss
                    )]
                    let share = (percent / 100.0 * active as f64) as u64;
                    share.max(u64::from(min))
                }
            },
        }
    }

    /// Whether one more unit may be taken.
    pub fn available(&self, resource: Resource) -> bool {
        self.used(resource) < self.limit(resource)
    }

    /// Takes a unit if there is one.
    pub fn acquire(self: &Arc<Self>, resource: Resource) -> Option<Permit> {
        let limit = self.limit(resource);
        let used = &self.counts[resource as usize].used;
        let taken = used.fetch_update(Relaxed, Relaxed, |n| (n < limit).then_some(n + 1)).is_ok();
        taken.then(|| self.permit(resource))
    }

    /// Takes a unit past any limit, as a pool's first connection to a host does.
    pub fn acquire_anyway(self: &Arc<Self>, resource: Resource) -> Permit {
        self.counts[resource as usize].used.fetch_add(1, Relaxed);
        self.permit(resource)
    }

    fn permit(self: &Arc<Self>, resource: Resource) -> Permit {
        self.publish(resource);
        Permit { from: self.clone(), resource }
    }

    /// Brings the gauges up to date. The open gauges change by the transition, so that any order of threads adds up.
    fn publish(&self, resource: Resource) {
        let s = &self.stats;
        let (open, remaining) = match resource {
            Resource::Connections => (&s.cx_open, &s.remaining_cx),
            Resource::Pending => (&s.rq_pending_open, &s.remaining_pending),
            Resource::Requests => (&s.rq_open, &s.remaining_rq),
            Resource::Retries => (&s.rq_retry_open, &s.remaining_retries),
        };
        let (used, limit) = (self.used(resource), self.limit(resource));
        let is_open = used >= limit;
        let was = &self.counts[resource as usize].open;
        if was.load(Relaxed) != is_open && was.swap(is_open, Relaxed) != is_open {
            if is_open {
                open.inc();
            } else {
                open.dec();
            }
        }
        if self.config.track_remaining {
            remaining.set(limit.saturating_sub(used));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources(config: &Breaker) -> (Stats, Arc<Resources>) {
        let stats = Stats::default();
        let r = Resources::new(config, &stats, "cluster.c.", Priority::Default);
        (stats, r)
    }

    #[test]
    fn opens_at_the_limit_and_closes_when_a_permit_drops() {
        let (stats, r) = resources(&Breaker { max_requests: 2, track_remaining: true, ..Breaker::default() });
        let open = || stats.value("cluster.c.circuit_breakers.default.rq_open");
        let left = || stats.value("cluster.c.circuit_breakers.default.remaining_rq");
        assert_eq!((open(), left()), (Some(0), Some(2)));
        let a = r.acquire(Resource::Requests).unwrap();
        let b = r.acquire(Resource::Requests).unwrap();
        assert_eq!((open(), left()), (Some(1), Some(0)));
        assert!(r.acquire(Resource::Requests).is_none());
        drop(a);
        assert_eq!((open(), left()), (Some(0), Some(1)));
        drop(b);
        assert_eq!(r.used(Resource::Requests), 0);
    }

    #[test]
    fn a_zero_limit_is_open_from_the_start() {
        let (stats, r) = resources(&Breaker { max_connections: 0, ..Breaker::default() });
        assert_eq!(stats.value("cluster.c.circuit_breakers.default.cx_open"), Some(1));
        assert!(r.acquire(Resource::Connections).is_none());
        drop(r.acquire_anyway(Resource::Connections));
        assert_eq!(r.used(Resource::Connections), 0);
    }

    #[test]
    fn retry_budget_follows_requests_in_flight() {
        let (_stats, r) = resources(&Breaker { retry_budget: Some((20.0, 3)), ..Breaker::default() });
        assert_eq!(r.limit(Resource::Retries), 3);
        let held: Vec<_> = (0..30).filter_map(|_| r.acquire(Resource::Requests)).collect();
        assert_eq!(r.limit(Resource::Retries), 6);
        let retries: Vec<_> = (0..10).filter_map(|_| r.acquire(Resource::Retries)).collect();
        assert_eq!(retries.len(), 6);
        drop(held);
        assert_eq!(r.limit(Resource::Retries), 3);
    }
}
