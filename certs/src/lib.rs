//! A workload's SPIFFE identity, without a proxy: key and CSR ([`key`], [`csr`]), the client of Istio's certificate service ([`ca_client`]), certificates as
//! they are held ([`identity`], [`store`]), their renewal ([`rotation`]), files that kubelet or a user mounts ([`mod@file`]), and the verification of a
//! peer's chain ([`verify`], [`spiffe`]). [`ca`] and [`ca_server`] are a certificate authority for the demo and for tests.
//!
//! It follows what istio-agent does (security/pkg/nodeagent of istio/istio) and <https://spiffe.io/docs/latest/spiffe-about/spiffe-concepts/>.

pub mod ca;
pub mod ca_client;
pub mod ca_server;
pub mod clock;
pub mod csr;
pub mod file;
pub mod identity;
pub mod key;
mod proto;
pub mod rotation;
pub mod spiffe;
pub mod store;
pub mod verify;
