//! The messages of `istio.v1.auth.IstioCertificateService`. Source: security/v1alpha1/ca.proto of istio/api.

/// `IstioCertificateRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct IstioCertificateRequest {
    /// The request, PEM.
    #[prost(string, tag = "1")]
    pub(crate) csr: String,
    /// Wanted validity, seconds.
    #[prost(int64, tag = "3")]
    pub(crate) validity_duration: i64,
    /// `CertSigner`, for a Kubernetes signer behind istiod.
    #[prost(message, optional, tag = "4")]
    pub(crate) metadata: Option<prost_types::Struct>,
}

/// `IstioCertificateResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct IstioCertificateResponse {
    /// PEM: the leaf, intermediates, at last the root.
    #[prost(string, repeated, tag = "1")]
    pub(crate) cert_chain: Vec<String>,
}

/// The service's name in paths.
pub(crate) const SERVICE: &str = "istio.v1.auth.IstioCertificateService";
/// The path of its one method.
pub(crate) const CREATE_CERTIFICATE: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
