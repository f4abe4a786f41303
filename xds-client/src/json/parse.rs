//! JSON value → dynamic message. Written over the descriptors rather than over serde, because an error must name the path of
//! the field from the root of the document, through `Any`s, and because a `TypedStruct` keeps whatever it holds.

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::GeneralPurposeConfig;
use prost::Message as _;
use prost_reflect::{
    Cardinality, DescriptorPool, DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MapKey,
    MessageDescriptor, Value as ProtoValue,
};
use serde_json::{Map, Value};

use super::JsonError;

/// Both alphabets, padded or not: what protobuf's JSON form asks of a reader.
const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_decode_padding_mode(DecodePaddingMode::Indifferent)
    .with_decode_allow_trailing_bits(true);
/// Longer paths are refused: protobuf itself stops at 100 messages in one another, each of which may be an element of a list.
const MAX_DEPTH: usize = 200;

/// Reads `value` as a message of type `descriptor`.
pub(super) fn message(
    pool: &DescriptorPool,
    descriptor: &MessageDescriptor,
    value: &Value,
) -> Result<DynamicMessage, JsonError> {
    Reader { pool, path: Vec::new() }.message(descriptor, value)
}

enum Step<'a> {
    Field(&'a str),
    Index(usize),
}

struct Reader<'a> {
    pool: &'a DescriptorPool,
    path: Vec<Step<'a>>,
}

impl<'a> Reader<'a> {
    fn error(&self, reason: impl Into<String>) -> JsonError {
        let mut path = String::new();
        for step in &self.path {
            match step {
                Step::Field(name) if path.is_empty() => path.push_str(name),
                Step::Field(name) => {
                    path.push('.');
                    path.push_str(name);
                }
                Step::Index(index) => path.push_str(&format!("[{index}]")),
            }
        }
        if path.is_empty() {
            path.push_str("(root)");
        }
        JsonError::Field { path, reason: reason.into() }
    }

    fn expected(&self, what: &str, found: &Value) -> JsonError {
        self.error(format!("expected {what}, found {}", describe(found)))
    }

    fn message(
        &mut self,
        descriptor: &MessageDescriptor,
        value: &'a Value,
    ) -> Result<DynamicMessage, JsonError> {
        if self.path.len() > MAX_DEPTH {
            return Err(self.error("nested too deep"));
        }
        match descriptor.full_name() {
            "google.protobuf.Any" => self.any(descriptor, value),
            name if is_special(name) => self.well_known(descriptor, value),
            _ => {
                let Value::Object(object) = value else {
                    return Err(self.expected(&format!("an object ({})", descriptor.full_name()), value));
                };
                self.fields(descriptor, object, |_| false)
            }
        }
    }

    /// The fields of an ordinary message; `skip` names keys that belong to the surrounding `Any`.
    fn fields(
        &mut self,
        descriptor: &MessageDescriptor,
        object: &'a Map<String, Value>,
        skip: impl Fn(&str) -> bool,
    ) -> Result<DynamicMessage, JsonError> {
        let mut message = DynamicMessage::new(descriptor.clone());
        for (key, value) in object {
            if skip(key) {
                continue;
            }
            self.path.push(Step::Field(key));
            let field = descriptor.get_field_by_name(key).or_else(|| descriptor.get_field_by_json_name(key));
            let Some(field) = field else {
                return Err(self.error(format!("no such field in message {}", descriptor.full_name())));
            };
            if let Some(content) = self.field(&field, value)? {
                if message.has_field(&field) {
                    return Err(self.error("given twice"));
                }
                if let Some(oneof) = field.containing_oneof()
                    && let Some(other) = oneof.fields().find(|other| message.has_field(other))
                {
                    return Err(self.error(format!(
                        "excludes `{}`: only one of {} may be set",
                        other.name(),
                        oneof.name()
                    )));
                }
                message.set_field(&field, content);
            }
            self.path.pop();
        }
        Ok(message)
    }

    /// A field's content; `None` where JSON's null stands for "not set".
    fn field(&mut self, field: &FieldDescriptor, value: &'a Value) -> Result<Option<ProtoValue>, JsonError> {
        if value.is_null() && !takes_null(field) {
            return Ok(None);
        }
        if field.is_map() {
            return self.map(field, value).map(Some);
        }
        if field.cardinality() == Cardinality::Repeated {
            let Value::Array(items) = value else {
                return Err(self.expected("an array", value));
            };
            let mut list = Vec::with_capacity(items.len());
            for (index, item) in items.iter().enumerate() {
                self.path.push(Step::Index(index));
                list.push(self.single(&field.kind(), item)?);
                self.path.pop();
            }
            return Ok(Some(ProtoValue::List(list)));
        }
        self.single(&field.kind(), value).map(Some)
    }

