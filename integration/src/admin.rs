//! Asks the proxy's admin port, and picks from the answer what a case compares.

use std::time::Duration;

use regex::Regex;
use serde_json::{Map, Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::case::Admin;
use crate::h1::{Head, Reader};

/// One request to the admin port; head and body of the answer.
///
/// # Errors
/// The port does not answer, or not HTTP, within five seconds.
pub async fn fetch(port: u16, method: &str, path: &str) -> std::io::Result<(Head, String)> {
    let exchange = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await?;
        let mut reader = Reader::new(stream);
        let head = reader.head().await?.ok_or(std::io::ErrorKind::UnexpectedEof)?;
        let body = reader.body(head.response_framing(method)).await;
        Ok((head, String::from_utf8_lossy(&body.bytes).into_owned()))
    };
    tokio::time::timeout(Duration::from_secs(5), exchange).await.map_err(std::io::Error::from)?
}

/// The step `admin:` of a case.
pub async fn observe(port: u16, step: &Admin) -> Value {
    let (method, path) = match (&step.get, &step.post) {
        (_, Some(path)) => ("POST", path),
        (Some(path), None) => ("GET", path),
        (None, None) => return json!({"error": "an admin step needs get or post"}),
    };
    let until = step.until.as_ref().map(|u| Regex::new(u));
    let end = Instant::now() + Duration::from_secs(5);
    let (head, body) = loop {
        let answer = fetch(port, method, path).await;
        let done = match (&until, &answer) {
            (None, _) => true,
            (Some(Err(e)), _) => return json!({"error": e.to_string()}),
            (Some(Ok(re)), Ok((_, body))) => re.is_match(body),
            (Some(Ok(_)), Err(_)) => false,
        };
        match answer {
            Ok(answer) if done => break answer,
            Err(e) if done => return json!({"admin": path, "error": e.kind().to_string()}),
            _ if Instant::now() > end => return json!({"admin": path, "error": "never matched"}),
            _ => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    let mut seen = json!({"admin": path, "status": head.status()});
    if step.headers {
        seen["headers"] = json!(head.headers);
    }
    if step.body {
        seen["body"] = body.clone().into();
    }
    if !step.lines.is_empty() {
        let patterns: Result<Vec<_>, _> = step.lines.iter().map(|l| Regex::new(l)).collect();
        match patterns {
            Err(e) => seen["error"] = e.to_string().into(),
            Ok(patterns) => {
                let lines: Vec<_> = body.lines().filter(|l| patterns.iter().any(|p| p.is_match(l))).collect();
                seen["lines"] = json!(lines);
            }
        }
    }
    if !step.pick.is_empty() || step.keys.is_some() {
        match serde_json::from_str::<Value>(&body) {
            Err(_) => seen["error"] = "not JSON".into(),
            Ok(json) => {
                let mut picked = Map::new();
                for pointer in &step.pick {
                    picked.insert(pointer.clone(), json.pointer(pointer).cloned().unwrap_or_default());
                }
                if let Some(pointer) = &step.keys {
                    let keys: Vec<_> = json
                        .pointer(pointer)
                        .and_then(Value::as_object)
                        .into_iter()
                        .flatten()
                        .map(|(k, _)| k)
                        .collect();
                    picked.insert(format!("keys of {pointer}"), json!(keys));
                }
                seen["json"] = picked.into();
            }
        }
    }
    seen
}

/// All counters, gauges and texts of `/stats`.
///
/// # Errors
/// As `fetch`.
pub async fn stats(port: u16) -> std::io::Result<Map<String, Value>> {
    let (_, body) = fetch(port, "GET", "/stats").await?;
    Ok(body
        .lines()
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| {
            (name.to_owned(), value.parse::<u64>().map_or_else(|_| Value::from(value), Value::from))
        })
        .collect())
}

/// What a case wants of the stats: exact names (null where absent) and regexes.
#[must_use]
pub fn pick_stats(all: &Map<String, Value>, wanted: &[String]) -> Map<String, Value> {
    let mut picked = Map::new();
    for name in wanted {
        if name.starts_with('^') {
            if let Ok(re) = Regex::new(name) {
                picked
                    .extend(all.iter().filter(|(n, _)| re.is_match(n)).map(|(n, v)| (n.clone(), v.clone())));
            }
        } else {
            picked.insert(name.clone(), all.get(name).cloned().unwrap_or_default());
        }
    }
    picked
}
