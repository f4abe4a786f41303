//! `/load`: closed-loop HTTP/1.1 load from this workload, that is through the sidecar in front of it. It tells what wrk does
//! not: how many connections had to be opened, which version and pod answered how often, what each failure was.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderName, HeaderValue, Request, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

const CONNECTIONS_LIMIT: usize = 1024;
const SECONDS_LIMIT: u64 = 600;
/// A connection that failed waits this long before it tries again, so that a dead peer is not hammered.
const RECONNECT_PAUSE: Duration = Duration::from_millis(10);

/// What to send: `url`, `connections`, and either `requests` in total or `seconds`; `header=name:value` as often as needed;
/// `pause_ms` between two requests of a connection.
#[derive(Debug)]
pub(super) struct Plan {
    target: Uri,
    address: String,
    connections: usize,
    requests: Option<u64>,
    duration: Duration,
    pause: Duration,
    headers: Vec<(HeaderName, HeaderValue)>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum PlanError {
    #[error("load: url: expected http://host[:port]/path")]
    Url,
    #[error("load: {name}: {value:?} is not in range")]
    Value { name: String, value: String },
}

#[derive(Debug, Default)]
struct Tally {
    statuses: BTreeMap<u16, u64>,
    versions: BTreeMap<String, u64>,
    hosts: BTreeMap<String, u64>,
    errors: BTreeMap<String, u64>,
    connects: u64,
    micros: Vec<u32>,
}

impl Plan {
    pub(super) fn parse(query: &str) -> Result<Self, PlanError> {
        let mut plan = Self {
            target: Uri::from_static("/"),
            address: String::new(),
            connections: 1,
            requests: None,
            duration: Duration::from_secs(SECONDS_LIMIT),
            pause: Duration::ZERO,
            headers: Vec::new(),
        };
        for (name, value) in pairs(query) {
            let wrong = || PlanError::Value { name: name.to_owned(), value: value.to_owned() };
            let number = |limit: u64| {
                value.parse().ok().filter(|number| (1..=limit).contains(number)).ok_or_else(wrong)
            };
            match name {
                "url" => plan.target = value.parse().map_err(|_| PlanError::Url)?,
                "connections" => {
                    plan.connections =
                        usize::try_from(number(CONNECTIONS_LIMIT as u64)?).map_err(|_| wrong())?;
                }
                "requests" => plan.requests = Some(number(u64::from(u32::MAX))?),
                "seconds" => plan.duration = Duration::from_secs(number(SECONDS_LIMIT)?),
                "pause_ms" => plan.pause = Duration::from_millis(number(60_000)?),
                "header" => {
                    let (name, value) = value.split_once(':').ok_or_else(wrong)?;
                    plan.headers.push((
                        name.trim().parse().map_err(|_| wrong())?,
                        value.trim().parse().map_err(|_| wrong())?,
                    ));
                }
                _ => return Err(wrong()),
            }
        }
        let host =
            plan.target.host().filter(|_| plan.target.scheme_str() == Some("http")).ok_or(PlanError::Url)?;
        plan.address = format!("{host}:{}", plan.target.port_u16().unwrap_or(80));
        Ok(plan)
    }

    /// Runs to the end and reports. Dropping the future ends the load.
    pub(super) async fn run(self) -> Value {
        let plan = Arc::new(self);
        let sent = Arc::new(AtomicU64::new(0));
        let started = Instant::now();
        let mut tasks = JoinSet::new();
        for _ in 0..plan.connections {
            tasks.spawn(worker(Arc::clone(&plan), Arc::clone(&sent), started + plan.duration));
        }
        let mut total = Tally::default();
        while let Some(tally) = tasks.join_next().await {
            match tally {
                Ok(tally) => total.add(tally),
                Err(error) => total.failed(error.to_string()),
            }
        }
        total.report(started.elapsed())
    }

