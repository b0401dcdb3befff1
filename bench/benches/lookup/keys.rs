//! Names of absent files, made without memory of their own: a bench that fetched them from a table would measure that.

/// Bytes of a name.
pub(crate) const KEY_BYTES: usize = 100;

const TEMPLATE: &[u8; KEY_BYTES] =
    b"soft/python/3.11/lib/python3.11/site-packages/package-00000000/core/_multiarray_umath.cpython-311.so";
const NUMBER_AT: usize = 54;

/// A name, of which the number can be changed.
pub(crate) struct Key([u8; KEY_BYTES]);

impl Key {
    pub(crate) fn new() -> Key {
        Key(*TEMPLATE)
    }

    /// The name of a number below 2^32.
    #[inline]
    pub(crate) fn of(&mut self, number: u64) -> &[u8] {
        for (i, digit) in self.0[NUMBER_AT..NUMBER_AT + 8].iter_mut().enumerate() {
            *digit = b"0123456789abcdef"[(number >> (28 - 4 * i)) as usize & 15];
        }
        &self.0
    }
}

/// Numbers below a bound, in an order that no cache foresees (splitmix64; Steele, Lea, Flood).
#[derive(Clone)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    #[inline]
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((u128::from(z ^ (z >> 31)) * u128::from(bound)) >> 64) as u64
    }
}
