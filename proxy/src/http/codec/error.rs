//! What goes wrong in a codec, and what Envoy makes of it: status, details, flag, stat, reset reason.
//!
//! Names follow `source/common/http/http1/codec_impl.cc` and `http2/codec_impl.cc` (the `Http1ResponseCodeDetails` and
//! `Http2ResponseCodeDetails` tables) and `Http::Utility::resetReasonToString`.

use std::io;

use crate::stream_info::ResponseFlags;

/// A failure of a codec.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The peer broke HTTP/1.
    #[error("http/1.1 protocol error: {0}")]
    Http1(#[from] Http1Error),
    /// The peer broke HTTP/2.
    #[error("http/2 protocol error: {0}")]
    Http2(#[from] Http2Error),
    /// The stream was reset, by either side.
    #[error("stream reset: {}", .0.as_str())]
    Reset(ResetReason),
    /// The peer closed the connection before its message ended.
    #[error("connection closed by the peer")]
    Closed,
    /// The socket failed.
    #[error("socket error: {0}")]
    Io(io::ErrorKind),
}

impl From<io::Error> for CodecError {
    fn from(e: io::Error) -> CodecError {
        CodecError::Io(e.kind())
    }
}

macro_rules! protocol_errors {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $status:literal, $details:literal, $text:literal;)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
        pub enum $name {
            $(#[doc = concat!("`", $details, "`")] #[error($text)] $variant,)+
        }

        impl $name {
            /// Every one of them, for tests and tables.
            pub const ALL: &[$name] = &[$($name::$variant),+];

            /// `%RESPONSE_CODE_DETAILS%` when it is answered downstream.
            pub const fn details(self) -> &'static str {
                match self { $($name::$variant => $details,)+ }
            }

            /// The status of the answer.
            pub const fn status(self) -> u16 {
                match self { $($name::$variant => $status,)+ }
            }
        }
    };
}

protocol_errors! {
    /// HTTP/1 protocol errors. Status and details are those of a server's answer.
    Http1Error {
        Syntax = 400, "http1.codec_error", "malformed message";
        InvalidCharacters = 400, "http1.invalid_characters", "header value contains invalid chars";
        InvalidUrl = 400, "http1.invalid_url", "invalid url in request line";
        InvalidScheme = 400, "http1.invalid_scheme", "invalid scheme";
        BodyDisallowed = 400, "http1.body_disallowed", "content-length or transfer-encoding not allowed";
        TransferEncodingNotAllowed = 400, "http1.transfer_encoding_not_allowed", "transfer encoding not allowed";
        ChunkedWithContentLength = 400, "http1.content_length_and_chunked_not_allowed", "both content-length and chunked";
        InvalidTransferEncoding = 501, "http1.invalid_transfer_encoding", "unsupported transfer encoding";
        ContentLengthNotAllowed = 400, "http1.content_length_not_allowed", "content-length not allowed";
        ConnectionHeader = 400, "http1.connection_header_rejected", "connection header rejected";
        InvalidAuthority = 400, "http.invalid_authority", "invalid authority";
        LowVersion = 426, "low_version", "http version not accepted";
        InvalidUnderscore = 400, "http1.unexpected_underscore", "header name contains underscores";
        TooManyHeaders = 431, "http1.too_many_headers", "too many headers";
        HeadersTooLarge = 431, "http1.headers_too_large", "headers size exceeds limit";
        TooManyTrailers = 431, "http1.too_many_trailers", "too many trailers";
        TrailersTooLarge = 431, "http1.trailers_too_large", "trailers size exceeds limit";
    }
}

protocol_errors! {
    /// HTTP/2 protocol errors. `details` is what the access log of the reset stream says.
    Http2Error {
        Protocol = 400, "http2.protocol_error", "protocol error";
        InvalidHeaderField = 400, "http2.invalid.header.field", "invalid http header field";
        Violation = 400, "http2.violation.of.messaging.rule", "violation in http messaging rule";
        UnexpectedUnderscore = 400, "http2.unexpected_underscore", "header name contains underscores";
        TooManyHeaders = 431, "http2.too_many_headers", "too many headers";
        HeadersTooLarge = 431, "http2.headers_too_large", "headers size exceeds limit";
        Flood = 400, "http2.outbound_frames_flood", "too many frames in the outbound queue";
    }
}

/// Why a stream was reset: Envoy's `StreamResetReason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetReason {
    LocalReset,
    LocalRefusedStreamReset,
    RemoteReset,
    RemoteRefusedStreamReset,
    LocalConnectionFailure,
    RemoteConnectionFailure,
    ConnectionTimeout,
    ConnectionTermination,
    Overflow,
    ConnectError,
    ProtocolError,
    OverloadManager,
}

