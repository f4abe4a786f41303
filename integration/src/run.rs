//! The way of a case: take ports, start the upstreams, write the files, start the proxy, walk through the steps, stop
//! the proxy, gather and normalise what everyone saw.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::time::Instant;

use crate::case::{Case, CaseError, Step};
use crate::certs::Certs;
use crate::client::Clients;
use crate::normalise::Normaliser;
use crate::ports::{Places, Ports};
use crate::proxy::{Proxy, StartError, is_envoy};
use crate::upstream::Upstream;
use crate::{admin, template};

/// What the cases of a run share.
#[derive(Debug)]
pub struct Context {
    pub binary: PathBuf,
    pub ports: Ports,
    pub certs: Arc<Certs>,
    /// Keeps the directory of each case.
    pub keep: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("{0}")]
    Case(#[from] CaseError),
    #[error("{0}")]
    Pattern(#[from] regex::Error),
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("the proxy did not start: {error}\n{output}")]
    Start { error: StartError, output: String },
    #[error("the case took longer than {0} s")]
    Timeout(u64),
    #[error("the error output does not name {0:?}:\n{1}")]
    Stderr(String, String),
}

const CASE_SECONDS: u64 = 60;

/// Runs a case and returns its normalised observation. `expected` only tells how long to wait for stats.
///
/// # Errors
/// The case is malformed, or the proxy did not start.
pub async fn run(context: &Context, text: &str, expected: Option<&Value>) -> Result<Value, RunError> {
    let limit = Duration::from_secs(CASE_SECONDS);
    tokio::time::timeout(limit, run_unlimited(context, text, expected))
        .await
        .map_err(|_| RunError::Timeout(CASE_SECONDS))?
}

async fn run_unlimited(context: &Context, text: &str, expected: Option<&Value>) -> Result<Value, RunError> {
    let dir = tempfile::Builder::new().prefix("outrigger-diff-").tempdir()?;
    let path = dir.path().to_path_buf();
    let places = Places::allocate(text, &context.ports, &path, context.certs.dir())?;
    let case = Case::parse(&places.fill(text))?;
    let normaliser = Normaliser::new(&places, text, &case.normalise, &case.observe.ignore_headers)?;
    let observed = observe(context, case, &places, &path, &normaliser, expected).await;
    if let Some(keep) = &context.keep {
        let kept = keep.join(places.port("listener").unwrap_or_default().to_string());
        let _ = std::fs::rename(dir.keep(), kept);
    }
    Ok(normaliser.value(observed?))
}

async fn observe(
    context: &Context,
    mut case: Case,
    places: &Places,
    dir: &Path,
    normaliser: &Normaliser,
    expected: Option<&Value>,
) -> Result<Value, RunError> {
    for (name, content) in &case.files {
        write(dir, name, content)?;
    }
    let (file, config) = template::bootstrap(&case, places);
    let config_path = dir.join(file);
    std::fs::write(&config_path, places.fill(&config))?;
    if case.validate {
        return validate(context, &case, &config_path).await;
    }
    let mut upstreams = BTreeMap::new();
    for (name, script) in std::mem::take(&mut case.upstreams) {
        let port = places.port(&format!("upstream.{name}")).unwrap_or_default();
        let upstream = Upstream::start(&name, script, port, Arc::clone(&context.certs))?;
        upstreams.insert(name, upstream);
    }
    let mut proxy = start(context, &case, &config_path, places).await?;
    let admin_port = places.port("admin").unwrap_or_default();
    let clients = Clients::new(places.clone(), Arc::clone(&context.certs));
    let mut steps = Vec::new();
    for step in &case.steps {
        steps.push(if matches!(step, Step::WaitExit {}) {
            let status = proxy.wait(Duration::from_secs(8)).await;
            json!({"exit": status.map(|s| s.code())})
        } else {
            walk(&clients, step, admin_port, dir).await
        });
    }
    let mut seen = json!({ "steps": steps });
    drop(clients);
    if !case.observe.stats.is_empty() {
        seen["stats"] = settled_stats(admin_port, &case, normaliser, expected).await;
    }
    // The ends of connections have to reach upstreams and logs.
    tokio::time::sleep(Duration::from_millis(100)).await;
    if case.observe.upstreams {
        seen["upstreams"] = upstreams
            .iter()
            .map(|(n, u)| (n.clone(), u.observed(case.observe.connections, case.observe.sort)))
            .collect::<Map<_, _>>()
            .into();
    }
    proxy.stop().await;
    if case.observe.logs {
        seen["logs"] = logs(dir, case.observe.sort)?.into();
    }
    Ok(seen)
}

async fn start(context: &Context, case: &Case, config: &Path, places: &Places) -> Result<Proxy, RunError> {
    let mut args: Vec<OsString> = [
        "--disable-hot-restart",
        "-l",
        "warning",
        "--drain-time-s",
        "1",
        "--file-flush-interval-msec",
        "20",
        "--service-node",
        "diff-node",
        "--service-cluster",
        "diff-cluster",
    ]
    .iter()
    .map(OsString::from)
    .collect();
    if !case.args.iter().any(|a| a == "--concurrency") {
        // One worker: which connection is reused is then no matter of luck.
        args.extend(["--concurrency".into(), "1".into()]);
    }
    args.extend(case.args.iter().map(OsString::from));
    let mut proxy = Proxy::start(&context.binary, config, &args)
        .map_err(|error| RunError::Start { error, output: String::new() })?;
    if let Err(error) = proxy.ready(places.port("admin").unwrap_or_default()).await {
        let output = tail(&proxy.output());
        return Err(RunError::Start { error, output });
    }
    Ok(proxy)
}

