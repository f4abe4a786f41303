//! The downstream side: `DownstreamTlsContext`.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use bytes::BytesMut;
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, ServerSessionMemoryCache};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, ServerConnection};
use tokio::io::AsyncReadExt;
use tokio_rustls::LazyConfigAcceptor;

use super::certificate::{Identity, Roots};
use super::error::{ContextError, TlsError};
use super::outcome::{self, Outcome};
use super::verify::{Role, Verifier, dns_match};
use super::{Secrets, TlsStats, peer, suites};
use crate::config::tls::{
    CertificateSource, CommonTls, DownstreamTls, Secret, TlsCertificate, TlsVersion, Validation,
};
use crate::net::{Io, Raw};
use crate::stream_info::TlsInfo;

/// Sessions that TLS 1.2 clients may resume by id, per context.
const STATEFUL_SESSIONS: usize = 256;

/// A transport socket's TLS, downstream. Shared by workers.
#[derive(Debug)]
pub struct ServerContext {
    ir: Arc<DownstreamTls>,
    state: ArcSwap<State>,
    building: Mutex<()>,
}

#[derive(Debug)]
struct State {
    /// The map this state was checked against.
    secrets: Secrets,
    ready: Option<Ready>,
}

#[derive(Debug, Clone)]
struct Ready {
    used: UsedSecrets,
    alpn: Vec<Vec<u8>>,
    /// By "protocols meet" (Envoy goes on without ALPN where they do not, rustls would refuse), then by "TLS 1.3" (BoringSSL
    /// follows the client's order of suites there, and the server's below).
    configs: [[Arc<ServerConfig>; 2]; 2],
}

impl ServerContext {
    /// Builds the context.
    ///
    /// # Errors
    /// When a certificate, key, root or parameter cannot be used. A missing secret is no error: see [`Self::ready`].
    pub fn new(ir: Arc<DownstreamTls>, secrets: &Secrets) -> Result<ServerContext, ContextError> {
        let ready = first(secrets, |secrets| build(&ir, secrets))?;
        let state = State { secrets: secrets.clone(), ready };
        Ok(ServerContext { ir, state: ArcSwap::from_pointee(state), building: Mutex::new(()) })
    }

    /// Whether all secrets are there.
    pub fn ready(&self, secrets: &Secrets) -> bool {
        self.refresh(secrets);
        self.state.load().ready.is_some()
    }

    /// Takes a new secret map in: rebuilds if one of ours changed. A set that does not fit together (a key without its
    /// certificate) leaves the last good one in use.
    pub fn refresh(&self, secrets: &Secrets) {
        if Arc::ptr_eq(&self.state.load().secrets, secrets) {
            return;
        }
        let _guard = self.building.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.state.load_full();
        if Arc::ptr_eq(&old.secrets, secrets) {
            return;
        }
        let ready = match &old.ready {
            Some(r) if r.used == UsedSecrets::of(&self.ir.common, secrets) => old.ready.clone(),
            last => match build(&self.ir, secrets) {
                Ok(Some(new)) => Some(new),
                Ok(None) => last.clone(),
                Err(e) => {
                    tracing::warn!("TLS context keeps its last good secrets: {e}");
                    last.clone()
                }
            },
        };
        self.state.store(Arc::new(State { secrets: secrets.clone(), ready }));
    }

