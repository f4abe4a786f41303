//! Any bytes as an HTTP/1 head, either kind: no panic, and what is accepted has clean fields.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger::config::hcm::Http1Options;
use outrigger::head::Head;
use outrigger::http::codec::h1::fuzzing::{request, response};

fn check(head: &Head) {
    for (id, name, value) in head.iter() {
        assert!(id.is_pseudo() || (!name.is_empty() && name.iter().all(|b| b.is_ascii_graphic() && *b != b':')));
        assert!(!value.iter().any(|b| matches!(b, b'\r' | b'\n' | 0)));
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut head = Head::new();
    if request(bytes, &Http1Options::default(), 100, &mut head).is_ok() {
        check(&head);
    }
    head.clear();
    if response(bytes, 100, &mut head).is_ok() {
        check(&head);
    }
});
