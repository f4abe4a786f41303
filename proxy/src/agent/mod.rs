//! What pilot-agent does around the proxy, in the proxy's own process. Follows Istio's reference page of pilot-agent.
//!
//! `environment` and `proxy_config` read what istiod injected; `node` and `bootstrap` follow from it; `sidecar` starts everything;
//! `secrets` obtains the certificate; `status` serves 15020, `dns` 15053. `iptables` is the init container; `request` and `wait`
//! are what people and hooks call inside the pod.

pub mod bootstrap;
pub mod dns;
pub mod environment;
pub mod iptables;
pub mod node;
pub mod proxy_config;
pub mod request;
mod secrets;
pub mod sidecar;
pub mod status;
#[cfg(test)]
mod tests;
pub mod wait;
