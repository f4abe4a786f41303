//! Tracing of a connection manager: `HttpConnectionManager.Tracing` with the OpenTelemetry provider.

use std::sync::Arc;

use super::matcher::Fraction;
use crate::head::HeaderName;

#[derive(Clone, Debug)]
pub struct Tracing {
    /// `client_sampling`, `random_sampling`, `overall_sampling`.
    pub client: Fraction,
    pub random: Fraction,
    pub overall: Fraction,
    /// `verbose`.
    pub verbose: bool,
    /// `max_path_tag_length`, bytes.
    pub max_path_tag_length: usize,
    pub custom_tags: Vec<CustomTag>,
    /// `spawn_upstream_span`: an own span for each try.
    pub spawn_upstream_span: bool,
    pub provider: Option<Arc<Provider>>,
    /// From the listener's traffic direction: an egress span is a client's, an ingress span a server's.
    pub egress: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Provider {
    /// Cluster of the OTLP gRPC service; `None`: no export, only propagation.
    pub cluster: Option<Arc<str>>,
    /// `:authority` of the export calls.
    pub authority: Option<Arc<str>>,
    pub service_name: Arc<str>,
    /// Extra resource attributes from resource detectors (environment).
    pub resource_attributes: Vec<(Arc<str>, Arc<str>)>,
    /// The export call's timeout, milliseconds.
    pub timeout_ms: u64,
    /// `http_service` instead of gRPC: the path to POST to.
    pub http_path: Option<Arc<str>>,
}

#[derive(Clone, Debug)]
pub struct CustomTag {
    pub tag: Arc<str>,
    pub source: TagSource,
}

#[derive(Clone, Debug)]
pub enum TagSource {
    /// A literal, or an environment variable resolved when the configuration came.
    Literal(Arc<str>),
    RequestHeader {
        name: HeaderName,
        default: Option<Arc<str>>,
    },
    /// Dynamic metadata of the request: namespace and key path.
    RequestMetadata {
        path: Arc<[Arc<str>]>,
        default: Option<Arc<str>>,
    },
    RouteMetadata {
        path: Arc<[Arc<str>]>,
        default: Option<Arc<str>>,
    },
    ClusterMetadata {
        path: Arc<[Arc<str>]>,
        default: Option<Arc<str>>,
    },
    HostMetadata {
        path: Arc<[Arc<str>]>,
        default: Option<Arc<str>>,
    },
}
