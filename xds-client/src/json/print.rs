//! Dynamic message → JSON value, in the form of Envoy's `config_dump`: fields by number, proto names, defaults left out, each
//! `Any` expanded. What has no descriptor is kept as base64 rather than lost.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Message as _;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, ReflectMessage as _, SerializeOptions,
    Value as ProtoValue,
};
use serde_json::{Map, Value};

use super::parse::is_special;

/// How many messages may lie in one another. Decoding stops at 100 by itself, but starts anew inside each `Any`: what lies deeper is
/// kept as base64.
const MAX_DEPTH: usize = 100;

/// The JSON form of a message.
pub(super) fn message(pool: &DescriptorPool, message: &DynamicMessage) -> Value {
    nested(pool, message, 0)
}

/// The JSON form of an `Any`.
pub(super) fn any(pool: &DescriptorPool, type_url: &str, bytes: &[u8]) -> Value {
    nested_any(pool, type_url, bytes, 0)
}

fn nested(pool: &DescriptorPool, message: &DynamicMessage, depth: usize) -> Value {
    let descriptor = message.descriptor();
    match descriptor.full_name() {
        "google.protobuf.Any" => {
            let (type_url, bytes) = any_parts(message);
            if type_url.is_empty() && bytes.is_empty() {
                Value::Object(Map::new())
            } else {
                nested_any(pool, &type_url, &bytes, depth + 1)
            }
        }
        name if is_special(name) => well_known(message),
        _ => Value::Object(fields(pool, message, depth)),
    }
}

fn nested_any(pool: &DescriptorPool, type_url: &str, bytes: &[u8], depth: usize) -> Value {
    let mut object = Map::new();
    object.insert("@type".to_owned(), Value::from(type_url));
    let name = crate::type_url::message_name(type_url);
    let decoded = pool
        .get_message_by_name(name)
        .filter(|_| depth < MAX_DEPTH)
        .and_then(|descriptor| DynamicMessage::decode(descriptor, bytes).ok());
    match decoded {
        Some(inner) if is_special(name) => {
            object.insert("value".to_owned(), nested(pool, &inner, depth + 1));
        }
        Some(inner) => object.extend(fields(pool, &inner, depth + 1)),
        None => {
            object.insert("value".to_owned(), Value::from(STANDARD.encode(bytes)));
        }
    }
    Value::Object(object)
}

/// The paths of fields without descriptor, `path.#number`, through `Any`s.
pub(super) fn unknown_fields(pool: &DescriptorPool, message: &DynamicMessage) -> Vec<String> {
    let mut found = Vec::new();
    collect_unknown(pool, message, "", 0, &mut found);
    found
}

fn any_parts(message: &DynamicMessage) -> (String, Vec<u8>) {
    let type_url = message.get_field_by_name("type_url");
    let bytes = message.get_field_by_name("value");
    (
        type_url.and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default(),
        bytes.and_then(|value| value.as_bytes().map(|bytes| bytes.to_vec())).unwrap_or_default(),
    )
}

fn fields(pool: &DescriptorPool, message: &DynamicMessage, depth: usize) -> Map<String, Value> {
    let mut object = Map::new();
    for (field, value) in message.fields() {
        object.insert(field.name().to_owned(), field_value(pool, &field, value, depth));
    }
    object
}

fn field_value(pool: &DescriptorPool, field: &FieldDescriptor, value: &ProtoValue, depth: usize) -> Value {
    match value {
        ProtoValue::List(items) => {
            Value::Array(items.iter().map(|item| single(pool, &field.kind(), item, depth)).collect())
        }
        ProtoValue::Map(entries) => {
            let kind = match field.kind() {
                Kind::Message(entry) if entry.is_map_entry() => entry.map_entry_value_field().kind(),
                other => other,
            };
            let mut sorted: Vec<_> = entries.iter().map(|(key, value)| (map_key(key), value)).collect();
            sorted.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(
                sorted.into_iter().map(|(key, value)| (key, single(pool, &kind, value, depth))).collect(),
            )
        }
        other => single(pool, &field.kind(), other, depth),
    }
}

