//! The workload's options: podinfo's flags where podinfo has them.

use std::time::Duration;

/// What the workload says of itself, and how it misbehaves.
#[derive(Debug, Clone, clap::Args)]
pub struct WorkloadOptions {
    /// Port for HTTP/1.1 and HTTP/2 without TLS.
    #[arg(long, default_value_t = 9898, env = "PODINFO_PORT_NUMBER")]
    pub port: u16,
    /// Version shown by `/`, `/version` and the `app_version` label.
    #[arg(long = "version", default_value = "v1", id = "workload_version")]
    pub version: String,
    /// Name shown as `hostname`; the HOSTNAME of the pod if left out.
    #[arg(long)]
    pub hostname: Option<String>,
    #[arg(long, default_value = "greetings from podinfo")]
    pub ui_message: String,
    #[arg(long, default_value = "#34577c")]
    pub ui_color: String,
    /// Where `/echo` forwards to; may be given several times.
    #[arg(long)]
    pub backend_url: Vec<String>,
    /// One request in three fails with a random 4xx or 5xx status.
    #[arg(long)]
    pub random_error: bool,
    /// Each request waits between zero and five seconds.
    #[arg(long)]
    pub random_delay: bool,
    /// `FAIL/OF[:STATUS]`: of each OF requests the first FAIL are answered with STATUS (503).
    #[arg(long)]
    pub fail_sequence: Option<String>,
    /// Start with `/readyz` refusing.
    #[arg(long)]
    pub unready: bool,
    /// How long open requests may take after SIGTERM, in seconds.
    #[arg(long, default_value_t = 5)]
    pub shutdown_timeout: u64,
}

impl Default for WorkloadOptions {
    fn default() -> Self {
        Self {
            port: 9898,
            version: "v1".into(),
            hostname: None,
            ui_message: "greetings from podinfo".into(),
            ui_color: "#34577c".into(),
            backend_url: Vec::new(),
            random_error: false,
            random_delay: false,
            fail_sequence: None,
            unready: false,
            shutdown_timeout: 5,
        }
    }
}

impl WorkloadOptions {
    pub(super) fn host(&self) -> String {
        self.hostname
            .clone()
            .or_else(|| std::env::var("HOSTNAME").ok())
            .or_else(|| std::fs::read_to_string("/etc/hostname").ok().map(|name| name.trim().to_owned()))
            .unwrap_or_else(|| "localhost".to_owned())
    }

    pub(super) fn shutdown_timeout(&self) -> Duration {
        Duration::from_secs(self.shutdown_timeout)
    }
}
