//! TLS contexts and secrets: `envoy.extensions.transport_sockets.tls.v3`.

use std::sync::Arc;

use super::matcher::StringMatcher;

/// Shared by both directions: `CommonTlsContext`.
#[derive(Clone, Debug)]
pub struct CommonTls {
    pub min_version: TlsVersion,
    pub max_version: TlsVersion,
    /// OpenSSL names as configured; those that rustls lacks are skipped with a warning, an empty rest is refused.
    pub ciphers: Vec<Arc<str>>,
    pub curves: Vec<Arc<str>>,
    pub alpn: Vec<Arc<str>>,
    pub certificates: Vec<CertificateSource>,
    pub validation: Option<Validation>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    V1_2,
    V1_3,
}

#[derive(Clone, Debug)]
pub enum CertificateSource {
    /// PEM read when the configuration came.
    Inline(Arc<TlsCertificate>),
    /// By SDS: the secret's name in the secret store.
    Sds(Arc<str>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsCertificate {
    pub chain_pem: Arc<[u8]>,
    pub key_pem: Arc<[u8]>,
    /// File names, where it came from files, for reloads and `/certs`.
    pub chain_path: Option<Arc<str>>,
    pub key_path: Option<Arc<str>>,
    pub ocsp: Option<Arc<[u8]>>,
}

/// `CertificateValidationContext`, alone or combined with one from SDS.
#[derive(Clone, Debug, Default)]
pub struct Validation {
    /// PEM of the trusted roots; `None` with an SDS name: from there.
    pub trusted_ca: Option<Arc<[u8]>>,
    pub trusted_ca_path: Option<Arc<str>>,
    /// `system_root_certs`.
    pub system_roots: bool,
    /// `validation_context_sds_secret_config`: the roots' secret name.
    pub sds: Option<Arc<str>>,
    pub sans: Vec<SanMatcher>,
    /// SHA-256 of the certificate (hex, lower case, no colons) and of its SPKI (base64).
    pub cert_hashes: Vec<Arc<str>>,
    pub spki_hashes: Vec<Arc<str>>,
    pub crl: Option<Arc<[u8]>>,
    pub only_leaf_crl: bool,
    /// `ACCEPT_UNTRUSTED`.
    pub accept_untrusted: bool,
    pub allow_expired: bool,
    /// `auto_sni_san_validation` and `auto_host_sni` of the upstream context live there.
    pub max_verify_depth: Option<u32>,
}

#[derive(Clone, Debug)]
pub struct SanMatcher {
    pub kind: SanKind,
    pub matcher: StringMatcher,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SanKind {
    /// `match_subject_alt_names` (deprecated form): any kind.
    Any,
    Dns,
    Uri,
    Ip,
    Email,
}

#[derive(Clone, Debug)]
pub struct DownstreamTls {
    pub common: CommonTls,
    pub require_client_certificate: bool,
    pub session_tickets: bool,
    pub session_resumption: bool,
    pub full_scan_certs_on_sni_mismatch: bool,
}

#[derive(Clone, Debug)]
pub struct UpstreamTls {
    pub common: CommonTls,
    pub sni: Option<Arc<str>>,
    pub auto_host_sni: bool,
    pub auto_sni_san_validation: bool,
    pub allow_renegotiation: bool,
    pub max_session_keys: u32,
}

/// A transport socket of a cluster or filter chain.
#[derive(Clone, Debug)]
pub enum TransportSocket<T> {
    RawBuffer,
    Tls(Arc<T>),
    /// `envoy.transport_sockets.upstream_proxy_protocol` around another one: its version.
    ProxyProtocol {
        version: u8,
        inner: Box<TransportSocket<T>>,
    },
}

/// A secret from a file, the bootstrap, SDS or the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Secret {
    Certificate(Arc<TlsCertificate>),
    /// PEM of roots, and a CRL.
    Roots {
        pem: Arc<[u8]>,
        crl: Option<Arc<[u8]>>,
    },
    Generic(Arc<[u8]>),
}
