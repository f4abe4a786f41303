//! Scenarios, and what each proxy is told for them.

use std::net::SocketAddr;
use std::path::Path;

/// What is measured.
#[derive(Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) path: &'static str,
    /// Virtual hosts beside the one that is used.
    pub(crate) virtual_hosts: usize,
    pub(crate) tls: bool,
    pub(crate) http2: bool,
}

const PLAIN: Scenario = Scenario { name: "1k", path: "/1k", virtual_hosts: 0, tls: false, http2: false };

/// All of them.
pub(crate) const SCENARIOS: &[Scenario] = &[
    PLAIN,
    Scenario { name: "16k", path: "/16k", ..PLAIN },
    Scenario { name: "chunked", path: "/chunked", ..PLAIN },
    Scenario { name: "5000-vhosts", virtual_hosts: 5000, ..PLAIN },
    Scenario { name: "tls", tls: true, ..PLAIN },
    Scenario { name: "h2-in", http2: true, ..PLAIN },
];

/// A proxy that may be run.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) name: &'static str,
    /// Program and arguments; `{config}` is the configuration's path.
    pub(crate) command: Vec<String>,
}

/// The proxies, in the order of their rounds.
pub(crate) fn proxies(outrigger: &Path, envoy: &str) -> Vec<Proxy> {
    let words = |s: String| s.split(' ').map(str::to_owned).collect();
    vec![
        Proxy {
            name: "outrigger",
            command: words(format!("{} -c {{config}} --concurrency 1 -l error", outrigger.display())),
        },
        Proxy {
            name: "envoy",
            command: words(format!("{envoy} -c {{config}} --concurrency 1 -l error --use-dynamic-base-id")),
        },
        Proxy { name: "haproxy", command: words("haproxy -db -f {config}".into()) },
        Proxy { name: "nginx", command: words("nginx -c {config}".into()) },
    ]
}

/// The configuration text; `None`: this proxy has no part in the scenario.
pub(crate) fn config(
    proxy: &str,
    s: &Scenario,
    listen: SocketAddr,
    backend: SocketAddr,
    dir: &Path,
) -> Option<String> {
    match proxy {
        "outrigger" | "envoy" => Some(envoy_yaml(s, listen, backend, dir)),
        // Virtual hosts, TLS and HTTP/2 are compared with Envoy alone.
        "haproxy" if s.virtual_hosts == 0 && !s.http2 && !s.tls => Some(format!(
            "global\n  nbthread 1\n  maxconn 4000\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  \
             timeout server 60s\n  http-reuse always\nfrontend f\n  bind {listen}\n  default_backend b\nbackend b\n  \
             server s {backend}\n"
        )),
        "nginx" if s.virtual_hosts == 0 && !s.http2 && !s.tls => Some(format!(
            "worker_processes 1;\ndaemon off;\nmaster_process off;\npid {dir}/nginx.pid;\nerror_log stderr error;\n\
             events {{ worker_connections 4096; }}\nhttp {{\n  access_log off;\n  keepalive_requests 100000000;\n  \
             upstream b {{ server {backend}; keepalive 256; keepalive_requests 100000000; }}\n  server {{\n    \
             listen {listen};\n    location / {{ proxy_pass http://b; proxy_http_version 1.1; \
             proxy_set_header Connection \"\"; }}\n  }}\n}}\n",
            dir = dir.display()
        )),
        _ => None,
    }
}

fn envoy_yaml(s: &Scenario, listen: SocketAddr, backend: SocketAddr, dir: &Path) -> String {
    let mut hosts = String::new();
    for i in 0..s.virtual_hosts {
        hosts.push_str(&format!(
            "            - {{name: v{i}, domains: [\"host{i}.example.com\"], routes: [{{match: {{prefix: /}}, route: {{cluster: up}}}}]}}\n"
        ));
    }
    let tls = if s.tls {
        format!(
            "      transport_socket:\n        name: envoy.transport_sockets.tls\n        typed_config:\n          \"@type\": \
             type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext\n          \
             common_tls_context: {{tls_certificates: [{{certificate_chain: {{filename: {0}/cert.pem}}, private_key: \
             {{filename: {0}/key.pem}}}}]}}\n",
            dir.display()
        )
    } else {
        String::new()
    };
    format!(
        r#"static_resources:
  listeners:
  - name: l
    address: {{socket_address: {{address: {lip}, port_value: {lport}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: ingress
          codec_type: AUTO
          route_config:
            virtual_hosts:
            - {{name: any, domains: ["*"], routes: [{{match: {{prefix: /}}, route: {{cluster: up}}}}]}}
{hosts}          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
{tls}  clusters:
  - name: up
    type: STATIC
    connect_timeout: 1s
    circuit_breakers: {{thresholds: [{{max_connections: 10000, max_pending_requests: 10000, max_requests: 10000}}]}}
    load_assignment:
      cluster_name: up
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {bip}, port_value: {bport}}}}}}}}}]}}]
"#,
        lip = listen.ip(),
        lport = listen.port(),
        bip = backend.ip(),
        bport = backend.port(),
    )
}
