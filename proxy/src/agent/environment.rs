//! What istiod's injection template tells the sidecar: environment variables, PROXY_CONFIG, files of the downward API.
//! Follows Istio's pages "pilot-agent" (environment variables) and "ProxyConfig".

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use outrigger_certs::key::KeyAlgorithm;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::proxy_config::ProxyConfig;

/// Istio's default validity of a workload certificate.
const TTL: Duration = Duration::from_secs(24 * 3600);
/// Renewal at 75 % of the life. Istio's agent renews at half.
const GRACE_RATIO: f64 = 0.25;

/// Everything that is read once, at the start.
#[derive(Debug, Clone)]
pub struct Environment {
    pub pod: String,
    pub namespace: String,
    pub service_account: String,
    pub ip: IpAddr,
    pub trust_domain: String,
    pub cluster_id: String,
    /// `--domain`: `NAMESPACE.svc.cluster.local`.
    pub domain: String,
    pub proxy_config: ProxyConfig,
    /// Cores the pod may use, rounded up; 0 for no limit.
    pub cpu_limit: usize,
    /// `host:port` of the certificate service.
    pub ca_address: String,
    pub ttl: Duration,
    pub grace_ratio: f64,
    pub grace_jitter: f64,
    pub key_algorithm: KeyAlgorithm,
    pub token: PathBuf,
    pub xds_root: PathBuf,
    pub crl: PathBuf,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// ISTIO_META_X as X; ISTIO_METAJSON_X as the JSON it holds.
    pub metadata: Map<String, Value>,
    pub probers: String,
    pub prometheus_annotations: String,
    pub dns_capture: bool,
    pub exit_on_zero_connections: bool,
    pub minimum_drain: Duration,
}

/// What is wrong with the environment.
#[derive(Debug, thiserror::Error)]
pub enum EnvironmentError {
    #[error("{name} is not set: the sidecar has to be injected by istiod")]
    Missing { name: &'static str },
    #[error("{name}={value:?}: {reason}")]
    Value { name: String, value: String, reason: String },
    #[error("PROXY_CONFIG: {0}")]
    ProxyConfig(String),
}

/// Where variables and files come from; tests have their own.
pub struct Source<'a> {
    pub variables: &'a BTreeMap<String, String>,
    /// `/` in a pod.
    pub root: &'a Path,
}

impl Environment {
    /// # Errors
    /// A variable that is missing or not understood, by name.
    pub fn read(source: &Source<'_>, domain: Option<&str>) -> Result<Self, EnvironmentError> {
        let text = |name: &str| {
            source.variables.get(name).map(|value| value.trim()).filter(|value| !value.is_empty())
        };
        let required = |name: &'static str| text(name).ok_or(EnvironmentError::Missing { name });
        let proxy_config = ProxyConfig::parse(text("PROXY_CONFIG").unwrap_or("{}"))?;
        // What proxyMetadata says is as if it stood in the environment, which the template sees to; it wins here as well.
        let setting =
            |name: &str| proxy_config.proxy_metadata.get(name).map(String::as_str).or_else(|| text(name));
        let namespace = required("POD_NAMESPACE")?.to_owned();
        let mut metadata = Map::new();
        let all = source.variables.iter().chain(&proxy_config.proxy_metadata);
        for (name, value) in all {
            if let Some(key) = name.strip_prefix("ISTIO_METAJSON_") {
                let json: Value = serde_json::from_str(value).map_err(|error| wrong(name, value, &error))?;
                metadata.insert(key.to_owned(), json);
            } else if let Some(key) = name.strip_prefix("ISTIO_META_") {
                metadata.insert(key.to_owned(), Value::String(value.clone()));
            }
        }
        let file = |path: &str| source.root.join(path.trim_start_matches('/'));
        let read = |path: &str| std::fs::read_to_string(file(path)).unwrap_or_default();
        let ip = required("INSTANCE_IP")?;
        Ok(Self {
            pod: required("POD_NAME")?.to_owned(),
            service_account: text("SERVICE_ACCOUNT").unwrap_or("default").to_owned(),
            ip: ip.parse().map_err(|error| wrong("INSTANCE_IP", ip, &error))?,
            trust_domain: text("TRUST_DOMAIN").unwrap_or("cluster.local").to_owned(),
            cluster_id: text("ISTIO_META_CLUSTER_ID").unwrap_or("Kubernetes").to_owned(),
            domain: match domain {
                Some(domain) if !domain.is_empty() => domain.to_owned(),
                _ => format!("{namespace}.svc.cluster.local"),
            },
            cpu_limit: text("ISTIO_CPU_LIMIT").map_or(Ok(0), |value| parse("ISTIO_CPU_LIMIT", value))?,
            ca_address: setting("CA_ADDR").unwrap_or(&proxy_config.discovery_address).to_owned(),
            ttl: setting("SECRET_TTL").map_or(Ok(TTL), |value| duration("SECRET_TTL", value))?,
            grace_ratio: ratio(
                "SECRET_GRACE_PERIOD_RATIO",
                setting("SECRET_GRACE_PERIOD_RATIO"),
                GRACE_RATIO,
            )?,
            grace_jitter: ratio(
                "SECRET_GRACE_PERIOD_RATIO_JITTER",
                setting("SECRET_GRACE_PERIOD_RATIO_JITTER"),
                0.01,
            )?,
            key_algorithm: key_algorithm(setting("ECC_SIGNATURE_ALGORITHM"), setting("ECC_CURVE"))?,
            token: file("/var/run/secrets/tokens/istio-token"),
            xds_root: setting("XDS_ROOT_CA")
                .map_or_else(|| file("/var/run/secrets/istio/root-cert.pem"), PathBuf::from),
            crl: file("/var/run/secrets/istio/crl/ca-crl.pem"),
            labels: downward(&read("/etc/istio/pod/labels")),
            annotations: downward(&read("/etc/istio/pod/annotations")),
            probers: text("ISTIO_KUBE_APP_PROBERS").unwrap_or_default().to_owned(),
            prometheus_annotations: text("ISTIO_PROMETHEUS_ANNOTATIONS").unwrap_or_default().to_owned(),
            dns_capture: setting("ISTIO_META_DNS_CAPTURE") == Some("true"),
            exit_on_zero_connections: setting("EXIT_ON_ZERO_ACTIVE_CONNECTIONS") == Some("true"),
            minimum_drain: setting("MINIMUM_DRAIN_DURATION")
                .map_or(Ok(Duration::from_secs(5)), |value| duration("MINIMUM_DRAIN_DURATION", value))?,
            namespace,
            metadata,
            proxy_config,
        })
    }

