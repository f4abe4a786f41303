//! Waits between attempts to reach a control plane: exponential with full jitter, as Envoy's `JitteredExponentialBackOffStrategy`
//! that gRPC streams to xDS servers use.

use std::time::Duration;

use rand::Rng as _;

/// The base and the cap of a [`Backoff`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackoffConfig {
    /// The cap of the first wait (`SubscriptionFactory::RetryInitialDelayMs`).
    pub base: Duration,
    /// The cap of every later wait (`SubscriptionFactory::RetryMaxDelayMs`).
    pub max: Duration,
}

impl Default for BackoffConfig {
    fn default() -> Self {
        Self { base: Duration::from_millis(500), max: Duration::from_secs(30) }
    }
}

/// A sequence of waits: each is drawn from zero to a bound that doubles up to the cap.
#[derive(Clone, Debug)]
pub struct Backoff {
    config: BackoffConfig,
    bound: Duration,
}

impl Backoff {
    /// Starts at the base.
    #[must_use]
    pub fn new(config: BackoffConfig) -> Self {
        Self { bound: config.base, config }
    }

    /// The next wait, at random.
    pub fn next_wait(&mut self) -> Duration {
        self.next_with(rand::rng().random::<f64>())
    }

    /// The next wait for `fraction` in [0, 1) of the bound; the deterministic part of [`Self::next_wait`].
    pub fn next_with(&mut self, fraction: f64) -> Duration {
        let wait = self.bound.mul_f64(fraction.clamp(0.0, 1.0));
        self.bound = (self.bound * 2).min(self.config.max.max(self.config.base));
        wait
    }

    /// Back to the base, after success.
    pub fn reset(&mut self) {
        self.bound = self.config.base;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bound_doubles_up_to_the_cap_and_resets() {
        let mut backoff = Backoff::new(BackoffConfig::default());
        let waits: Vec<u128> = (0..8).map(|_| backoff.next_with(1.0).as_millis()).collect();
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000]);
        backoff.reset();
        assert_eq!(backoff.next_with(0.5), Duration::from_millis(250));
    }

    #[test]
    fn random_wait_stays_below_the_bound() {
        let mut backoff = Backoff::new(BackoffConfig::default());
        for _ in 0..100 {
            backoff.reset();
            assert!(backoff.next_wait() < Duration::from_millis(500));
        }
    }
}
