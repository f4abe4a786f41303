//! HTTP: the connection manager.
//!
//! `connection` serves a downstream connection, `exchange` one request from head to access log: `sanitize`, `path`,
//! `request_id`, `xfcc` prepare the head, `filters` run, `forward` tries upstreams with `relay` moving the bodies, `mirror`
//! sends copies, `local_reply` answers itself. `codec` is the seam to HTTP/1.1 and HTTP/2. Follows Envoy's docs
//! intro/arch_overview/http/http_connection_management.

pub mod codec;
pub mod connection;
mod date;
mod exchange;
pub mod filters;
mod forward;
pub mod hcm;
pub mod local_reply;
mod mirror;
mod path;
mod relay;
pub mod request_id;
mod sanitize;
mod stats;
mod timer;
mod xfcc;