    fn map(&mut self, field: &FieldDescriptor, value: &'a Value) -> Result<ProtoValue, JsonError> {
        let Value::Object(object) = value else {
            return Err(self.expected("an object (a map)", value));
        };
        let Kind::Message(entry) = field.kind() else {
            return Err(self.error("a map without entries"));
        };
        let (key_kind, value_kind) =
            (entry.map_entry_key_field().kind(), entry.map_entry_value_field().kind());
        let mut map = std::collections::HashMap::with_capacity(object.len());
        for (key, item) in object {
            self.path.push(Step::Field(key));
            let content = self.single(&value_kind, item)?;
            map.insert(self.map_key(&key_kind, key)?, content);
            self.path.pop();
        }
        Ok(ProtoValue::Map(map))
    }

    fn map_key(&self, kind: &Kind, key: &str) -> Result<MapKey, JsonError> {
        let parsed = match kind {
            Kind::String => Some(MapKey::String(key.to_owned())),
            Kind::Bool => key.parse().ok().map(MapKey::Bool),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => key.parse().ok().map(MapKey::I32),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => key.parse().ok().map(MapKey::I64),
            Kind::Uint32 | Kind::Fixed32 => key.parse().ok().map(MapKey::U32),
            Kind::Uint64 | Kind::Fixed64 => key.parse().ok().map(MapKey::U64),
            Kind::Double | Kind::Float | Kind::Bytes | Kind::Message(_) | Kind::Enum(_) => None,
        };
        parsed.ok_or_else(|| self.error(format!("the key is not a valid {kind:?}")))
    }

    fn single(&mut self, kind: &Kind, value: &'a Value) -> Result<ProtoValue, JsonError> {
        Ok(match kind {
            Kind::Message(descriptor) => ProtoValue::Message(self.message(descriptor, value)?),
            Kind::Enum(descriptor) => ProtoValue::EnumNumber(self.enum_number(descriptor, value)?),
            Kind::String => match value {
                Value::String(text) => ProtoValue::String(text.clone()),
                _ => return Err(self.expected("a string", value)),
            },
            Kind::Bytes => match value {
                Value::String(text) => ProtoValue::Bytes(self.base64(text)?.into()),
                _ => return Err(self.expected("a base64 string", value)),
            },
            Kind::Bool => match value {
                Value::Bool(flag) => ProtoValue::Bool(*flag),
                _ => return Err(self.expected("true or false", value)),
            },
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => {
                ProtoValue::I32(self.integer(value, "a 32-bit integer")?)
            }
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => {
                ProtoValue::I64(self.integer(value, "a 64-bit integer")?)
            }
            Kind::Uint32 | Kind::Fixed32 => {
                ProtoValue::U32(self.integer(value, "an unsigned 32-bit integer")?)
            }
            Kind::Uint64 | Kind::Fixed64 => {
                ProtoValue::U64(self.integer(value, "an unsigned 64-bit integer")?)
            }
            Kind::Double => ProtoValue::F64(self.float(value)?),
            // Precision is what a float field has to offer.
            #[allow(clippy::cast_possible_truncation)]
            Kind::Float => ProtoValue::F32(self.float(value)? as f32),
        })
    }

    fn integer<T: TryFrom<i128>>(&self, value: &Value, what: &str) -> Result<T, JsonError> {
        let wide: Option<i128> = match value {
            Value::Number(number) => number
                .as_i64()
                .map(i128::from)
                .or_else(|| number.as_u64().map(i128::from))
                .or_else(|| number.as_f64().and_then(whole)),
            Value::String(text) => text.parse().ok().or_else(|| text.parse::<f64>().ok().and_then(whole)),
            _ => None,
        };
        wide.and_then(|wide| T::try_from(wide).ok()).ok_or_else(|| self.expected(what, value))
    }

    fn float(&self, value: &Value) -> Result<f64, JsonError> {
        let float = match value {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => match text.as_str() {
                "NaN" => Some(f64::NAN),
                "Infinity" => Some(f64::INFINITY),
                "-Infinity" => Some(f64::NEG_INFINITY),
                text => text.parse().ok(),
            },
            _ => None,
        };
        float.ok_or_else(|| self.expected("a number", value))
    }

    fn enum_number(&self, descriptor: &EnumDescriptor, value: &Value) -> Result<i32, JsonError> {
        match value {
            // NullValue is the one enum that JSON's null spells.
            Value::Null if descriptor.full_name() == "google.protobuf.NullValue" => Ok(0),
            Value::String(name) => match descriptor.get_value_by_name(name) {
                Some(value) => Ok(value.number()),
                None => {
                    let names: Vec<String> =
                        descriptor.values().map(|value| value.name().to_owned()).collect();
                    Err(self.error(format!(
                        "`{name}` is not a value of {}: expected one of {}",
                        descriptor.full_name(),
                        names.join(", ")
                    )))
                }
            },
            Value::Number(_) => self.integer(value, "an enum's name or number"),
            _ => Err(self.expected("an enum's name", value)),
        }
    }