    /// Performs the handshake.
    ///
    /// # Errors
    /// With the text of `%DOWNSTREAM_TRANSPORT_FAILURE_REASON%`.
    pub async fn accept(
        &self,
        mut raw: Raw,
        secrets: &Secrets,
        stats: &TlsStats,
    ) -> Result<(Io, TlsInfo), TlsError> {
        self.refresh(secrets);
        let Some(ready) = self.state.load().ready.clone() else {
            return Err(TlsError::not_ready());
        };
        let fail = |e: TlsError, outcome: &Outcome| {
            stats.failed(&e, outcome);
            Err(e)
        };
        // Our own first read, in place of rustls', so that plain HTTP is told from noise.
        if raw.prefix.is_empty() {
            let mut first = BytesMut::with_capacity(2048);
            match raw.read_buf(&mut first).await {
                Ok(n) if n > 0 => raw.prefix = first.freeze(),
                Ok(_) => {
                    let eof = std::io::ErrorKind::UnexpectedEof.into();
                    return fail(TlsError::new(&eof, &Outcome::default()), &Outcome::default());
                }
                Err(e) => return fail(TlsError::new(&e, &Outcome::default()), &Outcome::default()),
            }
        }
        if [&b"GET "[..], b"POST ", b"HEAD ", b"PUT "].iter().any(|m| raw.prefix.starts_with(m)) {
            return fail(TlsError::http_request(), &Outcome::default());
        }
        let mut sni: Option<Arc<str>> = None;
        let handshake = async {
            let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), raw).await?;
            let hello = start.client_hello();
            sni = hello.server_name().map(Into::into);
            let alpn = usize::from(alpn_meets(&hello, &ready.alpn));
            let tls13 = usize::from(hello.cipher_suites().iter().any(|s| suites::is_tls13(*s)));
            let config = ready.configs[alpn][tls13].clone();
            start.into_stream(config).await
        };
        let (result, outcome) = outcome::observe(Box::pin(handshake)).await;
        match result {
            Ok(stream) => {
                let session: &ServerConnection = stream.get_ref().1;
                stats.succeeded(session, &outcome);
                let info = peer::tls_info(session, sni, &outcome);
                Ok((Io::Tls(Box::new(stream.into())), info))
            }
            Err(e) => fail(TlsError::new(&e, &outcome), &outcome),
        }
    }
}

/// The first build of a context. What the configuration holds itself must be good; a bad secret from elsewhere only leaves the
/// context without it until a better one comes.
pub(super) fn first<R>(
    secrets: &Secrets,
    build: impl Fn(&Secrets) -> Result<Option<R>, ContextError>,
) -> Result<Option<R>, ContextError> {
    build(secrets).or_else(|e| {
        build(&Secrets::default())?;
        tracing::warn!("TLS context waits for better secrets: {e}");
        Ok(None)
    })
}

fn alpn_meets(hello: &ClientHello<'_>, ours: &[Vec<u8>]) -> bool {
    match hello.alpn() {
        Some(mut theirs) => theirs.any(|p| ours.iter().any(|o| o == p)),
        None => true,
    }
}

fn build(ir: &DownstreamTls, secrets: &Secrets) -> Result<Option<Ready>, ContextError> {
    let used = UsedSecrets::of(&ir.common, secrets);
    let (Some(certificates), Some(trust)) = (used.certificates(), used.trust(&ir.common)?) else {
        return Ok(None);
    };
    let provider = suites::provider(&ir.common)?;
    let identities =
        certificates.iter().map(|c| Identity::load(c, &provider)).collect::<Result<Vec<_>, _>>()?;
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&suites::versions(&ir.common))
        .map_err(|e| ContextError::Rustls(e.to_string()))?;
    let builder = match trust {
        Some(trust) => {
            let role = Role::Server { required: ir.require_client_certificate };
            builder.with_client_cert_verifier(Arc::new(trust.verifier(&provider, role)?))
        }
        None if ir.require_client_certificate => {
            let any = Trust { validation: Arc::default(), roots: None, crl: None };
            builder.with_client_cert_verifier(Arc::new(
                any.verifier(&provider, Role::Server { required: true })?,
            ))
        }
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(BySni { identities }));
    config.send_tls13_tickets = 1;
    if ir.session_tickets {
        config.ticketer = Ticketer::new().map_err(|e| ContextError::Rustls(e.to_string()))?;
    }
    if ir.session_resumption {
        config.session_storage = ServerSessionMemoryCache::new(STATEFUL_SESSIONS);
    } else {
        config.session_storage = Arc::new(NoServerSessionStorage {});
        if !ir.session_tickets {
            config.send_tls13_tickets = 0;
        }
    }
    let may_1_3 = ir.common.max_version >= TlsVersion::V1_3;
    let variant = |config: &ServerConfig, tls13: bool| {
        let mut config = config.clone();
        config.ignore_client_order = !(tls13 && may_1_3);
        Arc::new(config)
    };
    let without_alpn = [variant(&config, false), variant(&config, true)];
    let alpn: Vec<Vec<u8>> = ir.common.alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    config.alpn_protocols.clone_from(&alpn);
    let with_alpn = [variant(&config, false), variant(&config, true)];
    Ok(Some(Ready { used, alpn, configs: [without_alpn, with_alpn] }))
}

