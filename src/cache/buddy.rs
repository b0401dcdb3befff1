//! Buddy allocation inside blocks of 1 MiB: which unit of which block is whose. Integers only; it never sees memory.
//! The arena's writer calls it.
//!
//! A block has 256 units of 4 KiB. A free piece of order `k` is `1 << k` units, aligned to its size, and has a bit. A
//! piece that is given out has as many units as were asked for: what is left of the free piece that it was cut from stays
//! free, so that a file of 33 KiB takes 36 KiB and not 64. Giving back merges free pieces with their buddies. Blocks are
//! kept in lists by their largest free piece, and a piece comes from the tightest block that has one, so that small files
//! share blocks and whole blocks stay whole.

/// Smallest piece, bytes.
pub(super) const UNIT_BYTES: usize = 4096;
/// Units of a block.
pub(super) const BLOCK_UNITS: usize = 256;
/// The order of a whole block.
pub(super) const ORDER_MAX: u8 = 8;

const _: () = assert!(1 << ORDER_MAX == BLOCK_UNITS);

/// The units that hold `len_bytes` (1 to 1 MiB).
pub(super) const fn units_for(len_bytes: usize) -> usize {
    len_bytes.div_ceil(UNIT_BYTES)
}

/// The smallest order whose pieces hold that many units.
const fn order_for(units: usize) -> u8 {
    units.next_power_of_two().ilog2() as u8
}

const FREE: u16 = 0;

/// One block.
#[derive(Debug)]
struct Block {
    /// Bit `unit >> k` of row `k`: that piece is free, and is not part of a larger free one.
    free: [[u64; 4]; ORDER_MAX as usize + 1],
    /// At the first unit of a piece that was given out its number of units, elsewhere [`FREE`].
    units_at: [u16; BLOCK_UNITS],
    /// Pieces given out.
    pieces: u16,
    /// Which list it is in (largest free order + 1, 0 = none free), and where.
    list: u8,
    position: u32,
}

impl Block {
    fn largest_free(&self) -> Option<u8> {
        (0..=ORDER_MAX).rev().find(|&order| self.free[usize::from(order)].iter().any(|&word| word != 0))
    }

    fn take_free(&mut self, order: u8) -> Option<usize> {
        let row = &mut self.free[usize::from(order)];
        let word = row.iter().position(|&word| word != 0)?;
        let bit = row[word].trailing_zeros() as usize;
        row[word] &= !(1 << bit);
        Some(word * 64 + bit)
    }

    fn alloc(&mut self, units: usize) -> Option<usize> {
        let order = order_for(units);
        let (from, mut at) = (order..=ORDER_MAX).find_map(|from| Some((from, self.take_free(from)?)))?;
        for smaller in (order..from).rev() {
            at *= 2;
            self.set_free(smaller, at + 1);
        }
        let unit = at << order;
        self.free_range(unit + units, (1 << order) - units);
        self.units_at[unit] = units as u16;
        self.pieces += 1;
        Some(unit)
    }

    fn give_back(&mut self, unit: usize) -> usize {
        let units = usize::from(std::mem::replace(&mut self.units_at[unit], FREE));
        assert_ne!(units, 0, "a piece is given back once");
        self.pieces -= 1;
        self.free_range(unit, units);
        units
    }

    /// Frees units that nobody has, as the largest pieces that they make up.
    fn free_range(&mut self, mut unit: usize, mut units: usize) {
        while units > 0 {
            let aligned = if unit == 0 { ORDER_MAX } else { unit.trailing_zeros() as u8 };
            let mut order = aligned.min(units.ilog2() as u8);
            let mut at = unit >> order;
            (unit, units) = (unit + (1 << order), units - (1 << order));
            while order < ORDER_MAX && self.is_free(order, at ^ 1) {
                let buddy = at ^ 1;
                self.free[usize::from(order)][buddy / 64] &= !(1 << (buddy % 64));
                at /= 2;
                order += 1;
            }
            self.set_free(order, at);
        }
    }

