//! Outrigger: an L7 sidecar proxy that takes the place of istio-proxy under an unchanged istiod.
//!
//! Modules depend downwards only: `agent` → {`listener`, `http`, `tcp`, `admin`} → `router` → `upstream` → `tls` →
//! {`config`, `telemetry`} → {`head`, `stream_info`, `net`}. ARCHITECTURE.md has the pictures.

pub mod admin;
pub mod agent;
pub mod cli;
pub mod config;
pub mod demo;
pub mod head;
pub mod http;
pub mod listener;
pub mod net;
pub mod rbac;
pub mod router;
pub mod server;
pub mod stream_info;
pub mod tcp;
pub mod telemetry;
pub mod tls;
pub mod upstream;
pub mod worker;
