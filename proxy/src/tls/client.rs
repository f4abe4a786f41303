//! The upstream side: `UpstreamTlsContext`.

use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, SignatureScheme};
use rustls_pki_types::ServerName;
use tokio_rustls::TlsConnector;

use super::certificate::Identity;
use super::error::{ContextError, TlsError};
use super::outcome;
use super::peer::CertFacts;
use super::server::{Trust, UsedSecrets, first};
use super::verify::{Role, Verifier};
use super::{Secrets, TlsStats, peer, suites};
use crate::config::tls::UpstreamTls;
use crate::net::{Io, Raw};
use crate::stream_info::TlsInfo;

/// Variants (ALPN, SAN demand) that one context keeps; a mesh uses two or three.
const VARIANTS: usize = 32;

/// What one connection asks for beside its context.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectOptions {
    /// Instead of the context's `sni` (`auto_sni`, `auto_host_sni`).
    pub sni: Option<Arc<str>>,
    /// Instead of the context's ALPN (`istio.alpn`, automatic HTTP).
    pub alpn: Option<Arc<[Arc<str>]>>,
    /// One of these must be among the server's DNS or IP SANs (`auto_san_validation`).
    pub verify_names: Vec<Arc<str>>,
}

/// A transport socket's TLS, upstream. Shared by workers.
#[derive(Debug)]
pub struct ClientContext {
    ir: Arc<UpstreamTls>,
    state: ArcSwap<State>,
    building: Mutex<()>,
}

#[derive(Debug)]
struct State {
    secrets: Secrets,
    ready: Option<Arc<Ready>>,
}

#[derive(Debug)]
struct Ready {
    used: UsedSecrets,
    /// With the context's own ALPN and no demand for names.
    config: Arc<ClientConfig>,
    verifier: Arc<Verifier>,
    /// Of the certificate that its sessions began with.
    local: Option<Arc<CertFacts>>,
    variants: Mutex<Variants>,
}

type Variants = Vec<(Variant, Arc<ClientConfig>)>;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Variant {
    alpn: Option<Arc<[Arc<str>]>>,
    names: Vec<Arc<str>>,
}

impl ClientContext {
    /// Builds the context.
    ///
    /// # Errors
    /// When a certificate, key, root or parameter cannot be used. A missing secret is no error: see [`Self::ready`].
    pub fn new(ir: Arc<UpstreamTls>, secrets: &Secrets) -> Result<ClientContext, ContextError> {
        let ready = first(secrets, |secrets| build(&ir, secrets))?.map(Arc::new);
        let state = State { secrets: secrets.clone(), ready };
        Ok(ClientContext { ir, state: ArcSwap::from_pointee(state), building: Mutex::new(()) })
    }

    /// Whether all secrets are there.
    pub fn ready(&self, secrets: &Secrets) -> bool {
        self.refresh(secrets);
        self.state.load().ready.is_some()
    }

    /// Takes a new secret map in: rebuilds if one of ours changed. Connections that live stay; a set that does not fit
    /// together leaves the last good one in use.
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
                Ok(Some(new)) => Some(Arc::new(new)),
                Ok(None) => last.clone(),
                Err(e) => {
                    tracing::warn!("TLS context keeps its last good secrets: {e}");
                    last.clone()
                }
            },
        };
        self.state.store(Arc::new(State { secrets: secrets.clone(), ready }));
    }

    /// The same for a connection of the control side, which is not counted.
    ///
    /// # Errors
    /// As `connect`.
    pub async fn connect_uncounted(&self, raw: Raw, secrets: &Secrets) -> Result<Io, TlsError> {
        let (handshake, _) = self.handshake(raw, &ConnectOptions::default(), secrets)?;
        let (result, outcome) = outcome::observe(handshake).await;
        result.map(|stream| Io::Tls(Box::new(stream.into()))).map_err(|e| TlsError::new(&e, &outcome))
    }

    fn handshake(
        &self,
        raw: Raw,
        options: &ConnectOptions,
        secrets: &Secrets,
    ) -> Result<(Pin<Box<tokio_rustls::Connect<Raw>>>, Option<Arc<str>>), TlsError> {
        self.refresh(secrets);
        let Some(ready) = self.state.load().ready.clone() else {
            return Err(TlsError::not_ready());
        };
        let sni = options.sni.clone().or_else(|| self.ir.sni.clone()).filter(|s| !s.is_empty());
        let name = match &sni {
            Some(sni) => ServerName::try_from(sni.to_string()).map_err(|_| {
                TlsError::internal(&format!("Failed to create upstream TLS context: SNI {sni}"))
            })?,
            // rustls sends no server name for an IP address; one key for the cluster's sessions, as Envoy keeps them.
            None => ServerName::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        };
        let mut names = options.verify_names.clone();
        if self.ir.auto_sni_san_validation {
            names.extend(sni.clone());
        }
        let config =
            ready.variant(options.alpn.as_ref(), &names).map_err(|e| TlsError::internal(&e.to_string()))?;
        Ok((Box::pin(TlsConnector::from(config).connect(name, raw)), sni))
    }

    /// Performs the handshake.
    ///
    /// # Errors
    /// With the text of `%UPSTREAM_TRANSPORT_FAILURE_REASON%`.
    pub async fn connect(
        &self,
        raw: Raw,
        options: &ConnectOptions,
        secrets: &Secrets,
        stats: &TlsStats,
    ) -> Result<(Io, TlsInfo), TlsError> {
        let (handshake, sni) = self.handshake(raw, options, secrets)?;
        let (result, mut outcome) = outcome::observe(handshake).await;
        match result {
            Ok(stream) => {
                let session: &ClientConnection = stream.get_ref().1;
                // A resumed session asks for no certificate; it stands for the one that it began with. Sessions are kept by
                // `Ready`, so a renewed certificate starts anew.
                if outcome.local.is_none() && session.handshake_kind() == Some(HandshakeKind::Resumed) {
                    outcome.local = self.state.load().ready.as_ref().and_then(|ready| ready.local.clone());
                }
                stats.succeeded(session, &outcome);
                let info = peer::tls_info(session, sni, &outcome);
                Ok((Io::Tls(Box::new(stream.into())), info))
            }
            Err(e) => {
                let e = TlsError::new(&e, &outcome);
                stats.failed(&e, &outcome);
                Err(e)
            }
        }
    }
}

