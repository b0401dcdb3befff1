//! The inodes by number. Numbers are given out once and never again, so the table only grows at its end; pages of numbers
//! that are all gone are freed.
//!
//! - Reader: loads the page, then the place in it; holds the page by arc-swap's guard meanwhile. Writer: one.
//! - Collision: a page that is freed under a reader lives on for it, with places that are all empty.
//! - ABA: numbers are never reused, so a place is filled again by the same number's inode only.

use std::collections::BTreeMap;

use arc_swap::ArcSwapOption;

use super::heap::arc_bytes;
use super::radix::Radix;
use super::sync::Arc;

const PAGE: u32 = 256;

struct Page<T>([ArcSwapOption<T>; PAGE as usize]);

/// What readers share.
pub(super) struct Numbers<T> {
    pages: Radix<ArcSwapOption<Page<T>>>,
}

impl<T> Numbers<T> {
    pub(super) fn new() -> Numbers<T> {
        Numbers { pages: Radix::new((1 << 32) / u64::from(PAGE)) }
    }

    /// What has the number now.
    pub(super) fn get(&self, number: u32) -> Option<Arc<T>> {
        self.pages.get(number / PAGE)?.load().as_ref()?.0[(number % PAGE) as usize].load_full()
    }
}

/// The writer's side.
#[derive(Debug, Default)]
pub(super) struct Pages {
    /// By page number: how many of its places are filled.
    filled: BTreeMap<u32, u32>,
}

impl Pages {
    /// Fills or empties the place of a number. Gives the change of the memory for pages, bytes.
    pub(super) fn set<T>(&mut self, numbers: &Numbers<T>, number: u32, item: Option<Arc<T>>) -> isize {
        let (at, is_item) = (number / PAGE, item.is_some());
        // Numbers are below 2^32, so there is such a page.
        let Some(place) = numbers.pages.make(at) else { return 0 };
        let mut change = 0;
        if place.load().is_none() {
            if !is_item {
                return 0;
            }
            place.store(Some(Arc::new(Page(std::array::from_fn(|_| ArcSwapOption::empty())))));
            change = arc_bytes::<Page<T>>().cast_signed();
        }
        let page = place.load();
        let Some(page) = page.as_ref() else { return 0 };
        let before = page.0[(number % PAGE) as usize].swap(item);
        let filled = self.filled.entry(at).or_insert(0);
        *filled = *filled + u32::from(is_item) - u32::from(before.is_some());
        if *filled == 0 {
            self.filled.remove(&at);
            place.store(None);
            change -= arc_bytes::<Page<T>>().cast_signed();
        }
        change
    }

    /// The numbers of the pages in use, from the page of `number` on, and from the first one again after the last: that
    /// page's numbers.
    pub(super) fn page_from(&self, number: u32) -> Option<std::ops::Range<u32>> {
        let next = self.filled.range(number.div_ceil(PAGE)..).next().or_else(|| self.filled.iter().next());
        next.map(|(at, _)| at * PAGE..at.saturating_mul(PAGE).saturating_add(PAGE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_come_and_go_with_their_numbers() {
        let (numbers, mut pages) = (Numbers::<u32>::new(), Pages::default());
        let mut bytes = 0;
        for number in 0..100_000 {
            bytes += pages.set(&numbers, number, Some(Arc::new(number)));
            assert_eq!(numbers.get(number).as_deref(), Some(&number));
            if let Some(old) = number.checked_sub(1000) {
                bytes += pages.set(&numbers, old, None);
                assert!(numbers.get(old).is_none());
            }
        }
        assert!(pages.filled.len() <= 5, "{} pages for 1,000 numbers", pages.filled.len());
        assert_eq!(bytes, pages.filled.len().cast_signed() * arc_bytes::<Page<u32>>().cast_signed());
        assert_eq!(pages.set(&numbers, 7, None), 0, "nothing was there");
        let first = pages.page_from(0).expect("some");
        assert_eq!(first, 99_000 / 256 * 256..99_000 / 256 * 256 + 256);
        assert_eq!(pages.page_from(first.end).expect("the next").start, first.end);
        assert_eq!(pages.page_from(u32::MAX), Some(first), "around the end");
        for number in 99_000..100_000 {
            bytes += pages.set(&numbers, number, None);
        }
        assert_eq!((bytes, pages.page_from(0)), (0, None));
    }
}
