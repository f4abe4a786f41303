//! What a host's requests did lately: consecutive failures and success rates by interval. Workers write it without a lock;
//! a threshold that is met comes back as a kind of ejection to ask the detector for.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::{EjectionKind, Side};
use crate::config::cluster::OutlierDetection;

/// `Upstream::Outlier::Result`, with the status where there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A response's status.
    Status(u16),
    /// The connection stands; the request is still to be judged.
    ConnectSuccess,
    /// The connection stands and nothing more will be known (TCP).
    ConnectSuccessFinal,
    /// A timeout: counts as 504 where local and external origins are not split.
    LocalTimeout,
    /// The connection failed: counts as 503.
    ConnectFailed,
    /// The stream was reset after it began: counts as 500.
    RequestFailed,
    /// The exchange went well without a status (Redis and the like).
    RequestSuccess,
}

/// Thresholds met, in the order in which the detector hears of them: one gateway error can meet two.
pub type Met = [Option<EjectionKind>; 2];

const NONE: Met = [None, None];

#[derive(Debug, Default)]
struct Rate {
    total: AtomicU64,
    success: AtomicU64,
    /// The interval before this one.
    last_total: AtomicU64,
    last_success: AtomicU64,
    /// Bits of the `f64` for `/clusters`, offset so that zero means none.
    published: AtomicU64,
}

#[derive(Debug, Default)]
struct Ejection {
    count: u32,
    backoff: u32,
    jitter: Duration,
    ejected: Option<Instant>,
    unejected: Option<Instant>,
}

/// The monitor of one host.
#[derive(Debug, Default)]
pub struct Monitor {
    consecutive_5xx: AtomicU32,
    consecutive_gateway: AtomicU32,
    consecutive_local: AtomicU32,
    external: Rate,
    local: Rate,
    ejection: Mutex<Ejection>,
}

impl Monitor {
    /// Takes an outcome. The result names the thresholds that exactly this one met.
    pub fn record(&self, outcome: Outcome, config: &OutlierDetection) -> Met {
        if config.split_external_local {
            self.record_split(outcome, config)
        } else {
            self.record_plain(outcome, config)
        }
    }

    fn record_plain(&self, outcome: Outcome, config: &OutlierDetection) -> Met {
        match outcome {
            Outcome::Status(code) => self.status(code, config),
            Outcome::ConnectSuccess => NONE,
            Outcome::ConnectSuccessFinal | Outcome::RequestSuccess => self.status(200, config),
            Outcome::LocalTimeout => self.status(504, config),
            Outcome::ConnectFailed => self.status(503, config),
            Outcome::RequestFailed => self.status(500, config),
        }
    }

    fn record_split(&self, outcome: Outcome, config: &OutlierDetection) -> Met {
        match outcome {
            Outcome::Status(code) => self.status(code, config),
            Outcome::ConnectSuccess | Outcome::ConnectSuccessFinal => {
                self.local_success();
                NONE
            }
            Outcome::LocalTimeout | Outcome::ConnectFailed => {
                self.local.total.fetch_add(1, Relaxed);
                let n = self.consecutive_local.fetch_add(1, Relaxed) + 1;
                [
                    (n == config.consecutive_local_origin)
                        .then_some(EjectionKind::ConsecutiveLocalOriginFailure),
                    None,
                ]
            }
            Outcome::RequestFailed => self.status(500, config),
            Outcome::RequestSuccess => {
                self.local_success();
                self.status(200, config)
            }
        }
    }

    fn local_success(&self) {
        self.local.total.fetch_add(1, Relaxed);
        self.local.success.fetch_add(1, Relaxed);
        clear(&self.consecutive_local);
    }

    fn status(&self, code: u16, config: &OutlierDetection) -> Met {
        self.external.total.fetch_add(1, Relaxed);
        if !(500..600).contains(&code) {
            self.external.success.fetch_add(1, Relaxed);
            clear(&self.consecutive_5xx);
            clear(&self.consecutive_gateway);
            return NONE;
        }
        let mut met = NONE;
        if (502..=504).contains(&code) {
            let n = self.consecutive_gateway.fetch_add(1, Relaxed) + 1;
            if n == config.consecutive_gateway {
                met[0] = Some(EjectionKind::ConsecutiveGatewayFailure);
            }
        } else {
            clear(&self.consecutive_gateway);
        }
        let n = self.consecutive_5xx.fetch_add(1, Relaxed) + 1;
        if n == config.consecutive_5xx {
            met[1] = Some(EjectionKind::Consecutive5xx);
        }
        met
    }

