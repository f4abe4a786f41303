//! What ring hash and Maglev share: keys, normalised weights, bounded loads. A table is built once for a host set and read
//! by all workers.

use std::sync::Arc;

use super::{maglev, ring_hash};
use crate::config::cluster::{Cluster, LbPolicy};
use crate::upstream::host::Host;
use crate::upstream::host_set::PriorityLevel;

/// The table of one priority level.
#[derive(Debug)]
pub struct HashTable {
    hosts: Vec<Arc<Host>>,
    weights: Vec<f64>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// Hash and host, sorted by hash.
    Ring(Vec<(u64, u32)>),
    Maglev(Vec<u32>),
}

impl HashTable {
    /// The table for a level: over all its hosts in panic, over the healthy ones otherwise.
    pub fn build(info: &Cluster, level: &PriorityLevel) -> HashTable {
        let (hosts, weights) = normalized(level, info.lb_common.locality_weighted);
        let keys: Vec<String> = hosts.iter().map(|h| key(h, info.lb_common.hash_by_hostname)).collect();
        let kind = match info.lb {
            LbPolicy::RingHash { min, max, murmur } => {
                Kind::Ring(ring_hash::build(&keys, &weights, min, max, murmur))
            }
            LbPolicy::Maglev { table_size } => Kind::Maglev(maglev::build(&keys, &weights, table_size)),
            // No other policy asks for a table; an empty one has no host to give.
            LbPolicy::RoundRobin { .. }
            | LbPolicy::LeastRequest { .. }
            | LbPolicy::Random
            | LbPolicy::ClusterProvided => Kind::Maglev(Vec::new()),
        };
        HashTable { hosts, weights, kind }
    }

    /// The host for a hash. `balance` is `hash_balance_factor` in percent, 0 for none.
    pub fn choose(&self, hash: u64, attempt: u32, balance: u32) -> Option<&Arc<Host>> {
        let index = match &self.kind {
            Kind::Ring(ring) => ring_hash::choose(ring, hash, attempt)?,
            Kind::Maglev(table) => maglev::choose(table, hash, attempt)?,
        } as usize;
        if balance == 0 || self.overload(index, balance) <= 1.0 {
            return self.hosts.get(index);
        }
        // Bounded loads: a walk over the hosts in an order that the hash alone decides.
        let mut order: Vec<usize> = (0..self.hosts.len()).collect();
        let mut state = hash;
        let mut best = index;
        for i in 0..order.len() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // Below the number of hosts, so it fits.
            let j = i + usize::try_from((state >> 33) % (order.len() - i) as u64).unwrap_or(0);
            order.swap(i, j);
            let load = self.overload(order[i], balance);
            if load <= 1.0 {
                return self.hosts.get(order[i]);
            }
            if load < self.overload(best, balance) {
                best = order[i];
            }
        }
        self.hosts.get(best)
    }

    /// Requests in flight over the slots that the host's weight gives it.
    #[allow(clippy::cast_precision_loss)] // requests in flight
    fn overload(&self, index: usize, balance: u32) -> f64 {
        let total: u64 = self.hosts.iter().map(|h| h.state.stats.rq_active.get()).sum();
        let slots = ((total + 1) * u64::from(balance)).div_ceil(100) as f64;
        let own = (slots * self.weights[index]).ceil().max(1.0);
        (self.hosts[index].state.stats.rq_active.get() as f64 + 1.0) / own
    }
}

/// `envoy.lb` `hash_key` of the metadata, else the host name where asked for, else the address.
fn key(host: &Host, by_hostname: bool) -> String {
    let lb = host.metadata.as_ref().and_then(|m| m.get("envoy.lb"));
    if let Some(k) = lb.and_then(|m| m.get("hash_key")).and_then(serde_json::Value::as_str) {
        return k.to_owned();
    }
    if by_hostname && !host.hostname.is_empty() {
        host.hostname.to_string()
    } else {
        host.address.to_string()
    }
}

/// Hosts with weights that sum up to one. With locality weights, a locality's share is its weight's, whatever its hosts weigh.
fn normalized(level: &PriorityLevel, locality_weighted: bool) -> (Vec<Arc<Host>>, Vec<f64>) {
    let pick =
        |g: &crate::upstream::host_set::Group| if level.panic { g.all.clone() } else { g.healthy.clone() };
    let mut out = (Vec::new(), Vec::new());
    let mut add = |hosts: Vec<Arc<Host>>, share: f64| {
        let sum: f64 = hosts.iter().map(|h| f64::from(h.weight)).sum();
        for h in hosts {
            out.1.push(f64::from(h.weight) / sum * share);
            out.0.push(h);
        }
    };
    let localities: Vec<_> = level
        .localities
        .iter()
        .map(|l| (pick(&l.group), l.weight))
        .filter(|(h, w)| !h.is_empty() && *w > 0)
        .collect();
    if locality_weighted && !localities.is_empty() {
        let sum: f64 = localities.iter().map(|(_, w)| f64::from(*w)).sum();
        for (hosts, weight) in localities {
            add(hosts, f64::from(weight) / sum);
        }
    } else {
        add(pick(&level.group), 1.0);
    }
    out
}
