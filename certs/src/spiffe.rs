//! SPIFFE ids: `spiffe://<trust domain>/<path>`, in Istio `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.

use std::fmt;
use std::str::FromStr;

use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;

/// A SPIFFE id.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SpiffeId {
    trust_domain: String,
    path: String,
}

/// Why a text is not a SPIFFE id.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{text}` is not a SPIFFE id: {reason}")]
pub struct SpiffeError {
    text: String,
    reason: &'static str,
}

impl SpiffeId {
    /// The id of a Kubernetes service account.
    #[must_use]
    pub fn workload(trust_domain: &str, namespace: &str, service_account: &str) -> Self {
        Self { trust_domain: trust_domain.to_owned(), path: format!("ns/{namespace}/sa/{service_account}") }
    }

    /// The part between `spiffe://` and the next `/`.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// What follows the trust domain, without the leading `/`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The namespace of an Istio id.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        self.workload_parts().map(|(namespace, _)| namespace)
    }

    /// The service account of an Istio id.
    #[must_use]
    pub fn service_account(&self) -> Option<&str> {
        self.workload_parts().map(|(_, account)| account)
    }

    fn workload_parts(&self) -> Option<(&str, &str)> {
        let (namespace, account) = self.path.strip_prefix("ns/")?.split_once("/sa/")?;
        (!namespace.contains('/') && !account.contains('/')).then_some((namespace, account))
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}", self.trust_domain)?;
        if !self.path.is_empty() {
            write!(f, "/{}", self.path)?;
        }
        Ok(())
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeError;

    fn from_str(text: &str) -> Result<Self, SpiffeError> {
        let error = |reason| SpiffeError { text: text.to_owned(), reason };
        let rest = text.strip_prefix("spiffe://").ok_or_else(|| error("it does not start with spiffe://"))?;
        let (trust_domain, path) = rest.split_once('/').unwrap_or((rest, ""));
        if trust_domain.is_empty() {
            return Err(error("the trust domain is empty"));
        }
        if !trust_domain.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')) {
            return Err(error(
                "the trust domain has a character that is not a letter, a digit, `.`, `-` or `_`",
            ));
        }
        if path.chars().any(|c| c.is_ascii_control() || c == ' ' || !c.is_ascii()) {
            return Err(error("the path has a character that no URI may have"));
        }
        Ok(Self { trust_domain: trust_domain.to_owned(), path: path.to_owned() })
    }
}

/// The URI names of a certificate, as they stand in it.
///
/// # Errors
/// Bytes that are not a certificate.
pub fn uri_names(certificate: &CertificateDer<'_>) -> Result<Vec<String>, String> {
    subject_names(certificate).map(|names| names.uris)
}

/// The names in a certificate's subject alternative name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubjectNames {
    /// URIs.
    pub uris: Vec<String>,
    /// DNS names.
    pub dns: Vec<String>,
    /// IP addresses.
    pub addresses: Vec<std::net::IpAddr>,
    /// Mail addresses.
    pub emails: Vec<String>,
}

/// The subject alternative names of a certificate; empty if there are none.
///
/// # Errors
/// Bytes that are not a certificate.
pub fn subject_names(certificate: &CertificateDer<'_>) -> Result<SubjectNames, String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|error| format!("not a certificate: {error}"))?;
    let mut names = SubjectNames::default();
    let extension =
        parsed.subject_alternative_name().map_err(|error| format!("subject alternative name: {error}"))?;
    for name in extension.iter().flat_map(|extension| &extension.value.general_names) {
        match name {
            GeneralName::URI(uri) => names.uris.push((*uri).to_owned()),
            GeneralName::DNSName(name) => names.dns.push((*name).to_owned()),
            GeneralName::RFC822Name(mail) => names.emails.push((*mail).to_owned()),
            GeneralName::IPAddress(bytes) => {
                let address = <[u8; 4]>::try_from(*bytes)
                    .map(std::net::IpAddr::from)
                    .or_else(|_| <[u8; 16]>::try_from(*bytes).map(std::net::IpAddr::from));
                names.addresses.extend(address);
            }
            // Names that Envoy's SAN matchers do not look at either, or not in Istio's use.
            _ => {}
        }
    }
    Ok(names)
}

/// The first URI name that is a SPIFFE id: the peer's principal, as `istio_authn` takes it.
///
/// # Errors
/// Bytes that are not a certificate.
pub fn identity(certificate: &CertificateDer<'_>) -> Result<Option<SpiffeId>, String> {
    Ok(uri_names(certificate)?.iter().find_map(|uri| uri.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workload_id_has_namespace_and_account() {
        let id: SpiffeId = "spiffe://cluster.local/ns/demo/sa/web".parse().unwrap();
        assert_eq!(id, SpiffeId::workload("cluster.local", "demo", "web"));
        assert_eq!(
            (id.trust_domain(), id.namespace(), id.service_account()),
            ("cluster.local", Some("demo"), Some("web"))
        );
        assert_eq!(id.to_string(), "spiffe://cluster.local/ns/demo/sa/web");
        let other: SpiffeId = "spiffe://example.org".parse().unwrap();
        assert_eq!((other.namespace(), other.to_string().as_str()), (None, "spiffe://example.org"));
    }

    #[test]
    fn what_is_no_id_is_refused_with_its_reason() {
        for (text, part) in [
            ("http://a/b", "spiffe://"),
            ("spiffe:///ns", "empty"),
            ("spiffe://a:1/b", "character"),
            ("spiffe://a/b c", "path"),
        ] {
            let error = text.parse::<SpiffeId>().unwrap_err().to_string();
            assert!(error.contains(part) && error.contains(text), "{error}");
        }
    }
}
