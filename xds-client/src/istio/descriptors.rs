//! Descriptors of Istio's messages, so that their JSON form is read and printed as Envoy's messages are (`config_dump`, a bootstrap).
//! They say the same as the Rust types beside them, in the words of a `.proto` file. The two `TypedStruct`s, in which istiod sends some of
//! them, are here too.

use prost_reflect::prost_types::field_descriptor_proto::{Label, Type};
use prost_reflect::prost_types::{
    DescriptorProto, EnumDescriptorProto, EnumValueDescriptorProto, FieldDescriptorProto,
    FileDescriptorProto, MessageOptions, OneofDescriptorProto,
};

/// One file for each package.
#[must_use]
pub fn files() -> Vec<FileDescriptorProto> {
    vec![
        typed_struct("udpa.type.v1"),
        typed_struct("xds.type.v3"),
        alpn(),
        metadata_exchange(),
        peer_metadata(),
        stats(),
        authn(),
        name_table(),
        workload(),
    ]
}

fn typed_struct(package: &str) -> FileDescriptorProto {
    let fields = vec![
        field("type_url", 1, Type::String, ""),
        field("value", 2, Type::Message, ".google.protobuf.Struct"),
    ];
    file(package, &["google/protobuf/struct.proto"], vec![message("TypedStruct", fields)])
}

fn alpn() -> FileDescriptorProto {
    let package = "istio.envoy.config.filter.http.alpn.v2alpha1";
    let config = format!(".{package}.FilterConfig");
    let mut message = message(
        "FilterConfig",
        vec![repeated(field("alpn_override", 1, Type::Message, &format!("{config}.AlpnOverride")))],
    );
    message.enum_type.push(enumeration("Protocol", &["HTTP10", "HTTP11", "HTTP2"]));
    message.nested_type.push(self::message(
        "AlpnOverride",
        vec![
            field("upstream_protocol", 1, Type::Enum, &format!("{config}.Protocol")),
            repeated(field("alpn_override", 2, Type::String, "")),
        ],
    ));
    file(package, &[], vec![message])
}

fn metadata_exchange() -> FileDescriptorProto {
    let fields = vec![
        field("protocol", 1, Type::String, ""),
        field("enable_discovery", 2, Type::Bool, ""),
        repeated(field("additional_labels", 3, Type::String, "")),
    ];
    file("envoy.tcp.metadataexchange.config", &[], vec![message("MetadataExchange", fields)])
}

fn peer_metadata() -> FileDescriptorProto {
    let package = "io.istio.http.peer_metadata";
    let config = format!(".{package}.Config");
    let of = |name: &str, number, kind: &str| field(name, number, Type::Message, &format!("{config}.{kind}"));
    let mut message = message(
        "Config",
        vec![
            repeated(of("downstream_discovery", 1, "DiscoveryMethod")),
            repeated(of("upstream_discovery", 2, "DiscoveryMethod")),
            repeated(of("downstream_propagation", 3, "PropagationMethod")),
            repeated(of("upstream_propagation", 4, "PropagationMethod")),
            field("shared_with_upstream", 5, Type::Bool, ""),
            repeated(field("additional_labels", 6, Type::String, "")),
        ],
    );
    message.nested_type = vec![
        self::message("Baggage", vec![]),
        self::message("WorkloadDiscovery", vec![]),
        self::message("IstioHeaders", vec![field("skip_external_clusters", 1, Type::Bool, "")]),
        oneof(
            self::message(
                "DiscoveryMethod",
                vec![
                    of("baggage", 1, "Baggage"),
                    of("workload_discovery", 2, "WorkloadDiscovery"),
                    of("istio_headers", 3, "IstioHeaders"),
                ],
            ),
            "method_specifier",
        ),
        oneof(
            self::message(
                "PropagationMethod",
                vec![of("istio_headers", 1, "IstioHeaders"), of("baggage", 2, "Baggage")],
            ),
            "method_specifier",
        ),
    ];
    file(package, &[], vec![message])
}

fn stats() -> FileDescriptorProto {
    let duration = |name: &str, number| field(name, number, Type::Message, ".google.protobuf.Duration");
    let mut metric = message(
        "MetricConfig",
        vec![
            repeated(field("dimensions", 1, Type::Message, ".stats.MetricConfig.DimensionsEntry")),
            field("name", 2, Type::String, ""),
            repeated(field("tags_to_remove", 3, Type::String, "")),
            field("match", 4, Type::String, ""),
            field("drop", 5, Type::Bool, ""),
        ],
    );
    metric.nested_type.push(map_entry("DimensionsEntry", field("value", 2, Type::String, "")));
    let definition = message(
        "MetricDefinition",
        vec![
            field("name", 1, Type::String, ""),
            field("value", 2, Type::String, ""),
            field("type", 3, Type::Enum, ".stats.MetricType"),
        ],
    );
    let config = message(
        "PluginConfig",
        vec![
            field("debug", 1, Type::Bool, ""),
            field("max_peer_cache_size", 2, Type::Int32, ""),
            field("stat_prefix", 3, Type::String, ""),
            field("field_separator", 4, Type::String, ""),
            field("value_separator", 5, Type::String, ""),
            field("disable_host_header_fallback", 6, Type::Bool, ""),
            duration("tcp_reporting_duration", 7),
            repeated(field("metrics", 8, Type::Message, ".stats.MetricConfig")),
            repeated(field("definitions", 9, Type::Message, ".stats.MetricDefinition")),
            field("reporter", 10, Type::Enum, ".stats.Reporter"),
            duration("rotation_interval", 11),
            duration("graceful_deletion_interval", 12),
        ],
    );
    let mut file = file("stats", &["google/protobuf/duration.proto"], vec![metric, definition, config]);
    file.enum_type = vec![
        enumeration("MetricType", &["COUNTER", "GAUGE", "HISTOGRAM"]),
        enumeration("Reporter", &["UNSPECIFIED", "SERVER_GATEWAY"]),
    ];
    file
}