    /// Worker threads: PROXY_CONFIG's, else the CPU limit, else two; 0 is all cores.
    #[must_use]
    pub fn concurrency(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        match (self.proxy_config.concurrency, self.cpu_limit) {
            (Some(0), 0) => cores(),
            (Some(0) | None, limit) if limit > 0 => limit,
            (Some(wanted), _) => wanted,
            (None, _) => 2,
        }
    }
}

fn wrong(name: &str, value: &str, reason: &dyn std::fmt::Display) -> EnvironmentError {
    EnvironmentError::Value { name: name.to_owned(), value: value.to_owned(), reason: reason.to_string() }
}

fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(
    name: &str,
    value: &str,
) -> Result<T, EnvironmentError> {
    value.parse().map_err(|error| wrong(name, value, &error))
}

fn ratio(name: &str, value: Option<&str>, default: f64) -> Result<f64, EnvironmentError> {
    let Some(value) = value else { return Ok(default) };
    let ratio = parse(name, value)?;
    if (0.0..=1.0).contains(&ratio) {
        Ok(ratio)
    } else {
        Err(wrong(name, value, &"expected a number from 0 to 1"))
    }
}

fn duration(name: &str, value: &str) -> Result<Duration, EnvironmentError> {
    go_duration(value).ok_or_else(|| wrong(name, value, &"expected a duration such as 1h30m"))
}

/// The key that Istio's two variables ask for. RSA where none does.
fn key_algorithm(signature: Option<&str>, curve: Option<&str>) -> Result<KeyAlgorithm, EnvironmentError> {
    match (signature, curve) {
        (None, _) => Ok(KeyAlgorithm::default()),
        (Some("ECDSA"), None | Some("P256")) => Ok(KeyAlgorithm::EcdsaP256),
        (Some("ECDSA"), Some("P384")) => Ok(KeyAlgorithm::EcdsaP384),
        (Some("ECDSA"), Some(curve)) => Err(wrong("ECC_CURVE", curve, &"expected P256 or P384")),
        (Some(other), _) => Err(wrong("ECC_SIGNATURE_ALGORITHM", other, &"expected ECDSA")),
    }
}

/// Go's durations: numbers with units, `1h30m`, `1.5s`, `300ms`.
pub(super) fn go_duration(text: &str) -> Option<Duration> {
    let mut total = 0.0;
    let mut rest = text.trim();
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let unit = rest[number..]
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .map_or(rest.len(), |at| number + at);
        let factor = match &rest[number..unit] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total += rest[..number].parse::<f64>().ok()? * factor;
        rest = &rest[unit..];
    }
    Duration::try_from_secs_f64(total).ok()
}

/// `key="value"`, one a line, quoted as Go does: what the downward API writes.
fn downward(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().filter_map(|line| line.split_once('='));
    lines
        .map(|(key, quoted)| {
            // A quoted Go string of these characters is a JSON string, too.
            let value = serde_json::from_str(quoted).unwrap_or_else(|_| quoted.trim_matches('"').to_owned());
            (key.to_owned(), value)
        })
        .collect()
}

/// A `Duration` of protobuf's JSON (`45s`), as ProxyConfig has them.
pub(super) fn proto_duration<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Duration>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| {
        go_duration(&text).ok_or_else(|| serde::de::Error::custom(format!("{text:?} is not a duration")))
    })
    .transpose()
}
