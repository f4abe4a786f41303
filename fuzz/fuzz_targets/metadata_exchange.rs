//! Any bytes as Istio's metadata exchange: no panic, and no verdict is taken back.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger::tcp::{Parsed, parse_exchange};

fuzz_target!(|bytes: &[u8]| {
    let whole = parse_exchange(bytes);
    // What was decided on fewer bytes stands with more.
    for cut in 0..bytes.len().min(512) {
        let part = parse_exchange(&bytes[..cut]);
        assert!(part == Parsed::More || part == whole, "{part:?} at {cut}, then {whole:?}");
    }
});
