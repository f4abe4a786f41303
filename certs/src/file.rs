//! Certificates and roots in files: mounted secrets, `/etc/certs`, and the SDS names that Istio gives to paths. Files are looked at
//! at intervals, because kubelet swaps a symlink to a directory, which watches on the file itself miss; they are read again
//! when time, size or inode differ, and replaced in the store when they parse.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::identity::{IdentityError, WorkloadCertificate};
use crate::store::{Secret, SecretStore};
use crate::verify::TrustBundle;

/// Files that make a secret.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum FileSecret {
    /// A chain and its key.
    Certificate {
        /// PEM, leaf first.
        chain: PathBuf,
        /// PEM.
        key: PathBuf,
    },
    /// Roots, with an optional list of what they have revoked.
    Roots {
        /// PEM.
        path: PathBuf,
        /// PEM.
        crl: Option<PathBuf>,
    },
}

/// Why a file's secret is not there.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FileError {
    /// The file cannot be read.
    #[error("{path}: {reason}")]
    Read {
        /// Which.
        path: String,
        /// The system's words.
        reason: String,
    },
    /// It can, and is no good.
    #[error(transparent)]
    Content(#[from] IdentityError),
}

impl FileSecret {
    /// Reads Istio's SDS names for files: `file-cert:<chain>~<key>` and `file-root:<path>`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        if let Some(paths) = name.strip_prefix("file-cert:") {
            let (chain, key) = paths.split_once('~')?;
            return (!chain.is_empty() && !key.is_empty())
                .then(|| Self::Certificate { chain: chain.into(), key: key.into() });
        }
        let path = name.strip_prefix("file-root:")?;
        // `file-root:<path>~<crl>` is how istiod names a root with a list.
        let (path, crl) = path.split_once('~').map_or((path, None), |(path, crl)| (path, Some(crl.into())));
        (!path.is_empty()).then(|| Self::Roots { path: path.into(), crl })
    }

    /// Reads and checks the files.
    ///
    /// # Errors
    /// A file that cannot be read or does not hold what it should; the text names it.
    pub fn load(&self) -> Result<Secret, FileError> {
        match self {
            Self::Certificate { chain, key } => {
                let origin = format!("{} with {}", chain.display(), key.display());
                let certificate = WorkloadCertificate::from_pem(&origin, &read(chain)?, &read(key)?)?;
                Ok(Secret::Certificate(Arc::new(certificate)))
            }
            Self::Roots { path, crl } => {
                let mut roots = TrustBundle::from_pem(&path.display().to_string(), &read(path)?)?;
                if let Some(crl) = crl {
                    roots = roots.with_crls(&crl.display().to_string(), &read(crl)?)?;
                }
                Ok(Secret::Roots(Arc::new(roots)))
            }
        }
    }

    fn paths(&self) -> Vec<&Path> {
        match self {
            Self::Certificate { chain, key } => vec![chain, key],
            Self::Roots { path, crl } => std::iter::once(path).chain(crl).map(PathBuf::as_path).collect(),
        }
    }

    /// What tells a changed file: symlinks are followed, so that a swap shows as another inode. `None` for a file that is not there.
    fn fingerprint(&self) -> Vec<Option<(i64, i64, u64, u64)>> {
        let stat = |path: &Path| {
            fs::metadata(path).ok().map(|meta| (meta.mtime(), meta.mtime_nsec(), meta.size(), meta.ino()))
        };
        self.paths().into_iter().map(stat).collect()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    fs::read(path)
        .map_err(|error| FileError::Read { path: path.display().to_string(), reason: error.to_string() })
}

struct Watched {
    secret: FileSecret,
    fingerprint: Vec<Option<(i64, i64, u64, u64)>>,
    error: Option<String>,
}

type WatchedFiles = Arc<Mutex<HashMap<String, Watched>>>;

/// Keeps secrets of a store equal to files. The watching ends when this is dropped; the secrets stay.
pub struct FileWatcher {
    store: SecretStore,
    watched: WatchedFiles,
    task: JoinHandle<()>,
}

impl Drop for FileWatcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl FileWatcher {
    /// Starts on the current runtime; files are looked at every `interval`.
    #[must_use]
    pub fn spawn(store: SecretStore, interval: Duration) -> Self {
        let watched = WatchedFiles::default();
        let task = tokio::spawn(poll(store.clone(), Arc::clone(&watched), interval));
        Self { store, watched, task }
    }

    /// Puts the files' secret into the store under `name`, now and whenever they change. A file that fails now is tried again when it changes.
    ///
    /// # Errors
    /// The files cannot be read or are no good; they are watched nevertheless.
    pub fn watch(&self, name: &str, secret: FileSecret) -> Result<(), FileError> {
        let fingerprint = secret.fingerprint();
        let loaded = secret.load();
        let error = loaded.as_ref().err().map(ToString::to_string);
        lock(&self.watched).insert(name.to_owned(), Watched { secret, fingerprint, error });
        self.store.set(name, loaded?);
        Ok(())
    }

    /// Forgets a name: its files are not looked at any more and its secret is removed.
    pub fn unwatch(&self, name: &str) {
        if lock(&self.watched).remove(name).is_some() {
            self.store.remove(name);
        }
    }

    /// The names whose files are no good, with what is wrong. The last good secret stays in the store.
    #[must_use]
    pub fn errors(&self) -> Vec<(String, String)> {
        let watched = lock(&self.watched);
        let mut errors: Vec<_> =
            watched.iter().filter_map(|(name, file)| Some((name.clone(), file.error.clone()?))).collect();
        errors.sort();
        errors
    }
}

fn lock(watched: &WatchedFiles) -> std::sync::MutexGuard<'_, HashMap<String, Watched>> {
    // Each entry is whole at any time; a panic elsewhere does not spoil it.
    watched.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn poll(store: SecretStore, watched: WatchedFiles, interval: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        let mut changes = Vec::new();
        for (name, file) in lock(&watched).iter_mut() {
            let fingerprint = file.secret.fingerprint();
            if fingerprint == file.fingerprint {
                continue;
            }
            // Chain and key are two files: a half-written pair fails here and is read again at the next change.
            match file.secret.load() {
                Ok(secret) => {
                    file.error = None;
                    changes.push((name.clone(), secret));
                }
                Err(error) => {
                    tracing::warn!(%name, %error, "changed file not taken");
                    file.error = Some(error.to_string());
                }
            }
            file.fingerprint = fingerprint;
        }
        for (name, secret) in changes {
            store.set(&name, secret);
        }
    }
}

#[cfg(test)]
mod tests;
