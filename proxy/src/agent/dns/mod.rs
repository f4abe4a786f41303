//! The DNS proxy on 15053: names of the mesh are answered from istiod's name table, all others are passed to the servers
//! of resolv.conf. Follows Istio's "DNS proxying" page.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hickory_resolver::proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA, CNAME};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

mod table;
#[cfg(test)]
mod tests;

pub use table::{NameInfo, NameTable, Names};

/// Seconds an answer may be kept: Istio's value, short, because istiod may change the table at any time.
const TTL: u32 = 30;
const UPSTREAM_TIMEOUT: Duration = Duration::from_secs(5);
/// Idle time after which a TCP connection is closed.
const TCP_IDLE: Duration = Duration::from_secs(30);
/// Without EDNS an answer over UDP has at most 512 bytes (RFC 1035, 2.3.4).
const UDP_SIZE: usize = 512;
const PORT: u16 = 53;

/// What resolv.conf says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolver {
    pub servers: Vec<SocketAddr>,
    pub search: Vec<String>,
}

/// The DNS proxy. The table is empty until istiod has sent one; until then every name goes upstream.
#[derive(Debug)]
pub struct DnsProxy {
    names: ArcSwap<Names>,
    resolver: Resolver,
    namespace: String,
}

/// Sockets that the proxy answers on.
#[derive(Debug)]
pub struct Sockets {
    pub udp: UdpSocket,
    pub tcp: TcpListener,
}

impl Resolver {
    #[must_use]
    pub fn parse(resolv_conf: &str) -> Self {
        let mut resolver = Self::default();
        for line in resolv_conf.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    let address = words.next().and_then(|word| word.parse::<IpAddr>().ok());
                    resolver.servers.extend(address.map(|address| SocketAddr::new(address, PORT)));
                }
                // The last line of these counts (resolv.conf(5)).
                Some("search" | "domain") => resolver.search = words.map(str::to_owned).collect(),
                _ => {}
            }
        }
        resolver
    }
}

impl Sockets {
    /// Binds both protocols on the loopback, where the rules send queries to.
    ///
    /// # Errors
    /// When the port is taken.
    pub async fn bind(port: u16) -> io::Result<Self> {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, udp.local_addr()?.port())).await?;
        Ok(Self { udp, tcp })
    }
}

impl DnsProxy {
    /// `namespace` is the pod's own: short names of its services are answered.
    #[must_use]
    pub fn new(resolver: Resolver, namespace: &str) -> Self {
        Self { names: ArcSwap::default(), resolver, namespace: namespace.to_owned() }
    }

    /// Replaces the table as a whole.
    pub fn update(&self, table: &NameTable) {
        self.names.store(Arc::new(Names::new(table, &self.namespace, &self.resolver.search)));
    }

    /// The table for `/debug/ndsz`.
    #[must_use]
    pub fn table_json(&self) -> String {
        self.names.load().json()
    }

    /// Serves both sockets until dropped.
    pub async fn serve(self: Arc<Self>, sockets: Sockets) {
        let udp = Arc::clone(&self).serve_udp(Arc::new(sockets.udp));
        tokio::join!(udp, self.serve_tcp(sockets.tcp));
    }

    async fn serve_udp(self: Arc<Self>, socket: Arc<UdpSocket>) {
        let mut buffer = vec![0; 65_536];
        loop {
            // An error here is about an answer sent before, whose port is gone: not about this socket.
            let Ok((length, peer)) = socket.recv_from(&mut buffer).await else { continue };
            let (proxy, socket, query) = (Arc::clone(&self), Arc::clone(&socket), buffer[..length].to_vec());
            tokio::spawn(async move {
                if let Some(answer) = proxy.answer(&query, false).await {
                    // Who asked and went away gets none.
                    let _ = socket.send_to(&answer, peer).await;
                }
            });
        }
    }

