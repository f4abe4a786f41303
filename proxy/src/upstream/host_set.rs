//! The hosts of a cluster as one immutable value: priorities, localities, health, and how traffic is shared among the
//! priorities (overprovisioning, degraded hosts, panic). Follows Envoy's "Priority levels" and "Panic threshold" pages.

use std::sync::{Arc, OnceLock};

use super::host::{Health, HealthFlags, Host, Locality};
use super::lb::hashing::HashTable;

/// Hosts by health.
#[derive(Debug, Default, Clone)]
pub struct Group {
    pub all: Vec<Arc<Host>>,
    pub healthy: Vec<Arc<Host>>,
    pub degraded: Vec<Arc<Host>>,
}

/// The hosts of one locality in one priority.
#[derive(Debug, Clone)]
pub struct LocalityGroup {
    pub locality: Arc<Locality>,
    /// `load_balancing_weight` of the locality; 0: none.
    pub weight: u32,
    pub group: Group,
}

/// One priority level.
#[derive(Debug, Default)]
pub struct PriorityLevel {
    pub group: Group,
    pub excluded: usize,
    pub localities: Vec<LocalityGroup>,
    /// Fewer hosts take traffic than the panic threshold asks for.
    pub panic: bool,
    /// The table of a hashing balancer, built by the first worker that needs it.
    pub(super) table: OnceLock<Arc<HashTable>>,
}

/// All hosts.
#[derive(Debug, Default)]
pub struct HostSet {
    pub priorities: Vec<PriorityLevel>,
    pub overprovisioning: u32,
    /// Percent of traffic by priority: healthy hosts, then degraded ones. Sums up to 100.
    pub load: Load,
    pub(super) health: Vec<LevelHealth>,
    options: Option<SetOptions>,
}

/// How the traffic is split.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Load {
    pub healthy: Vec<u32>,
    pub degraded: Vec<u32>,
}

/// How to read the hosts.
#[derive(Clone, Copy, Debug)]
pub struct SetOptions {
    /// Percent; 140 by default.
    pub overprovisioning: u32,
    /// Percent, 0 to 100.
    pub panic_threshold: f64,
    /// `weighted_priority_health`: availability counts weights instead of hosts.
    pub weighted_priority_health: bool,
    /// Hosts whose first health check is still due are left out.
    pub ignore_new_until_first_hc: bool,
}

impl HostSet {
    /// Sorts hosts into priorities and localities, in the order given. `weights` names each locality's weight by priority.
    pub fn new(
        hosts: &[Arc<Host>],
        weights: &dyn Fn(u32, &Locality) -> u32,
        options: &SetOptions,
    ) -> HostSet {
        let levels = hosts.iter().map(|h| h.priority as usize + 1).max().unwrap_or(1);
        let mut priorities: Vec<PriorityLevel> = Vec::new();
        priorities.resize_with(levels, PriorityLevel::default);
        for host in hosts {
            let level = &mut priorities[host.priority as usize];
            let flags = host.state.flags();
            // Draining hosts do not count against the panic threshold, seen on Envoy 1.40.
            let excluded = flags.has(HealthFlags::EXCLUDED_VIA_IMMEDIATE_HC_FAIL)
                || flags.has(HealthFlags::EDS_STATUS_DRAINING)
                || (options.ignore_new_until_first_hc && flags.has(HealthFlags::PENDING_ACTIVE_HC));
            level.excluded += usize::from(excluded);
            level.group.push(host, flags.health());
            let place = level.localities.iter().position(|l| l.locality == host.locality);
            let place = place.unwrap_or_else(|| {
                let weight = weights(host.priority, &host.locality);
                let locality = host.locality.clone();
                level.localities.push(LocalityGroup { locality, weight, group: Group::default() });
                level.localities.len() - 1
            });
            level.localities[place].group.push(host, flags.health());
        }
        let health: Vec<LevelHealth> = priorities.iter().map(|p| LevelHealth::of(p, options)).collect();
        let (load, panic) = share(&health, options);
        for (level, panic) in priorities.iter_mut().zip(panic) {
            level.panic = panic;
        }
        HostSet {
            priorities,
            overprovisioning: options.overprovisioning,
            load,
            health,
            options: Some(*options),
        }
    }

    /// The hosts that `keep` wants, with locality weights from `weight` (weight, hosts kept, hosts in all).
    pub fn subset(&self, keep: &dyn Fn(&Host) -> bool, weight: &dyn Fn(u32, usize, usize) -> u32) -> HostSet {
        let Some(options) = &self.options else { return HostSet::default() };
        let kept: Vec<Arc<Host>> = self.hosts().filter(|h| keep(h)).cloned().collect();
        let weights = |priority: u32, locality: &Locality| {
            let level = self.priorities.get(priority as usize);
            let group = level.and_then(|l| l.localities.iter().find(|g| *g.locality == *locality));
            group.map_or(0, |g| {
                let n = g.group.all.iter().filter(|h| keep(h)).count();
                weight(g.weight, n, g.group.all.len())
            })
        };
        HostSet::new(&kept, &weights, options)
    }

