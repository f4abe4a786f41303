//! The client of Istio's certificate service: a request in, a chain out. Retries are istio-agent's (`CARetryOptions`): five attempts, from
//! 100 ms doubling, on codes that may pass; the channel is made anew after a failure, because the roots may have changed under it.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use prost_types::value::Kind;
use prost_types::{Struct, Value};
use tonic::client::Grpc;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use crate::proto::{CREATE_CERTIFICATE, IstioCertificateRequest, IstioCertificateResponse};

/// Attempts of one [`CaClient::issue`], the first included.
const ATTEMPTS: u32 = 5;
/// The wait before the second attempt.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// How long one attempt may take.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);

/// Makes a channel to the certificate service.
pub type ChannelSource = Arc<dyn Fn() -> Result<Channel, String> + Send + Sync>;
/// Gives the token for the next attempt, or says why there is none.
pub type TokenSource = Arc<dyn Fn() -> Result<String, String> + Send + Sync>;

/// Why no certificate was issued.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum CaError {
    /// The service said no, or could not be reached, in every attempt.
    #[error("{peer}: create certificate: {code:?}: {message} (attempt {attempts})")]
    Refused {
        /// The service's address.
        peer: String,
        /// The gRPC code.
        code: Code,
        /// Its words.
        message: String,
        /// Attempts made.
        attempts: u32,
    },
    /// No token to show.
    #[error("token: {0}")]
    Token(String),
    /// No channel.
    #[error("{peer}: {reason}")]
    Channel {
        /// The service's address.
        peer: String,
        /// What is wrong.
        reason: String,
    },
    /// An answer without a leaf and a root.
    #[error("{peer}: the answer has {count} certificates, at least a leaf and a root are needed")]
    ShortChain {
        /// The service's address.
        peer: String,
        /// How many there were.
        count: usize,
    },
}

/// Something that turns a certificate request into a chain.
pub trait Issue: Send + Sync {
    /// Asks for a certificate that is valid for `ttl`. PEM: the leaf, intermediates, at last the root.
    fn issue(&self, csr: &str, ttl: Duration) -> impl Future<Output = Result<Vec<String>, CaError>> + Send;
}

/// A client of one certificate service.
#[derive(Clone)]
pub struct CaClient {
    peer: String,
    channel: ChannelSource,
    token: Option<TokenSource>,
    cluster_id: String,
    signer: String,
}

impl CaClient {
    /// `peer` names the service in errors.
    #[must_use]
    pub fn new(peer: impl Into<String>, channel: ChannelSource) -> Self {
        Self { peer: peer.into(), channel, token: None, cluster_id: String::new(), signer: String::new() }
    }

    /// Sends `authorization: Bearer …`, read anew for each attempt.
    #[must_use]
    pub fn with_token(mut self, token: TokenSource) -> Self {
        self.token = Some(token);
        self
    }

    /// Sends `clusterid`: which API server istiod asks about the token.
    #[must_use]
    pub fn with_cluster_id(mut self, cluster_id: impl Into<String>) -> Self {
        self.cluster_id = cluster_id.into();
        self
    }

    /// Names a Kubernetes signer in the request's metadata (`CERT_SIGNER`).
    #[must_use]
    pub fn with_signer(mut self, signer: impl Into<String>) -> Self {
        self.signer = signer.into();
        self
    }

    async fn attempt(&self, channel: Channel, csr: &str, ttl: Duration) -> Result<Vec<String>, Attempt> {
        let signer = Value { kind: Some(Kind::StringValue(self.signer.clone())) };
        let mut request = Request::new(IstioCertificateRequest {
            csr: csr.to_owned(),
            validity_duration: i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX),
            metadata: Some(Struct { fields: [("CertSigner".to_owned(), signer)].into() }),
        });
        if !self.cluster_id.is_empty() {
            let value = self.cluster_id.parse().map_err(|_| {
                Attempt::Final(Status::invalid_argument("the cluster id is not a header value"))
            })?;
            request.metadata_mut().insert("clusterid", value);
        }
        if let Some(token) = &self.token {
            let token = token().map_err(Attempt::Token)?;
            let mut value: AsciiMetadataValue = format!("Bearer {}", token.trim())
                .parse()
                .map_err(|_| Attempt::Token("it has characters that no header may have".to_owned()))?;
            value.set_sensitive(true);
            request.metadata_mut().insert("authorization", value);
        }
        let call = async {
            let mut grpc = Grpc::new(channel);
            grpc.ready().await.map_err(|error| Status::unavailable(causes(&error)))?;
            let codec = ProstCodec::<IstioCertificateRequest, IstioCertificateResponse>::default();
            let path = http::uri::PathAndQuery::from_static(CREATE_CERTIFICATE);
            grpc.unary(request, path, codec).await
        };
        match tokio::time::timeout(ATTEMPT_TIMEOUT, call).await {
            Ok(Ok(response)) => Ok(response.into_inner().cert_chain),
            Ok(Err(status)) if may_pass(status.code()) => Err(Attempt::Again(status)),
            Ok(Err(status)) => Err(Attempt::Final(status)),
            Err(_) => Err(Attempt::Again(Status::deadline_exceeded(format!(
                "no answer in {} s",
                ATTEMPT_TIMEOUT.as_secs()
            )))),
        }
    }
}

enum Attempt {
    Again(Status),
    Final(Status),
    Token(String),
}

impl Issue for CaClient {
    async fn issue(&self, csr: &str, ttl: Duration) -> Result<Vec<String>, CaError> {
        let mut wait = FIRST_WAIT;
        let mut attempts = 0;
        loop {
            attempts += 1;
            let channel =
                (self.channel)().map_err(|reason| CaError::Channel { peer: self.peer.clone(), reason })?;
            let status = match self.attempt(channel, csr, ttl).await {
                Ok(chain) if chain.len() < 2 => {
                    return Err(CaError::ShortChain { peer: self.peer.clone(), count: chain.len() });
                }
                Ok(chain) => return Ok(chain),
                Err(Attempt::Token(reason)) => return Err(CaError::Token(reason)),
                Err(Attempt::Again(_)) if attempts < ATTEMPTS => {
                    tokio::time::sleep(wait).await;
                    wait *= 2;
                    continue;
                }
                Err(Attempt::Again(status) | Attempt::Final(status)) => status,
            };
            return Err(CaError::Refused {
                peer: self.peer.clone(),
                code: status.code(),
                message: words(&status),
                attempts,
            });
        }
    }
}

/// The codes of `CARetryOptions`.
fn may_pass(code: Code) -> bool {
    matches!(
        code,
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::Internal
            | Code::Unavailable
    )
}

/// A status's words with their causes: of a connection that fails, tonic's own are only "tcp connect error".
fn words(status: &Status) -> String {
    match std::error::Error::source(status) {
        None => status.message().to_owned(),
        Some(cause) => {
            let cause = causes(cause);
            if cause.contains(status.message()) { cause } else { format!("{}: {cause}", status.message()) }
        }
    }
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        source = cause.source();
    }
    text
}
