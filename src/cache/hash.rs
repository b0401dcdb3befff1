//! Keyed hashing of names and paths. Called by the map and the index, on every lookup.
//!
//! Names come from whoever can create files, so the hash is keyed: who does not know the key cannot aim at one shard.
//! The key is given (drawn once per process by the runtime, fixed in a simulation); nothing here draws randomness.
//! Values mean nothing outside the process and must never travel.

use std::hash::{BuildHasher, DefaultHasher, Hasher};

/// The two halves of the whole product of both, one over the other: every bit of the result depends on every bit of either
/// (the step of wyhash, Wang Yi).
const fn fold(a: u64, b: u64) -> u64 {
    let product = a as u128 * b as u128;
    (product >> 64) as u64 ^ product as u64
}

/// Hash of a byte string, begun with `state`, eight bytes in a step. Who does not know `state` and `factor` (odd, as many
/// ones as zeros) cannot tell which strings have hashes alike.
pub(super) fn absorb(state: u64, factor: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let state = words.iter().fold(state, |state, word| fold(state ^ u64::from_le_bytes(*word), factor));
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    // The length tells strings apart that differ in zeros at their ends.
    let state = fold(state ^ u64::from_le_bytes(last), factor);
    fold(state ^ bytes.len() as u64, factor)
}

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

    /// Hash of a byte string.
    pub(super) fn bytes(&self, bytes: &[u8]) -> u64 {
        let mut hasher = self.keyed.clone();
        hasher.write(bytes);
        hasher.finish()
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
        assert_ne!(hash.bytes(b"a"), KeyedHash::new([0, 2]).bytes(b"a"));
    }
}
