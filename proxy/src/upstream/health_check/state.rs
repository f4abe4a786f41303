//! What a row of checks makes of a host: thresholds and intervals. Pure.

use std::time::Duration;

use crate::config::cluster::HealthCheck;

/// The result of one check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// `degraded`: the host said so (`x-envoy-degraded`).
    Success { degraded: bool },
    /// The host answered that it is unwell: it is down at once. `exclude`: it asked not to be counted
    /// (`x-envoy-immediate-health-check-fail`).
    Failure { exclude: bool },
    /// Another service answered.
    WrongService,
    /// It could not be asked, or its status is one to retry: the threshold counts.
    Network,
    /// As `Network`; the host gets its own flag.
    Timeout,
}

/// What changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    None,
    BecameHealthy,
    BecameUnhealthy,
}

/// A host under check. It begins unhealthy; the first check alone decides, either way.
#[derive(Debug, Default)]
pub(super) struct Checker {
    healthy: bool,
    checked: bool,
    successes: u32,
    failures: u32,
}

impl Checker {
    pub(super) fn on_verdict(&mut self, verdict: Verdict, config: &HealthCheck) -> Change {
        let first = !std::mem::replace(&mut self.checked, true);
        match verdict {
            Verdict::Success { .. } => {
                self.failures = 0;
                self.successes = self.successes.saturating_add(1);
                if !self.healthy && (first || self.successes >= config.healthy_threshold) {
                    self.healthy = true;
                    return Change::BecameHealthy;
                }
            }
            Verdict::Failure { .. } | Verdict::WrongService | Verdict::Network | Verdict::Timeout => {
                self.successes = 0;
                self.failures = self.failures.saturating_add(1);
                let counted = matches!(verdict, Verdict::Network | Verdict::Timeout);
                if self.healthy && (!counted || self.failures >= config.unhealthy_threshold) {
                    self.healthy = false;
                    return Change::BecameUnhealthy;
                }
            }
        }
        Change::None
    }

    /// How long until the next check.
    pub(super) fn interval(&self, change: Change, traffic: bool, config: &HealthCheck) -> Duration {
        match (traffic, self.healthy, change) {
            (false, true, _) => config.no_traffic_healthy_interval,
            (false, false, _) => config.no_traffic_interval,
            (true, true, Change::BecameHealthy) => config.healthy_edge_interval,
            (true, true, _) => config.interval,
            (true, false, Change::BecameUnhealthy) => config.unhealthy_edge_interval,
            (true, false, _) => config.unhealthy_interval,
        }
    }
}