    fn request(&self) -> Result<Request<Empty<Bytes>>, http::Error> {
        let path = self.target.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        let authority = self.target.authority().map_or("", http::uri::Authority::as_str);
        let mut request = Request::builder().uri(path).header(HOST, authority).body(Empty::new())?;
        for (name, value) in &self.headers {
            request.headers_mut().append(name, value.clone());
        }
        Ok(request)
    }
}

async fn worker(plan: Arc<Plan>, sent: Arc<AtomicU64>, end: Instant) -> Tally {
    let mut tally = Tally::default();
    let mut open: Option<SendRequest<Empty<Bytes>>> = None;
    while Instant::now() < end {
        if plan.requests.is_some_and(|limit| sent.fetch_add(1, Ordering::Relaxed) >= limit) {
            break;
        }
        let started = Instant::now();
        match exchange(&plan, &mut open, &mut tally).await {
            Ok(()) => tally.micros.push(u32::try_from(started.elapsed().as_micros()).unwrap_or(u32::MAX)),
            Err(error) => {
                tally.failed(error);
                open = None;
                tokio::time::sleep(RECONNECT_PAUSE).await;
            }
        }
        if !plan.pause.is_zero() {
            tokio::time::sleep(plan.pause).await;
        }
    }
    tally
}

async fn exchange(
    plan: &Plan,
    open: &mut Option<SendRequest<Empty<Bytes>>>,
    tally: &mut Tally,
) -> Result<(), String> {
    // `ready` fails on a connection that the peer closed between two requests: that one is replaced, and counted.
    let reusable = match open.take() {
        Some(mut sender) => sender.ready().await.is_ok().then_some(sender),
        None => None,
    };
    let mut sender = match reusable {
        Some(sender) => sender,
        None => {
            tally.connects += 1;
            connect(&plan.address).await?
        }
    };
    let request = plan.request().map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
    *tally.statuses.entry(status).or_default() += 1;
    if let Ok(Value::Object(fields)) = serde_json::from_slice(&body) {
        for (name, counts) in [("version", &mut tally.versions), ("hostname", &mut tally.hosts)] {
            if let Some(Value::String(text)) = fields.get(name) {
                *counts.entry(text.clone()).or_default() += 1;
            }
        }
    }
    *open = Some(sender);
    Ok(())
}

async fn connect(address: &str) -> Result<SendRequest<Empty<Bytes>>, String> {
    let stream = TcpStream::connect(address).await.map_err(|error| format!("connect: {error}"))?;
    let _ = stream.set_nodelay(true);
    let (sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    // Its error reaches the request that was under way.
    tokio::spawn(connection);
    Ok(sender)
}

impl Tally {
    fn failed(&mut self, error: String) {
        *self.errors.entry(error).or_default() += 1;
    }

    fn add(&mut self, other: Self) {
        fn merge<K: Ord>(into: &mut BTreeMap<K, u64>, from: BTreeMap<K, u64>) {
            for (key, count) in from {
                *into.entry(key).or_default() += count;
            }
        }
        merge(&mut self.statuses, other.statuses);
        merge(&mut self.versions, other.versions);
        merge(&mut self.hosts, other.hosts);
        merge(&mut self.errors, other.errors);
        self.connects += other.connects;
        self.micros.extend(other.micros);
    }

    fn report(mut self, took: Duration) -> Value {
        self.micros.sort_unstable();
        let millis = |part: f64| {
            let last = self.micros.len().saturating_sub(1);
            let index = (self.micros.len() as f64 * part) as usize;
            self.micros.get(index.min(last)).map(|micros| f64::from(*micros) / 1000.0)
        };
        let statuses = self.statuses.iter().map(|(status, count)| (status.to_string(), json!(count)));
        json!({
            "requests": self.micros.len(),
            "statuses": Value::Object(statuses.collect()),
            "versions": self.versions,
            "hosts": self.hosts,
            "errors": self.errors,
            "connects": self.connects,
            "seconds": took.as_secs_f64(),
            "rps": self.micros.len() as f64 / took.as_secs_f64().max(f64::EPSILON),
            "p50_ms": millis(0.50),
            "p99_ms": millis(0.99),
            "max_ms": millis(1.0),
        })
    }
}

/// The name=value pairs of a query. Nothing is decoded: what uses it sends plain text.
pub(super) fn pairs(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}
