//! HTTP: the codecs, the connection manager, the exchange and its filters.

pub mod codec;
