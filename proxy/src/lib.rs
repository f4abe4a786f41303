//! Outrigger, an L7 sidecar proxy: see ARCHITECTURE.md.

pub mod demo;
