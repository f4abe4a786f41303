//! Outlier detection, after Envoy's "Outlier detection" page: each host has a `Monitor` that takes outcomes; the `Detector` of a
//! cluster decides on ejections. Pure: time, random numbers and the hosts come in, decisions go out; `shared` applies them.

mod log;
mod monitor;
#[cfg(test)]
mod tests;

pub use log::EventLog;
pub use monitor::{Met, Monitor, Outcome};

use std::time::Duration;

use tokio::time::Instant;

use super::host::{HealthFlags, HostState};
use crate::config::cluster::OutlierDetection;
use crate::stats_struct;
use crate::telemetry::stats::{SharedCounter, Stats};

/// `envoy.data.cluster.v3.OutlierEjectionType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EjectionKind {
    Consecutive5xx,
    ConsecutiveGatewayFailure,
    SuccessRate,
    ConsecutiveLocalOriginFailure,
    SuccessRateLocalOrigin,
    FailurePercentage,
    FailurePercentageLocalOrigin,
}

impl EjectionKind {
    /// The enum value's name, as the event log writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            EjectionKind::Consecutive5xx => "CONSECUTIVE_5XX",
            EjectionKind::ConsecutiveGatewayFailure => "CONSECUTIVE_GATEWAY_FAILURE",
            EjectionKind::SuccessRate => "SUCCESS_RATE",
            EjectionKind::ConsecutiveLocalOriginFailure => "CONSECUTIVE_LOCAL_ORIGIN_FAILURE",
            EjectionKind::SuccessRateLocalOrigin => "SUCCESS_RATE_LOCAL_ORIGIN",
            EjectionKind::FailurePercentage => "FAILURE_PERCENTAGE",
            EjectionKind::FailurePercentageLocalOrigin => "FAILURE_PERCENTAGE_LOCAL_ORIGIN",
        }
    }
}

stats_struct! {
    /// `outlier_detection.`
    pub struct OutlierStats {
        shared_counter ejections_consecutive_5xx,
        shared_counter ejections_detected_consecutive_5xx,
        shared_counter ejections_detected_consecutive_gateway_failure,
        shared_counter ejections_detected_consecutive_local_origin_failure,
        shared_counter ejections_detected_degradation,
        shared_counter ejections_detected_failure_percentage,
        shared_counter ejections_detected_local_origin_failure_percentage,
        shared_counter ejections_detected_local_origin_success_rate,
        shared_counter ejections_detected_success_rate,
        shared_counter ejections_enforced_consecutive_5xx,
        shared_counter ejections_enforced_consecutive_gateway_failure,
        shared_counter ejections_enforced_consecutive_local_origin_failure,
        shared_counter ejections_enforced_failure_percentage,
        shared_counter ejections_enforced_local_origin_failure_percentage,
        shared_counter ejections_enforced_local_origin_success_rate,
        shared_counter ejections_enforced_success_rate,
        shared_counter ejections_enforced_total,
        shared_counter ejections_overflow,
        shared_counter ejections_success_rate,
        shared_counter ejections_total,
        shared_gauge ejections_active,
    }
}

impl OutlierStats {
    fn detected(&self, kind: EjectionKind) -> &SharedCounter {
        match kind {
            EjectionKind::Consecutive5xx => &self.ejections_detected_consecutive_5xx,
            EjectionKind::ConsecutiveGatewayFailure => &self.ejections_detected_consecutive_gateway_failure,
            EjectionKind::SuccessRate => &self.ejections_detected_success_rate,
            EjectionKind::ConsecutiveLocalOriginFailure => {
                &self.ejections_detected_consecutive_local_origin_failure
            }
            EjectionKind::SuccessRateLocalOrigin => &self.ejections_detected_local_origin_success_rate,
            EjectionKind::FailurePercentage => &self.ejections_detected_failure_percentage,
            EjectionKind::FailurePercentageLocalOrigin => {
                &self.ejections_detected_local_origin_failure_percentage
            }
        }
    }

    fn enforced(&self, kind: EjectionKind) -> &SharedCounter {
        match kind {
            EjectionKind::Consecutive5xx => &self.ejections_enforced_consecutive_5xx,
            EjectionKind::ConsecutiveGatewayFailure => &self.ejections_enforced_consecutive_gateway_failure,
            EjectionKind::SuccessRate => &self.ejections_enforced_success_rate,
            EjectionKind::ConsecutiveLocalOriginFailure => {
                &self.ejections_enforced_consecutive_local_origin_failure
            }
            EjectionKind::SuccessRateLocalOrigin => &self.ejections_enforced_local_origin_success_rate,
            EjectionKind::FailurePercentage => &self.ejections_enforced_failure_percentage,
            EjectionKind::FailurePercentageLocalOrigin => {
                &self.ejections_enforced_local_origin_failure_percentage
            }
        }
    }
}

/// What was decided about a host, for the event log and for whoever rebuilds the host set.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    Ejected {
        kind: EjectionKind,
        /// Whether the enforcing percentage let it take effect.
        enforced: bool,
        ejections: u32,
        since_last: Option<Duration>,
        rates: Option<Rates>,
    },
    Unejected {
        ejections: u32,
        since_last: Option<Duration>,
    },
}

