//! Ring hash (ketama) with Envoy's layout: `<key>_<i>` hashed with xxHash64 or MurmurHash2, so that a key lands on the host
//! that Envoy would send it to. Follows Envoy's "Ring hash" section.

use xxhash_rust::xxh64::xxh64;

/// The ring: hash and host index, sorted by hash. `weights` sum up to one.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)] // ring sizes are at most 8 Mi
pub(super) fn build(keys: &[String], weights: &[f64], min: u64, max: u64, murmur: bool) -> Vec<(u64, u32)> {
    let least = weights.iter().copied().fold(f64::INFINITY, f64::min);
    if !least.is_finite() || least <= 0.0 {
        return Vec::new();
    }
    // The least host gets a whole number of points, unless the ring would be too large.
    let scale = ((least * min as f64).ceil() / least).min(max as f64);
    let mut ring = Vec::new();
    let (mut current, mut target) = (0.0, 0.0);
    for (host, (key, weight)) in keys.iter().zip(weights).enumerate() {
        target += scale * weight;
        let mut i = 0u64;
        while current < target {
            let text = format!("{key}_{i}");
            let hash = if murmur { murmur2(text.as_bytes()) } else { xxh64(text.as_bytes(), 0) };
            ring.push((hash, host as u32));
            i += 1;
            current += 1.0;
        }
    }
    ring.sort_by_key(|(hash, _)| *hash);
    ring
}

/// The first point at or after the hash, and `attempt` points further; past the end, the first.
pub(super) fn choose(ring: &[(u64, u32)], hash: u64, attempt: u32) -> Option<u32> {
    if ring.is_empty() {
        return None;
    }
    let at = ring.partition_point(|(h, _)| *h < hash) % ring.len();
    Some(ring[(at + attempt as usize) % ring.len()].1)
}

/// MurmurHash64A with the seed of libstdc++'s `std::hash`.
fn murmur2(bytes: &[u8]) -> u64 {
    const M: u64 = 0xc6a4_a793_5bd1_e995;
    const SEED: u64 = 0xc70f_6907;
    let mix = |v: u64| v ^ (v >> 47);
    let mut hash = SEED ^ (bytes.len() as u64).wrapping_mul(M);
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        // Exactly eight bytes by `chunks_exact`.
        let word = u64::from_le_bytes(chunk.try_into().unwrap_or_default());
        hash = (hash ^ mix(word.wrapping_mul(M)).wrapping_mul(M)).wrapping_mul(M);
    }
    let rest = chunks.remainder();
    if !rest.is_empty() {
        let word = rest.iter().rev().fold(0u64, |w, b| (w << 8) | u64::from(*b));
        hash = (hash ^ word).wrapping_mul(M);
    }
    mix(mix(hash).wrapping_mul(M))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of libstdc++'s `std::hash<std::string>`.
    #[test]
    fn murmur_is_that_of_libstdcxx() {
        assert_eq!(murmur2(b""), 6_142_509_188_972_423_790);
        assert_eq!(murmur2(b"a"), 4_993_892_634_952_068_459);
    }

    #[test]
    fn weights_share_the_points() {
        let keys = ["a".to_owned(), "b".to_owned()];
        let ring = build(&keys, &[0.25, 0.75], 100, 1000, false);
        let of = |i| ring.iter().filter(|(_, h)| *h == i).count();
        assert_eq!((of(0), of(1)), (25, 75));
        // Six points for four hosts: one and a half each, as running sums give them.
        let keys: Vec<String> = (0..4).map(|i| i.to_string()).collect();
        let ring = build(&keys, &[0.25; 4], 100, 6, false);
        let counts: Vec<usize> = (0..4).map(|i| ring.iter().filter(|(_, h)| *h == i).count()).collect();
        assert_eq!(counts, [2, 1, 2, 1]);
    }

    #[test]
    fn a_hash_past_the_last_point_wraps() {
        let ring = [(10, 0), (20, 1), (30, 2)];
        for (hash, attempt, host) in [(5, 0, 0), (10, 0, 0), (11, 0, 1), (31, 0, 0), (30, 1, 0), (20, 1, 2)] {
            assert_eq!(choose(&ring, hash, attempt), Some(host), "{hash} {attempt}");
        }
        assert_eq!(choose(&[], 1, 0), None);
    }
}
