//! The embedded default: workloads and a control plane in one process.

pub mod workload;