fn single(pool: &DescriptorPool, kind: &Kind, value: &ProtoValue, depth: usize) -> Value {
    match value {
        ProtoValue::Message(inner) => nested(pool, inner, depth + 1),
        ProtoValue::EnumNumber(number) => enum_name(kind, *number),
        ProtoValue::Bool(flag) => Value::Bool(*flag),
        ProtoValue::I32(number) => Value::from(*number),
        ProtoValue::U32(number) => Value::from(*number),
        // 64-bit integers are strings in protobuf's JSON form: JavaScript's numbers cannot hold them.
        ProtoValue::I64(number) => Value::from(number.to_string()),
        ProtoValue::U64(number) => Value::from(number.to_string()),
        // The shortest decimal form of the 32-bit value, not of its widening.
        ProtoValue::F32(number) => float(number.to_string().parse().unwrap_or_else(|_| f64::from(*number))),
        ProtoValue::F64(number) => float(*number),
        ProtoValue::String(text) => Value::from(text.as_str()),
        ProtoValue::Bytes(bytes) => Value::from(STANDARD.encode(bytes)),
        // Lists and maps are taken apart by `field_value`.
        ProtoValue::List(_) | ProtoValue::Map(_) => Value::Null,
    }
}

fn enum_name(kind: &Kind, number: i32) -> Value {
    match kind {
        Kind::Enum(descriptor) if descriptor.full_name() == "google.protobuf.NullValue" => Value::Null,
        Kind::Enum(descriptor) => match descriptor.get_value(number) {
            Some(value) => Value::from(value.name()),
            None => Value::from(number),
        },
        _ => Value::from(number),
    }
}

fn float(number: f64) -> Value {
    if number.is_nan() {
        Value::from("NaN")
    } else if number.is_infinite() {
        Value::from(if number > 0.0 { "Infinity" } else { "-Infinity" })
    } else {
        whole_as_integer(number)
    }
}

/// Envoy prints 50 rather than 50.0.
// The cast is exact: below 2^53 a float without fraction is that integer.
#[allow(clippy::cast_possible_truncation)]
fn whole_as_integer(number: f64) -> Value {
    if number.fract() == 0.0 && number.abs() < 9_007_199_254_740_992.0 {
        Value::from(number as i64)
    } else {
        Value::from(number)
    }
}

fn map_key(key: &MapKey) -> String {
    match key {
        MapKey::Bool(flag) => flag.to_string(),
        MapKey::I32(number) => number.to_string(),
        MapKey::I64(number) => number.to_string(),
        MapKey::U32(number) => number.to_string(),
        MapKey::U64(number) => number.to_string(),
        MapKey::String(text) => text.clone(),
    }
}

/// The types with a JSON form of their own: prost-reflect writes them. A value outside its type's range (a duration of more than
/// 10,000 years, say) has no such form and is kept as base64 of its bytes.
fn well_known(message: &DynamicMessage) -> Value {
    message
        .serialize_with_options(serde_json::value::Serializer, &SerializeOptions::new())
        .map_or_else(|_| Value::from(STANDARD.encode(message.encode_to_vec())), tidy_numbers)
}

fn tidy_numbers(value: Value) -> Value {
    match value {
        Value::Number(number) if number.is_f64() => {
            number.as_f64().map_or(Value::Number(number), whole_as_integer)
        }
        Value::Array(items) => Value::Array(items.into_iter().map(tidy_numbers).collect()),
        Value::Object(fields) => {
            Value::Object(fields.into_iter().map(|(key, value)| (key, tidy_numbers(value))).collect())
        }
        other => other,
    }
}

fn collect_unknown(
    pool: &DescriptorPool,
    message: &DynamicMessage,
    path: &str,
    depth: usize,
    found: &mut Vec<String>,
) {
    if depth > MAX_DEPTH {
        return;
    }
    let join = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    for field in message.unknown_fields() {
        found.push(join(&format!("#{}", field.number())));
    }
    if message.descriptor().full_name() == "google.protobuf.Any" {
        let (type_url, bytes) = any_parts(message);
        let name = crate::type_url::message_name(&type_url);
        if let Some(inner) = pool
            .get_message_by_name(name)
            .and_then(|inner| DynamicMessage::decode(inner, bytes.as_slice()).ok())
        {
            collect_unknown(pool, &inner, path, depth + 1, found);
        }
        return;
    }
    for (field, value) in message.fields() {
        match value {
            ProtoValue::Message(inner) => collect_unknown(pool, inner, &join(field.name()), depth + 1, found),
            ProtoValue::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    if let ProtoValue::Message(inner) = item {
                        collect_unknown(
                            pool,
                            inner,
                            &join(&format!("{}[{index}]", field.name())),
                            depth + 1,
                            found,
                        );
                    }
                }
            }
            ProtoValue::Map(entries) => {
                for (key, item) in entries {
                    if let ProtoValue::Message(inner) = item {
                        collect_unknown(
                            pool,
                            inner,
                            &join(&format!("{}.{}", field.name(), map_key(key))),
                            depth + 1,
                            found,
                        );
                    }
                }
            }
            _ => {}
        }
    }
}
