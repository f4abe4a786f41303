//! `istio.workload`: workload discovery, the part that telemetry and authorization of a sidecar look at. Other fields of the messages
//! are skipped when they are read. Source: pkg/workloadapi/workload.proto of istio/istio.

use prost::{Message, Name};

use super::named;

/// `istio.workload.Address`.
#[derive(Clone, PartialEq, Message)]
pub struct Address {
    /// A workload or a service.
    #[prost(oneof = "AddressKind", tags = "1, 2")]
    pub r#type: Option<AddressKind>,
}

/// What an [`Address`] is.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum AddressKind {
    /// A pod or another workload.
    #[prost(message, tag = "1")]
    Workload(Workload),
    /// A service.
    #[prost(message, tag = "2")]
    Service(Service),
}

/// `istio.workload.Workload`.
#[derive(Clone, PartialEq, Message)]
pub struct Workload {
    /// A key that no other workload has.
    #[prost(string, tag = "20")]
    pub uid: String,
    /// The pod's name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The pod's namespace.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// IP addresses, 4 or 16 bytes each.
    #[prost(bytes = "vec", repeated, tag = "3")]
    pub addresses: Vec<Vec<u8>>,
    /// The network, empty for the default one.
    #[prost(string, tag = "4")]
    pub network: String,
    /// The trust domain, empty for the mesh's.
    #[prost(string, tag = "6")]
    pub trust_domain: String,
    /// The service account, empty for `default`.
    #[prost(string, tag = "7")]
    pub service_account: String,
    /// Telemetry's canonical service.
    #[prost(string, tag = "10")]
    pub canonical_name: String,
    /// Telemetry's canonical revision.
    #[prost(string, tag = "11")]
    pub canonical_revision: String,
    /// What kind of thing owns the pod.
    #[prost(enumeration = "WorkloadType", tag = "12")]
    pub workload_type: i32,
    /// The owner's name.
    #[prost(string, tag = "13")]
    pub workload_name: String,
    /// The cluster that the pod runs in.
    #[prost(string, tag = "18")]
    pub cluster_id: String,
}

/// `istio.workload.Service`.
#[derive(Clone, PartialEq, Message)]
pub struct Service {
    /// The service's name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The service's namespace.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// The full host name.
    #[prost(string, tag = "3")]
    pub hostname: String,
}

/// `istio.workload.WorkloadType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum WorkloadType {
    /// `DEPLOYMENT`.
    Deployment = 0,
    /// `CRONJOB`.
    Cronjob = 1,
    /// `POD`.
    Pod = 2,
    /// `JOB`.
    Job = 3,
}

named! {
    Address = "istio.workload", "Address";
    Workload = "istio.workload", "Workload";
    Service = "istio.workload", "Service";
}