    fn is_free(&self, order: u8, at: usize) -> bool {
        self.free[usize::from(order)][at / 64] & (1 << (at % 64)) != 0
    }

    fn set_free(&mut self, order: u8, at: usize) {
        self.free[usize::from(order)][at / 64] |= 1 << (at % 64);
    }
}

/// All blocks of an arena.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    blocks: Vec<Block>,
    /// Block numbers by largest free order + 1.
    lists: [Vec<u32>; ORDER_MAX as usize + 2],
    used_units: usize,
}

impl Blocks {
    /// Adds `count` free blocks; returns the number of the first. They are taken in the order of their numbers.
    pub(super) fn add(&mut self, count: usize) -> usize {
        let first = self.blocks.len();
        let mut free = [[0; 4]; ORDER_MAX as usize + 1];
        free[usize::from(ORDER_MAX)][0] = 1;
        self.blocks.extend((0..count).map(|_| Block {
            free,
            units_at: [FREE; BLOCK_UNITS],
            pieces: 0,
            list: 0,
            position: 0,
        }));
        // What comes last into a list is taken first.
        for number in (first..first + count).rev() {
            self.link(number);
        }
        first
    }

    /// Number of blocks.
    pub(super) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Units given out.
    pub(super) const fn used_units(&self) -> usize {
        self.used_units
    }

    /// Pieces given out of a block.
    pub(super) fn pieces(&self, block: usize) -> usize {
        usize::from(self.blocks[block].pieces)
    }

    /// The pieces given out of a block: first unit and number of units.
    pub(super) fn given_out(&self, block: usize) -> impl Iterator<Item = (usize, usize)> {
        let places = self.blocks[block].units_at.iter().enumerate();
        places.filter(|&(_, &units)| units != FREE).map(|(unit, &units)| (unit, usize::from(units)))
    }

    /// A piece of that many units (1 to 256), aligned to the next power of two: block and first unit.
    pub(super) fn alloc(&mut self, units: usize) -> Option<(usize, usize)> {
        let list = self.lists[usize::from(order_for(units)) + 1..].iter().find(|list| !list.is_empty())?;
        let block = *list.last()? as usize;
        let unit = self.blocks[block].alloc(units).expect("a block is listed under a piece that it has");
        self.used_units += units;
        self.relink(block);
        Some((block, unit))
    }

    /// Takes a piece back.
    ///
    /// # Panics
    /// When no piece that was given out begins there.
    pub(super) fn give_back(&mut self, block: usize, unit: usize) {
        self.used_units -= self.blocks[block].give_back(unit);
        self.relink(block);
    }

    fn list_of(&self, block: usize) -> u8 {
        self.blocks[block].largest_free().map_or(0, |order| order + 1)
    }

    fn relink(&mut self, block: usize) {
        let list = self.list_of(block);
        if list == self.blocks[block].list {
            return;
        }
        let (old, position) = (self.blocks[block].list, self.blocks[block].position as usize);
        self.lists[usize::from(old)].swap_remove(position);
        if let Some(&moved) = self.lists[usize::from(old)].get(position) {
            self.blocks[moved as usize].position = position as u32;
        }
        self.link(block);
    }

