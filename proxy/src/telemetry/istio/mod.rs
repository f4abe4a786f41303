//! What Istio adds to Envoy's telemetry: peers' metadata and the `istio_*` metrics (Istio docs: reference/config/metrics).

pub mod metrics;
pub mod peer;