impl ResetReason {
    /// As local reply bodies write it (`reset reason: …`).
    pub const fn as_str(self) -> &'static str {
        match self {
            ResetReason::LocalReset => "local reset",
            ResetReason::LocalRefusedStreamReset => "local refused-stream reset",
            ResetReason::RemoteReset => "remote reset",
            ResetReason::RemoteRefusedStreamReset => "remote refused-stream reset",
            ResetReason::LocalConnectionFailure => "local connection failure",
            ResetReason::RemoteConnectionFailure => "remote connection failure",
            ResetReason::ConnectionTimeout => "connection timeout",
            ResetReason::ConnectionTermination => "connection termination",
            ResetReason::Overflow => "overflow",
            ResetReason::ConnectError => "remote error with CONNECT request",
            ResetReason::ProtocolError => "protocol error",
            ResetReason::OverloadManager => "overload manager reset",
        }
    }

    /// As response code details write it: `as_str` with `_` for spaces (`upstream_reset_before_response_started{…}`).
    pub const fn details(self) -> &'static str {
        match self {
            ResetReason::LocalReset => "local_reset",
            ResetReason::LocalRefusedStreamReset => "local_refused-stream_reset",
            ResetReason::RemoteReset => "remote_reset",
            ResetReason::RemoteRefusedStreamReset => "remote_refused-stream_reset",
            ResetReason::LocalConnectionFailure => "local_connection_failure",
            ResetReason::RemoteConnectionFailure => "remote_connection_failure",
            ResetReason::ConnectionTimeout => "connection_timeout",
            ResetReason::ConnectionTermination => "connection_termination",
            ResetReason::Overflow => "overflow",
            ResetReason::ConnectError => "remote_error_with_CONNECT_request",
            ResetReason::ProtocolError => "protocol_error",
            ResetReason::OverloadManager => "overload_manager_reset",
        }
    }

    /// The router's flag for it (`streamResetReasonToResponseFlag`).
    pub const fn upstream_flag(self) -> ResponseFlags {
        match self {
            ResetReason::LocalReset | ResetReason::LocalRefusedStreamReset => ResponseFlags::LOCAL_RESET,
            ResetReason::RemoteReset | ResetReason::RemoteRefusedStreamReset | ResetReason::ConnectError => {
                ResponseFlags::UPSTREAM_REMOTE_RESET
            }
            ResetReason::LocalConnectionFailure
            | ResetReason::RemoteConnectionFailure
            | ResetReason::ConnectionTimeout => ResponseFlags::UPSTREAM_CONNECTION_FAILURE,
            ResetReason::ConnectionTermination => ResponseFlags::UPSTREAM_CONNECTION_TERMINATION,
            ResetReason::Overflow => ResponseFlags::UPSTREAM_OVERFLOW,
            ResetReason::ProtocolError => ResponseFlags::UPSTREAM_PROTOCOL_ERROR,
            ResetReason::OverloadManager => ResponseFlags::OVERLOAD_MANAGER,
        }
    }
}

impl CodecError {
    /// Details of the downstream stream that it ends, for the access log.
    pub const fn details(self) -> &'static str {
        match self {
            CodecError::Http1(e) => e.details(),
            CodecError::Http2(e) => e.details(),
            CodecError::Reset(ResetReason::ProtocolError) => "http2.protocol_error",
            CodecError::Reset(ResetReason::LocalReset | ResetReason::LocalRefusedStreamReset) => {
                "local_reset"
            }
            CodecError::Reset(_) => "http2.remote_reset",
            CodecError::Closed | CodecError::Io(_) => "downstream_remote_disconnect",
        }
    }

    /// The status with which a server answers it; `None`: nobody is there to read an answer.
    pub const fn status(self) -> Option<u16> {
        match self {
            CodecError::Http1(e) => Some(e.status()),
            CodecError::Http2(e) => Some(e.status()),
            CodecError::Reset(_) | CodecError::Closed | CodecError::Io(_) => None,
        }
    }

    /// The downstream stream's response flag.
    pub const fn downstream_flag(self) -> ResponseFlags {
        match self {
            CodecError::Http1(_) | CodecError::Http2(_) | CodecError::Reset(ResetReason::ProtocolError) => {
                ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR
            }
            CodecError::Reset(ResetReason::RemoteReset | ResetReason::RemoteRefusedStreamReset) => {
                ResponseFlags::DOWNSTREAM_REMOTE_RESET
            }
            CodecError::Reset(_) | CodecError::Closed | CodecError::Io(_) => {
                ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION
            }
        }
    }

    /// The reset reason that an upstream stream's failure means to the router.
    pub const fn reset_reason(self) -> ResetReason {
        match self {
            CodecError::Http1(_) | CodecError::Http2(_) => ResetReason::ProtocolError,
            CodecError::Reset(reason) => reason,
            CodecError::Closed | CodecError::Io(_) => ResetReason::ConnectionTermination,
        }
    }

    /// Whether the peer broke the protocol (Envoy counts `downstream_cx_protocol_error`, `upstream_cx_protocol_error`).
    pub const fn is_protocol_error(self) -> bool {
        matches!(
            self,
            CodecError::Http1(_) | CodecError::Http2(_) | CodecError::Reset(ResetReason::ProtocolError)
        )
    }
}
