//! TLS contexts, transport sockets and secrets. Source: envoy/extensions/transport_sockets/tls/v3.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3 as core_pb;
use envoy_types::pb::envoy::extensions::transport_sockets::proxy_protocol::v3 as pp;
use envoy_types::pb::envoy::extensions::transport_sockets::raw_buffer::v3 as raw;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as pb;

use super::any::Extension;
use super::{Ctx, Env, NeedKind, Result, Root, core, flag, matcher, take, text, uint};
use crate::config::tls::{
    CertificateSource, CommonTls, DownstreamTls, SanKind, SanMatcher, Secret, TlsCertificate, TlsVersion,
    TransportSocket, UpstreamTls, Validation,
};

const UPSTREAM: &str = "envoy.transport_sockets.tls, envoy.transport_sockets.raw_buffer, envoy.transport_sockets.upstream_proxy_protocol";
const DOWNSTREAM: &str = "envoy.transport_sockets.tls, envoy.transport_sockets.raw_buffer";

fn open(ctx: &Ctx<'_>, m: core_pb::TransportSocket) -> Result<Option<Extension>> {
    take!(ctx, m, core_pb::TransportSocket { name, config_type });
    match config_type {
        // Istio sends the plaintext socket by its name alone.
        None if name == "envoy.transport_sockets.raw_buffer" || name == "raw_buffer" => Ok(None),
        None => ctx.bad("typed_config", "is required"),
        Some(core_pb::transport_socket::ConfigType::TypedConfig(any)) => {
            Ok(Some(Extension::open(&ctx.field("typed_config"), any)?))
        }
    }
}

pub fn upstream_socket(
    ctx: &Ctx<'_>,
    m: Option<core_pb::TransportSocket>,
) -> Result<TransportSocket<UpstreamTls>> {
    let Some(m) = m else { return Ok(TransportSocket::RawBuffer) };
    let Some(extension) = open(ctx, m)? else { return Ok(TransportSocket::RawBuffer) };
    let ctx = ctx.field("typed_config");
    match extension.message.as_str() {
        "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext" => {
            Ok(TransportSocket::Tls(Arc::new(upstream(&ctx, extension.decode(&ctx)?)?)))
        }
        "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer" => {
            let raw::RawBuffer {} = extension.decode(&ctx)?;
            Ok(TransportSocket::RawBuffer)
        }
        "envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport" => {
            take!(ctx, extension.decode(&ctx)?, pp::ProxyProtocolUpstreamTransport {
                config, transport_socket;
                refuse allow_unspecified_address = "unset is accepted", tlv_as_pool_key = "unset is accepted"
            });
            let version = match config {
                None => 1,
                Some(c) => {
                    let ctx = ctx.field("config");
                    take!(ctx, c, core_pb::ProxyProtocolConfig {
                        version;
                        refuse pass_through_tlvs = "no TLV is sent", added_tlvs = "no TLV is sent"
                    });
                    if version == core_pb::proxy_protocol_config::Version::V1 as i32 { 1 } else { 2 }
                }
            };
            let inner = upstream_socket(
                &ctx.field("transport_socket"),
                Some(ctx.required("transport_socket", transport_socket)?),
            )?;
            Ok(TransportSocket::ProxyProtocol { version, inner: Box::new(inner) })
        }
        _ => extension.unknown(&ctx, "transport socket", UPSTREAM),
    }
}

pub fn downstream_socket(
    ctx: &Ctx<'_>,
    m: Option<core_pb::TransportSocket>,
) -> Result<TransportSocket<DownstreamTls>> {
    let Some(m) = m else { return Ok(TransportSocket::RawBuffer) };
    let Some(extension) = open(ctx, m)? else { return Ok(TransportSocket::RawBuffer) };
    let ctx = ctx.field("typed_config");
    match extension.message.as_str() {
        "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext" => {
            Ok(TransportSocket::Tls(Arc::new(downstream(&ctx, extension.decode(&ctx)?)?)))
        }
        "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer" => {
            let raw::RawBuffer {} = extension.decode(&ctx)?;
            Ok(TransportSocket::RawBuffer)
        }
        _ => extension.unknown(&ctx, "transport socket", DOWNSTREAM),
    }
}