/// Chooses the certificate by server name, then by what the client can verify; the first is the default.
#[derive(Debug)]
struct BySni {
    identities: Vec<Identity>,
}

impl ResolvesServerCert for BySni {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let usable = |i: &&Identity| i.key.key.choose_scheme(hello.signature_schemes()).is_some();
        let named = |exact: bool| {
            let sni = hello.server_name()?;
            self.identities.iter().filter(usable).find(|i| {
                i.facts.dns_sans.iter().any(|p| if exact { **p == *sni } else { dns_match(sni, p) })
            })
        };
        let chosen = if self.identities.len() > 1 { named(true).or_else(|| named(false)) } else { None };
        let chosen =
            chosen.or_else(|| self.identities.iter().find(usable)).or_else(|| self.identities.first())?;
        outcome::note(|o| o.local = Some(chosen.facts.clone()));
        Some(chosen.key.clone())
    }
}

/// What is to be trusted, gathered from the configuration and its secret.
#[derive(Debug)]
pub(super) struct Trust {
    pub validation: Arc<Validation>,
    pub roots: Option<Arc<Roots>>,
    pub crl: Option<Arc<[u8]>>,
}

impl Trust {
    pub(super) fn verifier(
        &self,
        provider: &rustls::crypto::CryptoProvider,
        role: Role,
    ) -> Result<Verifier, ContextError> {
        let algorithms = provider.signature_verification_algorithms;
        let v = Verifier::new(
            algorithms,
            self.roots.clone(),
            self.crl.as_deref(),
            self.validation.clone(),
            role,
        )?;
        Ok(v)
    }
}

/// The secrets a context names, as the map has them now; a context is rebuilt when this differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UsedSecrets {
    certificates: Vec<Option<Secret>>,
    roots: Option<Option<Secret>>,
}

impl UsedSecrets {
    pub(super) fn of(tls: &CommonTls, secrets: &Secrets) -> UsedSecrets {
        let find = |name: &Arc<str>| secrets.get(name).cloned();
        UsedSecrets {
            certificates: tls
                .certificates
                .iter()
                .map(|c| match c {
                    CertificateSource::Inline(c) => Some(Secret::Certificate(c.clone())),
                    CertificateSource::Sds(name) => find(name),
                })
                .collect(),
            roots: tls.validation.as_ref().and_then(|v| v.sds.as_ref()).map(find),
        }
    }

    /// `None`: one has not come.
    pub(super) fn certificates(&self) -> Option<Vec<Arc<TlsCertificate>>> {
        self.certificates
            .iter()
            .map(|s| match s {
                Some(Secret::Certificate(c)) => Some(c.clone()),
                _ => None,
            })
            .collect()
    }

    /// `None`: the roots' secret has not come; `Some(None)`: nothing is verified.
    #[allow(clippy::option_option)]
    pub(super) fn trust(&self, tls: &CommonTls) -> Result<Option<Option<Trust>>, ContextError> {
        let Some(validation) = &tls.validation else { return Ok(Some(None)) };
        let (pem, crl) = match &self.roots {
            None => (validation.trusted_ca.clone(), None),
            Some(Some(Secret::Roots { pem, crl })) => (Some(pem.clone()), crl.clone()),
            Some(_) => return Ok(None),
        };
        let roots = match pem {
            Some(pem) => Some(Arc::new(Roots::load(&pem, validation.trusted_ca_path.as_ref())?)),
            None if validation.system_roots => Some(Arc::new(Roots::system())),
            None => None,
        };
        let crl = crl.or_else(|| validation.crl.clone()).filter(|c| !c.is_empty());
        let mut validation = validation.clone();
        validation.crl.clone_from(&crl);
        Ok(Some(Some(Trust { validation: Arc::new(validation), roots, crl })))
    }
}
