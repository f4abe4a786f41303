//! `istio.v1.auth.IstioCertificateService` over a [`CertificateAuthority`], for the demo and for tests. A caller is who its request says; a token, if
//! one is set, must be shown.

use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tonic::body::Body;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use tower::Service;

use crate::ca::CertificateAuthority;
use crate::clock::Clock;
use crate::proto::{CREATE_CERTIFICATE, IstioCertificateRequest, IstioCertificateResponse, SERVICE};

/// The service; clones share the authority and the count.
#[derive(Clone)]
pub struct CertificateService {
    authority: Arc<CertificateAuthority>,
    clock: Clock,
    max_ttl: Duration,
    token: Option<Arc<str>>,
    issued: Arc<AtomicU64>,
}

impl CertificateService {
    /// Signs for at most `max_ttl`.
    #[must_use]
    pub fn new(authority: Arc<CertificateAuthority>, max_ttl: Duration) -> Self {
        Self { authority, clock: Clock::system(), max_ttl, token: None, issued: Arc::default() }
    }

    /// Refuses whoever does not show this token.
    #[must_use]
    pub fn with_token(mut self, token: &str) -> Self {
        self.token = Some(token.into());
        self
    }

    /// Certificates issued so far.
    #[must_use]
    pub fn issued(&self) -> u64 {
        self.issued.load(Ordering::Relaxed)
    }

    fn create(&self, request: Request<IstioCertificateRequest>) -> Result<IstioCertificateResponse, Status> {
        if let Some(token) = &self.token {
            let shown = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
            if shown.and_then(|value| value.strip_prefix("Bearer ")) != Some(token) {
                return Err(Status::unauthenticated("the token is not the one that is asked for"));
            }
        }
        let request = request.into_inner();
        let bad = |error: crate::ca::SignError| Status::invalid_argument(error.to_string());
        let id = CertificateAuthority::requested_id(&request.csr).map_err(bad)?;
        let asked = Duration::from_secs(u64::try_from(request.validity_duration).unwrap_or_default());
        let ttl = if asked.is_zero() { self.max_ttl } else { asked.min(self.max_ttl) };
        let cert_chain = self.authority.sign(&request.csr, &id, self.clock.now(), ttl).map_err(bad)?;
        self.issued.fetch_add(1, Ordering::Relaxed);
        Ok(IstioCertificateResponse { cert_chain })
    }
}

impl NamedService for CertificateService {
    const NAME: &'static str = SERVICE;
}

impl UnaryService<IstioCertificateRequest> for CertificateService {
    type Response = IstioCertificateResponse;
    type Future = Ready<Result<Response<IstioCertificateResponse>, Status>>;

    fn call(&mut self, request: Request<IstioCertificateRequest>) -> Self::Future {
        ready(self.create(request).map(Response::new))
    }
}

impl Service<http::Request<Body>> for CertificateService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            if request.uri().path() != CREATE_CERTIFICATE {
                return Ok(Status::unimplemented("no such method").into_http());
            }
            let codec = ProstCodec::<IstioCertificateResponse, IstioCertificateRequest>::default();
            Ok(Grpc::new(codec).unary(service, request).await)
        })
    }
}
