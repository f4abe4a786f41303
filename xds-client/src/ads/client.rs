//! The ADS stream over gRPC: opens it, feeds [`Subscriptions`], sends what they ask for, and opens it again with a growing wait.
//! Envoy's `GrpcStream` is the model: 500 ms to 30 s with jitter, back to 500 ms after a response.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse};
use futures_util::StreamExt as _;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::client::Grpc;
use tonic::{Code, Request as GrpcRequest, Status, Streaming};
use tonic_prost::ProstCodec;

use super::service::Service;
use super::{Request, Response, Subscriptions, Variant, Verdict};
use crate::backoff::{Backoff, BackoffConfig};
use crate::connector::Connector;

/// How many events may wait for their reader before the stream is read no further.
const EVENT_BUFFER: usize = 16;
/// How long name lookup, connecting and TLS may take together. After that only the connection's keepalive decides: a busy control plane may
/// take its time with the first response, and Envoy waits, too.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// Who the client is and how it speaks.
#[derive(Clone, Debug, Default)]
pub struct AdsConfig {
    /// Sent in the first message of each stream.
    pub node: Node,
    /// Delta or state of the world.
    pub variant: Variant,
    /// The service that is asked.
    pub service: Service,
    /// Waits between streams.
    pub backoff: BackoffConfig,
}

/// What happens on the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdsEvent {
    /// A stream is open; the subscriptions are being stated.
    Connected,
    /// The stream ended or could not be opened; it is tried again after `retry_in`.
    Disconnected {
        /// Why, with the peer's name.
        reason: String,
        /// The wait before the next attempt.
        retry_in: Duration,
    },
    /// Resources; to be answered with [`AdsHandle::ack`].
    Response(Response),
    /// Resources that have outlived their TTL.
    Expired {
        /// Their type.
        type_url: String,
        /// Their names.
        names: Vec<String>,
    },
}

/// The connection to the control plane as admin endpoints and metrics show it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdsState {
    /// Since when the stream is open; `None` while it is not.
    pub connected_since: Option<Instant>,
    /// Streams tried so far.
    pub attempts: u64,
    /// Streams opened so far.
    pub successes: u64,
    /// Why the last stream ended or did not open.
    pub last_error: Option<String>,
}

enum Command {
    Subscribe(String, Vec<String>),
    SubscribeWildcard(String),
    Unsubscribe(String, Vec<String>),
    SetNames(String, Vec<String>),
    Ack(String, String, Verdict),
}

/// Commands to a running client. Cheap to clone; the client ends when every handle is gone or the receiver of events is.
#[derive(Clone)]
pub struct AdsHandle {
    commands: mpsc::UnboundedSender<Command>,
    state: watch::Receiver<AdsState>,
}

impl AdsHandle {
    // A client that has ended has no use for commands: a failed send is not an error of the caller's.
    fn send(&self, command: Command) {
        let _ = self.commands.send(command);
    }

    /// Wants `names` beside those wanted before.
    pub fn subscribe(&self, type_url: &str, names: impl IntoIterator<Item = impl Into<String>>) {
        self.send(Command::Subscribe(type_url.to_owned(), names.into_iter().map(Into::into).collect()));
    }

    /// Wants every resource of the type (CDS, LDS, name table).
    pub fn subscribe_wildcard(&self, type_url: &str) {
        self.send(Command::SubscribeWildcard(type_url.to_owned()));
    }

    /// Wants `names` no longer.
    pub fn unsubscribe(&self, type_url: &str, names: impl IntoIterator<Item = impl Into<String>>) {
        self.send(Command::Unsubscribe(type_url.to_owned(), names.into_iter().map(Into::into).collect()));
    }

    /// Wants exactly `names`.
    pub fn set_names(&self, type_url: &str, names: impl IntoIterator<Item = impl Into<String>>) {
        self.send(Command::SetNames(type_url.to_owned(), names.into_iter().map(Into::into).collect()));
    }

    /// Answers a response: an ACK if nothing is rejected, else a NACK with the reasons.
    pub fn ack(&self, type_url: &str, nonce: &str, verdict: Verdict) {
        self.send(Command::Ack(type_url.to_owned(), nonce.to_owned(), verdict));
    }

    /// The connection's state, now and on each change.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<AdsState> {
        self.state.clone()
    }
}

/// Starts clients.
pub struct AdsClient;

impl AdsClient {
    /// Starts a client on the current runtime. It opens its first stream with the first subscription.
    #[must_use]
    pub fn spawn(config: AdsConfig, connector: Connector) -> (AdsHandle, mpsc::Receiver<AdsEvent>) {
        let (handle, events, _task) = Self::spawn_task(config, connector);
        (handle, events)
    }

