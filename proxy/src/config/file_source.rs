//! Dynamic resources from a file: `path_config_source` (a `DiscoveryResponse` as JSON, YAML or binary).
//!
//! The file is looked at several times a second: a change of inode, time or length means a new version. A file that cannot be
//! read or parsed leaves what is there as it is, and is read again at its next change.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryResponse, Resource};
use outrigger_xds::json::Schema;
use prost::Message;

/// How often a file is looked at.
pub const POLL: Duration = Duration::from_millis(100);

/// What tells one version of a file from the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    seconds: i64,
    nanos: i64,
}

/// One watched file.
#[derive(Debug)]
pub struct FileSource {
    path: PathBuf,
    seen: Option<Stamp>,
    /// The file was missing when last looked at, and that was told.
    missing: bool,
}

/// The resources of a file, of one type.
#[derive(Debug, PartialEq, Eq)]
pub struct Content {
    pub version: String,
    /// Type URL; of the response, else of the first resource. Empty: no resources, and no type given.
    pub type_url: String,
    /// Name (empty: in the message), version, encoded message.
    pub resources: Vec<(String, String, Vec<u8>)>,
}

/// Why a file gave no resources.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{path}: {reason}")]
pub struct FileError {
    pub path: String,
    pub reason: String,
}

impl FileSource {
    pub fn new(path: &Arc<str>) -> FileSource {
        FileSource { path: PathBuf::from(&**path), seen: None, missing: false }
    }

    /// Reads the file again at the next poll although it did not change: somebody needs a part of it that nobody needed before.
    pub fn forget(&mut self) {
        self.seen = None;
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn error(&self, reason: impl Into<String>) -> FileError {
        FileError { path: self.path.display().to_string(), reason: reason.into() }
    }

    /// The content, if the file is new or changed since the last call.
    ///
    /// # Errors
    /// A file that is missing (told once), unreadable, or not a `DiscoveryResponse`.
    pub fn poll(&mut self) -> Option<Result<Content, FileError>> {
        let meta = match std::fs::metadata(&self.path) {
            Ok(m) => m,
            Err(e) => {
                let told = std::mem::replace(&mut self.missing, true);
                return (!told).then(|| Err(self.error(e.to_string())));
            }
        };
        self.missing = false;
        let stamp = Stamp {
            device: meta.dev(),
            inode: meta.ino(),
            length: meta.len(),
            seconds: meta.mtime(),
            nanos: meta.mtime_nsec(),
        };
        if self.seen == Some(stamp) {
            return None;
        }
        self.seen = Some(stamp);
        let bytes = match std::fs::read(&self.path) {
            Ok(b) => b,
            Err(e) => return Some(Err(self.error(e.to_string()))),
        };
        Some(self.parse(bytes))
    }

    fn parse(&self, bytes: Vec<u8>) -> Result<Content, FileError> {
        let extension = self.path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        let response: DiscoveryResponse = match extension {
            "pb" => DiscoveryResponse::decode(bytes.as_slice()).map_err(|e| self.error(e.to_string()))?,
            _ => {
                let text = String::from_utf8(bytes).map_err(|_| self.error("is not UTF-8"))?;
                let schema = Schema::load();
                let json = extension == "json" || text.trim_start().starts_with('{');
                let parsed = if json { schema.parse_json(&text) } else { schema.parse_yaml(&text) };
                parsed.map_err(|e| self.error(e.to_string()))?
            }
        };
        const WRAPPER: &str = "type.googleapis.com/envoy.service.discovery.v3.Resource";
        let mut type_url = response.type_url;
        let mut resources = Vec::with_capacity(response.resources.len());
        for (i, any) in response.resources.into_iter().enumerate() {
            let (name, version, any) = if any.type_url == WRAPPER {
                let wrapped = Resource::decode(any.value.as_slice())
                    .map_err(|e| self.error(format!("resources[{i}]: {e}")))?;
                let inner = wrapped
                    .resource
                    .ok_or_else(|| self.error(format!("resources[{i}].resource: is required")))?;
                (wrapped.name, wrapped.version, inner)
            } else {
                (String::new(), String::new(), any)
            };
            if type_url.is_empty() {
                type_url.clone_from(&any.type_url);
            } else if any.type_url != type_url {
                return Err(
                    self.error(format!("resources[{i}]: is of type {}, not {type_url}", any.type_url))
                );
            }
            resources.push((name, version, any.value));
        }
        Ok(Content { version: response.version_info, type_url, resources })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTERS: &str = r#"{"version_info": "7", "resources": [{"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "name": "a"}]}"#;

    #[test]
    fn a_file_is_read_once_for_each_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cds.json");
        let mut source = FileSource::new(&path.to_string_lossy().as_ref().into());
        assert!(source.poll().unwrap().unwrap_err().reason.contains("No such file"));
        assert!(source.poll().is_none());
        std::fs::write(&path, CLUSTERS).unwrap();
        let content = source.poll().unwrap().unwrap();
        assert_eq!((content.version.as_str(), content.resources.len()), ("7", 1));
        assert!(content.type_url.ends_with("envoy.config.cluster.v3.Cluster"));
        assert!(source.poll().is_none());
        let next = dir.path().join("next");
        std::fs::write(&next, CLUSTERS.replace("\"7\"", "\"8\"")).unwrap();
        std::fs::rename(&next, &path).unwrap();
        assert_eq!(source.poll().unwrap().unwrap().version, "8");
    }

    #[test]
    fn what_is_wrong_with_a_file_is_told_with_its_name_and_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cds.yaml");
        std::fs::write(
            &path,
            "resources:\n- '@type': type.googleapis.com/envoy.config.cluster.v3.Cluster\n  nme: a\n",
        )
        .unwrap();
        let mut source = FileSource::new(&path.to_string_lossy().as_ref().into());
        let e = source.poll().unwrap().unwrap_err();
        assert!(
            e.path.ends_with("cds.yaml") && e.reason.contains("resources[0]") && e.reason.contains("nme"),
            "{e}"
        );
    }
}