fn upstream(ctx: &Ctx<'_>, m: pb::UpstreamTlsContext) -> Result<UpstreamTls> {
    take!(ctx, m, pb::UpstreamTlsContext {
        common_tls_context, sni, auto_host_sni, auto_sni_san_validation, max_session_keys;
        refuse allow_renegotiation = "renegotiation is not offered";
        harmless enforce_rsa_key_usage = "key usage is always checked"
    });
    if sni.len() > 255 {
        return ctx.bad("sni", "is longer than 255 bytes");
    }
    Ok(UpstreamTls {
        common: common(
            &ctx.field("common_tls_context"),
            common_tls_context.unwrap_or_default(),
            TlsVersion::V1_2,
        )?,
        sni: text(sni),
        auto_host_sni,
        auto_sni_san_validation,
        allow_renegotiation: false,
        max_session_keys: uint(max_session_keys).unwrap_or(1),
    })
}

fn downstream(ctx: &Ctx<'_>, m: pb::DownstreamTlsContext) -> Result<DownstreamTls> {
    use pb::downstream_tls_context::SessionTicketKeysType as K;
    take!(ctx, m, pb::DownstreamTlsContext {
        common_tls_context, require_client_certificate, disable_stateful_session_resumption, session_ticket_keys_type,
        full_scan_certs_on_sni_mismatch, require_sni, ; refuse ocsp_staple_policy = "LENIENT_STAPLING is accepted";
        harmless session_timeout = "tickets live for as long as the TLS library says",
            prefer_client_ciphers = "TLS 1.3 suites are all strong; the order decides nothing about safety"
    });
    if flag(require_sni, false) {
        return ctx.bad("require_sni", "true is not served; match server_names in the filter chain instead");
    }
    let session_tickets = match session_ticket_keys_type {
        None | Some(K::DisableStatelessSessionResumption(false)) => true,
        Some(K::DisableStatelessSessionResumption(true)) => false,
        Some(K::SessionTicketKeys(_)) => {
            return ctx.bad(
                "session_ticket_keys",
                "fixed ticket keys are not served; the process makes and rotates its own",
            );
        }
        Some(K::SessionTicketKeysSdsSecretConfig(_)) => {
            return ctx.bad(
                "session_ticket_keys_sds_secret_config",
                "fixed ticket keys are not served; the process makes and rotates its own",
            );
        }
    };
    let common =
        common(&ctx.field("common_tls_context"), common_tls_context.unwrap_or_default(), TlsVersion::V1_3)?;
    if common.certificates.is_empty() {
        return ctx.field("common_tls_context").bad("tls_certificates", "a server needs a certificate");
    }
    Ok(DownstreamTls {
        common,
        require_client_certificate: flag(require_client_certificate, false),
        session_tickets,
        session_resumption: !disable_stateful_session_resumption,
        full_scan_certs_on_sni_mismatch: flag(full_scan_certs_on_sni_mismatch, false),
    })
}

