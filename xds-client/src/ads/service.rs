//! Which gRPC service a stream speaks to. All of them exchange the same messages; they differ in their path. Source: the services in
//! envoy/service/*/v3 of Envoy's API.

use http::uri::PathAndQuery;

use super::Variant;

/// A discovery service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Service {
    /// Every type on one stream (`ads: {}`).
    #[default]
    Aggregated,
    /// Clusters alone.
    Cluster,
    /// Endpoints alone.
    Endpoint,
    /// Listeners alone.
    Listener,
    /// Route configurations alone.
    Route,
    /// Secrets alone: an SDS server.
    Secret,
    /// Runtime layers alone.
    Runtime,
    /// Extension configurations alone.
    ExtensionConfig,
}

impl Service {
    /// The path of the streaming method.
    #[must_use]
    pub fn path(self, variant: Variant) -> PathAndQuery {
        use Variant::{Delta, StateOfTheWorld as Sotw};
        PathAndQuery::from_static(match (self, variant) {
            (Self::Aggregated, Delta) => {
                "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
            }
            (Self::Aggregated, Sotw) => {
                "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
            }
            (Self::Cluster, Delta) => "/envoy.service.cluster.v3.ClusterDiscoveryService/DeltaClusters",
            (Self::Cluster, Sotw) => "/envoy.service.cluster.v3.ClusterDiscoveryService/StreamClusters",
            (Self::Endpoint, Delta) => "/envoy.service.endpoint.v3.EndpointDiscoveryService/DeltaEndpoints",
            (Self::Endpoint, Sotw) => "/envoy.service.endpoint.v3.EndpointDiscoveryService/StreamEndpoints",
            (Self::Listener, Delta) => "/envoy.service.listener.v3.ListenerDiscoveryService/DeltaListeners",
            (Self::Listener, Sotw) => "/envoy.service.listener.v3.ListenerDiscoveryService/StreamListeners",
            (Self::Route, Delta) => "/envoy.service.route.v3.RouteDiscoveryService/DeltaRoutes",
            (Self::Route, Sotw) => "/envoy.service.route.v3.RouteDiscoveryService/StreamRoutes",
            (Self::Secret, Delta) => "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets",
            (Self::Secret, Sotw) => "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets",
            (Self::Runtime, Delta) => "/envoy.service.runtime.v3.RuntimeDiscoveryService/DeltaRuntime",
            (Self::Runtime, Sotw) => "/envoy.service.runtime.v3.RuntimeDiscoveryService/StreamRuntime",
            (Self::ExtensionConfig, Delta) => {
                "/envoy.service.extension.v3.ExtensionConfigDiscoveryService/DeltaExtensionConfigs"
            }
            (Self::ExtensionConfig, Sotw) => {
                "/envoy.service.extension.v3.ExtensionConfigDiscoveryService/StreamExtensionConfigs"
            }
        })
    }
}
