//! Handshakes over real sockets: who trusts whom, with which words a refusal is told, and what a rotation does.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::config::matcher::StringMatcher;
use crate::config::tls::*;
use crate::net::Raw;
use crate::stream_info::TlsInfo;
use crate::telemetry::stats::Stats;

struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

fn ca(name: &str) -> Ca {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::OrganizationName, name);
    let pem = params.self_signed(&key).unwrap().pem();
    Ca { issuer: Issuer::new(params, key), pem }
}

impl Ca {
    fn leaf(&self, id: &str, years: (i32, i32)) -> Arc<TlsCertificate> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "a,b");
        params.distinguished_name.push(DnType::CommonName, "leaf");
        params.subject_alt_names = vec![
            SanType::URI(format!("spiffe://td/ns/x/sa/{id}").try_into().unwrap()),
            SanType::DnsName(format!("{id}.example.com").try_into().unwrap()),
        ];
        params.not_before = rcgen::date_time_ymd(years.0, 1, 1);
        params.not_after = rcgen::date_time_ymd(years.1, 1, 1);
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        Arc::new(TlsCertificate {
            chain_pem: cert.pem().into_bytes().into(),
            key_pem: key.serialize_pem().into_bytes().into(),
            chain_path: None,
            key_path: None,
            ocsp: None,
        })
    }
}

const VALID: (i32, i32) = (2020, 2060);

fn common(certificate: Option<CertificateSource>, roots: Option<&Ca>) -> CommonTls {
    CommonTls {
        min_version: TlsVersion::V1_2,
        max_version: TlsVersion::V1_3,
        ciphers: vec![],
        curves: vec![],
        alpn: vec!["h2".into(), "http/1.1".into()],
        certificates: certificate.into_iter().collect(),
        validation: roots.map(|r| Validation {
            trusted_ca: Some(r.pem.clone().into_bytes().into()),
            ..Validation::default()
        }),
    }
}

fn downstream(common: CommonTls, required: bool) -> DownstreamTls {
    DownstreamTls {
        common,
        require_client_certificate: required,
        session_tickets: true,
        session_resumption: true,
        full_scan_certs_on_sni_mismatch: false,
    }
}

fn upstream(common: CommonTls) -> UpstreamTls {
    UpstreamTls {
        common,
        sni: Some("outbound_.80_._.svc.ns.svc.cluster.local".into()),
        auto_host_sni: false,
        auto_sni_san_validation: false,
        allow_renegotiation: false,
        max_session_keys: 1,
    }
}

struct Sides {
    server: Result<TlsInfo, TlsError>,
    client: Result<TlsInfo, TlsError>,
    stats: Stats,
}

impl Sides {
    fn count(&self, name: &str) -> u64 {
        self.stats.value(name).unwrap_or(0)
    }
    fn texts(&self) -> (String, String) {
        let text = |r: &Result<TlsInfo, TlsError>| {
            r.as_ref().err().map(|e| e.reason.to_string()).unwrap_or_default()
        };
        (text(&self.server), text(&self.client))
    }
}

async fn shake(
    server: &ServerContext,
    client: &ClientContext,
    options: &ConnectOptions,
    secrets: &Secrets,
) -> Sides {
    let stats = Stats::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (ss, cs) = (TlsStats::new(&stats, "s."), TlsStats::new(&stats, "c."));
    let serve = async {
        let (socket, _) = listener.accept().await.unwrap();
        let (mut io, info) = server.accept(socket.into(), secrets, &ss).await?;
        io.write_all(b"hello").await.unwrap();
        let _ = io.flush().await;
        let _ = io.read(&mut [0; 1]).await;
        Ok(info)
    };
    let connect = async {
        let raw: Raw = TcpStream::connect(address).await.unwrap().into();
        let (mut io, info) = client.connect(raw, options, secrets, &cs).await?;
        let mut got = [0; 5];
        // In TLS 1.3 the server's refusal arrives with the first read.
        if let Err(e) = io.read_exact(&mut got).await {
            return Err(TlsError::new(&e, &outcome::Outcome::default()));
        }
        let _ = io.shutdown().await;
        Ok(info)
    };
    let (server, client) = tokio::join!(serve, connect);
    Sides { server, client, stats }
}

async fn try_with(server: DownstreamTls, client: UpstreamTls) -> Sides {
    let none = Secrets::default();
    let server = ServerContext::new(Arc::new(server), &none).unwrap();
    let client = ClientContext::new(Arc::new(client), &none).unwrap();
    shake(&server, &client, &ConnectOptions::default(), &none).await
}