fn common(ctx: &Ctx<'_>, m: pb::CommonTlsContext, highest: TlsVersion) -> Result<CommonTls> {
    use pb::common_tls_context::ValidationContextType as V;
    take!(ctx, m, pb::CommonTlsContext {
        tls_params, tls_certificates, tls_certificate_sds_secret_configs, alpn_protocols, validation_context_type;
        refuse tls_certificate_provider_instance = "tls_certificates or SDS is accepted",
            custom_tls_certificate_selector = "the certificate is chosen by SNI",
            tls_certificate_certificate_provider = "tls_certificates or SDS is accepted",
            tls_certificate_certificate_provider_instance = "tls_certificates or SDS is accepted",
            custom_handshaker = "none is accepted",
            key_log = "keys are not written out"
    });
    let params = parameters(&ctx.field("tls_params"), tls_params.unwrap_or_default(), highest)?;
    let mut certificates = ctx.each("tls_certificates", tls_certificates, |c, t| {
        certificate(c, t).map(|t| CertificateSource::Inline(Arc::new(t)))
    })?;
    certificates.extend(ctx.each(
        "tls_certificate_sds_secret_configs",
        tls_certificate_sds_secret_configs,
        |c, s| secret_name(c, s).map(CertificateSource::Sds),
    )?);
    let validation = match validation_context_type {
        None => None,
        Some(V::ValidationContext(v)) => Some(validation(&ctx.field("validation_context"), v)?),
        Some(V::ValidationContextSdsSecretConfig(s)) => Some(Validation {
            sds: Some(secret_name(&ctx.field("validation_context_sds_secret_config"), s)?),
            ..Validation::default()
        }),
        Some(V::CombinedValidationContext(c)) => {
            let ctx = ctx.field("combined_validation_context");
            take!(ctx, c, pb::common_tls_context::CombinedCertificateValidationContext {
                default_validation_context, validation_context_sds_secret_config;
                refuse validation_context_certificate_provider = "SDS is accepted",
                    validation_context_certificate_provider_instance = "SDS is accepted"
            });
            let mut v = validation(
                &ctx.field("default_validation_context"),
                default_validation_context.unwrap_or_default(),
            )?;
            let sds =
                ctx.required("validation_context_sds_secret_config", validation_context_sds_secret_config)?;
            v.sds = Some(secret_name(&ctx.field("validation_context_sds_secret_config"), sds)?);
            Some(v)
        }
        Some(V::ValidationContextCertificateProvider(p)) => {
            return ctx.bad(
                "validation_context_certificate_provider",
                format!("{:?} is not served; validation_context or SDS is accepted", p.name),
            );
        }
        Some(V::ValidationContextCertificateProviderInstance(p)) => {
            return ctx.bad(
                "validation_context_certificate_provider_instance",
                format!("{:?} is not served; validation_context or SDS is accepted", p.instance_name),
            );
        }
    };
    Ok(CommonTls {
        min_version: params.min,
        max_version: params.max,
        ciphers: params.ciphers,
        curves: params.curves,
        alpn: alpn_protocols.into_iter().map(Arc::from).collect(),
        certificates,
        validation,
    })
}

struct Parameters {
    min: TlsVersion,
    max: TlsVersion,
    ciphers: Vec<Arc<str>>,
    curves: Vec<Arc<str>>,
}

fn parameters(ctx: &Ctx<'_>, m: pb::TlsParameters, highest: TlsVersion) -> Result<Parameters> {
    use pb::tls_parameters::TlsProtocol as P;
    take!(ctx, m, pb::TlsParameters {
        tls_minimum_protocol_version, tls_maximum_protocol_version, cipher_suites, ecdh_curves;
        refuse signature_algorithms = "the TLS library's own list is used", compliance_policies = "none is accepted"
    });
    // TLS 1.0 and 1.1 as the lowest version give what the peer may choose beyond them; as the highest they leave nothing.
    let min = match ctx.enumeration("tls_minimum_protocol_version", tls_minimum_protocol_version)? {
        P::TlsAuto | P::TlSv12 => TlsVersion::V1_2,
        P::TlSv10 | P::TlSv11 => {
            return ctx.bad(
                "tls_minimum_protocol_version",
                "TLSv1_0 and TLSv1_1 are not served; TLSv1_2 or TLSv1_3 is accepted",
            );
        }
        P::TlSv13 => TlsVersion::V1_3,
    };
    let max = match ctx.enumeration("tls_maximum_protocol_version", tls_maximum_protocol_version)? {
        // A minimum of TLS 1.3 lifts the default with it.
        P::TlsAuto => highest.max(min),
        P::TlSv13 => TlsVersion::V1_3,
        P::TlSv12 => TlsVersion::V1_2,
        P::TlSv10 | P::TlSv11 => {
            return ctx.bad(
                "tls_maximum_protocol_version",
                "TLSv1_0 and TLSv1_1 are not served; TLSv1_2 or TLSv1_3 is accepted",
            );
        }
    };
    if min > max {
        return ctx.bad("tls_maximum_protocol_version", "is lower than the minimum");
    }
    let list = |v: Vec<String>| -> Vec<Arc<str>> { v.into_iter().map(Arc::from).collect() };
    Ok(Parameters { min, max, ciphers: list(cipher_suites), curves: list(ecdh_curves) })
}