impl Ready {
    fn variant(
        &self,
        alpn: Option<&Arc<[Arc<str>]>>,
        names: &[Arc<str>],
    ) -> Result<Arc<ClientConfig>, ContextError> {
        if alpn.is_none() && names.is_empty() {
            return Ok(self.config.clone());
        }
        let mut variants = self.variants.lock().unwrap_or_else(PoisonError::into_inner);
        let found = variants.iter().find(|(v, _)| v.alpn.as_ref() == alpn && v.names == names);
        if let Some((_, config)) = found {
            return Ok(config.clone());
        }
        let mut config = ClientConfig::clone(&self.config);
        if let Some(alpn) = alpn {
            config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
        }
        if !names.is_empty() {
            config.dangerous().set_certificate_verifier(Arc::new(self.verifier.with_names(names)?));
            // A session that was verified without the demand must not be resumed under it.
            config.resumption = Resumption::in_memory_sessions(VARIANTS);
        }
        let config = Arc::new(config);
        if variants.len() >= VARIANTS {
            variants.remove(0);
        }
        variants.push((Variant { alpn: alpn.cloned(), names: names.to_vec() }, config.clone()));
        Ok(config)
    }
}

fn build(ir: &UpstreamTls, secrets: &Secrets) -> Result<Option<Ready>, ContextError> {
    let used = UsedSecrets::of(&ir.common, secrets);
    let (Some(certificates), Some(trust)) = (used.certificates(), used.trust(&ir.common)?) else {
        return Ok(None);
    };
    let provider = suites::provider(&ir.common)?;
    let identities =
        certificates.iter().map(|c| Identity::load(c, &provider)).collect::<Result<Vec<_>, _>>()?;
    // Without a validation context Envoy verifies nothing.
    let trust = trust.unwrap_or_else(|| Trust { validation: Arc::default(), roots: None, crl: None });
    let verifier = Arc::new(trust.verifier(&provider, Role::Client)?);
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&suites::versions(&ir.common))
        .map_err(|e| ContextError::Rustls(e.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier.clone());
    let local = identities.first().map(|i| i.facts.clone());
    let mut config = builder.with_client_cert_resolver(Arc::new(Present { identities }));
    config.resumption = match ir.max_session_keys {
        0 => Resumption::disabled(),
        n => Resumption::in_memory_sessions(usize::try_from(n).unwrap_or(usize::MAX).clamp(8, 1024)),
    };
    config.alpn_protocols = ir.common.alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    Ok(Some(Ready { used, config: Arc::new(config), verifier, local, variants: Mutex::default() }))
}

/// Presents the certificate whatever authorities the server hints at, as BoringSSL does.
#[derive(Debug)]
struct Present {
    identities: Vec<Identity>,
}

impl ResolvesClientCert for Present {
    fn resolve(&self, _hints: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let chosen = self.identities.iter().find(|i| i.key.key.choose_scheme(schemes).is_some())?;
        outcome::note(|o| o.local = Some(chosen.facts.clone()));
        Some(chosen.key.clone())
    }

    fn has_certs(&self) -> bool {
        !self.identities.is_empty()
    }
}
