//! The admin interface: Envoy's endpoints and shapes (Envoy docs: operations/admin), on the control runtime.
//!
//! `server` accepts and answers HTTP, `routes` is the table of endpoints with their help, and each page has a file:
//! `info` (server, memory, runtime), `stats`, `clusters`, `listeners`, `certs`, `actions` (what changes state). State comes
//! in through `AdminState`, a handful of handles.

mod actions;
mod certs;
mod clusters;
mod info;
mod listeners;
mod page;
mod query;
mod request_log;
mod routes;
mod server;
mod server_stats;
mod stats;

pub use server::{AdminError, bind, serve};
pub use server_stats::{RuntimeStats, ServerStats};

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::config::access_log::AccessLog;
use crate::telemetry::stats::Tagger;
use crate::worker;

/// What the admin pages show and change.
pub struct AdminState {
    /// Store, stats, clusters, listeners, access log files, node.
    pub shared: Arc<worker::Shared>,
    /// Of the bootstrap's `stats_config`.
    pub tagger: Tagger,
    pub life: Arc<Life>,
    /// `server.*`, brought up to date when stats are read.
    pub server_stats: ServerStats,
    pub levels: Box<dyn LogLevels>,
    /// `None`: no `/config_dump`.
    pub config_dump: Option<Box<dyn ConfigDump>>,
    /// `command_line_options` of `/server_info`, in Envoy's names.
    pub options: serde_json::Map<String, Value>,
    /// The static runtime layers, merged.
    pub runtime: Vec<(Arc<str>, Value)>,
    /// Set to true by `/quitquitquit`.
    pub quit: watch::Sender<bool>,
    /// How long a graceful drain lasts before listeners stop.
    pub drain_time: Duration,
    /// `admin.access_log`.
    pub access_log: Vec<AccessLog>,
}

/// How far the server's life is.
#[derive(Debug)]
pub struct Life {
    phase: AtomicU8,
    start: Instant,
}

/// `envoy.admin.v3.ServerInfo.State`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    Live = 0,
    Draining = 1,
    PreInitializing = 2,
    Initializing = 3,
}

impl Life {
    /// A life that begins now, before anything is initialized.
    pub fn new() -> Arc<Life> {
        Arc::new(Life { phase: AtomicU8::new(Phase::PreInitializing as u8), start: Instant::now() })
    }

    /// Moves to another phase.
    pub fn set(&self, phase: Phase) {
        self.phase.store(phase as u8, Relaxed);
    }

    /// The phase now.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Relaxed) {
            0 => Phase::Live,
            1 => Phase::Draining,
            2 => Phase::PreInitializing,
            _ => Phase::Initializing,
        }
    }

    /// Time since the start.
    pub fn uptime(&self) -> Duration {
        self.start.elapsed()
    }
}

impl Phase {
    /// Envoy's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Live => "LIVE",
            Phase::Draining => "DRAINING",
            Phase::PreInitializing => "PRE_INITIALIZING",
            Phase::Initializing => "INITIALIZING",
        }
    }
}

impl AdminState {
    /// The phase as `/ready` and `/server_info` tell it: a failed health check is a drain.
    pub fn phase(&self) -> Phase {
        match self.life.phase() {
            Phase::Live if self.shared.health_failed.load(Relaxed) => Phase::Draining,
            phase => phase,
        }
    }
}

impl std::fmt::Debug for AdminState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdminState").field("life", &self.life).finish_non_exhaustive()
    }
}

/// The levels of the process's own log.
pub trait LogLevels: Send + Sync {
    /// Component and level, in Envoy's words.
    fn levels(&self) -> Vec<(String, String)>;
    /// Sets all; `false`: there is no such level.
    fn set_all(&self, level: &str) -> bool;
    /// Sets one component; `false`: there is no such component or level.
    fn set(&self, component: &str, level: &str) -> bool;
}

/// What `/config_dump` is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DumpQuery {
    pub resource: Option<String>,
    pub mask: Option<String>,
    pub name_regex: Option<String>,
    pub include_eds: bool,
}

/// The source of `/config_dump`.
pub trait ConfigDump: Send + Sync {
    /// `envoy.admin.v3.ConfigDump` as JSON.
    ///
    /// # Errors
    /// What is wrong with the query, as text for a 400.
    fn dump(&self, query: &DumpQuery) -> Result<String, String>;
}

#[cfg(test)]
mod tests;
