//! A script of bytes on one connection, and every byte that comes back.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::kind;
use crate::case::{Raw, RawAction};
use crate::certs::Certs;
use crate::h1::{filler, show};
use crate::io::Io;

pub(super) async fn run(mut io: Io, raw: &Raw, certs: &Certs) -> Value {
    let mut seen = json!({});
    let facts = io.tls_facts(certs);
    if facts != Value::Null {
        seen["tls"] = facts;
    }
    let mut received = Vec::new();
    let mut parts = Vec::new();
    let short = raw.send.clone().map(RawAction::Send);
    for action in short.iter().chain(&raw.script) {
        match action {
            RawAction::Send(text) => write(&mut io, text.as_bytes()).await,
            RawAction::SendHex(hex) => write(&mut io, &unhex(hex)).await,
            RawAction::SendSize(size) => write(&mut io, &filler(*size)).await,
            RawAction::PauseMs(ms) => tokio::time::sleep(Duration::from_millis(*ms)).await,
            RawAction::HalfClose => {
                let _ = io.shutdown().await;
            }
            RawAction::ReadUntil(text) => {
                let limit = Duration::from_millis(raw.wait_ms);
                let wanted = async {
                    while !received.windows(text.len()).any(|w| w == text.as_bytes()) {
                        if !matches!(io.read_buf(&mut received).await, Ok(n) if n > 0) {
                            break;
                        }
                    }
                };
                let in_time = tokio::time::timeout(limit, wanted).await.is_ok();
                parts.push(show(&received));
                if !in_time {
                    parts.push(json!({"missing": text}));
                }
                received.clear();
            }
            RawAction::Close => {
                seen["received"] = parts.into();
                return seen;
            }
            RawAction::Reset => {
                io.reset_on_close();
                seen["received"] = parts.into();
                return seen;
            }
        }
    }
    let end = loop {
        let ms = if received.is_empty() { raw.wait_ms } else { raw.quiet_ms };
        match tokio::time::timeout(Duration::from_millis(ms), io.read_buf(&mut received)).await {
            Err(_) => break "open".to_owned(),
            Ok(Ok(0)) => break "closed".to_owned(),
            Ok(Ok(_)) => {}
            Ok(Err(e)) => break kind(&e),
        }
    };
    if parts.is_empty() || !received.is_empty() {
        parts.push(show(&received));
    }
    seen["received"] = parts.into();
    seen["end"] = end.into();
    seen
}

/// The peer may close at any point of a script; what it said until then is the observation.
async fn write(io: &mut Io, bytes: &[u8]) {
    let _ = io.write_all(bytes).await;
    let _ = io.flush().await;
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        text.chars().filter_map(|c| c.to_digit(16)).map(|d| u8::try_from(d).unwrap_or_default()).collect();
    digits.chunks_exact(2).map(|p| p[0] << 4 | p[1]).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn hex_may_be_spaced() {
        assert_eq!(super::unhex("16 03 01ff"), [0x16, 3, 1, 0xff]);
    }
}
