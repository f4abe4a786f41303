//! Slow start: a new host's weight grows over a window (Envoy docs: "Slow start mode").

use tokio::time::Instant;

use crate::config::cluster::SlowStart;
use crate::upstream::host::Host;

/// Whether the host is in its window.
pub(super) fn active(host: &Host, slow: Option<&SlowStart>, now: Instant) -> bool {
    slow.is_some_and(|s| now.saturating_duration_since(host.state.since) < s.window)
}

/// The host's weight now: `weight * max(min_weight, (time / window) ^ (1 / aggression))`.
pub(super) fn weight(host: &Host, slow: Option<&SlowStart>, now: Instant) -> f64 {
    let full = f64::from(host.weight);
    let Some(slow) = slow.filter(|s| active(host, Some(s), now)) else { return full };
    // A host is at least a millisecond old.
    let age = now.saturating_duration_since(host.state.since).as_secs_f64().max(0.001);
    let factor = (age / slow.window.as_secs_f64()).powf(1.0 / slow.aggression);
    full * factor.max(slow.min_weight / 100.0).min(1.0)
}