/// Success rates behind a decision, percent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    pub host: f64,
    pub average: f64,
    pub threshold: f64,
}

/// Which requests a success rate is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    External,
    Local,
}

/// A host as the detector sees it.
pub type Watched<'a> = &'a HostState;

/// The detector of one cluster. Its caller serialises calls.
#[derive(Debug)]
pub struct Detector {
    config: OutlierDetection,
    stats: OutlierStats,
    active: usize,
    /// Average and threshold of the last interval: external, then local origin; -1: unknown.
    averages: [(f64, f64); 2],
}

const UNKNOWN: (f64, f64) = (-1.0, -1.0);

impl Detector {
    /// A detector with nothing ejected; `prefix` is the cluster's, with the dot.
    pub fn new(config: &OutlierDetection, stats: &Stats, prefix: &str) -> Detector {
        let stats = OutlierStats::new(stats, &format!("{prefix}outlier_detection."));
        Detector { config: config.clone(), stats, active: 0, averages: [UNKNOWN; 2] }
    }

    /// The configuration in force.
    pub fn config(&self) -> &OutlierDetection {
        &self.config
    }

    /// Success rate average and ejection threshold: of external, then of local origin; -1 when unknown.
    pub fn averages(&self) -> [(f64, f64); 2] {
        self.averages
    }

