//! A request in one form for both variants, and its two protobuf forms.

use std::collections::HashMap;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use envoy_types::pb::google::rpc::Status;

/// `google.rpc.Code.INTERNAL`: what Envoy puts into every NACK.
const INTERNAL: i32 = 13;
/// Envoy cuts error details so that they fit into a header (`Utility::truncateGrpcStatusMessage`).
const MAX_ERROR_BYTES: usize = 4096;

/// What the client has to say about one type.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// The type.
    pub type_url: String,
    /// The answer to a response; `None` for a change of the subscription.
    pub ack: Option<Ack>,
    /// Delta: names to add. The first request of a wildcard subscription has none.
    pub subscribe: Vec<String>,
    /// Delta: names to take away.
    pub unsubscribe: Vec<String>,
    /// Delta, first request on a stream: what the client holds already.
    pub initial_resource_versions: HashMap<String, String>,
    /// State of the world: every name, empty for a wildcard.
    pub names: Vec<String>,
    /// State of the world: the version last accepted.
    pub version: String,
}

/// The answer to a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    /// The nonce of the response.
    pub nonce: String,
    /// Why something in it was refused; `None` accepts it.
    pub error: Option<String>,
}

impl Request {
    fn parts(ack: Option<Ack>) -> (String, Option<Status>) {
        let Some(ack) = ack else { return (String::new(), None) };
        let status =
            ack.error.map(|text| Status { code: INTERNAL, message: truncate_error(text), details: vec![] });
        (ack.nonce, status)
    }

    /// As a delta request; `node` goes into the first message of a stream.
    #[must_use]
    pub fn into_delta(self, node: Option<Node>) -> DeltaDiscoveryRequest {
        let (response_nonce, error_detail) = Self::parts(self.ack);
        DeltaDiscoveryRequest {
            node,
            type_url: self.type_url,
            resource_names_subscribe: self.subscribe,
            resource_names_unsubscribe: self.unsubscribe,
            initial_resource_versions: self.initial_resource_versions,
            response_nonce,
            error_detail,
            ..Default::default()
        }
    }

    /// As a state-of-the-world request; `node` goes into the first message of a stream.
    #[must_use]
    pub fn into_sotw(self, node: Option<Node>) -> DiscoveryRequest {
        let (response_nonce, error_detail) = Self::parts(self.ack);
        DiscoveryRequest {
            version_info: self.version,
            node,
            resource_names: self.names,
            type_url: self.type_url,
            response_nonce,
            error_detail,
            ..Default::default()
        }
    }
}

/// The text as it goes into `error_detail`: cut as Envoy cuts it.
#[must_use]
pub fn truncate_error(mut text: String) -> String {
    if text.len() > MAX_ERROR_BYTES {
        let end = (0..=MAX_ERROR_BYTES).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
        text.truncate(end);
        text.push_str("...(truncated)");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_error_is_cut_at_a_character() {
        let text = truncate_error("ä".repeat(3000));
        assert!(text.ends_with("ä...(truncated)"));
        assert_eq!(text.len(), 4096 + "...(truncated)".len());
        assert_eq!(truncate_error("short".to_owned()), "short");
    }

    #[test]
    fn nack_carries_code_internal() {
        let ack = Some(Ack { nonce: "7".to_owned(), error: Some("bad".to_owned()) });
        let request = Request { type_url: "t".to_owned(), ack, ..Default::default() }.into_delta(None);
        let status = request.error_detail.unwrap();
        assert_eq!((request.response_nonce.as_str(), status.code, status.message.as_str()), ("7", 13, "bad"));
    }
}
