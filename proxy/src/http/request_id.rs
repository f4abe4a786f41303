//! `x-request-id`: a version 4 UUID. `telemetry::trace` writes the trace decision into its fifteenth character.

use rand::Rng;
use rand::rngs::SmallRng;

use crate::config::hcm::Hcm;
use crate::head::{Head, HeaderId};

/// Sets or keeps the request's id as the options say.
pub fn set(hcm: &Hcm, head: &mut Head, edge: bool, rng: &mut SmallRng) {
    if !hcm.generate_request_id {
        return;
    }
    let fresh = if edge { !hcm.preserve_external_request_id } else { false };
    if fresh || !head.contains(HeaderId::XRequestId) {
        head.set(HeaderId::XRequestId, &generate(rng));
    }
}

/// A random UUID in text form.
pub fn generate(rng: &mut SmallRng) -> [u8; 36] {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut bytes = rng.random::<u128>().to_be_bytes();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut out = [b'-'; 36];
    let mut o = 0;
    for (i, b) in bytes.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            o += 1;
        }
        out[o] = HEX[usize::from(b >> 4)];
        out[o + 1] = HEX[usize::from(b & 15)];
        o += 2;
    }
    out
}