fn authn() -> FileDescriptorProto {
    file("io.istio.network.authn", &[], vec![message("Config", vec![])])
}

fn name_table() -> FileDescriptorProto {
    let package = "istio.networking.nds.v1";
    let table = format!(".{package}.NameTable");
    let mut message = message(
        "NameTable",
        vec![repeated(field("table", 1, Type::Message, &format!("{table}.TableEntry")))],
    );
    message.nested_type = vec![
        map_entry("TableEntry", field("value", 2, Type::Message, &format!("{table}.NameInfo"))),
        self::message(
            "NameInfo",
            vec![
                repeated(field("ips", 1, Type::String, "")),
                field("registry", 2, Type::String, ""),
                field("shortname", 3, Type::String, ""),
                field("namespace", 4, Type::String, ""),
                repeated(field("alt_hosts", 5, Type::String, "")),
            ],
        ),
    ];
    file(package, &[], vec![message])
}

fn workload() -> FileDescriptorProto {
    let package = "istio.workload";
    let text = |name: &str, number| field(name, number, Type::String, "");
    let address = oneof(
        message(
            "Address",
            vec![
                field("workload", 1, Type::Message, ".istio.workload.Workload"),
                field("service", 2, Type::Message, ".istio.workload.Service"),
            ],
        ),
        "type",
    );
    let workload = message(
        "Workload",
        vec![
            text("uid", 20),
            text("name", 1),
            text("namespace", 2),
            repeated(field("addresses", 3, Type::Bytes, "")),
            text("network", 4),
            text("trust_domain", 6),
            text("service_account", 7),
            text("canonical_name", 10),
            text("canonical_revision", 11),
            field("workload_type", 12, Type::Enum, ".istio.workload.WorkloadType"),
            text("workload_name", 13),
            text("cluster_id", 18),
        ],
    );
    let service = message("Service", vec![text("name", 1), text("namespace", 2), text("hostname", 3)]);
    let mut file = file(package, &[], vec![address, workload, service]);
    file.enum_type = vec![enumeration("WorkloadType", &["DEPLOYMENT", "CRONJOB", "POD", "JOB"])];
    file
}

fn file(package: &str, imports: &[&str], messages: Vec<DescriptorProto>) -> FileDescriptorProto {
    FileDescriptorProto {
        name: Some(format!("outrigger/{}.proto", package.replace('.', "/"))),
        package: Some(package.to_owned()),
        dependency: imports.iter().map(|&import| import.to_owned()).collect(),
        message_type: messages,
        syntax: Some("proto3".to_owned()),
        ..Default::default()
    }
}

fn message(name: &str, fields: Vec<FieldDescriptorProto>) -> DescriptorProto {
    DescriptorProto { name: Some(name.to_owned()), field: fields, ..Default::default() }
}

/// Puts all fields of a message into one oneof.
fn oneof(mut message: DescriptorProto, name: &str) -> DescriptorProto {
    message.oneof_decl.push(OneofDescriptorProto { name: Some(name.to_owned()), ..Default::default() });
    message.field.iter_mut().for_each(|field| field.oneof_index = Some(0));
    message
}

/// The nested message that stands for the entries of a map with string keys.
fn map_entry(name: &str, value: FieldDescriptorProto) -> DescriptorProto {
    let mut entry = message(name, vec![field("key", 1, Type::String, ""), value]);
    entry.options = Some(MessageOptions { map_entry: Some(true), ..Default::default() });
    entry
}

fn field(name: &str, number: i32, kind: Type, type_name: &str) -> FieldDescriptorProto {
    FieldDescriptorProto {
        name: Some(name.to_owned()),
        number: Some(number),
        label: Some(Label::Optional.into()),
        r#type: Some(kind.into()),
        type_name: (!type_name.is_empty()).then(|| type_name.to_owned()),
        ..Default::default()
    }
}

fn repeated(mut field: FieldDescriptorProto) -> FieldDescriptorProto {
    field.label = Some(Label::Repeated.into());
    field
}

fn enumeration(name: &str, values: &[&str]) -> EnumDescriptorProto {
    let value = |(number, value): (i32, &&str)| EnumValueDescriptorProto {
        name: Some((*value).to_owned()),
        number: Some(number),
        ..Default::default()
    };
    EnumDescriptorProto {
        name: Some(name.to_owned()),
        value: (0..).zip(values).map(value).collect(),
        ..Default::default()
    }
}