    fn link(&mut self, block: usize) {
        let list = self.list_of(block);
        let members = &mut self.lists[usize::from(list)];
        self.blocks[block].list = list;
        self.blocks[block].position = members.len() as u32;
        members.push(u32::try_from(block).expect("an arena has at most 2^16 segments of 64 blocks"));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lengths_take_whole_units_and_come_from_the_next_power_of_two() {
        for (len, units, order) in [(1, 1, 0), (4096, 1, 0), (4097, 2, 1), (8193, 3, 2), ((1 << 19) + 1, 129, 8)] {
            assert_eq!((units_for(len), order_for(units_for(len))), (units, order), "{len} bytes");
        }
        assert_eq!((units_for(1 << 20), order_for(BLOCK_UNITS)), (BLOCK_UNITS, ORDER_MAX));
    }

    proptest! {
        #[test]
        fn pieces_never_overlap_stay_in_the_blocks_and_merge_back(
            blocks in 1usize..4,
            steps in proptest::collection::vec(
                (prop_oneof![1..=BLOCK_UNITS, 1..9usize], any::<prop::sample::Index>(), any::<bool>()),
                1..600,
            ),
        ) {
            let mut pool = Blocks::default();
            prop_assert_eq!(pool.add(1), 0);
            prop_assert_eq!(pool.add(blocks - 1), 1);
            let mut owner = vec![None; blocks * BLOCK_UNITS];
            let mut held: Vec<(usize, usize, usize)> = Vec::new();
            for (id, (units, index, alloc)) in steps.into_iter().enumerate() {
                if alloc || held.is_empty() {
                    let order = order_for(units);
                    let free_run = (0..owner.len() >> order)
                        .any(|at| owner[at << order..(at + 1) << order].iter().all(Option::is_none));
                    let got = pool.alloc(units);
                    prop_assert_eq!(got.is_some(), free_run, "{} units", units);
                    if let Some((block, unit)) = got {
                        prop_assert_eq!(unit % (1 << order), 0);
                        for owner in &mut owner[block * BLOCK_UNITS + unit..][..units] {
                            prop_assert!(owner.is_none());
                            *owner = Some(id);
                        }
                        held.push((block, unit, units));
                    }
                } else {
                    let (block, unit, units) = held.swap_remove(index.index(held.len()));
                    pool.give_back(block, unit);
                    owner[block * BLOCK_UNITS + unit..][..units].fill(None);
                }
                prop_assert_eq!(pool.used_units(), owner.iter().flatten().count());
                for block in 0..blocks {
                    let mut model: Vec<_> =
                        held.iter().filter(|p| p.0 == block).map(|&(_, unit, units)| (unit, units)).collect();
                    model.sort_unstable();
                    prop_assert_eq!(pool.given_out(block).collect::<Vec<_>>(), model);
                    prop_assert_eq!(pool.pieces(block), held.iter().filter(|p| p.0 == block).count());
                }
            }
            for (block, unit, _) in held {
                pool.give_back(block, unit);
            }
            prop_assert_eq!(pool.used_units(), 0);
            for _ in 0..blocks {
                prop_assert!(pool.alloc(BLOCK_UNITS).is_some());
            }
            prop_assert!(pool.alloc(1).is_none());
        }
    }

    #[test]
    #[should_panic(expected = "given back once")]
    fn a_piece_given_back_twice_is_a_defect() {
        let mut pool = Blocks::default();
        pool.add(1);
        let (block, unit) = pool.alloc(1).expect("room");
        pool.give_back(block, unit);
        pool.give_back(block, unit);
    }

    #[test]
    fn new_blocks_are_taken_in_the_order_of_their_numbers() {
        let mut pool = Blocks::default();
        assert_eq!(pool.add(2), 0);
        assert_eq!(pool.add(3), 2);
        let taken: Vec<_> = std::iter::from_fn(|| pool.alloc(BLOCK_UNITS)).collect();
        assert_eq!(taken, [(2, 0), (3, 0), (4, 0), (0, 0), (1, 0)], "those added last come first, each in its order");
    }

    #[test]
    fn small_pieces_share_blocks() {
        let mut pool = Blocks::default();
        pool.add(3);
        let (first, _) = pool.alloc(1).expect("room");
        for _ in 1..BLOCK_UNITS {
            assert_eq!(pool.alloc(1).expect("room").0, first);
        }
        assert_eq!(pool.len(), 3);
        assert!(pool.alloc(BLOCK_UNITS).is_some() && pool.alloc(BLOCK_UNITS).is_some());
        assert!(pool.alloc(1).is_none());
    }
}
