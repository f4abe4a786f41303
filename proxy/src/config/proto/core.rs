//! The API's common messages: addresses, metadata, data sources, header options, fractions, configuration sources.
//! Source: envoy/config/core/v3, envoy/type/v3.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use envoy_types::pb::envoy::config::common::mutation_rules::v3 as rules;
use envoy_types::pb::envoy::config::core::v3 as pb;
use envoy_types::pb::envoy::r#type::v3 as ty;
use envoy_types::pb::google::protobuf::Struct;
use serde_json::{Map, Value};

use super::{Ctx, Result, flag, format, take, text};
use crate::config::address::{Address, Cidr};
use crate::config::bootstrap::{Ads, ConfigSource};
use crate::config::matcher::Fraction;
use crate::config::route::{AppendAction, HeaderAdd, HeaderMutations, Metadata};
use crate::head::HeaderName;

pub fn address(ctx: &Ctx<'_>, m: pb::Address) -> Result<Address> {
    use pb::address::Address as A;
    take!(ctx, m, pb::Address { address });
    match ctx.required("address", address)? {
        A::SocketAddress(a) => socket_address(&ctx.field("socket_address"), a),
        A::Pipe(p) => {
            let ctx = ctx.field("pipe");
            take!(ctx, p, pb::Pipe { path; refuse mode = "the socket gets the mode that umask gives" });
            if path.is_empty() {
                return ctx.bad("path", "is required");
            }
            Ok(Address::Pipe(path.into()))
        }
        A::EnvoyInternalAddress(i) => {
            use pb::envoy_internal_address::AddressNameSpecifier as N;
            let ctx = ctx.field("envoy_internal_address");
            take!(ctx, i, pb::EnvoyInternalAddress { address_name_specifier; harmless endpoint_id = "tells hosts of one internal listener apart; the listener is the same" });
            match ctx.required("server_listener_name", address_name_specifier)? {
                N::ServerListenerName(name) => Ok(Address::Internal(name.into())),
            }
        }
    }
}

pub fn socket_address(ctx: &Ctx<'_>, m: pb::SocketAddress) -> Result<Address> {
    use pb::socket_address::PortSpecifier as P;
    take!(ctx, m, pb::SocketAddress {
        protocol, address, port_specifier, resolver_name;
        refuse network_namespace_filepath = "the proxy's own network namespace is used";
        harmless ipv4_compat = "read by `listens_ipv4_compat` for `::`"
    });
    if protocol != pb::socket_address::Protocol::Tcp as i32 {
        return ctx.bad("protocol", "UDP is not served; TCP is accepted");
    }
    if !resolver_name.is_empty() && resolver_name != "envoy.ip" {
        return ctx.bad("resolver_name", format!("{resolver_name:?} is not served; empty is accepted"));
    }
    let port = match port_specifier {
        Some(P::PortValue(p)) => ctx.port("port_value", p)?,
        Some(P::NamedPort(n)) => {
            return ctx.bad("named_port", format!("{n:?} is not served; port_value is accepted"));
        }
        None => return ctx.bad("port_value", "is required"),
    };
    if address.is_empty() {
        return ctx.bad("address", "is required");
    }
    Ok(match address.parse::<IpAddr>() {
        Ok(ip) => Address::Socket(SocketAddr::new(ip, port)),
        Err(_) => Address::Name(address.into(), port),
    })
}

/// Whether an address asks for IPv4 on an IPv6 wildcard socket.
pub fn listens_ipv4_compat(m: &pb::Address) -> bool {
    matches!(&m.address, Some(pb::address::Address::SocketAddress(a)) if a.ipv4_compat)
}

/// An address that must be an IP address and a port.
pub fn ip_address(ctx: &Ctx<'_>, m: pb::Address) -> Result<SocketAddr> {
    match address(ctx, m)? {
        Address::Socket(a) => Ok(a),
        other => Err(ctx.err(format!("{other} is not an IP address and port"))),
    }
}