    /// [`Self::spawn`] with the task, for callers that end it.
    #[must_use]
    pub fn spawn_task(
        config: AdsConfig,
        connector: Connector,
    ) -> (AdsHandle, mpsc::Receiver<AdsEvent>, JoinHandle<()>) {
        let (command_sender, commands) = mpsc::unbounded_channel();
        let (events, event_receiver) = mpsc::channel(EVENT_BUFFER);
        let (state, state_receiver) = watch::channel(AdsState::default());
        let subscriptions = Subscriptions::new(config.variant);
        let client = Client { config, connector, subscriptions, commands, events, state };
        let task = tokio::spawn(async move { if let Err(Ended) = client.run().await {} });
        (AdsHandle { commands: command_sender, state: state_receiver }, event_receiver, task)
    }
}

/// Nobody is there to give commands or to read events.
struct Ended;

struct Client {
    config: AdsConfig,
    connector: Connector,
    subscriptions: Subscriptions,
    commands: mpsc::UnboundedReceiver<Command>,
    events: mpsc::Sender<AdsEvent>,
    state: watch::Sender<AdsState>,
}

enum Incoming {
    Delta(Streaming<DeltaDiscoveryResponse>),
    Sotw(Streaming<DiscoveryResponse>),
}

enum Message {
    Delta(DeltaDiscoveryResponse),
    Sotw(DiscoveryResponse),
}

impl Incoming {
    async fn next(&mut self) -> Result<Message, Status> {
        let ended = || Status::unavailable("stream closed by the control plane");
        match self {
            Self::Delta(stream) => stream.next().await.unwrap_or_else(|| Err(ended())).map(Message::Delta),
            Self::Sotw(stream) => stream.next().await.unwrap_or_else(|| Err(ended())).map(Message::Sotw),
        }
    }
}

/// The sending half of a stream; `node` is taken by the first message.
struct Outgoing {
    requests: RequestSender,
    node: Option<Node>,
}

enum RequestSender {
    Delta(mpsc::UnboundedSender<envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest>),
    Sotw(mpsc::UnboundedSender<envoy_types::pb::envoy::service::discovery::v3::DiscoveryRequest>),
}

impl Outgoing {
    /// A failed send means that the stream has ended, which the receiving half tells, with the reason.
    fn send(&mut self, request: Request) {
        let node = self.node.take();
        match &self.requests {
            RequestSender::Delta(sender) => drop(sender.send(request.into_delta(node))),
            RequestSender::Sotw(sender) => drop(sender.send(request.into_sotw(node))),
        }
    }
}

impl Client {
    async fn run(mut self) -> Result<(), Ended> {
        let mut backoff = Backoff::new(self.config.backoff);
        loop {
            // A stream without a request would only hold a connection; Envoy opens it with the first subscription, too.
            while self.subscriptions.is_empty() {
                tokio::select! {
                    command = self.commands.recv() => self.apply(command.ok_or(Ended)?),
                    () = self.events.closed() => return Err(Ended),
                }
            }
            self.state.send_modify(|state| state.attempts += 1);
            let error = match self.open().await? {
                Ok((outgoing, incoming)) => self.exchange(outgoing, incoming, &mut backoff).await?,
                Err(status) => status,
            };
            self.subscriptions.handle_disconnected();
            let reason = format!("{}: {}", self.connector.authority(), describe(&error));
            let retry_in = backoff.next_wait();
            self.state.send_modify(|state| {
                state.connected_since = None;
                state.last_error = Some(reason.clone());
            });
            self.emit(AdsEvent::Disconnected { reason, retry_in }).await?;
            self.wait(retry_in).await?;
        }
    }

    /// Opens a stream, while commands are taken in.
    async fn open(&mut self) -> Result<Result<(Outgoing, Incoming), Status>, Ended> {
        // Servers send headers when they like: istiod only with its first response. So the requests go ahead of them.
        self.subscriptions.handle_connected();
        let connector = self.connector.clone();
        let (variant, service) = (self.config.variant, self.config.service);
        let (delta, delta_requests) = mpsc::unbounded_channel();
        let (sotw, sotw_requests) = mpsc::unbounded_channel();
        let mut outgoing = Outgoing {
            requests: match variant {
                Variant::Delta => RequestSender::Delta(delta),
                Variant::StateOfTheWorld => RequestSender::Sotw(sotw),
            },
            node: Some(self.config.node.clone()),
        };
        let opening = async move {
            let channel = tokio::time::timeout(CONNECT_TIMEOUT, connector.connect())
                .await
                .map_err(|_| {
                    Status::unavailable(format!("no connection in {} s", CONNECT_TIMEOUT.as_secs()))
                })?
                .map_err(|error| Status::unavailable(error.to_string()))?;
            let mut grpc = Grpc::new(channel).max_decoding_message_size(usize::MAX);
            grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            let path = service.path(variant);
            Ok::<_, Status>(match variant {
                Variant::Delta => {
                    let mut request = GrpcRequest::new(UnboundedReceiverStream::new(delta_requests));
                    connector.authorize(request.metadata_mut()).map_err(Status::unauthenticated)?;
                    Incoming::Delta(grpc.streaming(request, path, ProstCodec::default()).await?.into_inner())
                }
                Variant::StateOfTheWorld => {
                    let mut request = GrpcRequest::new(UnboundedReceiverStream::new(sotw_requests));
                    connector.authorize(request.metadata_mut()).map_err(Status::unauthenticated)?;
                    Incoming::Sotw(grpc.streaming(request, path, ProstCodec::default()).await?.into_inner())
                }
            })
        };
        tokio::pin!(opening);
        loop {
            self.flush(&mut outgoing);
            tokio::select! {
                opened = &mut opening => {
                    return Ok(opened.map(|incoming| (outgoing, incoming)));
                }
                command = self.commands.recv() => self.apply(command.ok_or(Ended)?),
                () = self.events.closed() => return Err(Ended),
            }
        }
    }