/// The name under which a secret stands in the store, which the bootstrap, files, the agent and ADS fill.
fn secret_name(ctx: &Ctx<'_>, m: pb::SdsSecretConfig) -> Result<Arc<str>> {
    take!(ctx, m, pb::SdsSecretConfig { name, sds_config });
    if name.is_empty() {
        return ctx.bad("name", "is required");
    }
    let timeout = core::fetch_timeout(&ctx.field("sds_config"), sds_config.as_ref())?;
    // No source: a static secret of the bootstrap, or the SDS server that is this process.
    let source = core::secret_source(&ctx.field("sds_config"), sds_config)?;
    ctx.need(NeedKind::Secret, &name, source, timeout);
    Ok(name.into())
}

fn certificate(ctx: &Ctx<'_>, m: pb::TlsCertificate) -> Result<TlsCertificate> {
    take!(ctx, m, pb::TlsCertificate {
        certificate_chain, private_key, ocsp_staple;
        refuse pkcs12 = "certificate_chain and private_key are accepted",
            private_key_provider = "private_key is accepted",
            password = "an unencrypted private_key is accepted",
            signed_certificate_timestamp = "none is accepted",
            tls_params = "the context's own tls_params are used";
        harmless watched_directory = "the files are looked at for changes themselves"
    });
    let (chain_pem, chain_path) = core::data_source(
        &ctx.field("certificate_chain"),
        ctx.required("certificate_chain", certificate_chain)?,
    )?;
    let (key_pem, key_path) =
        core::data_source(&ctx.field("private_key"), ctx.required("private_key", private_key)?)?;
    let ocsp = match ocsp_staple {
        Some(o) => Some(core::data_source(&ctx.field("ocsp_staple"), o)?.0),
        None => None,
    };
    check_pem(&ctx.field("certificate_chain"), &chain_pem, "CERTIFICATE")?;
    check_pem(&ctx.field("private_key"), &key_pem, "PRIVATE KEY")?;
    Ok(TlsCertificate { chain_pem, key_pem, chain_path, key_path, ocsp })
}

fn check_pem(ctx: &Ctx<'_>, bytes: &[u8], kind: &str) -> Result<()> {
    let has = memchr::memmem::find_iter(bytes, b"-----BEGIN ").any(|at| {
        let line = bytes[at..].split(|b| *b == b'\n').next().unwrap_or_default();
        memchr::memmem::find(line, kind.as_bytes()).is_some()
    });
    if has { Ok(()) } else { Err(ctx.err(format!("has no PEM block of type {kind}"))) }
}

