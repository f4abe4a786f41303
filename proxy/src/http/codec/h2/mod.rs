//! HTTP/2 by the h2 crate, used directly: its streams are pull-shaped, as our seam is.
//!
//! A connection has a task of its own (the listener's or the pool's), which polls `ServerConn::poll_accept` or the
//! `Driver`; each stream is polled by its exchange. `cork` makes one write of all that a poll of the connection produced.
//! `convert` translates heads, Envoy's way (`:authority`, cookie crumbs, extended CONNECT as an upgrade).

mod client;
mod convert;
mod cork;
mod server;
mod stream;
#[cfg(test)]
mod tests;

pub use client::{ClientConn, ClientHandle, ClientStream, Driver};
pub use server::{Accepted, ServerConn, ServerStream};

use crate::config::hcm::Http2Options;

/// What a connection needs to know of the configuration; made once and shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    pub http2: Http2Options,
    /// Largest head, KiB.
    pub max_headers_kb: u32,
    /// Most fields in a head.
    pub max_headers_count: u32,
}

impl Default for Options {
    fn default() -> Options {
        Options { http2: Http2Options::default(), max_headers_kb: 60, max_headers_count: 100 }
    }
}