    /// All hosts, by priority.
    pub fn hosts(&self) -> impl Iterator<Item = &Arc<Host>> {
        self.priorities.iter().flat_map(|p| &p.group.all)
    }

    /// Total, healthy, degraded, excluded.
    pub fn membership(&self) -> [u64; 4] {
        let sum = |f: fn(&PriorityLevel) -> usize| self.priorities.iter().map(f).sum::<usize>() as u64;
        [
            sum(|p| p.group.all.len()),
            sum(|p| p.group.healthy.len()),
            sum(|p| p.group.degraded.len()),
            sum(|p| p.excluded),
        ]
    }

    /// The priority for a random number, and whether its degraded hosts are meant.
    pub fn choose_priority(&self, random: u64) -> (usize, bool) {
        self.load.choose(random)
    }
}

impl Load {
    /// The level for a random number, and whether its degraded hosts are meant.
    pub fn choose(&self, random: u64) -> (usize, bool) {
        #[allow(clippy::cast_possible_truncation)] // below 101
        let wanted = (random % 100 + 1) as u32;
        let mut sum = 0;
        for (loads, degraded) in [(&self.healthy, false), (&self.degraded, true)] {
            for (i, load) in loads.iter().enumerate() {
                sum += load;
                if wanted <= sum {
                    return (i, degraded);
                }
            }
        }
        (0, false)
    }
}

impl Group {
    fn push(&mut self, host: &Arc<Host>, health: Health) {
        self.all.push(host.clone());
        match health {
            Health::Healthy => self.healthy.push(host.clone()),
            Health::Degraded => self.degraded.push(host.clone()),
            Health::Unhealthy => {}
        }
    }
}

/// What the split needs to know of a level.
#[derive(Clone, Copy, Debug)]
pub(super) struct LevelHealth {
    hosts: usize,
    eligible: usize,
    healthy: usize,
    degraded: usize,
    /// Availability in percent, with overprovisioning, 0 to 100.
    healthy_percent: u32,
    degraded_percent: u32,
}

impl LevelHealth {
    fn of(level: &PriorityLevel, options: &SetOptions) -> LevelHealth {
        let g = &level.group;
        let eligible = g.all.len().saturating_sub(level.excluded);
        let weigh = |hosts: &[Arc<Host>]| -> u64 {
            if options.weighted_priority_health {
                hosts.iter().map(|h| u64::from(h.weight)).sum()
            } else {
                hosts.len() as u64
            }
        };
        let total = if options.weighted_priority_health { weigh(&g.all) } else { eligible as u64 };
        let percent = |part: u64| -> u32 {
            let p = u64::from(options.overprovisioning) * part / total.max(1);
            // At most 100, so it fits.
            u32::try_from(p.min(100)).unwrap_or(100)
        };
        LevelHealth {
            hosts: g.all.len(),
            eligible,
            healthy: g.healthy.len(),
            degraded: g.degraded.len(),
            healthy_percent: percent(weigh(&g.healthy)),
            degraded_percent: percent(weigh(&g.degraded)),
        }
    }

    #[allow(clippy::cast_precision_loss)] // counts of hosts
    fn panics(&self, threshold: f64) -> bool {
        let up = (self.healthy + self.degraded) as f64;
        let percent = if self.eligible == 0 { 0.0 } else { 100.0 * up / self.eligible as f64 };
        percent < threshold
    }
}

/// The split of traffic among the levels of several clusters, one after the other: an aggregate cluster's.
pub(super) fn share_levels(levels: &[LevelHealth], panic_threshold: f64) -> Load {
    let options = SetOptions {
        overprovisioning: 140,
        panic_threshold,
        weighted_priority_health: false,
        ignore_new_until_first_hc: false,
    };
    share(levels, &options).0
}

/// The split of traffic, and which levels panic. There is at least one level.
fn share(levels: &[LevelHealth], options: &SetOptions) -> (Load, Vec<bool>) {
    let none = vec![false; levels.len()];
    let available: u32 = levels.iter().map(|l| l.healthy_percent + l.degraded_percent).sum::<u32>().min(100);
    let mut load = Load { healthy: vec![0; levels.len()], degraded: vec![0; levels.len()] };
    let threshold = options.panic_threshold.clamp(0.0, 100.0);
    if available == 0 && threshold == 0.0 {
        // Panic is switched off: all traffic goes to the first level and finds no host there.
        load.healthy[0] = 100;
        return (load, none);
    }
    if available > 0 {
        let mut left = 100;
        let mut take = |percent: u32| {
            let part = (percent * 100 / available).min(left);
            left -= part;
            part
        };
        for (i, l) in levels.iter().enumerate() {
            load.healthy[i] = take(l.healthy_percent);
        }
        for (i, l) in levels.iter().enumerate() {
            load.degraded[i] = take(l.degraded_percent);
        }
        // What rounding left goes to the first level that takes any.
        if let Some(first) = levels.iter().position(|l| l.healthy_percent > 0) {
            load.healthy[first] += left;
        } else if let Some(first) = levels.iter().position(|l| l.degraded_percent > 0) {
            load.degraded[first] += left;
        }
    }
    let panic: Vec<bool> = levels.iter().map(|l| available < 100 && l.panics(threshold)).collect();
    if panic.iter().all(|p| *p) {
        load = by_hosts(levels);
    }
    (load, panic)
}