    /// Runs an open stream to its end.
    async fn exchange(
        &mut self,
        mut outgoing: Outgoing,
        mut incoming: Incoming,
        backoff: &mut Backoff,
    ) -> Result<Status, Ended> {
        self.state.send_modify(|state| {
            state.connected_since = Some(Instant::now());
            state.successes += 1;
        });
        self.emit(AdsEvent::Connected).await?;
        loop {
            self.flush(&mut outgoing);
            let deadline = self.subscriptions.next_deadline();
            tokio::select! {
                message = incoming.next() => {
                    let now = Instant::now();
                    let response = match message {
                        Ok(Message::Delta(response)) => self.subscriptions.handle_delta_response(response, now),
                        Ok(Message::Sotw(response)) => self.subscriptions.handle_sotw_response(response, now),
                        Err(status) => return Ok(status),
                    };
                    backoff.reset();
                    self.emit(AdsEvent::Response(response)).await?;
                }
                command = self.commands.recv() => self.apply(command.ok_or(Ended)?),
                () = until(deadline) => self.expire().await?,
                () = self.events.closed() => return Err(Ended),
            }
        }
    }

    /// Lets time pass between streams; commands and TTLs go on.
    async fn wait(&mut self, time: Duration) -> Result<(), Ended> {
        let over = tokio::time::sleep(time);
        tokio::pin!(over);
        loop {
            let deadline = self.subscriptions.next_deadline();
            tokio::select! {
                () = &mut over => return Ok(()),
                command = self.commands.recv() => self.apply(command.ok_or(Ended)?),
                () = until(deadline) => self.expire().await?,
                () = self.events.closed() => return Err(Ended),
            }
        }
    }

    fn flush(&mut self, outgoing: &mut Outgoing) {
        // Commands that are already there count, so that names given together go out together.
        while let Ok(command) = self.commands.try_recv() {
            self.apply(command);
        }
        while let Some(request) = self.subscriptions.poll_request() {
            tracing::debug!(
                type_url = %request.type_url,
                subscribe = request.subscribe.len(),
                unsubscribe = request.unsubscribe.len(),
                ack = ?request.ack,
                "ads request"
            );
            outgoing.send(request);
        }
    }

    async fn expire(&mut self) -> Result<(), Ended> {
        while let Some((type_url, names)) = self.subscriptions.poll_expired(Instant::now()) {
            self.emit(AdsEvent::Expired { type_url, names }).await?;
        }
        Ok(())
    }

    async fn emit(&self, event: AdsEvent) -> Result<(), Ended> {
        self.events.send(event).await.map_err(|_| Ended)
    }

    fn apply(&mut self, command: Command) {
        match command {
            Command::Subscribe(type_url, names) => self.subscriptions.subscribe(&type_url, names),
            Command::SubscribeWildcard(type_url) => self.subscriptions.subscribe_wildcard(&type_url),
            Command::Unsubscribe(type_url, names) => self.subscriptions.unsubscribe(&type_url, &names),
            Command::SetNames(type_url, names) => self.subscriptions.set_names(&type_url, names),
            Command::Ack(type_url, nonce, verdict) => self.subscriptions.ack(&type_url, &nonce, &verdict),
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// A status in one line: the code's name and number unless it is the usual one of a lost connection, the message, and what lies under it.
fn describe(status: &Status) -> String {
    let code = status.code();
    let mut text = if status.message().is_empty() { code.description() } else { status.message() }.to_owned();
    if let Some(source) = std::error::Error::source(status) {
        let causes = crate::connector::causes(source);
        if !text.contains(&causes) {
            text = format!("{text}: {causes}");
        }
    }
    match code {
        Code::Unavailable => text,
        code => format!("{code:?} ({}): {text}", code as i32),
    }
}
