//! What pilot-agent does around the proxy: the init container's rules, requests from inside the pod, readiness, bootstrap,
//! certificates, probes, metrics, DNS. Follows Istio's reference pages of pilot-agent.

pub mod dns;
pub mod iptables;
pub mod request;
pub mod status;
pub mod wait;
