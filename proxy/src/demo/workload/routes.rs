//! podinfo's routes: which handler answers a path, and what it answers.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use serde_json::{Value, json};

use super::echo::BODY_LIMIT;
use super::load;
use super::state::{Faults, State};

pub(super) type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// Longest wait that `/delay`, `/chunked` and `/faults` accept.
const DELAY_LIMIT: Duration = Duration::from_secs(300);

/// Answers one request and counts it under its route's pattern.
pub(super) async fn answer(state: &State, request: Request<Incoming>) -> Answer {
    let started = Instant::now();
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let (pattern, argument) = route(&path);
    let answer = match misbehave(state, pattern).await {
        Some(answer) => answer,
        None => handle(state, pattern, argument, request).await,
    };
    state.metrics.record(&method, pattern, answer.status(), started.elapsed());
    answer
}

/// The pattern a path belongs to (`""` for none), and the part of it that varies.
fn route(path: &str) -> (&'static str, &str) {
    const PARAMETRIC: [(&str, &str); 4] = [
        ("/status/", "/status/{code}"),
        ("/delay/", "/delay/{seconds}"),
        ("/chunked/", "/chunked/{seconds}"),
        ("/cache/", "/cache/{key}"),
    ];
    const FIXED: [&str; 17] = [
        "/",
        "/version",
        "/healthz",
        "/readyz",
        "/readyz/enable",
        "/readyz/disable",
        "/env",
        "/headers",
        "/panic",
        "/echo",
        "/api/echo",
        "/api/info",
        "/metrics",
        "/chunked",
        "/faults",
        "/load",
        "/favicon.ico",
    ];
    for (prefix, pattern) in PARAMETRIC {
        if let Some(argument) = path.strip_prefix(prefix) {
            return (pattern, argument);
        }
    }
    (FIXED.into_iter().find(|fixed| *fixed == path).unwrap_or_default(), "")
}

/// Probes, metrics and the switches themselves never fail on purpose.
async fn misbehave(state: &State, pattern: &str) -> Option<Answer> {
    if matches!(
        pattern,
        "/healthz" | "/readyz" | "/readyz/enable" | "/readyz/disable" | "/metrics" | "/faults" | "/load"
    ) {
        return None;
    }
    let verdict = state.judge();
    if !verdict.delay.is_zero() {
        tokio::time::sleep(verdict.delay).await;
    }
    verdict
        .status
        .map(|status| json_answer(status, &json!({ "status": status.as_u16(), "hostname": state.host })))
}

async fn handle(state: &State, pattern: &str, argument: &str, request: Request<Incoming>) -> Answer {
    let (head, body) = request.into_parts();
    let query = head.uri.query().unwrap_or_default();
    match (&head.method, pattern) {
        (_, "/" | "/api/info") => json_answer(StatusCode::OK, &info(state)),
        (_, "/version") => {
            json_answer(StatusCode::OK, &json!({ "commit": "unknown", "version": state.options.version }))
        }
        (_, "/healthz") => ok(),
        (_, "/readyz") if state.ready() => ok(),
        (_, "/readyz") => json_answer(StatusCode::SERVICE_UNAVAILABLE, &json!({ "status": "not ready" })),
        (&Method::POST, "/readyz/enable" | "/readyz/disable") => {
            state.set_ready(pattern == "/readyz/enable");
            json_answer(StatusCode::ACCEPTED, &json!({ "status": "OK" }))
        }
        (_, "/env") => {
            let variables = std::env::vars_os()
                .map(|(name, value)| format!("{}={}", name.to_string_lossy(), value.to_string_lossy()))
                .collect::<Vec<_>>();
            json_answer(StatusCode::OK, &json!(variables))
        }
        (_, "/headers") => json_answer(StatusCode::OK, &headers(&head.headers)),
        (_, "/status/{code}") => match argument.parse().ok().and_then(|code| StatusCode::from_u16(code).ok())
        {
            // A final answer cannot be informational.
            Some(status) if !status.is_informational() => {
                json_answer(status, &json!({ "status": status.as_u16() }))
            }
            _ => refuse("status: expected a number from 200 to 999"),
        },
        (_, "/delay/{seconds}") => match delay(argument) {
            Some(delay) => {
                tokio::time::sleep(delay).await;
                json_answer(StatusCode::OK, &json!({ "delay": delay.as_secs_f64() }))
            }
            None => refuse("delay: expected seconds, at most 300"),
        },
        (_, "/chunked" | "/chunked/{seconds}") => {
            match delay(if argument.is_empty() { "0" } else { argument }) {
                Some(delay) => chunked(delay),
                None => refuse("delay: expected seconds, at most 300"),
            }
        }
        (_, "/panic") => {
            state.panicked.send_replace(true);
            json_answer(StatusCode::INTERNAL_SERVER_ERROR, &json!({ "status": "panic" }))
        }
        (&Method::POST | &Method::PUT, "/echo" | "/api/echo") => match read(body).await {
            Ok(body) if state.backends.is_empty() => {
                let kind = head.headers.get(CONTENT_TYPE).cloned();
                let mut answer = Response::new(full(body));
                *answer.status_mut() = StatusCode::ACCEPTED;
                answer.headers_mut().insert(
                    CONTENT_TYPE,
                    kind.unwrap_or(HeaderValue::from_static("text/plain; charset=utf-8")),
                );
                answer
            }
            Ok(body) => {
                let (status, answers) = state.backends.call(&head.headers, body).await;
                json_answer(status, &json!(answers))
            }
            Err(refusal) => refusal,
        },
        (_, "/metrics") => match state.metrics.text() {
            Ok(text) => text_answer(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text),
            Err(error) => {
                json_answer(StatusCode::INTERNAL_SERVER_ERROR, &json!({ "error": error.to_string() }))
            }
        },
        (&Method::GET, "/cache/{key}") => match state.cached(argument) {
            Some(value) => text_answer(StatusCode::OK, "text/plain; charset=utf-8", value),
            None => json_answer(StatusCode::NOT_FOUND, &json!({ "status": 404 })),
        },
        (&Method::POST | &Method::PUT, "/cache/{key}") => match read(body).await {
            Ok(value) if state.cache(argument, &value) => {
                json_answer(StatusCode::ACCEPTED, &json!({ "status": "OK" }))
            }
            Ok(_) => json_answer(StatusCode::INSUFFICIENT_STORAGE, &json!({ "error": "the cache is full" })),
            Err(refusal) => refusal,
        },
        (&Method::DELETE, "/cache/{key}") => {
            state.forget(argument);
            json_answer(StatusCode::ACCEPTED, &json!({ "status": "OK" }))
        }
        (&Method::GET, "/faults") => json_answer(StatusCode::OK, &json!(state.faults())),
        (&Method::DELETE, "/faults") => {
            state.set_faults(None);
            json_answer(StatusCode::OK, &Value::Null)
        }
        (&Method::POST, "/faults") => match faults(query) {
            Some(faults) => {
                state.set_faults(Some(faults));
                json_answer(StatusCode::OK, &json!(faults))
            }
            None => refuse("faults: expected fail, of, status, delay_ms as numbers"),
        },
        (&Method::GET, "/load") => match load::Plan::parse(query) {
            Ok(plan) => json_answer(StatusCode::OK, &plan.run().await),
            Err(error) => refuse(&error.to_string()),
        },
        (_, "") => json_answer(StatusCode::NOT_FOUND, &json!({ "status": 404 })),
        _ => json_answer(StatusCode::METHOD_NOT_ALLOWED, &json!({ "status": 405 })),
    }
}

