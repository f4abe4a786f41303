//! What a case file says: the proxy's configuration, the scripted upstreams, the steps of the client and what is
//! compared. Every struct denies unknown fields, so that a mistyped key fails instead of testing nothing.
//! `integration/diff/README.md` explains the fields with examples.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

/// One case, after its placeholders have been replaced by ports and paths.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// One line: the behaviour under test.
    pub about: String,
    /// A whole bootstrap (a string is written to the file as it stands), or fields merged over the generated one.
    #[serde(default)]
    pub bootstrap: Value,
    /// An HTTP listener named `listener`, generated from these parts.
    pub http: Option<HttpParts>,
    /// A TCP proxy listener named `listener`, generated from these parts.
    pub tcp: Option<TcpParts>,
    /// Fields merged over the cluster generated for each upstream, and further clusters.
    #[serde(default)]
    pub clusters: Map<String, Value>,
    /// Files written into `{{dir}}` before the proxy starts.
    #[serde(default)]
    pub files: Map<String, Value>,
    #[serde(default)]
    pub upstreams: std::collections::BTreeMap<String, Upstream>,
    #[serde(default)]
    pub steps: Vec<Step>,
    #[serde(default)]
    pub observe: Observe,
    /// Pairs of regex and replacement, applied to every observed string after the built-in ones.
    #[serde(default)]
    pub normalise: Vec<(String, String)>,
    pub outrigger: Option<OutriggerSpec>,
    /// Runs the proxy with `--mode validate` only and observes whether it accepts the file.
    #[serde(default)]
    pub validate: bool,
    /// Further command line arguments.
    #[serde(default)]
    pub args: Vec<String>,
}

