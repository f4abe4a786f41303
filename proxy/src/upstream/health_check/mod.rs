//! Active health checks: HTTP, TCP, gRPC. Follows Envoy's "Health checking" page. `state` decides (no I/O), `probe` asks a host.
//! The first worker checks for all: flags and host sets are shared.

mod probe;
mod state;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;

use super::cluster::{Cluster, Core};
use super::host::{HealthFlags, Host, HostState};
use crate::config::cluster::HealthCheck;
use crate::stats_struct;
use probe::Probe;
use state::{Change, Checker, Verdict};

/// How often the set of hosts is compared with the hosts under check.
const MEMBERSHIP: Duration = Duration::from_millis(100);

stats_struct! {
    /// `health_check.`
    #[allow(dead_code, reason = "passive_failure stands in /stats as in Envoy's; no check of ours is passive")]
    struct Stats {
        shared_counter attempt,
        shared_counter failure,
        shared_counter network_failure,
        shared_counter passive_failure,
        shared_counter success,
        shared_counter verify_cluster,
        shared_gauge degraded,
        shared_gauge healthy,
    }
}

/// Checks the cluster's hosts until the cluster is gone.
pub(super) async fn run(cluster: Weak<Cluster>) {
    let mut running: HashMap<(usize, usize), JoinHandle<()>> = HashMap::new();
    let mut seen = None;
    let Some(stats) = cluster.upgrade().map(|c| stats(&c)) else { return };
    loop {
        let Some(c) = cluster.upgrade() else { break };
        let set = c.hosts();
        let same = seen.as_ref().is_some_and(|s| Arc::ptr_eq(s, &set));
        if !same {
            let wanted: HashMap<usize, &Arc<Host>> = set
                .hosts()
                .filter(|h| !h.disable_active_health_check)
                .map(|h| (Arc::as_ptr(&h.state).cast::<()>() as usize, h))
                .collect();
            running.retain(|(host, _), task| {
                let keep = wanted.contains_key(host);
                if !keep {
                    task.abort();
                }
                keep
            });
            let mut fresh = false;
            for (key, host) in wanted {
                if running.contains_key(&(key, 0)) {
                    continue;
                }
                // Until its first check a host is down.
                host.state.set(HealthFlags::FAILED_ACTIVE_HC);
                host.state.set(HealthFlags::PENDING_ACTIVE_HC);
                fresh = true;
                for (i, check) in c.info().health_checks.iter().enumerate() {
                    let task = follow(
                        Rc::downgrade(&c),
                        c.core().clone(),
                        (*host).clone(),
                        check.clone(),
                        stats.clone(),
                    );
                    running.insert((key, i), tokio::task::spawn_local(task));
                }
            }
            if fresh {
                c.shared().health_changed();
            }
            seen = Some(c.hosts());
            publish(&c, &stats);
        }
        drop(c);
        tokio::time::sleep(MEMBERSHIP).await;
    }
    running.values().for_each(JoinHandle::abort);
}

fn stats(c: &Cluster) -> Rc<Stats> {
    Rc::new(Stats::new(c.manager().stats(), &format!("{}health_check.", c.stats().prefix())))
}

async fn follow(
    cluster: Weak<Cluster>,
    core: Rc<Core>,
    host: Arc<Host>,
    config: HealthCheck,
    stats: Rc<Stats>,
) {
    let mut checker = Checker::default();
    let mut probe = Probe::new(core, host.clone(), config.clone());
    tokio::time::sleep(jitter(config.initial_jitter)).await;
    loop {
        stats.attempt.inc();
        let verdict = match tokio::time::timeout(config.timeout, Box::pin(probe.check())).await {
            Ok(v) => v,
            Err(_) => {
                probe.abandon();
                Verdict::Timeout
            }
        };
        let Some(c) = cluster.upgrade() else { return };
        count(&stats, verdict);
        let change = checker.on_verdict(verdict, &config);
        apply(&c, &host, verdict, change, &stats);
        let traffic = c.stats().traffic.upstream_cx_total.own() > 0;
        drop(c);
        let wait = checker.interval(change, traffic, &config);
        let percent = u64::from(config.interval_jitter_percent);
        let by_percent = Duration::from_millis(u64::try_from(wait.as_millis()).unwrap_or(0) * percent / 100);
        tokio::time::sleep(wait + jitter(config.interval_jitter.max(by_percent))).await;
    }
}

fn count(stats: &Stats, verdict: Verdict) {
    match verdict {
        Verdict::Success { .. } => stats.success.inc(),
        Verdict::Failure { .. } => stats.failure.inc(),
        Verdict::Network | Verdict::Timeout => {
            stats.failure.inc();
            stats.network_failure.inc();
        }
        Verdict::WrongService => {
            stats.failure.inc();
            stats.verify_cluster.inc();
        }
    }
}

/// Writes a check's result into the host's flags, and sorts the host set anew where it matters.
fn apply(c: &Cluster, host: &Host, verdict: Verdict, change: Change, stats: &Stats) {
    let state: &HostState = &host.state;
    let mut changed = state.clear(HealthFlags::PENDING_ACTIVE_HC);
    let set = |on: bool, flag| if on { state.set(flag) } else { state.clear(flag) };
    if let Verdict::Success { degraded } = verdict {
        changed |= set(degraded, HealthFlags::DEGRADED_ACTIVE_HC);
        changed |= state.clear(HealthFlags::EXCLUDED_VIA_IMMEDIATE_HC_FAIL);
    }
    match change {
        Change::BecameHealthy => {
            changed |= state.clear(HealthFlags::FAILED_ACTIVE_HC);
            state.clear(HealthFlags::ACTIVE_HC_TIMEOUT);
        }
        Change::BecameUnhealthy => {
            changed |= state.set(HealthFlags::FAILED_ACTIVE_HC);
            set(verdict == Verdict::Timeout, HealthFlags::ACTIVE_HC_TIMEOUT);
        }
        Change::None => {}
    }
    if matches!(verdict, Verdict::Failure { exclude: true }) {
        changed |= state.set(HealthFlags::EXCLUDED_VIA_IMMEDIATE_HC_FAIL);
    }
    if matches!(verdict, Verdict::Success { .. }) {
        c.shared().health_check_succeeded(host);
    }
    if changed {
        c.shared().health_changed();
        publish(c, stats);
        if change == Change::BecameUnhealthy && c.info().close_on_health_failure {
            c.drain_host(host);
        }
    }
}

fn publish(c: &Cluster, stats: &Stats) {
    let (mut healthy, mut degraded) = (0, 0);
    for h in c.hosts().hosts() {
        let flags = h.state.flags();
        healthy += u64::from(!flags.has(HealthFlags::FAILED_ACTIVE_HC));
        degraded += u64::from(flags.has(HealthFlags::DEGRADED_ACTIVE_HC));
    }
    stats.healthy.set(healthy);
    stats.degraded.set(degraded);
}

fn jitter(max: Duration) -> Duration {
    let ms = u64::try_from(max.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(rand::random::<u64>().checked_rem(ms).unwrap_or(0))
}