fn info(state: &State) -> Value {
    json!({
        "hostname": state.host,
        "version": state.options.version,
        "revision": "unknown",
        "color": state.options.ui_color,
        "logo": "",
        "message": state.options.ui_message,
        "goos": std::env::consts::OS,
        "goarch": std::env::consts::ARCH,
        "runtime": "rust",
        "num_cpu": std::thread::available_parallelism().map_or(1, usize::from).to_string(),
    })
}

fn headers(headers: &HeaderMap) -> Value {
    let mut fields: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        fields.entry(name.as_str()).or_default().push(String::from_utf8_lossy(value.as_bytes()).into_owned());
    }
    json!(fields)
}

/// Seconds, also in parts: podinfo takes whole ones only.
fn delay(text: &str) -> Option<Duration> {
    let delay = Duration::try_from_secs_f64(text.parse().ok()?).ok()?;
    (delay <= DELAY_LIMIT).then_some(delay)
}

fn faults(query: &str) -> Option<Faults> {
    let mut faults = Faults { fail: 1, of: 1, status: 503, delay_ms: 0 };
    for (name, value) in load::pairs(query) {
        let number = value.parse().ok()?;
        match name {
            "fail" => faults.fail = number,
            "of" => faults.of = number,
            "status" => {
                faults.status = u16::try_from(number).ok().filter(|status| (200..600).contains(status))?;
            }
            "delay_ms" => faults.delay_ms = number,
            _ => return None,
        }
    }
    (faults.of > 0 && Duration::from_millis(faults.delay_ms) <= DELAY_LIMIT).then_some(faults)
}

async fn read(body: Incoming) -> Result<Bytes, Answer> {
    let read = Limited::new(body, BODY_LIMIT).collect().await;
    read.map(http_body_util::Collected::to_bytes).map_err(|error| {
        let status = if error.is::<http_body_util::LengthLimitError>() {
            StatusCode::PAYLOAD_TOO_LARGE
        } else {
            StatusCode::BAD_REQUEST
        };
        json_answer(status, &json!({ "error": error.to_string() }))
    })
}

fn ok() -> Answer {
    json_answer(StatusCode::OK, &json!({ "status": "OK" }))
}

fn refuse(error: &str) -> Answer {
    json_answer(StatusCode::BAD_REQUEST, &json!({ "error": error }))
}

fn json_answer(status: StatusCode, value: &Value) -> Answer {
    text_answer(status, "application/json; charset=utf-8", value.to_string())
}

fn text_answer(status: StatusCode, kind: &'static str, text: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(full(text.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    answer
}

fn full(bytes: Bytes) -> UnsyncBoxBody<Bytes, Infallible> {
    Full::new(bytes).boxed_unsync()
}

/// The head at once, the body after the delay and without a length.
fn chunked(delay: Duration) -> Answer {
    let body = stream::once(async move {
        tokio::time::sleep(delay).await;
        Ok(Frame::data(Bytes::from(json!({ "delay": delay.as_secs_f64() }).to_string())))
    });
    let mut answer = Response::new(StreamBody::new(body).boxed_unsync());
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
    answer
}
