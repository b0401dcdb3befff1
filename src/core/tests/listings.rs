//! Long listings, which travel in parts.

use super::*;
use crate::cache::types::Listing;
use crate::core::wire::Header;

/// A listing of three names of 200 bytes that begin with `first`, in parts of one name each.
fn snapshot(first: char, stamp: u64) -> (Listing, Vec<(u32, Vec<u8>)>) {
    let mut names = ListingBuilder::default();
    for n in 0..3 {
        let name = format!("{first}{n:0199}").into_bytes();
        assert!(names.push(ListEntry { name: &name, kind: Kind::File, backend_ino: n }));
    }
    let listing = names.build(stamp);
    let each = listing.bytes().len() / 3;
    let parts = (0..3).map(|n| (u32::try_from(n * each).unwrap(), listing.part(n * each, each).to_vec())).collect();
    (listing, parts)
}

/// Every order in which six parts, of two snapshots whose parts begin at the same bytes, may arrive, up to five of them, some
/// of them twice: what is put together is one snapshot or the other.
#[test]
fn parts_of_two_snapshots_are_never_put_together() {
    let (old, new) = (snapshot('a', 1), snapshot('b', 2));
    let parts: Vec<_> =
        [&old, &new].into_iter().flat_map(|(of, parts)| parts.iter().map(move |part| (of, part))).collect();
    let mut wire = Wire::new(Plan { nodes: 2, dir_ttl_us: 0, ..PLAN });
    let (mut wholes, mut number) = ([0, 0], 0);
    for len in 3..=5_u32 {
        for order in 0..parts.len().pow(len) {
            number += 1;
            let path = format!("dir{number}");
            assert!(is_entry(&wire.must(1, &path).1));
            let waiter = wire.ask(1, Object::List(path.as_bytes().into()));
            let asked = wire.sent.iter().rfind(|sent| sent.is_request && sent.from == 1).unwrap().header;
            let header = Header { from: NodeId(0), incarnation: wire.node(0).config.incarnation, ..asked };
            for at in 0..len {
                let (of, (from, bytes)) = &parts[order / parts.len().pow(at) % parts.len()];
                let total = u32::try_from(of.bytes().len()).unwrap();
                let part = Message::Part { stamp: of.stamp, remaining_us: 0, absent_us: 0, from: *from, total, bytes };
                let now = Micros(wire.now);
                wire.node(1).frame(now, &part.encode(&header));
            }
            wire.carry_out(1);
            if let Some((_, outcome)) = wire.answers.remove(&waiter) {
                let Outcome::Listing { listing, .. } = outcome else { panic!("{outcome:?}") };
                let which = [&old.0, &new.0].iter().position(|whole| whole.bytes() == listing.bytes());
                let which = which.unwrap_or_else(|| panic!("names of both after parts in order {order} of {len}"));
                assert_eq!(listing.stamp, [1, 2][which]);
                wholes[which] += 1;
            } else {
                // The real one.
                wire.run(10 * MS);
                assert!(wire.answers.remove(&waiter).is_some(), "parts that fit nowhere hold nobody up");
            }
        }
    }
    assert!(wholes.iter().all(|whole| *whole > 50), "{wholes:?}");
}

#[test]
fn two_readers_do_not_take_a_long_listing_from_each_other() {
    let mut wire = Wire::new(Plan { nodes: 3, dir_ttl_us: 0, ..PLAN });
    for node in [1, 2] {
        assert!(is_entry(&wire.must(node, "dir-long").1));
    }
    let begin = wire.now;
    let first = wire.ask(1, Object::List(b"dir-long"[..].into()));
    // In the midst of its parts another one asks, for whom what is known may not be repeated.
    wire.run(150);
    let second = wire.ask(2, Object::List(b"dir-long"[..].into()));
    wire.run(3 * MS);
    for waiter in [first, second] {
        let outcome = &wire.answers.get(&waiter).expect("it is whole by now").1;
        assert!(matches!(outcome, Outcome::Listing { listing, .. } if listing.len() == 300), "{outcome:?}");
    }
    let asked = wire.asked.iter().filter(|(at, ..)| *at >= begin).count();
    assert_eq!(asked, 2, "once for each");
}