    /// Takes over hosts that an earlier detector of the cluster ejected.
    pub fn adopt(&mut self, hosts: &[Watched<'_>]) {
        let now = hosts.iter().filter(|h| ejected(h)).count();
        for _ in self.active..now {
            self.stats.ejections_active.inc();
        }
        for _ in now..self.active {
            self.stats.ejections_active.dec();
        }
        self.active = now;
    }

    /// A monitor saw its threshold of consecutive failures. `hosts` is how many the cluster has.
    pub fn on_consecutive(
        &mut self,
        now: Instant,
        host: Watched<'_>,
        kind: EjectionKind,
        hosts: usize,
        random: &mut dyn FnMut() -> u64,
    ) -> Option<Decision> {
        if ejected(host) {
            return None;
        }
        self.stats.detected(kind).inc();
        let decision = self.eject(now, host, kind, hosts, random, None);
        if kind == EjectionKind::Consecutive5xx {
            self.stats.ejections_consecutive_5xx.inc();
        }
        host.monitor.reset_consecutive(kind);
        decision
    }

    /// The interval timer fired: hosts come back, success rates are looked at, back-offs decay.
    pub fn on_interval(
        &mut self,
        now: Instant,
        hosts: &[Watched<'_>],
        random: &mut dyn FnMut() -> u64,
    ) -> Vec<(usize, Decision)> {
        let mut decisions = Vec::new();
        for (i, host) in hosts.iter().enumerate() {
            if let Some(d) = self.check_uneject(now, host) {
                decisions.push((i, d));
            }
            host.monitor.roll();
        }
        for side in [Side::External, Side::Local] {
            self.success_rates(now, hosts, side, random, &mut decisions);
        }
        for host in hosts.iter().filter(|h| !ejected(h)) {
            host.monitor.decay(now, self.config.interval);
        }
        decisions
    }

    /// A success of an active health check ends an ejection where so configured.
    pub fn on_health_check_success(&mut self, now: Instant, host: Watched<'_>) -> Option<Decision> {
        let healthy = !host.flags().has(HealthFlags::FAILED_ACTIVE_HC);
        (self.config.successful_active_hc_uneject && healthy && ejected(host))
            .then(|| self.uneject(now, host))
    }

    fn check_uneject(&mut self, now: Instant, host: Watched<'_>) -> Option<Decision> {
        if !ejected(host) {
            return None;
        }
        let (at, backoff, jitter) = host.monitor.ejection()?;
        let time =
            self.config.base_ejection.saturating_mul(backoff).min(self.config.max_ejection_time) + jitter;
        (now.saturating_duration_since(at) >= time).then(|| self.uneject(now, host))
    }

    fn uneject(&mut self, now: Instant, host: Watched<'_>) -> Decision {
        if self.active > 0 {
            self.active -= 1;
            self.stats.ejections_active.dec();
        }
        host.clear(HealthFlags::FAILED_OUTLIER_CHECK);
        let (ejections, since_last) = host.monitor.unejected(now);
        Decision::Unejected { ejections, since_last }
    }

    fn eject(
        &mut self,
        now: Instant,
        host: Watched<'_>,
        kind: EjectionKind,
        hosts: usize,
        random: &mut dyn FnMut() -> u64,
        rates: Option<Rates>,
    ) -> Option<Decision> {
        #[allow(clippy::cast_precision_loss)] // counts of hosts
        let percent = 100.0 * (self.active + 1) as f64 / hosts.max(1) as f64;
        let within = percent <= f64::from(self.config.max_ejection_percent.min(100));
        let first = self.config.always_eject_one && self.active == 0;
        if !within && !first {
            self.stats.ejections_overflow.inc();
            return None;
        }
        if matches!(kind, EjectionKind::Consecutive5xx | EjectionKind::SuccessRate) {
            // Deprecated by Envoy and still counted.
            self.stats.ejections_total.inc();
        }
        let since_last = host.monitor.since_unejection(now);
        let enforced = random() % 100 < u64::from(self.enforcing(kind));
        if enforced {
            self.active += 1;
            self.stats.ejections_active.inc();
            self.stats.ejections_enforced_total.inc();
            self.stats.enforced(kind).inc();
            let jitter_ms = u64::try_from(self.config.max_ejection_jitter.as_millis()).unwrap_or(u64::MAX);
            let jitter = Duration::from_millis(random() % jitter_ms.saturating_add(1));
            host.monitor.ejected(now, jitter, self.config.base_ejection, self.config.max_ejection_time);
            host.set(HealthFlags::FAILED_OUTLIER_CHECK);
        }
        Some(Decision::Ejected { kind, enforced, ejections: host.monitor.ejections(), since_last, rates })
    }

    fn enforcing(&self, kind: EjectionKind) -> u32 {
        let c = &self.config;
        match kind {
            EjectionKind::Consecutive5xx => c.enforcing_5xx,
            EjectionKind::ConsecutiveGatewayFailure => c.enforcing_gateway,
            EjectionKind::SuccessRate => c.enforcing_success_rate,
            EjectionKind::ConsecutiveLocalOriginFailure => c.enforcing_local_origin,
            EjectionKind::SuccessRateLocalOrigin => c.enforcing_local_success_rate,
            EjectionKind::FailurePercentage => c.enforcing_failure_percentage,
            EjectionKind::FailurePercentageLocalOrigin => c.enforcing_failure_percentage_local,
        }
    }

    fn success_rates(
        &mut self,
        now: Instant,
        hosts: &[Watched<'_>],
        side: Side,
        random: &mut dyn FnMut() -> u64,
        decisions: &mut Vec<(usize, Decision)>,
    ) {
        self.averages[side as usize] = UNKNOWN;
        let c = self.config.clone();
        let enough = |n: usize, min: u32| n >= min as usize;
        if !enough(hosts.len(), c.success_rate_minimum_hosts)
            && !enough(hosts.len(), c.failure_percentage_minimum_hosts)
        {
            return;
        }
        let (rate_volume, failure_volume) =
            (u64::from(c.success_rate_request_volume), u64::from(c.failure_percentage_request_volume));
        let (mut by_rate, mut by_failure) = (Vec::new(), Vec::new());
        for (i, host) in hosts.iter().enumerate().filter(|(_, h)| !ejected(h)) {
            let Some((rate, volume)) = host.monitor.rate(side) else { continue };
            if volume >= rate_volume.min(failure_volume) {
                host.monitor.publish_rate(side, rate);
            }
            if volume >= rate_volume {
                by_rate.push((i, rate));
            }
            if volume >= failure_volume {
                by_failure.push((i, rate));
            }
        }
        let (rate_kind, failure_kind) = match side {
            Side::External => (EjectionKind::SuccessRate, EjectionKind::FailurePercentage),
            Side::Local => (EjectionKind::SuccessRateLocalOrigin, EjectionKind::FailurePercentageLocalOrigin),
        };
        if !by_rate.is_empty() && enough(by_rate.len(), c.success_rate_minimum_hosts) {
            let (average, threshold) =
                rate_threshold(&by_rate, f64::from(c.success_rate_stdev_factor) / 1000.0);
            self.averages[side as usize] = (average, threshold);
            for (i, rate) in by_rate.into_iter().filter(|(_, r)| *r < threshold) {
                self.stats.ejections_success_rate.inc();
                self.stats.detected(rate_kind).inc();
                let rates = Some(Rates { host: rate, average, threshold });
                let d = self.eject(now, hosts[i], rate_kind, hosts.len(), random, rates);
                decisions.extend(d.map(|d| (i, d)));
            }
        }
        if !by_failure.is_empty() && enough(by_failure.len(), c.failure_percentage_minimum_hosts) {
            for (i, rate) in by_failure {
                // A host that its success rate ejected a moment ago is not ejected twice.
                if 100.0 - rate < f64::from(c.failure_percentage_threshold) || ejected(hosts[i]) {
                    continue;
                }
                self.stats.detected(failure_kind).inc();
                let rates = Some(Rates { host: rate, average: -1.0, threshold: -1.0 });
                let d = self.eject(now, hosts[i], failure_kind, hosts.len(), random, rates);
                decisions.extend(d.map(|d| (i, d)));
            }
        }
    }
}

fn ejected(host: &HostState) -> bool {
    host.flags().has(HealthFlags::FAILED_OUTLIER_CHECK)
}

/// The mean, and the mean less `factor` standard deviations.
#[allow(clippy::cast_precision_loss)] // counts of hosts
fn rate_threshold(rates: &[(usize, f64)], factor: f64) -> (f64, f64) {
    let n = rates.len() as f64;
    let mean = rates.iter().map(|(_, r)| r).sum::<f64>() / n;
    let variance = rates.iter().map(|(_, r)| (r - mean).powi(2)).sum::<f64>() / n;
    (mean, mean - factor * variance.sqrt())
}