pub fn cidr(ctx: &Ctx<'_>, m: pb::CidrRange) -> Result<Cidr> {
    take!(ctx, m, pb::CidrRange { address_prefix, prefix_len });
    let Ok(ip) = address_prefix.parse::<IpAddr>() else {
        return ctx.bad("address_prefix", format!("{address_prefix:?} is not an IP address"));
    };
    let len = prefix_len.map_or(0, |v| v.value);
    let max = if ip.is_ipv4() { 32 } else { 128 };
    if len > max {
        return ctx.bad("prefix_len", format!("{len} is longer than the address; 0 to {max} is accepted"));
    }
    Ok(Cidr::new(ip, len as u8))
}

/// A Struct as a JSON object.
pub fn json(m: &Struct) -> Map<String, Value> {
    match outrigger_xds::json::struct_to_json(m) {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

pub fn metadata(ctx: &Ctx<'_>, m: Option<pb::Metadata>) -> Result<Metadata> {
    let Some(m) = m else { return Ok(None) };
    take!(ctx, m, pb::Metadata {
        filter_metadata;
        harmless typed_filter_metadata = "read by extensions that are not served"
    });
    if filter_metadata.is_empty() {
        return Ok(None);
    }
    let mut namespaces: Vec<_> = filter_metadata.iter().collect();
    namespaces.sort_by_key(|(k, _)| k.as_str());
    Ok(Some(Arc::new(namespaces.into_iter().map(|(k, v)| (k.clone(), Value::Object(json(v)))).collect())))
}

/// A metadata whose one namespace (`envoy.lb`, `envoy.transport_socket_match`) is given by its Struct.
pub fn flat_metadata(m: Option<&Struct>) -> Metadata {
    m.filter(|s| !s.fields.is_empty()).map(|s| Arc::new(json(s)))
}

/// The `envoy.lb` namespace of a `metadata_match`, flat.
pub fn lb_metadata(ctx: &Ctx<'_>, m: Option<pb::Metadata>) -> Result<Metadata> {
    Ok(metadata(ctx, m)?
        .and_then(|m| m.get("envoy.lb").and_then(Value::as_object).filter(|o| !o.is_empty()).cloned())
        .map(Arc::new))
}

/// Bytes, and the file's name where they came from one.
pub type Data = (Arc<[u8]>, Option<Arc<str>>);

/// Reads a data source.
pub fn data_source(ctx: &Ctx<'_>, m: pb::DataSource) -> Result<Data> {
    use pb::data_source::Specifier as S;
    take!(ctx, m, pb::DataSource { specifier; harmless watched_directory = "files of secrets are watched with their own directory" });
    match ctx.required("specifier", specifier)? {
        S::Filename(path) => {
            let bytes =
                std::fs::read(&path).map_err(|e| ctx.field("filename").err(format!("{path}: {e}")))?;
            Ok((bytes.into(), Some(path.into())))
        }
        S::InlineBytes(b) => Ok((b.into(), None)),
        S::InlineString(s) => Ok((s.into_bytes().into(), None)),
        S::EnvironmentVariable(name) => match std::env::var(&name) {
            Ok(value) => Ok((value.into_bytes().into(), None)),
            Err(_) => ctx.bad("environment_variable", format!("{name} is not set")),
        },
    }
}

pub fn fractional(ctx: &Ctx<'_>, m: ty::FractionalPercent) -> Result<Fraction> {
    use ty::fractional_percent::DenominatorType as D;
    take!(ctx, m, ty::FractionalPercent { numerator, denominator });
    let denominator = match ctx.enumeration("denominator", denominator)? {
        D::Hundred => 100,
        D::TenThousand => 10_000,
        D::Million => 1_000_000,
    };
    Ok(Fraction { numerator, denominator })
}

/// A runtime fraction: the runtime key's value in the static layers, else the default.
pub fn runtime_fraction(ctx: &Ctx<'_>, m: pb::RuntimeFractionalPercent) -> Result<Fraction> {
    take!(ctx, m, pb::RuntimeFractionalPercent { default_value, runtime_key });
    let default = fractional(&ctx.field("default_value"), default_value.unwrap_or_default())?;
    Ok(match ctx.env().runtime(&runtime_key) {
        Some(v) => runtime_override(v, default),
        None => default,
    })
}

/// A runtime value for a fraction: an integer out of a hundred, or a FractionalPercent as a mapping.
pub fn runtime_override(value: &Value, default: Fraction) -> Fraction {
    if let Some(n) = value.as_u64() {
        return Fraction { numerator: n.min(100) as u32, denominator: 100 };
    }
    let Some(n) = value.get("numerator").and_then(Value::as_u64) else { return default };
    let denominator = match value.get("denominator").and_then(Value::as_str) {
        Some("TEN_THOUSAND") => 10_000,
        Some("MILLION") => 1_000_000,
        _ => 100,
    };
    Fraction { numerator: u32::try_from(n).unwrap_or(u32::MAX), denominator }
}

pub fn runtime_double(ctx: &Ctx<'_>, m: pb::RuntimeDouble) -> f64 {
    let pb::RuntimeDouble { default_value, runtime_key } = m;
    ctx.env().runtime(&runtime_key).and_then(Value::as_f64).unwrap_or(default_value)
}

pub fn runtime_u32(ctx: &Ctx<'_>, m: pb::RuntimeUInt32) -> u32 {
    let pb::RuntimeUInt32 { default_value, runtime_key } = m;
    ctx.env()
        .runtime(&runtime_key)
        .and_then(Value::as_u64)
        .and_then(|v| v.try_into().ok())
        .unwrap_or(default_value)
}

pub fn runtime_flag(ctx: &Ctx<'_>, m: pb::RuntimeFeatureFlag) -> bool {
    let pb::RuntimeFeatureFlag { default_value, runtime_key } = m;
    ctx.env().runtime(&runtime_key).and_then(Value::as_bool).unwrap_or_else(|| flag(default_value, true))
}

/// A percentage, 0 to 100.
pub fn percent(ctx: &Ctx<'_>, field: &str, m: Option<ty::Percent>) -> Result<Option<f64>> {
    let Some(ty::Percent { value }) = m else { return Ok(None) };
    if !(0.0..=100.0).contains(&value) {
        return ctx.bad(field, format!("{value} is not a percentage; 0 to 100 is accepted"));
    }
    Ok(Some(value))
}

pub fn header_add(ctx: &Ctx<'_>, m: pb::HeaderValueOption) -> Result<HeaderAdd> {
    use pb::header_value_option::HeaderAppendAction as A;
    take!(ctx, m, pb::HeaderValueOption { header, append, append_action, keep_empty_value });
    let ctx2 = ctx.field("header");
    let (name, value) = header_value(&ctx2, ctx.required("header", header)?)?;
    let action = match ctx.enumeration("append_action", append_action)? {
        // `append` is the deprecated form: false overwrites.
        A::AppendIfExistsOrAdd if append.is_some_and(|a| !a.value) => AppendAction::OverwriteIfExistsOrAdd,
        _ if append.is_some() && append_action != 0 => {
            return ctx.bad("append", "append and append_action exclude each other");
        }
        A::AppendIfExistsOrAdd => AppendAction::AppendIfExistsOrAdd,
        A::AddIfAbsent => AppendAction::AddIfAbsent,
        A::OverwriteIfExistsOrAdd => AppendAction::OverwriteIfExistsOrAdd,
        A::OverwriteIfExists => AppendAction::OverwriteIfExists,
    };
    // A header of nothing but absent values is not added: no `-` stands for them.
    let value = format::parse(&ctx2.field("value"), &value, true)?;
    Ok(HeaderAdd { name, value, action, keep_empty: keep_empty_value })
}

/// A header's name and value; `raw_value` must be UTF-8.
pub fn header_value(ctx: &Ctx<'_>, m: pb::HeaderValue) -> Result<(HeaderName, String)> {
    take!(ctx, m, pb::HeaderValue { key, value, raw_value });
    let value = if raw_value.is_empty() {
        value
    } else {
        String::from_utf8(raw_value).map_err(|_| ctx.field("raw_value").err("is not UTF-8"))?
    };
    if value.bytes().any(|b| matches!(b, b'\0' | b'\r' | b'\n')) {
        return ctx.bad("value", "has a control character");
    }
    Ok((ctx.header_name("key", &key)?, value))
}

/// Adds and removes of one level.
pub fn mutations(
    ctx: &Ctx<'_>,
    request_add: Vec<pb::HeaderValueOption>,
    request_remove: Vec<String>,
    response_add: Vec<pb::HeaderValueOption>,
    response_remove: Vec<String>,
) -> Result<HeaderMutations> {
    let removable = |ctx: &Ctx<'_>, name: String| {
        if name.starts_with(':') || name.eq_ignore_ascii_case("host") {
            return Err(ctx.err(format!("{name:?} cannot be removed: pseudo-headers and host stay")));
        }
        ctx.header_name("", &name)
    };
    Ok(HeaderMutations {
        request_add: ctx.each("request_headers_to_add", request_add, header_add)?,
        request_remove: ctx.each("request_headers_to_remove", request_remove, removable)?,
        response_add: ctx.each("response_headers_to_add", response_add, header_add)?,
        response_remove: ctx
            .each("response_headers_to_remove", response_remove, |c, n| c.header_name("", &n))?,
    })
}

/// A list of `HeaderMutation`s as adds and removes. Envoy applies them in order; removes after adds of the same name would differ,
/// which is refused.
pub fn header_mutations(
    ctx: &Ctx<'_>,
    field: &str,
    list: Vec<rules::HeaderMutation>,
) -> Result<(Vec<HeaderAdd>, Vec<HeaderName>)> {
    use rules::header_mutation::Action as A;
    let (mut add, mut remove) = (Vec::<HeaderAdd>::new(), Vec::new());
    for (i, m) in list.into_iter().enumerate() {
        let ctx = ctx.index(field, i);
        take!(ctx, m, rules::HeaderMutation { action });
        match ctx.required("action", action)? {
            A::Remove(name) => {
                let name = ctx.header_name("remove", &name)?;
                if add.iter().any(|a| a.name == name) {
                    return ctx
                        .bad("remove", format!("{:?} was appended before; remove it first", name.as_str()));
                }
                remove.push(name);
            }
            A::Append(option) => add.push(header_add(&ctx.field("append"), option)?),
            A::RemoveOnMatch(m) => ctx.refuse("remove_on_match", &Some(m), "remove by name is accepted")?,
        }
    }
    Ok((add, remove))
}

/// Where a dynamic resource comes from. A gRPC source of its own is read as the stream that it names; only secrets use one.
pub fn config_source(ctx: &Ctx<'_>, m: pb::ConfigSource) -> Result<ConfigSource> {
    use pb::config_source::ConfigSourceSpecifier as S;
    take!(ctx, m, pb::ConfigSource {
        config_source_specifier;
        refuse authorities = "xdstp authorities are not served";
        harmless resource_api_version = "only V3 exists", initial_fetch_timeout = "read by `fetch_timeout`"
    });
    Ok(match ctx.required("config_source_specifier", config_source_specifier)? {
        S::Ads(pb::AggregatedConfigSource {}) => ConfigSource::Ads,
        S::Self_(s) => {
            take!(ctx, s, pb::SelfConfigSource { ; harmless transport_api_version = "only V3 exists" });
            ConfigSource::Ads
        }
        S::Path(path) => ConfigSource::Path { path: path.into(), watched_directory: None },
        S::PathConfigSource(p) => {
            let ctx = ctx.field("path_config_source");
            take!(ctx, p, pb::PathConfigSource { path, watched_directory; harmless poll_interval = "the file is looked at several times a second" });
            let watched_directory = match watched_directory {
                None => None,
                Some(w) => {
                    take!(ctx, w, pb::WatchedDirectory { path; harmless watch_modify = "every change of the file is seen" });
                    text(path)
                }
            };
            ConfigSource::Path { path: path.into(), watched_directory }
        }
        S::ApiConfigSource(api) => {
            return ctx.bad(
                "api_config_source",
                format!(
                    "{} is not served here; ads or path_config_source is accepted",
                    super::show(&api.cluster_names)
                ),
            );
        }
    })
}

/// How long a resource from this source is waited for before the proxy goes on without it. `None`: for ever (`0s`). 15 s by default.
pub fn fetch_timeout(ctx: &Ctx<'_>, m: Option<&pb::ConfigSource>) -> Result<Option<std::time::Duration>> {
    ctx.timeout(
        "initial_fetch_timeout",
        m.and_then(|m| m.initial_fetch_timeout),
        Some(std::time::Duration::from_secs(15)),
    )
}

/// The source of a secret: from a file, by ADS, or from an SDS server of its own (Istio's agent, which is this process: by the
/// secret's name in the secret store).
pub fn secret_source(ctx: &Ctx<'_>, m: Option<pb::ConfigSource>) -> Result<Option<ConfigSource>> {
    use pb::config_source::ConfigSourceSpecifier as S;
    let Some(m) = m else { return Ok(None) };
    if let Some(S::ApiConfigSource(api)) = m.config_source_specifier {
        api_source(&ctx.field("api_config_source"), api)?;
        return Ok(None);
    }
    config_source(ctx, m).map(Some)
}

/// A gRPC stream to a management server.
pub fn api_source(ctx: &Ctx<'_>, m: pb::ApiConfigSource) -> Result<Ads> {
    use pb::api_config_source::ApiType as T;
    take!(ctx, m, pb::ApiConfigSource {
        api_type, grpc_services;
        refuse cluster_names = "grpc_services is accepted", config_validators = "none is accepted";
        harmless transport_api_version = "only V3 exists",
            refresh_delay = "for REST alone",
            request_timeout = "for REST alone",
            rate_limit_settings = "requests are few: one for each update",
            set_node_on_first_message_only = "the node is sent on the first message of a stream, as xDS allows"
    });
    let delta = match ctx.enumeration("api_type", api_type)? {
        T::Grpc | T::AggregatedGrpc => false,
        T::DeltaGrpc | T::AggregatedDeltaGrpc => true,
        other => {
            return ctx.bad(
                "api_type",
                format!("{} is not served; GRPC or DELTA_GRPC is accepted", other.as_str_name()),
            );
        }
    };
    let mut services = grpc_services;
    if services.len() != 1 {
        return ctx.bad(
            "grpc_services",
            format!("{} services are not served; exactly one is accepted", services.len()),
        );
    }
    let service = services.swap_remove(0);
    let service = grpc_service(&ctx.index("grpc_services", 0), service)?;
    Ok(Ads { delta, cluster: service.cluster, authority: service.authority, headers: service.headers })
}

/// A gRPC service by cluster.
#[derive(Clone, Debug)]
pub struct GrpcTarget {
    pub cluster: Arc<str>,
    pub authority: Option<Arc<str>>,
    pub headers: Vec<(Arc<str>, Arc<str>)>,
    pub timeout: Option<std::time::Duration>,
}

pub fn grpc_service(ctx: &Ctx<'_>, m: pb::GrpcService) -> Result<GrpcTarget> {
    use pb::grpc_service::TargetSpecifier as T;
    take!(ctx, m, pb::GrpcService {
        timeout, initial_metadata, target_specifier;
        refuse retry_policy = "none is accepted"
    });
    let envoy = match ctx.required("envoy_grpc", target_specifier)? {
        T::EnvoyGrpc(e) => e,
        T::GoogleGrpc(g) => {
            return ctx
                .bad("google_grpc", format!("{:?} is not served; envoy_grpc is accepted", g.target_uri));
        }
    };
    let ctx2 = ctx.field("envoy_grpc");
    take!(ctx2, envoy, pb::grpc_service::EnvoyGrpc {
        cluster_name, authority;
        refuse retry_policy = "none is accepted";
        harmless max_receive_message_length = "messages of any length are read, as by default", skip_envoy_headers = "x-envoy headers are not added to these calls"
    });
    if cluster_name.is_empty() {
        return ctx2.bad("cluster_name", "is required");
    }
    let headers = ctx.each("initial_metadata", initial_metadata, |c, h| {
        let (name, value) = header_value(c, h)?;
        Ok((Arc::from(name.as_str()), Arc::from(value)))
    })?;
    Ok(GrpcTarget {
        cluster: cluster_name.into(),
        authority: text(authority),
        headers,
        timeout: ctx.duration("timeout", timeout)?,
    })
}
