//! Scripted upstream servers. Each answers as its case says and keeps what it received, in order of arrival.

mod http1;
mod http2;
mod tcp;

pub(crate) use http2::{lines as header_lines, map as header_map, send_all};

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::case::{self, Protocol, Response};
use crate::certs::Certs;
use crate::io::{Io, accept_tls};

/// A running upstream. Dropping it ends its connections.
#[derive(Debug)]
pub struct Upstream {
    shared: Arc<Shared>,
    task: Option<JoinHandle<()>>,
    /// Holds the port of a `refused` upstream, so that nobody else answers there.
    _held: Option<TcpSocket>,
}

/// What the connections of an upstream share.
#[derive(Debug)]
pub(crate) struct Shared {
    name: String,
    script: case::Upstream,
    certs: Arc<Certs>,
    log: Mutex<Log>,
}

#[derive(Debug, Default)]
struct Log {
    connections: Vec<Value>,
    requests: Vec<Value>,
    asked: HashMap<String, usize>,
}

impl Upstream {
    /// Binds the port and begins to serve.
    ///
    /// # Errors
    /// The port is taken.
    pub fn start(name: &str, script: case::Upstream, port: u16, certs: Arc<Certs>) -> std::io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(([127, 0, 0, 1], port).into())?;
        let refused = script.protocol == Protocol::Refused;
        let shared = Arc::new(Shared { name: name.to_owned(), script, certs, log: Mutex::default() });
        if refused {
            return Ok(Self { shared, task: None, _held: Some(socket) });
        }
        let listener = socket.listen(1024)?;
        let task = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { shared, task: Some(task), _held: None })
    }

    /// Connections and requests so far.
    #[must_use]
    pub fn observed(&self, connections: bool, sort: bool) -> Value {
        let log = self.shared.lock();
        let mut requests = log.requests.clone();
        if !connections {
            for r in &mut requests {
                if let Some(map) = r.as_object_mut() {
                    map.remove("connection");
                }
            }
        }
        if sort {
            requests.sort_by_key(Value::to_string);
        }
        let mut out = serde_json::Map::new();
        if connections {
            out.insert("connections".into(), Value::Array(log.connections.clone()));
        }
        if self.shared.script.protocol != Protocol::Tcp {
            out.insert("requests".into(), Value::Array(requests));
        }
        Value::Object(out)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The response whose turn it is.
    fn next_response(&self, path: &str) -> Response {
        let path = path.split('?').next().unwrap_or_default();
        let (key, list) = match self.script.paths.get(path) {
            Some(list) => (path, list),
            None => ("", &self.script.respond),
        };
        let mut log = self.lock();
        let n = log.asked.entry(key.to_owned()).or_insert(0);
        let response = list.get(*n).or(list.last()).cloned().unwrap_or_default();
        *n += 1;
        response
    }

    fn record_request(&self, request: Value) {
        self.lock().requests.push(request);
    }

    fn note_connection(&self, connection: usize, note: Value) {
        if let Some(entry) = self.lock().connections.get_mut(connection) {
            *entry = note;
        }
    }

    /// The body that a response asks for; by default the upstream's name.
    fn body_of(&self, response: &Response) -> Vec<u8> {
        match (&response.body, response.size) {
            (Some(text), _) => text.clone().into_bytes(),
            (None, Some(size)) => crate::h1::filler(size),
            (None, None) => format!("{}\n", self.name).into_bytes(),
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((tcp, _)) = listener.accept().await {
        let number = {
            let mut log = shared.lock();
            log.connections.push(json!({}));
            log.connections.len() - 1
        };
        connections.spawn(connection(tcp, number, Arc::clone(&shared)));
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(tcp: TcpStream, number: usize, shared: Arc<Shared>) {
    let _ = tcp.set_nodelay(true);
    let io = match &shared.script.tls {
        None => Io::Plain(tcp),
        Some(tls) => match accept_tls(tcp, tls, &shared.certs).await {
            Ok(io) => {
                shared.note_connection(number, json!({"tls": io.tls_facts(&shared.certs)}));
                io
            }
            Err(_) => {
                // Which alert came is a matter of the TLS library.
                shared.note_connection(number, json!({"tls": "handshake failed"}));
                return;
            }
        },
    };
    match (shared.script.protocol, io.alpn().as_deref()) {
        (Protocol::Tcp | Protocol::Refused, _) => tcp::serve(io, number, &shared).await,
        (Protocol::Http2, _) | (_, Some(b"h2")) => http2::serve(io, number, Arc::clone(&shared)).await,
        (Protocol::Http1, _) => http1::serve(io, number, &shared).await,
    }
}
