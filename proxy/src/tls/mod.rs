//! TLS: rustls contexts built from the configuration and its secrets. Follows Envoy's "TLS" architecture page and
//! `envoy.extensions.transport_sockets.tls.v3`.
//!
//! A [`ServerContext`] or [`ClientContext`] belongs to one transport socket. It looks at the secret map it is handed at each
//! handshake and rebuilds its rustls configuration only when a secret it names has changed; until all of them are there it
//! is not ready. Files: `suites` (names of ciphers, curves and signatures), `certificate` (PEM to key and chain), `peer`
//! (facts of a certificate), `verify` (chain, SAN, pins, CRL), `outcome` (what rustls' callbacks learned), `error` (Envoy's
//! texts), `server`, `client`, `stats` (`ssl.*`), `xfcc` (pieces of `x-forwarded-client-cert`), `dump` (`/certs`).
//!
//! The aws-lc-rs provider is passed explicitly everywhere; the process default is never consulted.

mod certificate;
mod client;
mod dump;
mod error;
mod outcome;
mod peer;
mod server;
mod stats;
mod suites;
mod verify;
pub mod xfcc;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use crate::config::tls::Secret;

pub use certificate::{CertificateError, check_certificate, check_roots};
pub use client::{ClientContext, ConnectOptions};
pub use dump::{CertDetails, describe};
pub use error::{ContextError, TlsError};
pub use peer::CertFacts;
pub use server::ServerContext;
pub use stats::TlsStats;
pub use suites::{check_ciphers, check_curves};

/// The snapshot's secrets by SDS name.
pub type Secrets = Arc<HashMap<Arc<str>, Secret>>;