fn validation(ctx: &Ctx<'_>, m: pb::CertificateValidationContext) -> Result<Validation> {
    take!(ctx, m, pb::CertificateValidationContext {
        trusted_ca, system_root_certs, verify_certificate_spki, verify_certificate_hash, match_typed_subject_alt_names,
        match_subject_alt_names, crl, allow_expired_certificate, trust_chain_verification, only_verify_leaf_cert_crl, max_verify_depth;
        refuse ca_certificate_provider_instance = "trusted_ca or SDS is accepted",
            custom_validator_config = "the built-in validator is used",
            require_signed_certificate_timestamp = "unset is accepted";
        harmless watched_directory = "the files are looked at for changes themselves",
            suppress_client_ca_list = "the list of CA names in a certificate request is advice to the client"
    });
    let (ca, ca_path) = match trusted_ca {
        None => (None, None),
        Some(s) => {
            let ctx = ctx.field("trusted_ca");
            let (bytes, path) = core::data_source(&ctx, s)?;
            check_pem(&ctx, &bytes, "CERTIFICATE")?;
            (Some(bytes), path)
        }
    };
    let mut sans = ctx.each("match_typed_subject_alt_names", match_typed_subject_alt_names, san)?;
    sans.extend(ctx.each("match_subject_alt_names", match_subject_alt_names, |c, s| {
        Ok(SanMatcher { kind: SanKind::Any, matcher: matcher::string(c, s)? })
    })?);
    let accept_untrusted = trust_chain_verification
        == pb::certificate_validation_context::TrustChainVerification::AcceptUntrusted as i32;
    Ok(Validation {
        trusted_ca: ca,
        trusted_ca_path: ca_path,
        system_roots: system_root_certs.is_some(),
        sds: None,
        sans,
        cert_hashes: verify_certificate_hash
            .into_iter()
            .map(|h| h.replace(':', "").to_ascii_lowercase().into())
            .collect(),
        spki_hashes: verify_certificate_spki.into_iter().map(Arc::from).collect(),
        crl: crl
            .map(|c| core::data_source(&ctx.field("crl"), c))
            .transpose()?
            .map(|(b, _)| b)
            .filter(|b| !b.is_empty()),
        only_leaf_crl: only_verify_leaf_cert_crl,
        accept_untrusted,
        allow_expired: allow_expired_certificate,
        max_verify_depth: uint(max_verify_depth),
    })
}

fn san(ctx: &Ctx<'_>, m: pb::SubjectAltNameMatcher) -> Result<SanMatcher> {
    use pb::subject_alt_name_matcher::SanType as T;
    take!(ctx, m, pb::SubjectAltNameMatcher { san_type, matcher; harmless oid = "for OTHER_NAME alone, which is refused" });
    let kind = match ctx.enumeration("san_type", san_type)? {
        T::Email => SanKind::Email,
        T::Dns => SanKind::Dns,
        T::Uri => SanKind::Uri,
        T::IpAddress => SanKind::Ip,
        other @ (T::Unspecified | T::OtherName) => {
            return ctx.bad(
                "san_type",
                format!("{} is not served; EMAIL, DNS, URI, IP_ADDRESS are accepted", other.as_str_name()),
            );
        }
    };
    Ok(SanMatcher {
        kind,
        matcher: matcher::string(&ctx.field("matcher"), ctx.required("matcher", matcher)?)?,
    })
}

/// A secret of the bootstrap or from SDS.
///
/// # Errors
/// What is not served, and files that cannot be read.
pub fn secret(env: &Env, m: pb::Secret) -> Result<(Arc<str>, Secret)> {
    use pb::secret::Type as T;
    let root = Root::new("secret", &m.name, env);
    let ctx = root.ctx();
    take!(ctx, m, pb::Secret { name, r#type });
    let secret = match ctx.required("type", r#type)? {
        T::TlsCertificate(c) => Secret::Certificate(Arc::new(certificate(&ctx.field("tls_certificate"), c)?)),
        T::ValidationContext(v) => {
            let ctx = ctx.field("validation_context");
            let v = validation(&ctx, v)?;
            if !v.sans.is_empty()
                || !v.cert_hashes.is_empty()
                || !v.spki_hashes.is_empty()
                || v.accept_untrusted
            {
                return Err(ctx.err("only trusted_ca and crl are served in a secret; put the rest into default_validation_context"));
            }
            let pem = v.trusted_ca.ok_or_else(|| ctx.field("trusted_ca").err("is required"))?;
            Secret::Roots { pem, crl: v.crl }
        }
        T::GenericSecret(g) => {
            let ctx = ctx.field("generic_secret");
            take!(ctx, g, pb::GenericSecret { secret; refuse secrets = "one secret is accepted" });
            Secret::Generic(core::data_source(&ctx.field("secret"), ctx.required("secret", secret)?)?.0)
        }
        T::SessionTicketKeys(_) => {
            return ctx.bad(
                "session_ticket_keys",
                "fixed ticket keys are not served; the process makes and rotates its own",
            );
        }
    };
    Ok((name.into(), secret))
}
