//! The options of `istio-iptables`, by Istio's names and letters.

/// What istiod's injection template passes, and what else Istio's command takes. `*` is all, empty is none.
#[derive(Debug, Clone, clap::Args)]
pub struct IptablesOptions {
    /// Port that takes outbound TCP.
    #[arg(short = 'p', long = "envoy-port", default_value = "15001")]
    pub proxy_port: String,
    /// Port that takes inbound TCP.
    #[arg(short = 'z', long = "inbound-capture-port", default_value = "15006")]
    pub inbound_capture_port: String,
    /// Inbound port that is left alone, for tunnels.
    #[arg(short = 'e', long = "inbound-tunnel-port", default_value = "15008")]
    pub inbound_tunnel_port: String,
    /// Users whose traffic is the proxy's own.
    #[arg(short = 'u', long = "proxy-uid", default_value = "1337")]
    pub proxy_uid: String,
    /// Groups whose traffic is the proxy's own; as the users if left out.
    #[arg(short = 'g', long = "proxy-gid")]
    pub proxy_gid: Option<String>,
    #[arg(short = 'm', long = "istio-inbound-interception-mode", default_value = "REDIRECT")]
    pub interception_mode: String,
    /// Inbound ports to capture.
    #[arg(short = 'b', long = "istio-inbound-ports", default_value = "")]
    pub inbound_ports_include: String,
    /// Inbound ports to leave alone, if all are captured.
    #[arg(short = 'd', long = "istio-local-exclude-ports", default_value = "")]
    pub inbound_ports_exclude: String,
    /// Outbound ranges to capture.
    #[arg(short = 'i', long = "istio-service-cidr", default_value = "")]
    pub outbound_ranges_include: String,
    /// Outbound ranges to leave alone.
    #[arg(short = 'x', long = "istio-service-exclude-cidr", default_value = "")]
    pub outbound_ranges_exclude: String,
    /// Outbound ports to capture whatever their range.
    #[arg(short = 'q', long = "istio-outbound-ports", default_value = "")]
    pub outbound_ports_include: String,
    /// Outbound ports to leave alone.
    #[arg(short = 'o', long = "istio-local-outbound-ports-exclude", default_value = "")]
    pub outbound_ports_exclude: String,
    /// Interfaces of virtual machines, whose inbound traffic counts as outbound.
    #[arg(short = 'k', long = "kube-virt-interfaces", default_value = "")]
    pub virtual_interfaces: String,
    /// Interfaces that are left alone in both directions.
    #[arg(short = 'c', long = "istio-exclude-interfaces", default_value = "")]
    pub exclude_interfaces: String,
    /// Capture DNS for the agent.
    #[arg(long = "redirect-dns", env = "ISTIO_META_DNS_CAPTURE", value_parser = clap::builder::BoolishValueParser::new(), num_args = 0..=1, default_value = "false", default_missing_value = "true")]
    pub redirect_dns: bool,
    /// Capture DNS to every server, not only to those of resolv.conf.
    #[arg(long = "capture-all-dns")]
    pub capture_all_dns: bool,
    /// Drop packets that connection tracking holds invalid instead of letting them reset a connection.
    #[arg(long = "drop-invalid", env = "INVALID_DROP", value_parser = clap::builder::BoolishValueParser::new(), num_args = 0..=1, default_value = "false", default_missing_value = "true")]
    pub drop_invalid: bool,
    /// Rules for IPv6, too, even if no interface has an address of it yet.
    #[arg(long = "dual-stack", env = "ISTIO_DUAL_STACK", value_parser = clap::builder::BoolishValueParser::new(), num_args = 0..=1, default_value = "false", default_missing_value = "true")]
    pub dual_stack: bool,
    /// nft or legacy.
    #[arg(long = "force-iptables-binary")]
    pub force_iptables_binary: Option<String>,
    /// Print the rules and change nothing.
    #[arg(short = 'n', long = "dry-run")]
    pub dry_run: bool,
    /// Only take away what an earlier run set up.
    #[arg(long = "cleanup-only")]
    pub cleanup_only: bool,
    /// Accepted: rules of an earlier run are always replaced.
    #[arg(long = "reconcile", hide = true)]
    pub reconcile: bool,
    /// Accepted: rules are always applied.
    #[arg(long = "force-apply", hide = true)]
    pub force_apply: bool,
    /// Accepted: the log is short, and always written.
    #[arg(long = "log_output_level", hide = true)]
    pub log_output_level: Option<String>,
}
