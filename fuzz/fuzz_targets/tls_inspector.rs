//! Any bytes as the beginning of a TLS connection: no panic, and no verdict is taken back.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger::listener::inspect::tls::{Verdict, inspect};

fuzz_target!(|bytes: &[u8]| {
    let whole = inspect(bytes);
    // What was decided on fewer bytes stands with more.
    for cut in 0..bytes.len().min(512) {
        let part = inspect(&bytes[..cut]);
        assert!(part == Verdict::More || part == whole, "{part:?} at {cut}, then {whole:?}");
    }
});
