//! The wall clock that validity is measured on. In tests it follows tokio's clock, which they pause and advance.

use std::time::SystemTime;

use tokio::time::Instant;

/// Tells the time of day.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    anchor: Option<(SystemTime, Instant)>,
}

impl Clock {
    /// The system's clock, steps included.
    #[must_use]
    pub fn system() -> Self {
        Self::default()
    }

    /// A clock that shows `start` now and moves with tokio's.
    #[must_use]
    pub fn from_tokio(start: SystemTime) -> Self {
        Self { anchor: Some((start, Instant::now())) }
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> SystemTime {
        match self.anchor {
            None => SystemTime::now(),
            Some((start, since)) => start + since.elapsed(),
        }
    }
}