impl Case {
    /// Parses the text of a case file whose placeholders have been replaced.
    ///
    /// # Errors
    /// The YAML error, or the field that is unknown or of the wrong type.
    pub fn parse(text: &str) -> Result<Self, CaseError> {
        let value: Value = serde_yaml_ng::from_str(text)?;
        Ok(serde_json::from_value(value)?)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum CaseError {
    #[error("not YAML: {0}")]
    Yaml(#[from] serde_yaml_ng::Error),
    #[error("not a case: {0}")]
    Shape(#[from] serde_json::Error),
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpParts {
    /// Routes of a single virtual host for all domains; without them everything goes to cluster `upstream`.
    pub routes: Option<Value>,
    pub virtual_hosts: Option<Value>,
    /// Merged over the RouteConfiguration.
    #[serde(default)]
    pub route_config: Value,
    /// Merged over the HttpConnectionManager.
    #[serde(default)]
    pub hcm: Value,
    /// HTTP filters in front of the router.
    #[serde(default)]
    pub filters: Vec<Value>,
    /// Merged over the Router filter's configuration.
    #[serde(default)]
    pub router: Value,
    /// Text format of the access log; a default that shows flags and details stands in its place.
    pub log_format: Option<String>,
    #[serde(default)]
    pub listener: Value,
    #[serde(default)]
    pub filter_chain: Value,
    /// A DownstreamTlsContext for the filter chain.
    pub tls: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TcpParts {
    /// Merged over the TcpProxy configuration.
    #[serde(default)]
    pub proxy: Value,
    pub log_format: Option<String>,
    #[serde(default)]
    pub listener: Value,
    #[serde(default)]
    pub filter_chain: Value,
    pub tls: Option<Value>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    #[default]
    Http1,
    Http2,
    Tcp,
    /// The port is taken but nobody listens.
    Refused,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    #[serde(default)]
    pub protocol: Protocol,
    pub tls: Option<ServerTls>,
    /// The n-th request gets the n-th response, the last one repeats.
    #[serde(default)]
    pub respond: Vec<Response>,
    /// The same by exact path (without query); takes precedence.
    #[serde(default)]
    pub paths: std::collections::BTreeMap<String, Vec<Response>>,
    /// What a `tcp` upstream does with each connection; the default echoes.
    pub script: Option<Vec<TcpAction>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerTls {
    /// Certificate by name, see `certs.rs`.
    #[serde(default = "default_server_certificate")]
    pub certificate: String,
    #[serde(default)]
    pub alpn: Vec<String>,
    /// Requires a client certificate of this CA.
    pub client_ca: Option<String>,
}

fn default_server_certificate() -> String {
    "server".into()
}

/// What an HTTP upstream answers.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Response {
    pub status: Option<u16>,
    /// `name: value`, in this order.
    #[serde(default)]
    pub headers: Vec<String>,
    pub body: Option<String>,
    /// A generated body of this many bytes.
    pub size: Option<usize>,
    #[serde(default)]
    pub chunked: bool,
    #[serde(default)]
    pub trailers: Vec<String>,
    /// Statuses of informational heads before the final one.
    #[serde(default)]
    pub informational: Vec<u16>,
    #[serde(default)]
    pub delay_ms: u64,
    /// Pause between head and body.
    #[serde(default)]
    pub body_delay_ms: u64,
    /// Answers without waiting for the request's body.
    #[serde(default)]
    pub early: bool,
    /// The exact bytes (HTTP/1.1 upstreams), then `then`.
    pub raw: Option<String>,
    /// Where the connection (HTTP/1.1) or stream (HTTP/2) ends by force.
    pub reset: Option<Cut>,
    /// Where the connection is closed.
    pub close: Option<Cut>,
    #[serde(default)]
    pub never: bool,
    /// After the head: bytes are echoed until the peer closes (upgrades).
    #[serde(default)]
    pub echo: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cut {
    BeforeHead,
    MidBody,
    AfterBody,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TcpAction {
    Send(String),
    /// Waits until so many bytes of this connection have come.
    ReadBytes(usize),
    PauseMs(u64),
    Echo,
    HalfClose,
    Close,
    Reset,
    /// Reads until the peer closes.
    Drain,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// `GET path` over HTTP/1.1 on a new connection.
    Get(String),
    Request(Box<Request>),
    Raw(Box<Raw>),
    Admin(Box<Admin>),
    PauseMs(u64),
    /// Lanes of steps that run at the same time.
    Concurrent(Vec<Vec<Step>>),
    /// Writes a file of `{{dir}}` by move, as a configuration directory is updated.
    Write {
        file: String,
        content: Value,
    },
    /// Waits until these stats have these values.
    WaitStats(std::collections::BTreeMap<String, u64>),
    /// Closes a named connection.
    Close(String),
    /// Observes that the proxy ends by itself.
    WaitExit {},
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Version {
    #[default]
    Http1,
    Http2,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    #[serde(default = "get")]
    pub method: String,
    #[serde(default = "slash")]
    pub path: String,
    #[serde(default = "host")]
    pub host: String,
    #[serde(default)]
    pub scheme: Option<String>,
    #[serde(default)]
    pub headers: Vec<String>,
    pub body: Option<String>,
    pub size: Option<usize>,
    #[serde(default)]
    pub chunked: bool,
    #[serde(default)]
    pub trailers: Vec<String>,
    #[serde(default)]
    pub version: Version,
    pub tls: Option<ClientTls>,
    /// The port's placeholder name.
    #[serde(default = "listener")]
    pub to: String,
    /// Requests of the same name share a connection.
    pub connection: Option<String>,
    #[serde(default = "one")]
    pub repeat: usize,
    /// Instead of the responses: counts by `status`, `body` or `header:NAME`, each checked against these bounds.
    pub tally: Option<Tally>,
    #[serde(default = "five_seconds")]
    pub timeout_ms: u64,
    /// Only this much of the response is kept: `status` or `all`.
    #[serde(default)]
    pub keep: Keep,
    /// Gives up after this many milliseconds and closes the connection (HTTP/1.1) or resets the stream (HTTP/2).
    pub abandon_after_ms: Option<u64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Keep {
    #[default]
    All,
    Status,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tally {
    pub by: String,
    /// Value → inclusive bounds. A count inside them is observed as the bounds themselves.
    pub within: std::collections::BTreeMap<String, (usize, usize)>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientTls {
    pub sni: Option<String>,
    #[serde(default)]
    pub alpn: Vec<String>,
    /// Client certificate by name.
    pub certificate: Option<String>,
    /// `1.2` or `1.3` alone.
    pub version: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Raw {
    #[serde(default = "listener")]
    pub to: String,
    pub tls: Option<ClientTls>,
    /// The only action of the script, for short.
    pub send: Option<String>,
    #[serde(default)]
    pub script: Vec<RawAction>,
    /// How long to wait for the first byte or the end.
    #[serde(default = "three_seconds")]
    pub wait_ms: u64,
    /// Silence of this length after some bytes ends the reading; the connection counts as open.
    #[serde(default = "quiet")]
    pub quiet_ms: u64,
    /// Source address, for filter chain matches.
    pub from: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RawAction {
    Send(String),
    SendHex(String),
    /// Sends so many bytes of filler.
    SendSize(usize),
    PauseMs(u64),
    HalfClose,
    /// Reads until this text has come; what was read is one entry of the observation.
    ReadUntil(String),
    Close,
    Reset,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Admin {
    pub get: Option<String>,
    pub post: Option<String>,
    /// Keeps the lines that match one of these.
    #[serde(default)]
    pub lines: Vec<String>,
    /// Keeps what these JSON pointers point to.
    #[serde(default)]
    pub pick: Vec<String>,
    /// Keeps the keys of the object there.
    pub keys: Option<String>,
    /// Asks again until the body matches.
    pub until: Option<String>,
    /// Observes the body as it is.
    #[serde(default)]
    pub body: bool,
    #[serde(default)]
    pub headers: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Observe {
    /// Requests and connections that each upstream saw.
    #[serde(default = "yes")]
    pub upstreams: bool,
    /// Number the upstream's connections in its requests and count them.
    #[serde(default = "yes")]
    pub connections: bool,
    /// The `.log` files in `{{dir}}`.
    #[serde(default = "yes")]
    pub logs: bool,
    /// Log lines and requests of an upstream in alphabetical order, where their order is a matter of luck.
    #[serde(default)]
    pub sort: bool,
    /// Names in `/stats`, or regexes if they begin with `^`.
    #[serde(default)]
    pub stats: Vec<String>,
    /// Response and request headers that are not compared.
    #[serde(default)]
    pub ignore_headers: Vec<String>,
}

impl Default for Observe {
    fn default() -> Self {
        Self {
            upstreams: true,
            connections: true,
            logs: true,
            sort: false,
            stats: Vec::new(),
            ignore_headers: Vec::new(),
        }
    }
}

/// Where Outrigger means to differ from Envoy.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutriggerSpec {
    /// Why. The expectation is then `<name>.outrigger.json`.
    pub differs: Option<String>,
    /// Texts that the error output of Outrigger must hold (refused configuration).
    #[serde(default)]
    pub stderr: Vec<String>,
}

fn yes() -> bool {
    true
}
fn one() -> usize {
    1
}
fn get() -> String {
    "GET".into()
}
fn slash() -> String {
    "/".into()
}
fn host() -> String {
    "example.com".into()
}
fn listener() -> String {
    "listener".into()
}
fn five_seconds() -> u64 {
    5000
}
fn three_seconds() -> u64 {
    3000
}
fn quiet() -> u64 {
    300
}

/// Every case file below `root`, as name (`area/name`) and path, in alphabetical order.
///
/// # Errors
/// A directory that cannot be read.
pub fn find(root: &Path) -> std::io::Result<Vec<(String, std::path::PathBuf)>> {
    let mut found = Vec::new();
    let mut open = vec![root.to_path_buf()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir)? {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == "yaml") {
                let name = path.strip_prefix(root).unwrap_or(&path).with_extension("");
                found.push((name.display().to_string(), path));
            }
        }
    }
    found.sort();
    Ok(found)
}