/// The split when every level panics: by number of hosts.
fn by_hosts(levels: &[LevelHealth]) -> Load {
    let mut load = Load { healthy: vec![0; levels.len()], degraded: vec![0; levels.len()] };
    let total: usize = levels.iter().map(|l| l.hosts).sum();
    if total == 0 {
        load.healthy[0] = 100;
        return load;
    }
    let mut left = 100;
    for (i, l) in levels.iter().enumerate() {
        // At most 100, so it fits.
        let part = u32::try_from(100 * l.hosts / total).unwrap_or(100);
        load.healthy[i] = part;
        left -= part;
    }
    if let Some(first) = levels.iter().position(|l| l.hosts > 0) {
        load.healthy[first] += left;
    }
    load
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: SetOptions = SetOptions {
        overprovisioning: 140,
        panic_threshold: 50.0,
        weighted_priority_health: false,
        ignore_new_until_first_hc: false,
    };

    fn level(hosts: usize, healthy: usize, degraded: usize) -> LevelHealth {
        let percent = |n: usize| (140 * n / hosts.max(1)).min(100) as u32;
        LevelHealth {
            hosts,
            eligible: hosts,
            healthy,
            degraded,
            healthy_percent: percent(healthy),
            degraded_percent: percent(degraded),
        }
    }

    /// The tables of Envoy's "Priority levels" page, levels of 100 hosts.
    #[test]
    fn spillover_follows_the_documented_tables() {
        for (levels, healthy) in [
            (vec![100, 100], vec![100, 0]),
            (vec![72, 100], vec![100, 0]),
            (vec![71, 100], vec![99, 1]),
            (vec![50, 100], vec![70, 30]),
            (vec![25, 100], vec![35, 65]),
            (vec![0, 100], vec![0, 100]),
            (vec![100, 100, 100], vec![100, 0, 0]),
            (vec![72, 72, 100], vec![100, 0, 0]),
            (vec![71, 71, 100], vec![99, 1, 0]),
            (vec![50, 50, 100], vec![70, 30, 0]),
            (vec![25, 100, 100], vec![35, 65, 0]),
            (vec![25, 25, 100], vec![35, 35, 30]),
            // Normalised: 25 % and 25 % healthy are 35 + 35 = 70 available.
            (vec![25, 25], vec![50, 50]),
        ] {
            let l: Vec<_> = levels.iter().map(|h| level(100, *h, 0)).collect();
            let options = SetOptions { panic_threshold: 0.0, ..OPTIONS };
            assert_eq!(share(&l, &options).0.healthy, healthy, "{levels:?}");
        }
    }

    #[test]
    fn degraded_hosts_take_what_healthy_ones_leave() {
        let l = [level(100, 25, 25), level(100, 25, 25)];
        let (load, _) = share(&l, &SetOptions { panic_threshold: 0.0, ..OPTIONS });
        assert_eq!(load, Load { healthy: vec![35, 35], degraded: vec![30, 0] });
    }

    #[test]
    fn panic_needs_every_level_short_of_the_total() {
        // Level 0 is below the threshold, but the levels together have enough: no panic.
        let (load, panic) = share(&[level(100, 40, 0), level(100, 100, 0)], &OPTIONS);
        assert_eq!((load.healthy, panic), (vec![56, 44], vec![false, false]));
        // Both are short: traffic goes by number of hosts.
        let (load, panic) = share(&[level(100, 20, 0), level(300, 60, 0)], &OPTIONS);
        assert_eq!((load.healthy, panic), (vec![25, 75], vec![true, true]));
        // One is short.
        let (load, panic) = share(&[level(100, 5, 0), level(100, 60, 0)], &OPTIONS);
        assert_eq!((load.healthy, panic), (vec![8, 92], vec![true, false]));
        // No host at all, with panic on and off.
        assert_eq!(share(&[level(0, 0, 0)], &OPTIONS).1, [true]);
        assert_eq!(share(&[level(0, 0, 0)], &SetOptions { panic_threshold: 0.0, ..OPTIONS }).1, [false]);
    }
}
