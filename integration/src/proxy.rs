//! The proxy under test as a child process. It is killed when its handle is dropped, whatever happens.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::time::Instant;

use crate::admin;

#[derive(Debug)]
pub struct Proxy {
    child: Child,
    log: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot run {path}: {source}")]
    Spawn { path: String, source: io::Error },
    #[error("it ended before it was ready, {status}")]
    Exited { status: ExitStatus },
    #[error("not ready after {0} s")]
    NotReady(u64),
}

const READY_SECONDS: u64 = 10;

impl Proxy {
    /// Starts `binary` on `config`; its output goes to a file beside it.
    ///
    /// # Errors
    /// The binary cannot be run.
    pub fn start(binary: &Path, config: &Path, args: &[OsString]) -> Result<Self, StartError> {
        let spawn_error = |source| StartError::Spawn { path: binary.display().to_string(), source };
        let log = config.with_file_name("proxy-output.txt");
        let out = std::fs::File::create(&log).map_err(spawn_error)?;
        let err = out.try_clone().map_err(spawn_error)?;
        let child = Command::new(binary)
            .arg("-c")
            .arg(config)
            .args(args)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .kill_on_drop(true)
            .spawn()
            .map_err(spawn_error)?;
        Ok(Self { child, log })
    }

    /// Waits until `/ready` says so.
    ///
    /// # Errors
    /// The process ended or stays unready.
    pub async fn ready(&mut self, admin_port: u16) -> Result<(), StartError> {
        let end = Instant::now() + Duration::from_secs(READY_SECONDS);
        while Instant::now() < end {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(StartError::Exited { status });
            }
            if let Ok((head, _)) = admin::fetch(admin_port, "GET", "/ready").await
                && head.status() == 200
            {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err(StartError::NotReady(READY_SECONDS))
    }

    /// The exit status if the process ends by itself within the limit.
    pub async fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        tokio::time::timeout(limit, self.child.wait()).await.ok()?.ok()
    }

    /// Asks it to end, so that it flushes its logs; kills it if it does not.
    pub async fn stop(&mut self) {
        if let Some(pid) = self.child.id() {
            // The kill program saves an unsafe call; the process is ours and not yet reaped.
            let _ = Command::new("kill").arg("-TERM").arg(pid.to_string()).status().await;
        }
        if self.wait(Duration::from_secs(4)).await.is_none() {
            let _ = self.child.kill().await;
        }
    }

    /// Everything it printed.
    #[must_use]
    pub fn output(&self) -> String {
        std::fs::read(&self.log).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default()
    }
}

/// Whether this binary is Envoy itself.
#[must_use]
pub fn is_envoy(binary: &Path) -> bool {
    binary.file_name().is_some_and(|n| n == "envoy")
}
