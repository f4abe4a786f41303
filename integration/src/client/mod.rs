//! Scripted clients: requests over HTTP/1.1 and HTTP/2, and raw bytes. Each returns what came back, as a value that
//! can be compared.

mod http1;
mod http2;
mod raw;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::case::{ClientTls, Keep, Raw, Request, Version};
use crate::certs::Certs;
use crate::h1::Reader;
use crate::io::{Io, connect_tls};
use crate::ports::Places;

/// The clients of one case, with its named connections.
#[derive(Debug)]
pub struct Clients {
    places: Places,
    certs: Arc<Certs>,
    named: Mutex<HashMap<String, Connection>>,
}

#[derive(Debug)]
enum Connection {
    H1(Reader<Io>),
    H2(h2::client::SendRequest<bytes::Bytes>),
}

impl Clients {
    #[must_use]
    pub fn new(places: Places, certs: Arc<Certs>) -> Self {
        Self { places, certs, named: Mutex::default() }
    }

    /// Closes a named connection.
    pub async fn close(&self, name: &str) {
        self.named.lock().await.remove(name);
    }

    /// Sends a request, as often as it says, and observes the responses.
    pub async fn request(&self, request: &Request) -> Value {
        if let Some(tally) = &request.tally {
            let mut counts: std::collections::BTreeMap<String, usize> = std::collections::BTreeMap::new();
            for _ in 0..request.repeat {
                let seen = self.once(request).await;
                *counts.entry(tally_key(&seen, &tally.by)).or_default() += 1;
            }
            let mut shown = Map::new();
            for (key, (low, high)) in &tally.within {
                let count = counts.remove(key).unwrap_or(0);
                let inside = (*low..=*high).contains(&count);
                let text = if inside {
                    format!("{low}..={high}")
                } else {
                    format!("{count}: outside {low}..={high}")
                };
                shown.insert(key.clone(), text.into());
            }
            for (key, count) in counts {
                shown.insert(key, count.into());
            }
            return json!({"tally": shown});
        }
        if request.repeat == 1 {
            return self.once(request).await;
        }
        let mut all = Vec::new();
        for _ in 0..request.repeat {
            all.push(self.once(request).await);
        }
        Value::Array(all)
    }

    async fn once(&self, request: &Request) -> Value {
        let limit = Duration::from_millis(request.timeout_ms);
        match tokio::time::timeout(limit, self.exchange(request)).await {
            Err(_) => json!({"error": "no answer in time"}),
            Ok(Err(e)) => json!({"error": kind(&e)}),
            Ok(Ok(mut seen)) => {
                if request.keep == Keep::Status {
                    seen = json!({"status": seen["status"]});
                }
                seen
            }
        }
    }

    async fn exchange(&self, request: &Request) -> io::Result<Value> {
        let held = match &request.connection {
            None => None,
            Some(name) => {
                let mut named = self.named.lock().await;
                // HTTP/2 is shared, so that lanes can use one connection at the same time.
                match named.get(name) {
                    Some(Connection::H2(send)) => Some(Connection::H2(send.clone())),
                    _ => named.remove(name),
                }
            }
        };
        let mut facts = Value::Null;
        let connection = match held {
            Some(connection) => connection,
            None => {
                let io = self.connect(&request.to, request.tls.as_ref(), None).await?;
                facts = io.tls_facts(&self.certs);
                if request.version == Version::Http2 {
                    let send = http2::handshake(io).await?;
                    if let Some(name) = &request.connection {
                        self.named.lock().await.insert(name.clone(), Connection::H2(send.clone()));
                    }
                    Connection::H2(send)
                } else {
                    Connection::H1(Reader::new(io))
                }
            }
        };
        let mut seen = match connection {
            Connection::H2(send) => http2::exchange(send, request).await?,
            Connection::H1(mut reader) => {
                let (seen, open) = http1::exchange(&mut reader, request).await?;
                if open && let Some(name) = &request.connection {
                    self.named.lock().await.insert(name.clone(), Connection::H1(reader));
                }
                seen
            }
        };
        if facts != Value::Null {
            seen["tls"] = facts;
        }
        Ok(seen)
    }

    /// Runs a script of bytes and observes what came.
    pub async fn raw(&self, raw: &Raw) -> Value {
        match self.connect(&raw.to, raw.tls.as_ref(), raw.from.as_deref()).await {
            Err(e) => json!({"error": kind(&e)}),
            Ok(io) => raw::run(io, raw, &self.certs).await,
        }
    }

    async fn connect(&self, to: &str, tls: Option<&ClientTls>, from: Option<&str>) -> io::Result<Io> {
        let port = self.places.port(to).ok_or_else(|| io::Error::other(format!("no port is called {to}")))?;
        let tcp = connect_patiently(port, from).await?;
        tcp.set_nodelay(true)?;
        match tls {
            None => Ok(Io::Plain(tcp)),
            Some(tls) => connect_tls(tcp, tls, &self.certs).await,
        }
    }
}

/// A listener may open a moment after the admin port says ready.
async fn connect_patiently(port: u16, from: Option<&str>) -> io::Result<TcpStream> {
    let end = Instant::now() + Duration::from_secs(2);
    loop {
        let socket = TcpSocket::new_v4()?;
        if let Some(ip) = from {
            let ip: std::net::IpAddr = ip.parse().map_err(io::Error::other)?;
            socket.bind((ip, 0).into())?;
        }
        match socket.connect(([127, 0, 0, 1], port).into()).await {
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused && Instant::now() < end => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            other => return other,
        }
    }
}

/// An error as the observation shows it: its kind, without what depends on the machine.
pub(crate) fn kind(e: &io::Error) -> String {
    if let Some(tls) = e.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        return format!("tls: {tls}");
    }
    match e.kind() {
        io::ErrorKind::UnexpectedEof => "closed".into(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => "reset".into(),
        io::ErrorKind::ConnectionRefused => "refused".into(),
        _ => e.to_string(),
    }
}

fn tally_key(seen: &Value, by: &str) -> String {
    if let Some(name) = by.strip_prefix("header:") {
        return seen["headers"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .find_map(|h| h.strip_prefix(name)?.strip_prefix(": "))
            .unwrap_or("none")
            .to_owned();
    }
    match &seen[by] {
        Value::String(text) => text.trim().to_owned(),
        Value::Null => seen["error"].as_str().unwrap_or("none").to_owned(),
        other => other.to_string(),
    }
}
