//! `TypedStruct`: a message given as a Struct under the name of its type, which Istio uses for messages that Envoy's API
//! does not have. Source: xds/type/v3/typed_struct.proto and its older twin in udpa.

use envoy_types::pb::google::protobuf::{Any, Struct, Value as StructValue, value::Kind};
use prost::Message as _;
use serde_json::{Map, Number, Value};

/// The message of both packages; envoy-types has neither.
#[derive(Clone, PartialEq, prost::Message)]
struct TypedStructMessage {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(message, optional, tag = "2")]
    value: Option<Struct>,
}

/// A `TypedStruct` of either package, taken out of its `Any`.
#[derive(Clone, Debug, PartialEq)]
pub struct TypedStruct {
    /// The type URL of the message that `value` stands for.
    pub type_url: String,
    /// The message's JSON form.
    pub value: Value,
}

impl TypedStruct {
    /// The type URLs of the two spellings.
    pub const TYPE_URLS: [&'static str; 2] =
        ["type.googleapis.com/udpa.type.v1.TypedStruct", "type.googleapis.com/xds.type.v3.TypedStruct"];

    /// Reads `any` if it holds a `TypedStruct`; `None` if it holds something else.
    ///
    /// # Errors
    /// Bytes that do not decode.
    pub fn from_any(any: &Any) -> Result<Option<Self>, prost::DecodeError> {
        if !Self::TYPE_URLS.contains(&any.type_url.as_str()) {
            return Ok(None);
        }
        let decoded = TypedStructMessage::decode(any.value.as_slice())?;
        Ok(Some(Self {
            type_url: decoded.type_url,
            value: decoded.value.as_ref().map_or_else(|| Value::Object(Map::new()), struct_to_json),
        }))
    }

    /// The name of the message that `value` stands for.
    #[must_use]
    pub fn message_name(&self) -> &str {
        crate::type_url::message_name(&self.type_url)
    }
}

/// A Struct as a JSON object, keys sorted. Numbers without a fraction become integers.
#[must_use]
pub fn struct_to_json(message: &Struct) -> Value {
    let mut entries: Vec<_> = message.fields.iter().collect();
    entries.sort_by_key(|(key, _)| key.as_str());
    Value::Object(entries.into_iter().map(|(key, value)| (key.clone(), value_to_json(value))).collect())
}

fn value_to_json(value: &StructValue) -> Value {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::NumberValue(number)) => number_to_json(*number),
        Some(Kind::StringValue(text)) => Value::from(text.as_str()),
        Some(Kind::BoolValue(flag)) => Value::from(*flag),
        Some(Kind::StructValue(inner)) => struct_to_json(inner),
        Some(Kind::ListValue(list)) => Value::Array(list.values.iter().map(value_to_json).collect()),
    }
}

// Below 2^53 a float without fraction is that integer.
#[allow(clippy::cast_possible_truncation)]
fn number_to_json(number: f64) -> Value {
    if number.fract() == 0.0 && number.abs() < 9_007_199_254_740_992.0 {
        return Value::from(number as i64);
    }
    Number::from_f64(number).map_or(Value::Null, Value::Number)
}
