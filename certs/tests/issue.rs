//! A workload against a certificate service, over real sockets: token, refusal, retries, rotation of short-lived certificates, and a
//! TLS handshake with what was issued.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use outrigger_certs::ca::CertificateAuthority;
use outrigger_certs::ca_client::{CaClient, CaError, ChannelSource, Issue as _};
use outrigger_certs::ca_server::CertificateService;
use outrigger_certs::csr::certificate_request;
use outrigger_certs::key::{KeyAlgorithm, PrivateKey};
use outrigger_certs::rotation::{Rotation, RotationConfig};
use outrigger_certs::spiffe::SpiffeId;
use outrigger_certs::store::{ROOT, SecretStore, WORKLOAD};
use outrigger_certs::verify::Usage;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Code;
use tonic::transport::{Endpoint, Server};

async fn serve(service: CertificateService) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(
        Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)),
    );
    address
}

fn channels(address: &str) -> ChannelSource {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    Arc::new(move || Ok(endpoint.connect_lazy()))
}

fn id() -> SpiffeId {
    SpiffeId::workload("cluster.local", "demo", "web")
}

fn request() -> String {
    certificate_request(&PrivateKey::generate(KeyAlgorithm::EcdsaP256).unwrap(), &id()).unwrap()
}

#[tokio::test]
async fn token_is_read_for_each_attempt() {
    let authority = Arc::new(CertificateAuthority::generate("test").unwrap());
    let service = CertificateService::new(authority, Duration::from_secs(60)).with_token("right");
    let address = serve(service.clone()).await;
    let reads = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&reads);
    let client = CaClient::new(&address, channels(&address)).with_cluster_id("Kubernetes").with_token(
        Arc::new(move || match counted.fetch_add(1, Ordering::Relaxed) {
            0 => Ok("wrong".to_owned()),
            1 => Ok("right\n".to_owned()),
            _ => Err("/var/run/secrets/token: gone".to_owned()),
        }),
    );
    let refused = client.issue(&request(), Duration::from_secs(60)).await.unwrap_err();
    let CaError::Refused { code: Code::Unauthenticated, attempts: 1, .. } = &refused else {
        panic!("{refused}")
    };
    assert!(refused.to_string().starts_with(&address), "{refused}");
    assert_eq!(client.issue(&request(), Duration::from_secs(60)).await.unwrap().len(), 2);
    let missing = client.issue(&request(), Duration::from_secs(60)).await.unwrap_err();
    assert_eq!(missing.to_string(), "token: /var/run/secrets/token: gone");
    assert_eq!(service.issued(), 1);
}

#[tokio::test]
async fn malformed_request_is_refused_at_once() {
    let authority = Arc::new(CertificateAuthority::generate("test").unwrap());
    let address = serve(CertificateService::new(authority, Duration::from_secs(60))).await;
    let client = CaClient::new(&address, channels(&address));
    let refused = client.issue("no request", Duration::from_secs(60)).await.unwrap_err();
    assert!(
        matches!(refused, CaError::Refused { code: Code::InvalidArgument, attempts: 1, .. }),
        "{refused}"
    );
}

#[tokio::test]
async fn service_that_is_away_is_tried_five_times() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let client = CaClient::new(&address, channels(&address));
    let refused = client.issue(&request(), Duration::from_secs(60)).await.unwrap_err();
    assert!(matches!(refused, CaError::Refused { code: Code::Unavailable, attempts: 5, .. }), "{refused}");
    assert!(refused.to_string().contains("refused"), "{refused}");
}

#[tokio::test]
async fn short_lived_certificates_rotate_and_serve() {
    let authority = Arc::new(CertificateAuthority::generate("test").unwrap());
    let service = CertificateService::new(authority, Duration::from_secs(2));
    let address = serve(service.clone()).await;
    let store = SecretStore::new();
    let rotation = Rotation::spawn(
        RotationConfig::new(id()),
        CaClient::new(&address, channels(&address)),
        store.clone(),
    );
    let mut status = rotation.status();
    let mut serials = Vec::new();
    for count in 1..=3 {
        let wait = status.wait_for(|status| status.successes >= count);
        tokio::time::timeout(Duration::from_secs(10), wait).await.expect("a rotation").unwrap();
        let certificate = store.certificate(WORKLOAD).unwrap();
        let roots = store.roots(ROOT).unwrap();
        for usage in [Usage::Client, Usage::Server] {
            roots.verify(&certificate.chain[0], &certificate.chain[1..], usage, SystemTime::now()).unwrap();
        }
        serials.push(certificate.serial.clone());
    }
    serials.dedup();
    assert_eq!(serials.len(), 3, "{serials:?}");
    assert_eq!(status.borrow().failures, 0);
}