fn inline(c: Arc<TlsCertificate>) -> Option<CertificateSource> {
    Some(CertificateSource::Inline(c))
}

#[tokio::test]
async fn mutual_tls_gives_both_sides_the_facts() {
    let ca = ca("root");
    let sides = try_with(
        downstream(common(inline(ca.leaf("server", VALID)), Some(&ca)), true),
        upstream(common(inline(ca.leaf("client", VALID)), Some(&ca))),
    )
    .await;
    let (server, client) = (sides.server.as_ref().unwrap(), sides.client.as_ref().unwrap());
    assert_eq!(&*server.peer_uri_sans[0], "spiffe://td/ns/x/sa/client");
    assert_eq!(&*server.peer_subject, "CN=leaf,O=a\\,b");
    assert_eq!(&*server.local_uri_sans[0], "spiffe://td/ns/x/sa/server");
    assert_eq!(server.sni.as_deref(), Some("outbound_.80_._.svc.ns.svc.cluster.local"));
    assert_eq!(server.alpn.as_deref(), Some("h2"));
    assert_eq!((server.version, server.cipher), ("TLSv1.3", "TLS_AES_128_GCM_SHA256"));
    assert!(server.peer_validated && client.peer_validated);
    assert_eq!(&*client.peer_dns_sans[0], "server.example.com");
    for name in ["handshake", "ciphers.TLS_AES_128_GCM_SHA256", "versions.TLSv1.3", "curves.X25519"] {
        assert_eq!(sides.count(&format!("s.ssl.{name}")), 1, "{name}");
    }
    assert_eq!(sides.count("c.ssl.sigalgs.ecdsa_secp256r1_sha256"), 1);
    assert_eq!(sides.count("s.ssl.no_certificate"), 0);
    assert_eq!(sides.count("c.ssl.no_certificate"), 0);
}

#[tokio::test]
async fn missing_client_certificate_is_refused_only_where_required() {
    let ca = ca("root");
    let server = |required| downstream(common(inline(ca.leaf("server", VALID)), Some(&ca)), required);
    let sides = try_with(server(true), upstream(common(None, Some(&ca)))).await;
    let (server_text, client_text) = sides.texts();
    assert_eq!(
        server_text,
        "TLS_error:|268435648:SSL routines:OPENSSL_internal:PEER_DID_NOT_RETURN_A_CERTIFICATE:peer did not provide required client certificate:TLS_error_end"
    );
    assert_eq!(
        client_text,
        "TLS_error:|268436572:SSL routines:OPENSSL_internal:TLSV1_ALERT_CERTIFICATE_REQUIRED:TLS_error_end"
    );
    assert_eq!(sides.count("s.ssl.fail_verify_no_cert"), 1);
    let sides = try_with(server(false), upstream(common(None, Some(&ca)))).await;
    assert!(sides.server.unwrap().peer_chain.is_empty());
    assert_eq!(sides.stats.value("s.ssl.no_certificate"), Some(1));
}

#[tokio::test]
async fn unknown_authority_expiry_and_wrong_san_are_told_apart() {
    let (ca, other) = (ca("root"), ca("other"));
    let server = |c| downstream(common(inline(c), None), false);
    let verify =
        "TLS_error:|268435581:SSL routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED:verify cert failed: ";
    let chain = "X509_verify_cert: certificate verification error at depth 0: ";

    let sides = try_with(server(other.leaf("server", VALID)), upstream(common(None, Some(&ca)))).await;
    let (server_text, client_text) = sides.texts();
    assert_eq!(client_text, format!("{verify}{chain}unable to get local issuer certificate:TLS_error_end"));
    assert_eq!(
        server_text,
        "TLS_error:|268436504:SSL routines:OPENSSL_internal:TLSV1_ALERT_UNKNOWN_CA:TLS_error_end"
    );
    assert_eq!(sides.count("c.ssl.fail_verify_error"), 1);
    assert_eq!(sides.count("s.ssl.connection_error"), 1);

    let expired = ca.leaf("server", (2019, 2020));
    let sides = try_with(server(expired.clone()), upstream(common(None, Some(&ca)))).await;
    assert_eq!(sides.texts().1, format!("{verify}{chain}certificate has expired:TLS_error_end"));
    let mut lenient = common(None, Some(&ca));
    lenient.validation.as_mut().unwrap().allow_expired = true;
    assert!(try_with(server(expired), upstream(lenient)).await.client.is_ok());

    let mut picky = common(None, Some(&ca));
    picky.validation.as_mut().unwrap().sans = vec![SanMatcher {
        kind: SanKind::Uri,
        matcher: StringMatcher::Exact { value: "spiffe://td/ns/x/sa/else".into(), ignore_case: false },
    }];
    let sides = try_with(server(ca.leaf("server", VALID)), upstream(picky.clone())).await;
    assert_eq!(
        sides.texts().1,
        format!(
            "{verify}SAN matcher, certificate SANs are [spiffe://td/ns/x/sa/server, server.example.com]:TLS_error_end"
        )
    );
    assert_eq!(sides.count("c.ssl.fail_verify_san"), 1);
    picky.validation.as_mut().unwrap().accept_untrusted = true;
    let sides = try_with(server(ca.leaf("server", VALID)), upstream(picky)).await;
    assert!(!sides.client.unwrap().peer_validated);
}