    async fn serve_tcp(self: Arc<Self>, listener: TcpListener) {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let proxy = Arc::clone(&self);
            tokio::spawn(async move {
                // A client that breaks off is its own concern.
                let _ = proxy.tcp_connection(stream).await;
            });
        }
    }

    async fn tcp_connection(&self, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let Ok(query) = tokio::time::timeout(TCP_IDLE, read_framed(&mut stream)).await else {
                return Ok(());
            };
            let Some(answer) = self.answer(&query?, true).await else { return Ok(()) };
            write_framed(&mut stream, &answer).await?;
        }
    }

    /// The bytes of the answer; `None` for what is not a DNS message at all.
    async fn answer(&self, query: &[u8], tcp: bool) -> Option<Vec<u8>> {
        let Ok(message) = Message::from_vec(query) else { return malformed(query) };
        if let Some(answer) = self.local(&message) {
            let limit = usize::from(message.max_payload()).max(UDP_SIZE);
            let bytes = answer.to_vec().ok()?;
            return if tcp || bytes.len() <= limit { Some(bytes) } else { answer.truncate().to_vec().ok() };
        }
        for server in &self.resolver.servers {
            let asked =
                async { if tcp { ask_tcp(*server, query).await } else { ask_udp(*server, query).await } };
            if let Ok(Ok(answer)) = tokio::time::timeout(UPSTREAM_TIMEOUT, asked).await {
                return Some(answer);
            }
        }
        respond(&message, ResponseCode::ServFail, Vec::new()).to_vec().ok()
    }

    /// The answer for a name of the table; `None` if the name is not in it, or not a question for it.
    fn local(&self, query: &Message) -> Option<Message> {
        let [question] = query.queries.as_slice() else { return None };
        if query.metadata.op_code != OpCode::Query || query.metadata.message_type != MessageType::Query {
            return None;
        }
        let wanted = question.query_type();
        if !matches!(wanted, RecordType::A | RecordType::AAAA) {
            return None;
        }
        let names = self.names.load();
        let found = names.lookup(&question.name().to_ascii())?;
        let mut answers = Vec::new();
        let mut owner = question.name().clone();
        if let Some(alias) = found.alias {
            let target = Name::from_ascii(alias).ok()?;
            answers.push(Record::from_rdata(owner, TTL, RData::CNAME(CNAME(target.clone()))));
            owner = target;
        }
        for address in found.addresses {
            let data = match (address, wanted) {
                (IpAddr::V4(address), RecordType::A) => RData::A(A(*address)),
                (IpAddr::V6(address), RecordType::AAAA) => RData::AAAA(AAAA(*address)),
                _ => continue,
            };
            answers.push(Record::from_rdata(owner.clone(), TTL, data));
        }
        // A known name without an address of this family: an answer with none, never one from elsewhere.
        Some(respond(query, ResponseCode::NoError, answers))
    }
}

fn respond(query: &Message, code: ResponseCode, answers: Vec<Record>) -> Message {
    let mut message = Message::response(query.metadata.id, query.metadata.op_code);
    message.metadata.recursion_desired = query.metadata.recursion_desired;
    message.metadata.recursion_available = true;
    message.metadata.authoritative = code == ResponseCode::NoError;
    message.metadata.response_code = code;
    message.queries.clone_from(&query.queries);
    message.add_answers(answers);
    message
}

/// FORMERR for what has at least an id to answer to.
fn malformed(query: &[u8]) -> Option<Vec<u8>> {
    let id = u16::from_be_bytes([*query.first()?, *query.get(1)?]);
    Message::error_msg(id, OpCode::Query, ResponseCode::FormErr).to_vec().ok()
}

async fn ask_udp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    // A port of its own for each question: hard to guess, and no table of questions under way.
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; 65_536];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if buffer[..length].get(..2) == query.get(..2) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn ask_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    write_framed(&mut stream, query).await?;
    read_framed(&mut stream).await
}

/// RFC 1035, 4.2.2: a length of two bytes before each message.
async fn read_framed(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut message = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_framed(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(message);
    stream.write_all(&framed).await
}