async fn validate(context: &Context, case: &Case, config: &Path) -> Result<Value, RunError> {
    let mut args: Vec<OsString> = vec!["--mode".into(), "validate".into()];
    args.extend(case.args.iter().map(OsString::from));
    let mut proxy = Proxy::start(&context.binary, config, &args)
        .map_err(|error| RunError::Start { error, output: String::new() })?;
    let accepted = match proxy.wait(Duration::from_secs(20)).await {
        None => "did not end",
        Some(status) if status.success() => "accepted",
        // An abort or a panic is no refusal.
        Some(status) if status.code() == Some(1) => "refused",
        Some(_) => "crashed",
    };
    if !is_envoy(&context.binary) {
        let output = proxy.output();
        for text in case.outrigger.iter().flat_map(|o| &o.stderr) {
            if !output.contains(text) {
                return Err(RunError::Stderr(text.clone(), tail(&output)));
            }
        }
    }
    Ok(json!({"validate": accepted}))
}

async fn walk(clients: &Clients, step: &Step, admin_port: u16, dir: &Path) -> Value {
    match step {
        Step::Get(path) => {
            let shape = serde_json::from_value(json!({ "path": path }));
            match shape {
                Ok(request) => clients.request(&request).await,
                Err(e) => json!({"error": e.to_string()}),
            }
        }
        Step::Request(request) => clients.request(request).await,
        Step::Raw(raw) => clients.raw(raw).await,
        Step::Admin(step) => admin::observe(admin_port, step).await,
        Step::PauseMs(ms) => {
            tokio::time::sleep(Duration::from_millis(*ms)).await;
            Value::Null
        }
        Step::Close(name) => {
            clients.close(name).await;
            Value::Null
        }
        Step::Write { file, content } => match write(dir, file, content) {
            Ok(()) => Value::Null,
            Err(e) => json!({"error": e.to_string()}),
        },
        Step::WaitStats(wanted) => wait_stats(admin_port, wanted).await,
        Step::WaitExit {} => json!({"error": "wait_exit stands outside of lanes only"}),
        Step::Concurrent(lanes) => {
            // Boxed, because a lane holds steps that hold lanes.
            let lanes = lanes.iter().map(|lane| {
                Box::pin(async move {
                    let mut seen = Vec::new();
                    for step in lane {
                        seen.push(Box::pin(walk(clients, step, admin_port, dir)).await);
                    }
                    Value::Array(seen)
                })
            });
            Value::Array(join_all(lanes.collect()).await)
        }
    }
}

/// Polls all futures on this task until each is done.
async fn join_all<F: Future<Output = Value> + Unpin>(mut futures: Vec<F>) -> Vec<Value> {
    let mut done: Vec<Option<Value>> = futures.iter().map(|_| None).collect();
    std::future::poll_fn(|cx| {
        for (future, done) in futures.iter_mut().zip(&mut done) {
            if done.is_none()
                && let std::task::Poll::Ready(value) = std::pin::Pin::new(future).poll(cx)
            {
                *done = Some(value);
            }
        }
        if done.iter().all(Option::is_some) { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    done.into_iter().flatten().collect()
}

async fn wait_stats(port: u16, wanted: &BTreeMap<String, u64>) -> Value {
    let end = Instant::now() + Duration::from_secs(6);
    loop {
        let stats = admin::stats(port).await.unwrap_or_default();
        let missing: Map<String, Value> = wanted
            .iter()
            .filter(|(name, value)| stats.get(*name).and_then(Value::as_u64) != Some(**value))
            .map(|(name, _)| (name.clone(), stats.get(name).cloned().unwrap_or_default()))
            .collect();
        if missing.is_empty() {
            return Value::Null;
        }
        if Instant::now() > end {
            return json!({ "stats_never_reached": missing });
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

/// Stats are asked until they equal the expected ones, or for a moment: workers report them a little later.
async fn settled_stats(port: u16, case: &Case, normaliser: &Normaliser, expected: Option<&Value>) -> Value {
    let expected = expected.and_then(|e| e.get("stats"));
    let begin = Instant::now();
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let all = admin::stats(port).await.unwrap_or_default();
        let picked = Value::Object(admin::pick_stats(&all, &case.observe.stats));
        let settled = match expected {
            Some(expected) => normaliser.value(picked.clone()) == *expected,
            None => begin.elapsed() > Duration::from_millis(400),
        };
        if settled || begin.elapsed() > Duration::from_secs(2) {
            return picked;
        }
    }
}

/// Writes a file beside and moves it over, as a watched file is updated.
fn write(dir: &Path, name: &str, content: &Value) -> std::io::Result<()> {
    let text = match content {
        Value::String(text) => text.clone(),
        other => serde_json::to_string_pretty(other).map_err(std::io::Error::other)?,
    };
    let target = dir.join(name);
    if let Some(parent) = target.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let beside = target.with_extension("next");
    std::fs::write(&beside, text)?;
    std::fs::rename(beside, target)
}

fn logs(dir: &Path, sort: bool) -> std::io::Result<Map<String, Value>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "log") {
            let text = String::from_utf8_lossy(&std::fs::read(&path)?).into_owned();
            let mut lines: Vec<_> = text.lines().map(Value::from).collect();
            if sort {
                lines.sort_by_key(Value::to_string);
            }
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            found.insert(name, Value::Array(lines));
        }
    }
    Ok(found.into_iter().collect())
}

/// The last lines of the proxy's output, where it says why it ended.
fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().filter(|l| l.len() > 8).collect();
    let last = lines[lines.len().saturating_sub(4)..].iter().map(|l| {
        let cut = l.char_indices().nth(l.chars().count().saturating_sub(700)).map_or(0, |(i, _)| i);
        &l[cut..]
    });
    last.collect::<Vec<_>>().join("\n")
}
