//! The bootstrap from a file and from the command line, as `envoy -c FILE --config-yaml TEXT` reads it: JSON or YAML, the text merged
//! over the file (messages merge, lists grow, scalars are replaced). Unknown fields are refused with their path.

use std::path::{Path, PathBuf};

use envoy_types::pb::envoy::config::bootstrap::v3 as pb;
use outrigger_xds::json::{JsonError, Schema};
use prost::Message;

use super::bootstrap::Bootstrap;
use super::proto::bootstrap::Converted;
use super::proto::{ConfigError, Env, Need};
use super::validate;

/// Why there is no bootstrap.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("unable to read {path}: {source}", path = path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{origin}: {source}")]
    Parse { origin: String, source: JsonError },
    #[error("{origin}: {reason}")]
    Wire { origin: String, reason: String },
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("at least one of --config-path or --config-yaml should be non-empty")]
    Nothing,
}

/// Where the bootstrap comes from, and what the command line says of the node.
#[derive(Clone, Debug, Default)]
pub struct Source<'a> {
    /// `-c`.
    pub path: Option<&'a Path>,
    /// `--config-yaml`.
    pub yaml: Option<&'a str>,
    pub service_node: &'a str,
    pub service_cluster: &'a str,
    pub service_zone: &'a str,
}

/// A bootstrap, ready to start from.
#[derive(Debug)]
pub struct Loaded {
    pub bootstrap: Bootstrap,
    /// What conversion of dynamic resources needs.
    pub env: Env,
    /// What each static cluster needs of dynamic resources, in the order of `bootstrap.clusters`.
    pub cluster_needs: Vec<Vec<Need>>,
    /// The same of each static listener.
    pub listener_needs: Vec<Vec<Need>>,
    /// The merged message as bytes, for `config_dump`.
    pub raw: Vec<u8>,
}

/// Reads, merges and converts.
///
/// # Errors
/// A file that cannot be read, text that is not the message, a value that is not served; with file, resource and field named.
pub fn bootstrap(source: &Source<'_>) -> Result<Loaded, LoadError> {
    from_message(message(source)?)
}

/// The bootstrap of one file.
///
/// # Errors
/// As [`bootstrap`].
pub fn bootstrap_from_file(path: &Path) -> Result<Loaded, LoadError> {
    bootstrap(&Source { path: Some(path), ..Source::default() })
}

/// The bootstrap of a text, YAML or JSON.
///
/// # Errors
/// As [`bootstrap`].
pub fn bootstrap_from_yaml(yaml: &str) -> Result<Loaded, LoadError> {
    bootstrap(&Source { yaml: Some(yaml), ..Source::default() })
}

/// Converts a bootstrap message, for instance one that the agent made.
///
/// # Errors
/// As [`bootstrap`].
pub fn from_message(message: pb::Bootstrap) -> Result<Loaded, LoadError> {
    let raw = message.encode_to_vec();
    let Converted { bootstrap, env, cluster_needs, listener_needs } =
        super::proto::bootstrap::bootstrap(message)?;
    // Clusters that CDS brings may come later; without CDS an unknown one stays unknown.
    let known = |name: &str| bootstrap.cds.is_some() || bootstrap.clusters.iter().any(|c| &*c.name == name);
    for listener in &bootstrap.listeners {
        validate::listener(listener, &known)?;
    }
    Ok(Loaded { bootstrap, env, cluster_needs, listener_needs, raw })
}

fn message(source: &Source<'_>) -> Result<pb::Bootstrap, LoadError> {
    // The descriptors live no longer than this function.
    let schema = Schema::load();
    let mut out = match (source.path, source.yaml) {
        (None, None) => return Err(LoadError::Nothing),
        (None, Some(_)) => pb::Bootstrap::default(),
        (Some(path), _) => file(&schema, path)?,
    };
    if let Some(text) = source.yaml {
        let over: pb::Bootstrap = schema
            .parse_yaml(text)
            .map_err(|source| LoadError::Parse { origin: "--config-yaml".to_owned(), source })?;
        out.merge(over.encode_to_vec().as_slice())
            .map_err(|e| LoadError::Wire { origin: "--config-yaml".to_owned(), reason: e.to_string() })?;
    }
    if source.service_node.is_empty() && source.service_cluster.is_empty() && source.service_zone.is_empty() {
        return Ok(out);
    }
    let node = out.node.get_or_insert_default();
    if !source.service_node.is_empty() {
        source.service_node.clone_into(&mut node.id);
    }
    if !source.service_cluster.is_empty() {
        source.service_cluster.clone_into(&mut node.cluster);
    }
    if !source.service_zone.is_empty() {
        source.service_zone.clone_into(&mut node.locality.get_or_insert_default().zone);
    }
    Ok(out)
}

/// Reads one file by its ending, as Envoy does: `.pb` is binary, `.yaml` and `.yml` YAML, all else JSON; JSON that begins with
/// neither brace nor white space is tried as YAML, since every JSON text is YAML too.
fn file(schema: &Schema, path: &Path) -> Result<pb::Bootstrap, LoadError> {
    let bytes = std::fs::read(path).map_err(|source| LoadError::Read { path: path.to_owned(), source })?;
    let origin = path.display().to_string();
    if path.extension().is_some_and(|e| e == "pb") {
        return pb::Bootstrap::decode(bytes.as_slice())
            .map_err(|e| LoadError::Wire { origin, reason: e.to_string() });
    }
    let Ok(text) = String::from_utf8(bytes) else {
        return Err(LoadError::Wire { origin, reason: "is not UTF-8".to_owned() });
    };
    let json =
        !path.extension().is_some_and(|e| e == "yaml" || e == "yml") && text.trim_start().starts_with('{');
    if json { schema.parse_json(&text) } else { schema.parse_yaml(&text) }
        .map_err(|source| LoadError::Parse { origin, source })
}
