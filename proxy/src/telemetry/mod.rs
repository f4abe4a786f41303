//! Telemetry: stats, access logs, formats, traces.

pub mod stats;
