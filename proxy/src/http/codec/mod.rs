//! The codec seam: one pull-shaped interface over HTTP/1.1 and HTTP/2, for either side of an exchange.
//!
//! An exchange owns a `DownStream` and an `UpStream` and polls both from one task; nothing here spawns, sends on a channel
//! or waits by itself. Follows Envoy's `Http::ServerConnection` and `Http::ClientConnection`, turned from push to pull.
//!
//! The life of a message, receiving: `poll_head`, then `poll_body` until it says `Trailers` or `End`; after `Data` the
//! bytes are in `data()` until `consume`d, and `data_ends()` tells whether they are the last ones. Sending: `send_head`,
//! then `poll_send_data` (or `_bytes`, `_raw`) until all is gone, `send_trailers` perhaps, and `poll_finish`. Head and first
//! data leave in one write. `h1/` is our own codec, `h2/` the h2 crate on a corked transport.

mod down;
mod error;
pub mod h1;
pub mod h2;
mod up;

pub use down::DownStream;
pub use error::{CodecError, Http1Error, Http2Error, ResetReason};
pub use h1::reason;
pub use up::UpStream;

use crate::config::hcm::Protocol;

/// Largest response head, KiB, where `max_response_headers_kb` is not set: what Envoy 1.40 lets through.
pub const DEFAULT_RESPONSE_HEADERS_KB: u32 = 80;

/// What `poll_body` found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyEvent {
    /// Bytes stand in `data()`; `consume` them, then poll again (unless `data_ends()`).
    Data,
    /// The body is over; `trailers()` has the trailers; nothing follows.
    Trailers,
    /// The message is over.
    End,
}

/// What a request's head says beside its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestMeta {
    pub protocol: Protocol,
    /// No body follows.
    pub end: bool,
    /// It asks for an upgrade (HTTP/1: `Connection: upgrade` with `Upgrade`; HTTP/2: extended CONNECT) or is a CONNECT.
    pub tunnel: Tunnel,
    /// The client waits for `100 Continue`.
    pub expect_continue: bool,
    /// The client lets the connection live on afterwards (always true for HTTP/2).
    pub keep_alive: bool,
}

/// What a response's head says beside its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseMeta {
    pub status: u16,
    /// No body follows.
    pub end: bool,
    /// 1xx except 101: the final head is still to come.
    pub informational: bool,
}

/// Whether a request wants to leave HTTP's message framing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tunnel {
    No,
    /// `Upgrade: …`; the type stands in the head.
    Upgrade,
    Connect,
}

/// Bytes of one stream, as Envoy's bytes meter counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// `%DOWNSTREAM_WIRE_BYTES_RECEIVED%`: everything, framing included.
    pub wire_received: u64,
    pub wire_sent: u64,
    /// Head and trailers alone.
    pub header_received: u64,
    pub header_sent: u64,
    /// Payload alone, as `%BYTES_RECEIVED%`.
    pub body_received: u64,
    /// Payload sent by `poll_send_data` and `poll_send_bytes`; what goes through `poll_send_raw` is the reader's
    /// `body_received`.
    pub body_sent: u64,
}
