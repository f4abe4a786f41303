//! A TCP upstream: follows its script and keeps the bytes of each connection.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Shared;
use crate::case::TcpAction;
use crate::h1::show;
use crate::io::Io;

pub(super) async fn serve(mut io: Io, number: usize, shared: &Shared) {
    let tls = io.tls_facts(&shared.certs);
    let mut received = Vec::new();
    let note = |received: &[u8], end: &str| {
        let mut entry = json!({"received": show(received), "end": end});
        if tls != Value::Null {
            entry["tls"] = tls.clone();
        }
        shared.note_connection(number, entry);
    };
    note(&received, "open");
    let default = [TcpAction::Echo];
    for action in shared.script.script.as_deref().unwrap_or(&default) {
        match action {
            TcpAction::Send(text) => {
                let _ = io.write_all(text.as_bytes()).await;
                let _ = io.flush().await;
            }
            TcpAction::ReadBytes(n) => {
                while received.len() < *n && matches!(io.read_buf(&mut received).await, Ok(n) if n > 0) {}
                note(&received, "open");
            }
            TcpAction::PauseMs(ms) => tokio::time::sleep(Duration::from_millis(*ms)).await,
            TcpAction::HalfClose => {
                let _ = io.shutdown().await;
            }
            TcpAction::Reset => {
                io.reset_on_close();
                note(&received, "reset by script");
                return;
            }
            TcpAction::Close => {
                let _ = io.shutdown().await;
                note(&received, "closed by script");
                return;
            }
            TcpAction::Echo | TcpAction::Drain => loop {
                let before = received.len();
                match io.read_buf(&mut received).await {
                    Ok(0) => {
                        note(&received, "closed by peer");
                        break;
                    }
                    Err(_) => {
                        note(&received, "reset by peer");
                        return;
                    }
                    Ok(_) => {
                        note(&received, "open");
                        if matches!(action, TcpAction::Echo) {
                            let _ = io.write_all(&received[before..]).await;
                            let _ = io.flush().await;
                        }
                    }
                }
            },
        }
    }
    let _ = io.shutdown().await;
}
