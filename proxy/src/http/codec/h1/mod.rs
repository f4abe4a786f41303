//! Our HTTP/1 codec, both sides, with the verdicts of Envoy 1.40's default codec (Balsa).
//!
//! - `buffer`: pooled read buffers; an idle connection holds none.
//! - `parse`: a complete head into a `Head`; `lines`: what request and response heads and trailers share.
//! - `semantics`: what the head means: framing, upgrade, keep-alive, connection header.
//! - `chunk` and `body`: the body's bytes, decoded or still framed.
//! - `encode` and `write`: heads to bytes; head and body in one writev.
//! - `server` and `client`: a connection of either side.
//!
//! Where we differ from Envoy on purpose: a chunk-size line is limited to 4 KiB, extensions included.

mod body;
mod buffer;
mod chunk;
mod client;
mod encode;
mod lines;
mod parse;
mod semantics;
mod server;
#[cfg(test)]
mod tests;
mod write;

pub use client::ClientConn;
pub use encode::reason;
pub(super) use semantics::{is_upgrade, valid_authority};
pub use server::ServerConn;

use crate::config::hcm::Http1Options;

/// What a connection needs to know of the configuration; made once and shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    pub http1: Http1Options,
    /// Largest head, KiB: `max_request_headers_kb` or `max_response_headers_kb`.
    pub max_headers_kb: u32,
    /// Most fields in a head: `max_headers_count`.
    pub max_headers_count: u32,
}

impl Default for Options {
    fn default() -> Options {
        Options { http1: Http1Options::default(), max_headers_kb: 60, max_headers_count: 100 }
    }
}

#[doc(hidden)]
pub mod fuzzing {
    //! Entry points for the fuzz targets: whole inputs, no connection.
    pub use super::chunk::{Chunk, Scanner};
    pub use super::parse::{request, response};
}
