//! The proxy's own log: Envoy's levels and component names over `tracing`, changeable at run time (`/logging`).

use std::sync::Arc;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::prelude::*;
use tracing_subscriber::reload;

/// Changes levels while the process runs.
#[derive(Clone)]
pub struct LogControl {
    reload: Arc<dyn Fn(EnvFilter) -> bool + Send + Sync>,
    state: Arc<std::sync::Mutex<Levels>>,
}

impl std::fmt::Debug for LogControl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogControl").finish_non_exhaustive()
    }
}

#[derive(Clone, Debug)]
struct Levels {
    all: String,
    components: Vec<(String, String)>,
}

/// A level or component that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    #[error("invalid log level '{0}': one of trace, debug, info, warning, error, critical, off")]
    Level(String),
    #[error("component log level '{0}' is not of the form component:level")]
    Component(String),
    #[error("cannot write the log to {0}: {1}")]
    File(String, String),
}

/// Components: our modules, under the names by which Envoy's loggers are known where there is one.
pub const COMPONENTS: &[(&str, &str)] = &[
    ("admin", "outrigger::admin"),
    ("config", "outrigger::config"),
    ("connection", "outrigger::listener"),
    ("filter", "outrigger::http::filters"),
    ("http", "outrigger::http"),
    ("main", "outrigger"),
    ("rbac", "outrigger::rbac"),
    ("router", "outrigger::router"),
    ("tracing", "outrigger::telemetry::trace"),
    ("upstream", "outrigger::upstream"),
    ("xds", "outrigger_xds"),
    ("secret", "outrigger_certs"),
    ("agent", "outrigger::agent"),
    ("dns", "hickory"),
];

fn level(text: &str) -> Result<&'static str, LogError> {
    Ok(match text {
        "trace" => "trace",
        "debug" => "debug",
        "info" => "info",
        "warn" | "warning" => "warn",
        "error" | "critical" => "error",
        "off" => "off",
        other => return Err(LogError::Level(other.to_owned())),
    })
}

impl Levels {
    fn filter(&self) -> EnvFilter {
        // Libraries below stay at warnings unless they are asked for: their info is not an operator's.
        let quiet = match self.all.as_str() {
            "trace" | "debug" => "info",
            "info" => "warn",
            other => other,
        };
        let mut text = format!("{quiet},outrigger={0},outrigger_xds={0},outrigger_certs={0}", self.all);
        for (target, level) in &self.components {
            text.push_str(&format!(",{target}={level}"));
        }
        EnvFilter::new(text)
    }
}

/// Starts logging to standard error, or to `path`. Only the first call of a process has an effect.
///
/// # Errors
/// A level or component that is none, or a file that cannot be opened.
pub fn start(all: &str, components: &str, path: Option<&str>) -> Result<LogControl, LogError> {
    let mut levels = Levels { all: level(all)?.to_owned(), components: Vec::new() };
    for pair in components.split(',').filter(|p| !p.is_empty()) {
        let (name, text) = pair.split_once(':').ok_or_else(|| LogError::Component(pair.to_owned()))?;
        let target = COMPONENTS
            .iter()
            .find(|(n, _)| *n == name)
            .map_or_else(|| format!("outrigger::{name}"), |(_, t)| (*t).to_owned());
        levels.components.push((target, level(text)?.to_owned()));
    }
    let (filter, handle) = reload::Layer::new(levels.filter());
    let writer = match path {
        None => tracing_subscriber::fmt::writer::BoxMakeWriter::new(std::io::stderr),
        Some(p) => {
            let file = std::fs::OpenOptions::new().create(true).append(true).open(p);
            let file = file.map_err(|e| LogError::File(p.to_owned(), e.to_string()))?;
            tracing_subscriber::fmt::writer::BoxMakeWriter::new(std::sync::Mutex::new(file))
        }
    };
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(false).with_target(true);
    let _ = tracing_subscriber::registry().with(filter).with(layer).try_init();
    Ok(LogControl {
        reload: Arc::new(move |f| handle.reload(f).is_ok()),
        state: Arc::new(std::sync::Mutex::new(levels)),
    })
}

impl LogControl {
    /// Sets the level of everything.
    ///
    /// # Errors
    /// No such level.
    pub fn set_all(&self, text: &str) -> Result<(), LogError> {
        let new = level(text)?;
        self.change(|l| {
            new.clone_into(&mut l.all);
            l.components.clear();
        });
        Ok(())
    }

    /// Sets the level of one component; false: there is no such component.
    ///
    /// # Errors
    /// No such level.
    pub fn set(&self, component: &str, text: &str) -> Result<bool, LogError> {
        let new = level(text)?.to_owned();
        let Some((_, target)) = COMPONENTS.iter().find(|(n, _)| *n == component) else { return Ok(false) };
        self.change(|l| {
            l.components.retain(|(t, _)| t != target);
            l.components.push(((*target).to_owned(), new));
        });
        Ok(true)
    }

    /// Component and level, in Envoy's words.
    pub fn levels(&self) -> Vec<(&'static str, String)> {
        let state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        COMPONENTS
            .iter()
            .map(|(name, target)| {
                let own = state.components.iter().find(|(t, _)| t == target).map(|(_, l)| l);
                let text = own.unwrap_or(&state.all);
                (*name, if text == "warn" { "warning".to_owned() } else { text.clone() })
            })
            .collect()
    }

    fn change(&self, edit: impl FnOnce(&mut Levels)) {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        edit(&mut state);
        if !(self.reload)(state.filter()) {
            tracing::error!("the log's levels could not be changed");
        }
    }
}
