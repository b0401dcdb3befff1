//! Keyed hashing of names and paths. Called by the map and the index, on every lookup.
//!
//! Names come from whoever can create files, so the hash is keyed: who does not know the key cannot aim at one place.
//! The key is given (drawn once per process by the runtime, fixed in a simulation); nothing here draws randomness.
//! Values mean nothing outside the process and must never travel.
//!
//! Two of them: [`KeyedHash`] is the standard library's. [`FoldedHash`] takes a fraction of its time for a whole path,
//! and is for tables where collisions that somebody found nevertheless cost requests, but neither answers nor bounds.

use std::hash::{BuildHasher, DefaultHasher, Hasher};

/// The standard library's SipHash, begun with a secret: its state after the key is kept and cloned for each hash.
#[derive(Clone, Debug)]
pub(super) struct KeyedHash {
    keyed: DefaultHasher,
}

impl KeyedHash {
    pub(super) fn new(key: [u64; 2]) -> KeyedHash {
        let mut keyed = DefaultHasher::new();
        keyed.write_u64(key[0]);
        keyed.write_u64(key[1]);
        KeyedHash { keyed }
    }

    /// Hash of the path `parent/name` from the hash of `parent`: a child costs the hash of its name alone.
    pub(super) fn child(&self, parent: u64, name: &[u8]) -> u64 {
        self.below(parent).child(name)
    }

    /// [`KeyedHash::child`] for many children of one parent.
    pub(super) fn below(&self, parent: u64) -> Below {
        let mut hasher = self.keyed.clone();
        hasher.write_u64(parent);
        Below { hasher }
    }

    /// Hash of a whole path, component by component: equal to [`KeyedHash::child`] over its components from
    /// [`KeyedHash::ROOT`].
    pub(super) fn path(&self, path: &[u8]) -> u64 {
        if path.is_empty() {
            return Self::ROOT;
        }
        path.split(|&b| b == b'/').fold(Self::ROOT, |parent, name| self.child(parent, name))
    }

    /// The hash of the root, path `b""`.
    pub(super) const ROOT: u64 = 0;
}

/// Hashes of the children of one parent.
#[derive(Clone, Debug)]
pub(super) struct Below {
    hasher: DefaultHasher,
}

impl Below {
    /// As [`KeyedHash::child`].
    pub(super) fn child(&self, name: &[u8]) -> u64 {
        let mut hasher = self.hasher.clone();
        hasher.write(name);
        hasher.finish()
    }
}

impl BuildHasher for KeyedHash {
    type Hasher = DefaultHasher;

    fn build_hasher(&self) -> DefaultHasher {
        self.keyed.clone()
    }
}

/// A hash by multiplying pairs of words to twice their width and folding the halves together, in two lanes, each step
/// with a secret of its own.
#[derive(Clone, Debug)]
pub(super) struct FoldedHash {
    secrets: [u64; 4],
}

impl FoldedHash {
    pub(super) fn new(key: [u64; 2]) -> FoldedHash {
        let keyed = KeyedHash::new(key);
        // Odd, so that none is 0.
        FoldedHash { secrets: std::array::from_fn(|i| keyed.child(i as u64, b"") | 1) }
    }

    /// Hash of a byte string.
    #[inline]
    pub(super) fn bytes(&self, bytes: &[u8]) -> u64 {
        folded(self.secrets, bytes)
    }

    /// The hash without a secret: anybody can tell which strings have hashes alike.
    #[inline]
    pub(super) fn open_bytes(bytes: &[u8]) -> u64 {
        folded(OPEN_SECRETS, bytes)
    }
}

/// Odd numbers without a pattern: the first bits of pi.
const OPEN_SECRETS: [u64; 4] =
    [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7345, 0xa409_3822_299f_31d1, 0x082e_fa98_ec4e_6c89];