#[tokio::test]
async fn a_pin_and_an_automatic_san_are_demanded() {
    let ca = ca("root");
    let leaf = ca.leaf("server", VALID);
    let pin = describe(&leaf.chain_pem, 0)[0].facts.fingerprint.clone();
    for (hash, good) in [(pin, true), ("00".into(), false)] {
        let mut pinned = common(None, None);
        pinned.validation = Some(Validation { cert_hashes: vec![hash], ..Validation::default() });
        let sides = try_with(downstream(common(inline(leaf.clone()), None), false), upstream(pinned)).await;
        assert_eq!(sides.client.is_ok(), good);
        assert_eq!(sides.count("c.ssl.fail_verify_cert_hash"), u64::from(!good));
    }
    let none = Secrets::default();
    let server = ServerContext::new(Arc::new(downstream(common(inline(leaf), None), false)), &none).unwrap();
    let client = ClientContext::new(Arc::new(upstream(common(None, Some(&ca)))), &none).unwrap();
    for (name, good) in [("server.example.com", true), ("else.example.com", false)] {
        let options = ConnectOptions { verify_names: vec![name.into()], ..ConnectOptions::default() };
        assert_eq!(shake(&server, &client, &options, &none).await.client.is_ok(), good, "{name}");
    }
}

#[tokio::test]
async fn protocols_that_do_not_meet_go_on_without_one() {
    let ca = ca("root");
    let mut client = common(None, Some(&ca));
    client.alpn = vec!["istio".into()];
    let sides =
        try_with(downstream(common(inline(ca.leaf("s", VALID)), None), false), upstream(client)).await;
    assert_eq!(sides.server.unwrap().alpn, None);
}

#[tokio::test]
async fn tls_1_2_and_a_cipher_by_openssl_name() {
    let ca = ca("root");
    let mut client = common(None, Some(&ca));
    client.max_version = TlsVersion::V1_2;
    client.ciphers = vec!["ECDHE-ECDSA-AES256-GCM-SHA384".into(), "AES128-SHA".into()];
    let server = || downstream(common(inline(ca.leaf("s", VALID)), None), false);
    let info = try_with(server(), upstream(client.clone())).await.server.unwrap();
    assert_eq!((info.version, info.cipher), ("TLSv1.2", "ECDHE-ECDSA-AES256-GCM-SHA384"));
    let mut strict = server();
    strict.common.min_version = TlsVersion::V1_3;
    let (server_text, client_text) = try_with(strict, upstream(client)).await.texts();
    assert!(server_text.contains("UNSUPPORTED_PROTOCOL"), "{server_text}");
    assert!(client_text.contains("TLSV1_ALERT_PROTOCOL_VERSION"), "{client_text}");
}

#[tokio::test]
async fn plain_text_peers_are_told_from_tls() {
    let ca = ca("root");
    let none = Secrets::default();
    let stats = TlsStats::new(&Stats::default(), "s.");
    let server =
        ServerContext::new(Arc::new(downstream(common(inline(ca.leaf("s", VALID)), None), false)), &none)
            .unwrap();
    for (sent, expected) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], "268435612:SSL routines:OPENSSL_internal:HTTP_REQUEST"),
        (b"nothing like TLS", "268435703:SSL routines:OPENSSL_internal:WRONG_VERSION_NUMBER"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        client.write_all(sent).await.unwrap();
        let (socket, _) = listener.accept().await.unwrap();
        let e = server.accept(socket.into(), &none, &stats).await.unwrap_err();
        assert_eq!(&*e.reason, format!("TLS_error:|{expected}:TLS_error_end"));
    }
}

