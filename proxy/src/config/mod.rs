//! Configuration: protobuf → internal representation, one folder per resource kind.
//!
//! Each kind has its IR (plain Rust, every default applied, every regex compiled) in `mod.rs` or `KIND.rs` and its reading
//! from protobuf in a `proto` submodule. Only this module and the agent see protobuf. Conversion takes each message apart
//! exhaustively: a field is converted, refused by name, or listed as harmless with its reason.

pub mod access_log;
pub mod address;
pub mod apply;
pub mod bootstrap;
pub mod cluster;
pub mod dump;
pub mod file_source;
pub mod filter;
pub mod format;
pub mod hcm;
pub mod listener;
pub mod load;
pub mod matcher;
pub mod proto;
pub mod route;
pub mod snapshot;
pub mod tls;
pub mod trace;
pub mod validate;
pub mod watcher;
