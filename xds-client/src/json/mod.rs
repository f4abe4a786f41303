//! Protobuf's JSON form, and YAML over it, for every message of Envoy's v3 API and for Istio's own.
//! Source: <https://protobuf.dev/programming-guides/json/>; field names in output as Envoy's admin interface prints them.
//!
//! [`Schema`] holds the descriptors: build it where it is needed and drop it afterwards (about 12 ms and 3 MB), so that an idle
//! process carries none. `parse` reads a JSON value into a dynamic message and names the path of what it refuses;
//! [`print`] writes one, with each `Any` expanded.

mod parse;
mod print;
#[cfg(test)]
mod tests;
mod typed_struct;

use std::io::Read as _;

use prost::{Message, Name};
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use serde_json::Value;

pub use self::typed_struct::{TypedStruct, struct_to_json};

/// Made by the build script from the descriptor set in envoy-types.
const ENVOY_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/envoy.bin.z"));

/// What is wrong with a JSON or YAML text, or with protobuf bytes.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum JsonError {
    /// Not JSON at all; the text has line and column.
    #[error("malformed JSON: {0}")]
    Json(String),
    /// Not YAML at all; the text has line and column.
    #[error("malformed YAML: {0}")]
    Yaml(String),
    /// A field or value that the message does not have.
    #[error("{path}: {reason}")]
    Field {
        /// Where, from the root of the document: `static_resources.listeners[0].nme`.
        path: String,
        /// What is wrong, and what would be accepted.
        reason: String,
    },
    /// A message name that no descriptor has.
    #[error("unknown message type `{0}`")]
    UnknownType(String),
    /// Bytes that do not decode as the message.
    #[error("malformed {message}: {reason}")]
    Wire {
        /// The message's full name.
        message: String,
        /// The decoder's words.
        reason: String,
    },
}

/// The descriptors of Envoy's v3 API and of Istio's own messages.
pub struct Schema {
    pool: DescriptorPool,
}

impl Schema {
    /// Unpacks the descriptors. Costs milliseconds and a few megabytes: drop the value after use.
    #[must_use]
    pub fn load() -> Self {
        let mut bytes = Vec::new();
        flate2::read::ZlibDecoder::new(ENVOY_DESCRIPTORS)
            .read_to_end(&mut bytes)
            .expect("the build script compressed these bytes");
        let mut pool =
            DescriptorPool::decode(bytes.as_slice()).expect("the build script encoded these descriptors");
        pool.add_file_descriptor_protos(crate::istio::descriptors::files())
            .expect("Istio's descriptors are constants and refer to well-known types alone");
        Self { pool }
    }

    /// Reads a message from JSON text.
    ///
    /// # Errors
    /// Malformed JSON; an unknown field or a value of the wrong kind, with its path.
    pub fn parse_json<M: Message + Default + Name>(&self, text: &str) -> Result<M, JsonError> {
        let value = serde_json::from_str(text).map_err(|error| JsonError::Json(error.to_string()))?;
        self.parse_value(&value)
    }

    /// Reads a message from YAML text (JSON is YAML, too). Of several documents, only one is accepted.
    ///
    /// # Errors
    /// Malformed YAML; an unknown field or a value of the wrong kind, with its path.
    pub fn parse_yaml<M: Message + Default + Name>(&self, text: &str) -> Result<M, JsonError> {
        self.parse_value(&yaml_to_json(text)?)
    }

    /// Reads a message from a JSON value.
    ///
    /// # Errors
    /// An unknown field or a value of the wrong kind, with its path.
    pub fn parse_value<M: Message + Default + Name>(&self, value: &Value) -> Result<M, JsonError> {
        let bytes = self.encode(&M::full_name(), value)?;
        M::decode(bytes.as_slice()).map_err(|error| wire_error(&M::full_name(), &error))
    }

    /// Encodes a JSON value as the message named `full_name`.
    ///
    /// # Errors
    /// An unknown message name; an unknown field or a value of the wrong kind, with its path.
    pub fn encode(&self, full_name: &str, value: &Value) -> Result<Vec<u8>, JsonError> {
        let descriptor = self.descriptor(full_name)?;
        Ok(parse::message(&self.pool, &descriptor, value)?.encode_to_vec())
    }

