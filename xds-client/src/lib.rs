//! Envoy's xDS transport, without a proxy: the ADS client ([`ads`]), gRPC connections to a control plane ([`connector`]),
//! protobuf's JSON and YAML forms ([`json`]), Istio's own messages ([`istio`]) and a small control plane ([`server`]).
//!
//! It follows <https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol>.

pub mod ads;
pub mod backoff;
pub mod connector;
pub mod istio;
pub mod json;
pub mod server;
pub mod type_url;
