//! Starts the admin server of a proxy, and keeps what it shows: the server's phase, command line, log levels.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::logging::LogControl;
use super::{Options, ServerError};
use crate::admin::{self, AdminError, AdminState, ConfigDump, Life, LogLevels, Phase, ServerStats};
use crate::config::bootstrap::{Admin, StatsConfig};
use crate::telemetry::stats::{Tagger, Unit};
use crate::worker::Shared;

/// What of the bootstrap the admin server is made from.
pub(super) struct Parts {
    pub(super) admin: Option<Admin>,
    pub(super) stats: StatsConfig,
    pub(super) runtime: Vec<(Arc<str>, Value)>,
    pub(super) config_dump: Option<Box<dyn ConfigDump>>,
}

/// The running admin server.
pub(super) struct Started {
    /// Address as bound.
    pub(super) address: Option<String>,
    /// True once `/quitquitquit` was called.
    pub(super) quit: watch::Receiver<bool>,
    pub(super) life: Arc<Life>,
    pub(super) task: Option<JoinHandle<()>>,
}

/// Binds and serves, where the bootstrap has an admin address.
pub(super) fn start(
    parts: Parts,
    shared: &Arc<Shared>,
    options: &Options,
    control: &Handle,
) -> Result<Started, ServerError> {
    let life = Life::new();
    let (quit, quit_seen) = watch::channel(false);
    let started = |address, task| Started { address, quit: quit_seen.clone(), life: life.clone(), task };
    let server_stats = ServerStats::of(&shared.stats, options.concurrency, parts.runtime.len());
    let Some(admin) = parts.admin else { return Ok(started(None, None)) };
    // The listener registers with the runtime it is made in; the caller's thread is not one of its own.
    let bound = std::thread::scope(|s| {
        let bind = s.spawn(|| control.block_on(admin::bind(&admin.address)));
        bind.join().unwrap_or_else(|_| Err(AdminError::Address(admin.address.to_string())))
    })?;
    let address = bound.address();
    if let Some(path) = &options.admin_address_path {
        std::fs::write(path, &address)
            .map_err(|source| ServerError::AddressFile { path: path.display().to_string(), source })?;
    }
    let state = AdminState {
        shared: shared.clone(),
        tagger: Tagger::new(&parts.stats),
        life: life.clone(),
        server_stats,
        levels: Box::new(Levels(options.log.clone())),
        config_dump: parts.config_dump,
        options: command_line(options),
        runtime: parts.runtime,
        quit,
        drain_time: options.drain_time,
        access_log: admin.access_log,
    };
    let task = control.spawn(admin::serve(bound, Arc::new(state)));
    Ok(started(Some(address), Some(task)))
}

/// Moves the server to LIVE once the first configuration has come, and keeps the histograms' intervals.
pub(super) async fn live(
    life: Arc<Life>,
    synced: Option<watch::Receiver<bool>>,
    shared: Arc<Shared>,
    flush_interval: std::time::Duration,
) {
    if let Some(mut synced) = synced {
        life.set(Phase::Initializing);
        // The sender is gone only when the server ends.
        let _ = synced.wait_for(|s| *s).await;
    }
    let took = shared.stats.histogram("server.initialization_time_ms", Unit::Milliseconds);
    took.record_time(life.uptime(), Unit::Milliseconds);
    life.set(Phase::Live);
    let mut tick = tokio::time::interval(flush_interval.max(std::time::Duration::from_millis(100)));
    loop {
        tick.tick().await;
        shared.stats.flush();
    }
}

/// `command_line_options` of `/server_info`.
fn command_line(options: &Options) -> Map<String, Value> {
    let seconds = |d: std::time::Duration| format!("{}s", d.as_secs_f64());
    let text = |p: &Option<PathBuf>| p.as_ref().map(|p| p.display().to_string()).unwrap_or_default();
    let mut all = Map::new();
    let mut set = |key: &str, value: Value| {
        all.insert(key.to_owned(), value);
    };
    set("base_id", json!("0"));
    set("concurrency", json!(options.concurrency));
    set("config_path", json!(options.config_path));
    set("config_yaml", json!(""));
    set("admin_address_path", json!(text(&options.admin_address_path)));
    let level = options.log.as_ref().and_then(|l| l.levels().into_iter().find(|(n, _)| *n == "main"));
    set("log_level", json!(level.map_or_else(|| "info".to_owned(), |(_, l)| l)));
    set("file_flush_interval", json!(seconds(options.flush_interval)));
    set("drain_time", json!(seconds(options.drain_time)));
    set("mode", json!("Serve"));
    set("disable_hot_restart", json!(true));
    set("restart_epoch", json!(0));
    set("drain_strategy", json!("Gradual"));
    all
}

/// The process's log under admin's trait.
struct Levels(Option<LogControl>);

impl LogLevels for Levels {
    fn levels(&self) -> Vec<(String, String)> {
        let all = self.0.as_ref().map(LogControl::levels).unwrap_or_default();
        all.into_iter().map(|(name, level)| (name.to_owned(), level)).collect()
    }

    fn set_all(&self, level: &str) -> bool {
        self.0.as_ref().is_some_and(|l| l.set_all(level).is_ok())
    }

    fn set(&self, component: &str, level: &str) -> bool {
        self.0.as_ref().is_some_and(|l| l.set(component, level).unwrap_or(false))
    }
}
