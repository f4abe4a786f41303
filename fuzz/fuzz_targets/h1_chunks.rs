//! Any bytes as a chunked body: cut anywhere, the decoder says the same, and what goes on framed decodes to the same data.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger::http::codec::h1::fuzzing::{Chunk, Scanner};

/// Decodes `bytes`, seen in pieces of `step`; `None` on an error.
fn decode(bytes: &[u8], step: usize) -> Option<Vec<u8>> {
    let (mut scanner, mut data, mut at, mut seen) = (Scanner::default(), Vec::new(), 0, step.min(bytes.len()));
    loop {
        match scanner.next(&bytes[at..seen]).ok()? {
            Chunk::Skip(n) => at += n,
            Chunk::Data(n) => {
                data.extend_from_slice(&bytes[at..at + n]);
                at += n;
            }
            Chunk::Trailers => return Some(data),
            Chunk::Incomplete if seen == bytes.len() => return Some(data),
            Chunk::Incomplete => seen = (seen + step).min(bytes.len()),
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let whole = decode(bytes, bytes.len().max(1));
    assert_eq!(whole, decode(bytes, 1));
    let mut scanner = Scanner::default();
    if let Ok((n, payload)) = scanner.framed(bytes) {
        let again = decode(&bytes[..n], n.max(1)).expect("what goes on framed is well formed");
        assert_eq!(again.len() as u64, payload);
        if let Some(whole) = whole {
            assert_eq!(again, whole[..again.len()]);
        }
    }
});
