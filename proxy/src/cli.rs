//! The command line: Envoy's options for running a bootstrap, and the words by which Istio's injection calls us.

use clap::{Args, Parser, Subcommand, ValueEnum};

/// A proxy that takes the place of istio-proxy. Without a command it runs an Envoy v3 bootstrap, as `envoy -c FILE` does.
#[derive(Debug, Parser)]
#[command(
    name = "outrigger",
    disable_version_flag = true,
    subcommand_negates_reqs = true,
    args_conflicts_with_subcommands = true
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub run: RunOptions,
}

/// What can be asked for beside running a bootstrap.
#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "one value in the life of a process")]
pub enum Command {
    /// Run as the proxy of a pod that istiod injected.
    Proxy(crate::agent::sidecar::ProxyOptions),
    /// Capture the pod's traffic: the init container.
    #[command(name = "istio-iptables")]
    Iptables(crate::agent::iptables::IptablesOptions),
    /// Ask a page of this pod's proxy.
    Request(crate::agent::request::RequestOptions),
    /// Wait until this pod's proxy is ready.
    Wait(crate::agent::wait::WaitOptions),
    /// Print the version.
    Version,
    /// Run a small mesh in this process: control plane, two sidecars, four workloads, and load through them.
    Demo(crate::demo::DemoOptions),
    /// Run the workload with podinfo's API that the demo and the tests use.
    #[command(hide = true)]
    Workload(crate::demo::workload::WorkloadOptions),
}

/// Envoy's own options.
#[derive(Clone, Debug, Args)]
pub struct RunOptions {
    /// Path of the bootstrap: YAML, or JSON by its ending.
    #[arg(short = 'c', long = "config-path")]
    pub config_path: Option<String>,
    /// A bootstrap in YAML that is merged over the file's.
    #[arg(long)]
    pub config_yaml: Option<String>,
    /// `serve`, or `validate`: load the configuration, say whether it is good, and exit.
    #[arg(long, value_enum, default_value_t = Mode::Serve)]
    pub mode: Mode,
    /// Worker threads; all CPUs by default.
    #[arg(long)]
    pub concurrency: Option<usize>,
    /// trace, debug, info, warning, error, critical, off.
    #[arg(short = 'l', long, default_value = "info")]
    pub log_level: String,
    /// Levels by component: `upstream:debug,http:trace`.
    #[arg(long, default_value = "")]
    pub component_log_level: String,
    /// Where log lines go instead of standard error.
    #[arg(long)]
    pub log_path: Option<String>,
    /// `node.id`, over the bootstrap's.
    #[arg(long, default_value = "")]
    pub service_node: String,
    /// `node.cluster`, over the bootstrap's.
    #[arg(long, default_value = "")]
    pub service_cluster: String,
    /// `node.locality.zone`, over the bootstrap's.
    #[arg(long, default_value = "")]
    pub service_zone: String,
    /// How often access logs are written out, milliseconds.
    #[arg(long, default_value_t = 10_000)]
    pub file_flush_interval_msec: u64,
    /// Seconds that draining takes.
    #[arg(long, default_value_t = 600)]
    pub drain_time_s: u64,
    /// A file to write the admin server's address to.
    #[arg(long)]
    pub admin_address_path: Option<String>,
    /// Print the version and exit.
    #[arg(long)]
    pub version: bool,

    #[command(flatten)]
    pub without_effect: WithoutEffect,
}

/// Options that Envoy knows and that have nothing to act on here: each is named in the log at debug level.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Accepted, without effect")]
pub struct WithoutEffect {
    #[arg(long)]
    pub base_id: Option<u32>,
    #[arg(long)]
    pub base_id_path: Option<String>,
    #[arg(long)]
    pub use_dynamic_base_id: bool,
    #[arg(long)]
    pub restart_epoch: Option<u32>,
    #[arg(long)]
    pub disable_hot_restart: bool,
    #[arg(long)]
    pub skip_hot_restart_on_no_parent: bool,
    #[arg(long)]
    pub skip_hot_restart_parent_stats: bool,
    #[arg(long)]
    pub hot_restart_version: bool,
    #[arg(long)]
    pub parent_shutdown_time_s: Option<u32>,
    #[arg(long)]
    pub drain_strategy: Option<String>,
    #[arg(long)]
    pub file_flush_min_size_kb: Option<u32>,
    #[arg(long)]
    pub log_format: Option<String>,
    #[arg(long)]
    pub log_format_escaped: bool,
    #[arg(long)]
    pub log_stacktrace_single_entry: bool,
    #[arg(long)]
    pub enable_fine_grain_logging: bool,
    #[arg(long)]
    pub enable_mutex_tracing: bool,
    #[arg(long)]
    pub enable_core_dump: bool,
    #[arg(long)]
    pub cpuset_threads: bool,
    #[arg(long)]
    pub local_address_ip_version: Option<String>,
    #[arg(long)]
    pub socket_path: Option<String>,
    #[arg(long)]
    pub socket_mode: Option<String>,
    #[arg(long)]
    pub disable_extensions: Option<String>,
    #[arg(long)]
    pub stats_tag: Vec<String>,
    #[arg(long)]
    pub skip_deprecated_logs: bool,
    #[arg(long)]
    pub allow_unknown_fields: bool,
    #[arg(long)]
    pub allow_unknown_static_fields: bool,
    #[arg(long)]
    pub ignore_unknown_dynamic_fields: bool,
    #[arg(long)]
    pub reject_unknown_dynamic_fields: bool,
}

/// `--mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    Serve,
    Validate,
    InitOnly,
}

impl WithoutEffect {
    /// Names what was given.
    pub fn report(&self) {
        let text = format!("{self:?}");
        for field in text.trim_start_matches("WithoutEffect {").trim_end_matches('}').split(", ") {
            let given = !(field.ends_with("None") || field.ends_with("false") || field.ends_with("[]"));
            if given {
                tracing::debug!("accepted without effect: {}", field.trim());
            }
        }
    }
}

/// As `envoy --version` prints it.
pub fn version_line() -> String {
    format!(
        "outrigger  version: {}/1.40.0/Clean/{}/rustls",
        env!("CARGO_PKG_VERSION"),
        if cfg!(debug_assertions) { "DEBUG" } else { "RELEASE" }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn envoys_command_line_is_understood() {
        let cli = Cli::try_parse_from([
            "outrigger",
            "-c",
            "a.yaml",
            "--config-yaml",
            "x: y",
            "--mode",
            "validate",
            "--concurrency",
            "2",
            "-l",
            "debug",
            "--component-log-level",
            "http:trace",
            "--base-id",
            "7",
            "--service-node",
            "n",
            "--service-cluster",
            "c",
            "--file-flush-interval-msec",
            "50",
            "--drain-time-s",
            "5",
            "--disable-hot-restart",
        ])
        .unwrap();
        assert_eq!(cli.run.mode, Mode::Validate);
        assert_eq!(cli.run.without_effect.base_id, Some(7));
        assert!(Cli::try_parse_from(["outrigger", "--no-such-option"]).is_err());
    }
}
