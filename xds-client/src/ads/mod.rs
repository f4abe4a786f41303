//! The client of the aggregated discovery service, delta and state of the world behind one API.
//! Source: <https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol>; delta as istiod serves it.
//!
//! [`Subscriptions`] is the protocol without I/O: commands and responses in, requests out. [`AdsClient::spawn`] runs it over a gRPC
//! stream that it opens again when it ends. The owner reads [`AdsEvent`]s and answers each [`Response`] with
//! [`AdsHandle::ack`], in the order in which the responses of a type came:
//!
//! ```text
//! AdsHandle ──subscribe, ack──▶ Subscriptions ──requests──▶ stream ─▶ control plane
//! AdsEvent  ◀─────────────────  Subscriptions ◀─responses── stream ◀─
//! ```

mod client;
mod request;
mod resource;
mod service;
mod subscriptions;

pub use self::client::{AdsClient, AdsConfig, AdsEvent, AdsHandle, AdsState};
pub use self::request::{Ack, Request, truncate_error};
pub use self::resource::{Rejection, Resource, Response, Verdict};
pub use self::service::Service;
pub use self::subscriptions::Subscriptions;

/// Which of the two ADS methods the stream uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Variant {
    /// `DeltaAggregatedResources`: changes only.
    #[default]
    Delta,
    /// `StreamAggregatedResources`: every resource of a type in each response.
    StateOfTheWorld,
}
