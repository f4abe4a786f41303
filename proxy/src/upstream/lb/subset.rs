//! Subsets: hosts whose `envoy.lb` metadata agrees with the route's (Envoy docs: "Load Balancer Subsets"). Each subset is a
//! host set and a balancer of its own; they are made anew when the hosts change.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use rand::Rng;
use rand::rngs::SmallRng;
use serde_json::{Map, Value};

use super::{Balancer, LbContext};
use crate::config::cluster::{Cluster, Subset, SubsetFallback, SubsetSelector};
use crate::upstream::host::Host;
use crate::upstream::host_set::HostSet;
use crate::upstream::stats::TrafficStats;

/// Keys and values, in the order of the keys.
type Criteria<'a> = BTreeMap<&'a str, &'a Value>;

/// The subsets of one cluster in one worker.
#[derive(Debug)]
pub(super) struct Subsets {
    by_values: HashMap<String, Balancer>,
    default: Option<Box<Balancer>>,
}

/// What the subsets make of a request.
pub(super) enum Choice {
    Host(Option<Arc<Host>>),
    /// The balancer over all hosts decides.
    Any,
}

impl Subsets {
    /// Makes the subsets of `set`; `before` is how many there were.
    pub(super) fn new(
        info: &Arc<Cluster>,
        config: &Subset,
        set: &Arc<HostSet>,
        rng: &mut SmallRng,
        before: usize,
        stats: &TrafficStats,
    ) -> Subsets {
        let mut by_values = HashMap::new();
        for selector in &config.selectors {
            for host in set.hosts() {
                for criteria in combinations(host, selector, config.list_as_any) {
                    by_values
                        .entry(text(&criteria))
                        .or_insert_with(|| balancer(info, config, set, &criteria, rng.random()));
                }
            }
        }
        for _ in before..by_values.len() {
            stats.lb_subsets_created.inc();
            stats.lb_subsets_active.inc();
        }
        for _ in by_values.len()..before {
            stats.lb_subsets_removed.inc();
            stats.lb_subsets_active.dec();
        }
        let default = (config.fallback == SubsetFallback::DefaultSubset).then(|| {
            let criteria = config.default_subset.as_deref().map(all).unwrap_or_default();
            Box::new(balancer(info, config, set, &criteria, rng.random()))
        });
        Subsets { by_values, default }
    }

    /// How many subsets there are, the default one apart.
    pub(super) fn len(&self) -> usize {
        self.by_values.len()
    }

    /// Chooses for the request's metadata.
    pub(super) fn choose(
        &mut self,
        config: &Subset,
        ctx: &LbContext<'_>,
        attempt: u32,
        stats: &TrafficStats,
    ) -> Choice {
        let mut criteria: Criteria<'_> = ctx.metadata_match.map(all).unwrap_or_default();
        let mut fallback = config.fallback;
        // A KEYS_SUBSET fallback goes to fewer keys each time, so this ends.
        while !criteria.is_empty() {
            let selector = config.selectors.iter().find(|s| same_keys(s, &criteria));
            if let Some(sub) = self.by_values.get_mut(&text(&criteria))
                && selector.is_some()
                && let Some(host) = sub.choose_once(ctx, attempt, stats)
            {
                stats.lb_subsets_selected.inc();
                return Choice::Host(Some(host));
            }
            let Some(selector) = selector else { break };
            match selector.fallback {
                Some(SubsetFallback::KeysSubset) if selector.fallback_keys.len() < criteria.len() => {
                    criteria.retain(|k, _| selector.fallback_keys.iter().any(|f| **f == **k));
                }
                own => {
                    fallback = own.unwrap_or(config.fallback);
                    break;
                }
            }
        }
        let chosen = match fallback {
            SubsetFallback::None | SubsetFallback::KeysSubset => None,
            SubsetFallback::AnyEndpoint => {
                stats.lb_subsets_fallback.inc();
                return Choice::Any;
            }
            SubsetFallback::DefaultSubset => {
                let host = self.default.as_mut().and_then(|d| d.choose_once(ctx, attempt, stats));
                if host.is_some() {
                    stats.lb_subsets_fallback.inc();
                }
                host
            }
        };
        if chosen.is_none() && config.panic_mode_any {
            stats.lb_subsets_fallback_panic.inc();
            return Choice::Any;
        }
        Choice::Host(chosen)
    }
}

fn balancer(
    info: &Arc<Cluster>,
    config: &Subset,
    set: &HostSet,
    criteria: &Criteria<'_>,
    seed: u64,
) -> Balancer {
    let keep = |h: &Host| matches(h, criteria, config.list_as_any);
    let weight = |weight: u32, kept: usize, of: usize| match (
        config.locality_weight_aware,
        config.scale_locality_weight,
    ) {
        (false, _) => 0,
        (true, false) => weight,
        // At least one, so that a small subset of a locality is not starved.
        (true, true) => {
            let scaled = u64::from(weight) * kept as u64 / of.max(1) as u64;
            u32::try_from(scaled).unwrap_or(u32::MAX).max(1)
        }
    };
    Balancer::plain(info.clone(), Arc::new(set.subset(&keep, &weight)), seed)
}

fn lb_metadata(host: &Host) -> Option<&Map<String, Value>> {
    host.metadata.as_ref()?.get("envoy.lb")?.as_object()
}

fn all(map: &Map<String, Value>) -> Criteria<'_> {
    map.iter().map(|(k, v)| (k.as_str(), v)).collect()
}

fn same_keys(selector: &SubsetSelector, criteria: &Criteria<'_>) -> bool {
    selector.keys.len() == criteria.len() && selector.keys.iter().all(|k| criteria.contains_key(&**k))
}

fn matches(host: &Host, criteria: &Criteria<'_>, list_as_any: bool) -> bool {
    let own = lb_metadata(host);
    criteria.iter().all(|(k, v)| match own.and_then(|m| m.get(*k)) {
        Some(Value::Array(list)) if list_as_any => list.contains(v),
        Some(value) => value == *v,
        None => false,
    })
}

/// The values that a host has for a selector's keys; a list gives several where it means any of its members.
fn combinations<'a>(host: &'a Host, selector: &'a SubsetSelector, list_as_any: bool) -> Vec<Criteria<'a>> {
    let Some(own) = lb_metadata(host) else { return Vec::new() };
    let mut out = vec![Criteria::new()];
    for key in &selector.keys {
        let values: Vec<&Value> = match own.get(&**key) {
            Some(Value::Array(list)) if list_as_any => list.iter().collect(),
            Some(value) => vec![value],
            None => return Vec::new(),
        };
        out = out
            .into_iter()
            .flat_map(|c| {
                values.iter().map(move |v| {
                    let mut c = c.clone();
                    c.insert(&**key, *v);
                    c
                })
            })
            .collect();
    }
    out
}

/// A map key for criteria: JSON keeps types and separators apart.
fn text(criteria: &Criteria<'_>) -> String {
    serde_json::to_string(criteria).unwrap_or_default()
}
