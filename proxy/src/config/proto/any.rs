//! Extensions: an `Any`, or a `TypedStruct` in one, told apart by the name of the message that it holds.
//! Follows Envoy's "Extension configuration" page.

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::google::protobuf::Any;
use outrigger_xds::json::{Schema, TypedStruct};
use prost::{Message, Name};
use serde::Deserialize;

use super::{Ctx, Result};

/// An extension's configuration, not decoded yet.
#[derive(Debug)]
pub struct Extension {
    /// Full name of the message: `envoy.extensions.filters.http.router.v3.Router`.
    pub message: String,
    body: Body,
}

#[derive(Debug)]
enum Body {
    Bytes(Vec<u8>),
    Json(serde_json::Value),
}

impl Extension {
    /// Opens an `Any`.
    ///
    /// # Errors
    /// A `TypedStruct` that does not decode.
    pub fn open(ctx: &Ctx<'_>, any: Any) -> Result<Extension> {
        match TypedStruct::from_any(&any) {
            Ok(Some(typed)) => {
                Ok(Extension { message: typed.message_name().to_owned(), body: Body::Json(typed.value) })
            }
            Ok(None) => {
                let message = any.type_url.rsplit('/').next().unwrap_or_default().to_owned();
                Ok(Extension { message, body: Body::Bytes(any.value) })
            }
            Err(e) => Err(ctx.err(format!("{} does not decode: {e}", any.type_url))),
        }
    }

    /// Decodes the message.
    ///
    /// # Errors
    /// Bytes or JSON that are not such a message.
    pub fn decode<T: Message + Default + Name>(self, ctx: &Ctx<'_>) -> Result<T> {
        match self.body {
            Body::Bytes(bytes) => T::decode(bytes.as_slice())
                .map_err(|e| ctx.err(format!("{} does not decode: {e}", self.message))),
            Body::Json(value) if value.as_object().is_some_and(serde_json::Map::is_empty) => Ok(T::default()),
            // Rare: the descriptors are loaded for this one message and dropped.
            Body::Json(value) => {
                Schema::load().parse_value(&value).map_err(|e| ctx.err(format!("{}: {e}", self.message)))
            }
        }
    }

    /// Decodes one of Istio's messages that know their JSON form themselves.
    ///
    /// # Errors
    /// As [`Extension::decode`].
    pub fn decode_istio<T: Message + Default + Name + for<'de> Deserialize<'de>>(
        self,
        ctx: &Ctx<'_>,
    ) -> Result<T> {
        match self.body {
            Body::Json(value) => outrigger_xds::istio::from_json(&value).map_err(|e| ctx.err(e)),
            Body::Bytes(_) => self.decode(ctx),
        }
    }

    /// Refuses an extension by name. `what` is its category, `accepted` lists what is served.
    ///
    /// # Errors
    /// Always.
    pub fn unknown<T>(&self, ctx: &Ctx<'_>, what: &str, accepted: &str) -> Result<T> {
        Err(ctx.err(format!("{what} '{}' is not served; accepted: {accepted}", self.message)))
    }
}

/// Opens a `TypedExtensionConfig`; gives its name too.
///
/// # Errors
/// Without a `typed_config`.
pub fn typed(ctx: &Ctx<'_>, config: core::TypedExtensionConfig) -> Result<(String, Extension)> {
    let core::TypedExtensionConfig { name, typed_config } = config;
    let any = ctx.required("typed_config", typed_config)?;
    Ok((name, Extension::open(&ctx.field("typed_config"), any)?))
}