    pub(super) fn reset_consecutive(&self, kind: EjectionKind) {
        match kind {
            EjectionKind::Consecutive5xx => clear(&self.consecutive_5xx),
            EjectionKind::ConsecutiveGatewayFailure => clear(&self.consecutive_gateway),
            EjectionKind::ConsecutiveLocalOriginFailure => clear(&self.consecutive_local),
            EjectionKind::SuccessRate
            | EjectionKind::SuccessRateLocalOrigin
            | EjectionKind::FailurePercentage
            | EjectionKind::FailurePercentageLocalOrigin => {}
        }
    }

    /// A new interval begins; rates are read of the one that ended.
    pub(super) fn roll(&self) {
        for rate in [&self.external, &self.local] {
            rate.last_total.store(rate.total.swap(0, Relaxed), Relaxed);
            rate.last_success.store(rate.success.swap(0, Relaxed), Relaxed);
            rate.published.store(0, Relaxed);
        }
    }

    /// Success rate in percent and volume of the last interval; `None` without requests.
    #[allow(clippy::cast_precision_loss)] // counts of requests
    pub(super) fn rate(&self, side: Side) -> Option<(f64, u64)> {
        let rate = self.side(side);
        let total = rate.last_total.load(Relaxed);
        (total > 0).then(|| (rate.last_success.load(Relaxed) as f64 * 100.0 / total as f64, total))
    }

    pub(super) fn publish_rate(&self, side: Side, value: f64) {
        self.side(side).published.store(value.to_bits().wrapping_add(1), Relaxed);
    }

    fn side(&self, side: Side) -> &Rate {
        match side {
            Side::External => &self.external,
            Side::Local => &self.local,
        }
    }

    /// `success_rate` and `local_origin_success_rate` of `/clusters`: -1 when unknown.
    pub fn success_rates(&self) -> (f64, f64) {
        let read = |r: &Rate| match r.published.load(Relaxed) {
            0 => -1.0,
            bits => f64::from_bits(bits - 1),
        };
        (read(&self.external), read(&self.local))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Ejection> {
        // Each critical section is a few assignments; none leaves the value half written.
        self.ejection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn ejected(&self, now: Instant, jitter: Duration, base: Duration, max: Duration) {
        let mut e = self.lock();
        e.count += 1;
        e.ejected = Some(now);
        e.jitter = jitter;
        if base.saturating_mul(e.backoff) < max.saturating_add(base) {
            e.backoff += 1;
        }
    }

    /// When it was ejected, the back-off and the jitter.
    pub(super) fn ejection(&self) -> Option<(Instant, u32, Duration)> {
        let e = self.lock();
        Some((e.ejected?, e.backoff, e.jitter))
    }

    /// How often it was ejected.
    pub fn ejections(&self) -> u32 {
        self.lock().count
    }

    pub(super) fn since_unejection(&self, now: Instant) -> Option<Duration> {
        self.lock().unejected.map(|t| now.saturating_duration_since(t))
    }

    pub(super) fn unejected(&self, now: Instant) -> (u32, Option<Duration>) {
        clear(&self.consecutive_5xx);
        clear(&self.consecutive_gateway);
        clear(&self.consecutive_local);
        let mut e = self.lock();
        e.unejected = Some(now);
        (e.count, e.ejected.map(|t| now.saturating_duration_since(t)))
    }

    /// A host that has been back for an interval loses one step of its back-off.
    pub(super) fn decay(&self, now: Instant, interval: Duration) {
        let mut e = self.lock();
        if e.unejected.is_some_and(|t| now.saturating_duration_since(t) >= interval) {
            e.backoff = e.backoff.saturating_sub(1);
        }
    }
}

/// Zeroes without dirtying a cache line that is zero already: the common case of a success.
fn clear(counter: &AtomicU32) {
    if counter.load(Relaxed) != 0 {
        counter.store(0, Relaxed);
    }
}
