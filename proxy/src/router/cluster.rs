//! Which cluster a matched route sends a request to: a name, a header's value, or a weighted choice.

use std::sync::Arc;

use crate::config::route::{ClusterChoice, WeightedCluster};
use crate::head::Head;

/// The choice, with the weighted entry whose mutations and overrides apply.
#[derive(Clone, Debug)]
pub struct Chosen {
    pub name: Arc<str>,
    /// Index into the weighted clusters.
    pub weighted: Option<usize>,
}

/// Chooses. `random` is uniform over `u64`; with `header_name` set the header's number takes its place. `None`: the header
/// that should name the cluster is missing.
pub fn choose(choice: &ClusterChoice, head: &Head, random: u64) -> Option<Chosen> {
    match choice {
        ClusterChoice::Cluster(name) => Some(Chosen { name: name.clone(), weighted: None }),
        ClusterChoice::Header(name) => {
            let value = head.get_name(name).and_then(|v| std::str::from_utf8(v).ok())?;
            Some(Chosen { name: value.into(), weighted: None })
        }
        ClusterChoice::Weighted(w) => {
            let given = w.random_value_header.as_ref().and_then(|h| {
                head.get_name(h).and_then(|v| std::str::from_utf8(v).ok()).and_then(|v| v.parse::<u64>().ok())
            });
            let mut left = given.unwrap_or(random) % u64::from(w.total_weight.max(1));
            let at = w.clusters.iter().position(|c| {
                let weight = u64::from(c.weight);
                if left < weight {
                    return true;
                }
                left -= weight;
                false
            })?;
            let entry: &WeightedCluster = &w.clusters[at];
            let name = match &entry.cluster_header {
                Some(h) => head.get_name(h).and_then(|v| std::str::from_utf8(v).ok())?.into(),
                None => entry.name.clone(),
            };
            Some(Chosen { name, weighted: Some(at) })
        }
    }
}