#[inline]
fn folded([s0, s1, s2, s3]: [u64; 4], bytes: &[u8]) -> u64 {
    let (mut a, mut b) = (s0 ^ bytes.len() as u64, s1);
    let (blocks, mut rest) = bytes.as_chunks::<32>();
    for block in blocks {
        let [w0, w1, w2, w3] = words(block);
        a = fold(w0 ^ s2, w1 ^ a);
        b = fold(w2 ^ s3, w3 ^ b);
    }
    if let Some((now, later)) = rest.split_first_chunk::<16>() {
        let [w0, w1] = words(now);
        a = fold(w0 ^ s2, w1 ^ a);
        rest = later;
    }
    // At most 15 are left; where there are 8, both words hold some of them twice.
    let (first, last) = match (rest.first_chunk::<8>(), rest.last_chunk::<8>()) {
        (Some(first), Some(last)) => (u64::from_le_bytes(*first), u64::from_le_bytes(*last)),
        _ => (rest.iter().fold(0, |word, byte| word << 8 | u64::from(*byte)), 0),
    };
    let mixed = fold(first ^ a, last ^ b);
    fold(mixed ^ s3, s0 ^ b)
}

#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product ^ (product >> 64)) as u64
}

/// `N` words of eight bytes each.
#[inline]
fn words<const N: usize>(bytes: &[u8]) -> [u64; N] {
    let (chunks, _) = bytes.as_chunks();
    std::array::from_fn(|at| u64::from_le_bytes(chunks[at]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_hashes_as_its_components_and_only_under_its_key() {
        let hash = KeyedHash::new([1, 2]);
        let a = hash.child(KeyedHash::ROOT, b"usr");
        assert_eq!(hash.path(b"usr"), a);
        assert_eq!(hash.path(b"usr/lib64"), hash.child(a, b"lib64"));
        assert_eq!(hash.path(b""), KeyedHash::ROOT);
        assert_ne!(hash.path(b"usr/lib64"), hash.path(b"usrl/ib64"));
        assert_ne!(hash.path(b"usr/lib64"), KeyedHash::new([1, 3]).path(b"usr/lib64"));
    }

    #[test]
    fn every_bit_of_every_length_moves_half_of_a_folded_hash() {
        let hash = FoldedHash::new([1, 2]);
        let text: Vec<u8> = (0..200).map(|i| (i * 37 + 11) as u8).collect();
        for len in 0..text.len() {
            let key = &text[..len];
            assert_ne!(hash.bytes(key), FoldedHash::new([1, 3]).bytes(key), "{len} bytes");
            let mut longer = key.to_vec();
            longer.push(0);
            assert_ne!(hash.bytes(key), hash.bytes(&longer), "{len} bytes and a zero");
            for bit in 0..len * 8 {
                let mut other = key.to_vec();
                other[bit / 8] ^= 1 << (bit % 8);
                let moved = (hash.bytes(key) ^ hash.bytes(&other)).count_ones();
                assert!((8..=56).contains(&moved), "{len} bytes, bit {bit}: {moved} of 64 moved");
            }
        }
    }

    #[test]
    fn folded_hashes_of_like_names_spread() {
        const NAMES: usize = 1 << 16;
        let hash = FoldedHash::new([1, 2]);
        let mut places = vec![0u8; NAMES];
        let mut whole = std::collections::HashSet::new();
        for number in 0..NAMES {
            let key = format!("usr/lib/python3/site-packages/package{:03}/module{number:06}.py", number % 500);
            let value = hash.bytes(key.as_bytes());
            assert!(whole.insert(value), "two names with one hash");
            places[((value >> 32) as usize * NAMES) >> 32] += 1;
        }
        // Of random places 36.8 % stay empty, and none is hit by more than some 9.
        let empty = places.iter().filter(|n| **n == 0).count();
        assert!((NAMES * 36 / 100..NAMES * 38 / 100).contains(&empty), "{empty} places are empty");
        assert!(places.iter().max() < Some(&13), "{:?} in one place", places.iter().max());
    }
}
