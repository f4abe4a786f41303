//! What one running workload knows: readiness, the failures it was told to produce, its cache. Failing is decided here.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use rand::Rng;
use tokio::sync::watch;

use super::echo::Backends;
use super::metrics::Metrics;
use super::{WorkloadError, WorkloadOptions};

/// More keys than this are refused: the cache is a toy, not a way to fill memory.
const CACHE_KEYS: usize = 1024;

pub(super) struct State {
    pub(super) options: WorkloadOptions,
    pub(super) host: String,
    pub(super) metrics: Metrics,
    pub(super) backends: Backends,
    pub(super) panicked: watch::Sender<bool>,
    ready: AtomicBool,
    served: AtomicU64,
    faults: Mutex<Option<Faults>>,
    cache: Mutex<HashMap<String, Bytes>>,
}

/// Of each `of` requests the first `fail` get `status`; every request waits for `delay`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub(super) struct Faults {
    pub(super) fail: u64,
    pub(super) of: u64,
    pub(super) status: u16,
    pub(super) delay_ms: u64,
}

/// What to do with a request before it reaches its handler.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) delay: Duration,
    pub(super) status: Option<StatusCode>,
}

impl State {
    pub(super) fn new(options: WorkloadOptions) -> Result<Self, WorkloadError> {
        let faults = options.fail_sequence.as_deref().map(Faults::parse).transpose()?;
        Ok(Self {
            host: options.host(),
            metrics: Metrics::new(&options.version)?,
            backends: Backends::new(options.backend_url.clone()),
            panicked: watch::Sender::new(false),
            ready: AtomicBool::new(!options.unready),
            served: AtomicU64::new(0),
            faults: Mutex::new(faults),
            cache: Mutex::new(HashMap::new()),
            options,
        })
    }

    pub(super) fn ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    pub(super) fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }

    pub(super) fn faults(&self) -> Option<Faults> {
        *lock(&self.faults)
    }

    /// Replaces the failures; the sequence starts anew.
    pub(super) fn set_faults(&self, faults: Option<Faults>) {
        self.served.store(0, Ordering::Relaxed);
        *lock(&self.faults) = faults;
    }

    pub(super) fn judge(&self) -> Verdict {
        let mut verdict = Verdict::default();
        if let Some(faults) = self.faults() {
            verdict.delay = Duration::from_millis(faults.delay_ms);
            if self.served.fetch_add(1, Ordering::Relaxed) % faults.of.max(1) < faults.fail {
                verdict.status = StatusCode::from_u16(faults.status).ok();
            }
        }
        if self.options.random_delay {
            verdict.delay += Duration::from_millis(rand::rng().random_range(0..5000));
        }
        if self.options.random_error && rand::rng().random_range(0..3) == 0 {
            const STATUSES: [StatusCode; 4] = [
                StatusCode::BAD_REQUEST,
                StatusCode::CONFLICT,
                StatusCode::INTERNAL_SERVER_ERROR,
                StatusCode::SERVICE_UNAVAILABLE,
            ];
            verdict.status = Some(STATUSES[rand::rng().random_range(0..STATUSES.len())]);
        }
        verdict
    }

    pub(super) fn cached(&self, key: &str) -> Option<Bytes> {
        lock(&self.cache).get(key).cloned()
    }

    /// False when the cache is full.
    pub(super) fn cache(&self, key: &str, value: &Bytes) -> bool {
        let mut cache = lock(&self.cache);
        let fits = cache.len() < CACHE_KEYS || cache.contains_key(key);
        if fits {
            cache.insert(key.to_owned(), value.clone());
        }
        fits
    }

    pub(super) fn forget(&self, key: &str) {
        lock(&self.cache).remove(key);
    }
}

impl Faults {
    /// `FAIL/OF[:STATUS]`.
    pub(super) fn parse(text: &str) -> Result<Self, WorkloadError> {
        let wrong = || WorkloadError::FailSequence(text.to_owned());
        let (sequence, status) = text.split_once(':').unwrap_or((text, "503"));
        let (fail, of) = sequence.split_once('/').ok_or_else(wrong)?;
        let faults = Self {
            fail: fail.parse().map_err(|_| wrong())?,
            of: of.parse().map_err(|_| wrong())?,
            status: status.parse().map_err(|_| wrong())?,
            delay_ms: 0,
        };
        let status_known = (200..600).contains(&faults.status);
        if faults.of == 0 || !status_known { Err(wrong()) } else { Ok(faults) }
    }
}

/// Each update leaves the map whole, so a lock that a panic poisoned is as good as before.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