    fn base64(&self, text: &str) -> Result<Vec<u8>, JsonError> {
        let alphabet =
            if text.contains(['-', '_']) { base64::alphabet::URL_SAFE } else { base64::alphabet::STANDARD };
        base64::engine::GeneralPurpose::new(&alphabet, LENIENT)
            .decode(text)
            .map_err(|error| self.error(format!("not base64: {error}")))
    }

    /// `{"@type": …, fields…}`, or `{"@type": …, "value": …}` for a type that has a JSON form of its own.
    fn any(&mut self, descriptor: &MessageDescriptor, value: &'a Value) -> Result<DynamicMessage, JsonError> {
        let Value::Object(object) = value else {
            return Err(self.expected("an object with `@type`", value));
        };
        let mut any = DynamicMessage::new(descriptor.clone());
        let type_url = match object.get("@type") {
            Some(Value::String(type_url)) => type_url,
            Some(other) => {
                self.path.push(Step::Field("@type"));
                return Err(self.expected("a type URL", other));
            }
            None if object.is_empty() => return Ok(any),
            None => return Err(self.error("`@type` is missing")),
        };
        let name = crate::type_url::message_name(type_url);
        let Some(inner) = self.pool.get_message_by_name(name) else {
            self.path.push(Step::Field("@type"));
            return Err(self.error(format!("unknown message type `{name}`")));
        };
        let message = if is_special(name) {
            let null = &Value::Null;
            self.path.push(Step::Field("value"));
            if let Some(other) = object.keys().find(|key| !matches!(key.as_str(), "@type" | "value")) {
                return Err(self.error(format!("`{other}` beside the value of a {name}")));
            }
            let message = self.message(&inner, object.get("value").unwrap_or(null))?;
            self.path.pop();
            message
        } else {
            self.fields(&inner, object, |key| key == "@type")?
        };
        any.set_field_by_name("type_url", ProtoValue::String(type_url.clone()));
        any.set_field_by_name("value", ProtoValue::Bytes(message.encode_to_vec().into()));
        Ok(any)
    }

    /// The types with a JSON form of their own: prost-reflect reads them.
    fn well_known(&self, descriptor: &MessageDescriptor, value: &Value) -> Result<DynamicMessage, JsonError> {
        DynamicMessage::deserialize(descriptor.clone(), value).map_err(|error| {
            self.error(format!(
                "expected {}, found {}: {error}",
                describe_type(descriptor.full_name()),
                describe(value)
            ))
        })
    }
}

/// Types whose JSON form is not an object of their fields.
pub(super) fn is_special(full_name: &str) -> bool {
    matches!(
        full_name,
        "google.protobuf.Any"
            | "google.protobuf.Duration"
            | "google.protobuf.Timestamp"
            | "google.protobuf.FieldMask"
            | "google.protobuf.Struct"
            | "google.protobuf.Value"
            | "google.protobuf.ListValue"
            | "google.protobuf.BoolValue"
            | "google.protobuf.BytesValue"
            | "google.protobuf.DoubleValue"
            | "google.protobuf.FloatValue"
            | "google.protobuf.Int32Value"
            | "google.protobuf.Int64Value"
            | "google.protobuf.StringValue"
            | "google.protobuf.UInt32Value"
            | "google.protobuf.UInt64Value"
    )
}

/// Whether JSON's null is a value of the field rather than its absence.
fn takes_null(field: &FieldDescriptor) -> bool {
    if field.is_list() {
        return false;
    }
    match field.kind() {
        Kind::Message(descriptor) => descriptor.full_name() == "google.protobuf.Value",
        Kind::Enum(descriptor) => descriptor.full_name() == "google.protobuf.NullValue",
        _ => false,
    }
}

// The casts are exact: the range and the fraction are checked first.
#[allow(clippy::cast_possible_truncation)]
fn whole(float: f64) -> Option<i128> {
    (float.fract() == 0.0 && float.abs() < 1e30).then_some(float as i128)
}

fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        Value::Array(_) => "an array".to_owned(),
        scalar => {
            let text = scalar.to_string();
            if text.chars().count() > 60 {
                format!("{}…", text.chars().take(60).collect::<String>())
            } else {
                text
            }
        }
    }
}

fn describe_type(full_name: &str) -> &str {
    match full_name {
        "google.protobuf.Duration" => "a duration such as \"1.5s\"",
        "google.protobuf.Timestamp" => "a time such as \"2026-01-01T00:00:00Z\"",
        other => other,
    }
}