#[tokio::test]
async fn sessions_resume_until_the_secret_rotates() {
    let ca = ca("root");
    let secrets = |c: Arc<TlsCertificate>| -> Secrets {
        Arc::new([("default".into(), Secret::Certificate(c))].into_iter().collect())
    };
    let sds = Some(CertificateSource::Sds("default".into()));
    let empty = Secrets::default();
    let server = ServerContext::new(Arc::new(downstream(common(sds, None), false)), &empty).unwrap();
    let client = ClientContext::new(Arc::new(upstream(common(None, Some(&ca)))), &empty).unwrap();
    assert!(!server.ready(&empty));
    let sides = shake(&server, &client, &ConnectOptions::default(), &empty).await;
    assert_eq!(sides.texts().0, "TLS error: Secret is not supplied by SDS");

    let first = secrets(ca.leaf("one", VALID));
    assert!(server.ready(&first));
    for (n, reused) in [(0, 0), (1, 1)] {
        let sides = shake(&server, &client, &ConnectOptions::default(), &first).await;
        assert_eq!(&*sides.client.as_ref().unwrap().peer_dns_sans[0], "one.example.com");
        assert_eq!(sides.count("s.ssl.session_reused"), reused, "handshake {n}");
    }
    let second = secrets(ca.leaf("two", VALID));
    let sides = shake(&server, &client, &ConnectOptions::default(), &second).await;
    assert_eq!(&*sides.client.as_ref().unwrap().peer_dns_sans[0], "two.example.com");
    assert_eq!(sides.count("s.ssl.session_reused"), 0);

    // A broken rotation leaves the last good certificate in use.
    let broken = TlsCertificate { key_pem: b"nonsense"[..].into(), ..(*ca.leaf("three", VALID)).clone() };
    let sides = shake(&server, &client, &ConnectOptions::default(), &secrets(Arc::new(broken))).await;
    assert_eq!(&*sides.client.unwrap().peer_dns_sans[0], "two.example.com");
}

#[test]
fn a_bad_secret_leaves_the_context_waiting_and_a_bad_configuration_is_refused() {
    let ca = ca("root");
    let mut server = downstream(common(inline(ca.leaf("s", VALID)), Some(&ca)), true);
    server.common.validation.as_mut().unwrap().trusted_ca = Some(b"nonsense"[..].into());
    let refused = ServerContext::new(Arc::new(server), &Secrets::default()).unwrap_err();
    assert_eq!(refused.to_string(), "Failed to load trusted CA certificates from <inline>");

    let mut client = upstream(common(None, None));
    client.common.validation = Some(Validation { sds: Some("ROOTCA".into()), ..Validation::default() });
    let roots = |pem: &[u8]| -> Secrets {
        Arc::new([("ROOTCA".into(), Secret::Roots { pem: pem.into(), crl: None })].into_iter().collect())
    };
    let context = ClientContext::new(Arc::new(client), &roots(b"nonsense")).unwrap();
    assert!(!context.ready(&roots(b"nonsense too")));
    assert!(context.ready(&roots(ca.pem.as_bytes())));
}

#[test]
fn unusable_material_is_named() {
    let (a, b) = (ca("a"), ca("b"));
    let (one, two) = (a.leaf("one", VALID), b.leaf("two", VALID));
    assert_eq!(check_certificate(&one), Ok(()));
    let mixed = TlsCertificate { key_pem: two.key_pem.clone(), ..(*one).clone() };
    assert!(matches!(check_certificate(&mixed), Err(CertificateError::Mismatch(_))));
    let no_chain = TlsCertificate { chain_pem: b""[..].into(), ..(*one).clone() };
    assert!(matches!(check_certificate(&no_chain), Err(CertificateError::Chain(_))));
    assert!(check_roots(b"nonsense", None).is_err());
    assert!(check_ciphers(&["NO-SUCH".into()]).is_err());
    assert!(check_ciphers(&["AES128-SHA".into()]).is_err());
    assert!(check_curves(&["P-256".into(), "P-9".into()]).is_err());
}

#[test]
fn dns_names_match_one_label_of_a_wildcard() {
    for (name, pattern, expected) in [
        ("a.example.com", "a.example.com", true),
        ("A.example.com", "a.EXAMPLE.com", true),
        ("a.example.com", "*.example.com", true),
        ("a.b.example.com", "*.example.com", false),
        ("example.com", "*.example.com", false),
        (".example.com", "*.example.com", false),
        ("a", "*", false),
    ] {
        assert_eq!(verify::dns_match(name, pattern), expected, "{name} {pattern}");
    }
}

#[test]
fn pem_is_uri_encoded_for_xfcc() {
    assert_eq!(
        xfcc::certificate(&[0xfb, 0xff]),
        "-----BEGIN%20CERTIFICATE-----%0A%2B%2F8%3D%0A-----END%20CERTIFICATE-----%0A"
    );
}
