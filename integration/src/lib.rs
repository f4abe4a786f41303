//! Black-box tests of Outrigger. The differential suite drives one Envoy v3 file through a proxy binary, with
//! scripted clients and upstreams around it, and compares what they saw with what they saw around the real Envoy.
//! A case and its fields: `case.rs`. The way of a case through its run: `run.rs`.

pub mod admin;
pub mod case;
pub mod certs;
pub mod client;
pub mod compare;
pub mod h1;
pub mod io;
pub mod normalise;
pub mod ports;
pub mod proxy;
pub mod run;
pub mod suite;
pub mod template;
pub mod upstream;
