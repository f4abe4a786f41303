//! Telemetry: stats, formats, access logs, CEL over attributes, Istio's metrics, traces.

pub mod access_log;
pub mod cel;
pub mod format;
pub mod istio;
pub mod node;
pub mod stats;
pub mod trace;