    /// The JSON form of an encoded message: proto field names, enum names, base64 bytes, and each `Any` expanded beside its
    /// `@type`. An `Any` of a type without descriptor, or with bytes that do not decode, becomes `{"@type", "value"}` with base64.
    ///
    /// # Errors
    /// An unknown message name, or bytes that are not that message.
    pub fn to_json(&self, full_name: &str, bytes: &[u8]) -> Result<Value, JsonError> {
        let descriptor = self.descriptor(full_name)?;
        let message =
            DynamicMessage::decode(descriptor, bytes).map_err(|error| wire_error(full_name, &error))?;
        Ok(print::message(&self.pool, &message))
    }

    /// [`Self::to_json`] of a message in its Rust form.
    ///
    /// # Errors
    /// A message type without descriptor.
    pub fn message_to_json<M: Message + Name>(&self, message: &M) -> Result<Value, JsonError> {
        self.to_json(&M::full_name(), &message.encode_to_vec())
    }

    /// The JSON form of an `Any`: the message's own form with `@type` first.
    #[must_use]
    pub fn any_to_json(&self, type_url: &str, bytes: &[u8]) -> Value {
        print::any(&self.pool, type_url, bytes)
    }

    /// Whether messages of this name can be read and written.
    #[must_use]
    pub fn knows(&self, full_name: &str) -> bool {
        self.pool.get_message_by_name(full_name).is_some()
    }

    /// The field numbers of an encoded message that its descriptor does not have, with the path of the message that carries each.
    /// A resource from a newer control plane shows so.
    ///
    /// # Errors
    /// An unknown message name, or bytes that are not that message.
    pub fn unknown_fields(&self, full_name: &str, bytes: &[u8]) -> Result<Vec<String>, JsonError> {
        let descriptor = self.descriptor(full_name)?;
        let message =
            DynamicMessage::decode(descriptor, bytes).map_err(|error| wire_error(full_name, &error))?;
        Ok(print::unknown_fields(&self.pool, &message))
    }

    fn descriptor(&self, full_name: &str) -> Result<MessageDescriptor, JsonError> {
        self.pool.get_message_by_name(full_name).ok_or_else(|| JsonError::UnknownType(full_name.to_owned()))
    }
}

fn wire_error(message: &str, error: &prost::DecodeError) -> JsonError {
    JsonError::Wire { message: message.to_owned(), reason: error.to_string() }
}

/// YAML text as a JSON value: one document, merge keys (`<<`) applied, keys that are numbers or booleans as strings.
///
/// # Errors
/// Malformed YAML, a tagged value, or a number that JSON does not have.
pub fn yaml_to_json(text: &str) -> Result<Value, JsonError> {
    let mut yaml: serde_yaml_ng::Value =
        serde_yaml_ng::from_str(text).map_err(|error| JsonError::Yaml(error.to_string()))?;
    yaml.apply_merge().map_err(|error| JsonError::Yaml(error.to_string()))?;
    yaml_value(yaml)
}

fn yaml_value(yaml: serde_yaml_ng::Value) -> Result<Value, JsonError> {
    use serde_yaml_ng::Value as Yaml;
    Ok(match yaml {
        Yaml::Null => Value::Null,
        Yaml::Bool(flag) => Value::Bool(flag),
        Yaml::Number(number) => {
            if let Some(unsigned) = number.as_u64() {
                Value::from(unsigned)
            } else if let Some(signed) = number.as_i64() {
                Value::from(signed)
            } else {
                match number.as_f64() {
                    // JSON spells these as strings, and protobuf's JSON form reads them.
                    Some(float) if float.is_nan() => Value::from("NaN"),
                    Some(float) if float.is_infinite() => {
                        Value::from(if float > 0.0 { "Infinity" } else { "-Infinity" })
                    }
                    Some(float) => Value::from(float),
                    None => return Err(JsonError::Yaml(format!("number `{number}` is out of range"))),
                }
            }
        }
        Yaml::String(text) => Value::String(text),
        Yaml::Sequence(items) => Value::Array(items.into_iter().map(yaml_value).collect::<Result<_, _>>()?),
        Yaml::Mapping(entries) => {
            let mut object = serde_json::Map::with_capacity(entries.len());
            for (key, value) in entries {
                let key = match key {
                    Yaml::String(text) => text,
                    Yaml::Bool(flag) => flag.to_string(),
                    Yaml::Number(number) => number.to_string(),
                    other => return Err(JsonError::Yaml(format!("a key must be a scalar, not {other:?}"))),
                };
                object.insert(key, yaml_value(value)?);
            }
            Value::Object(object)
        }
        Yaml::Tagged(tagged) => {
            return Err(JsonError::Yaml(format!("tag `{}` is not supported", tagged.tag)));
        }
    })
}
