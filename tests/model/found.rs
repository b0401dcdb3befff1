//! What the model found, in the fewest steps. Each case failed before it was mended.

use super::common;
use super::ops::{Ask, CHUNK, Case, Change, Op, Place, Setting};
use super::{through_mounts, through_nodes};
use crate::needs_fuse;

fn p(path: &str) -> Place {
    Place::of(path)
}

fn write(path: &str, size: u64) -> Change {
    Change::Write { at: p(path), size, seed: 1 }
}

fn ask(ask: Ask) -> Op {
    Op::Ask { node: 0, ask }
}

fn keep(path: &str) -> Op {
    ask(Ask::Keep { at: p(path), slot: 0 })
}

fn read_kept() -> Op {
    ask(Ask::ReadKept { slot: 0, offset: 0, len: 4096 })
}

/// Asked at the root, and at the end of a chain.
#[track_caller]
fn allowed(change: impl Fn(&mut Setting), before: &[Change], ops: &[Op]) {
    for nodes in [1, 3] {
        let mut setting = Setting::new(nodes);
        change(&mut setting);
        let mut ops = ops.to_vec();
        for op in &mut ops {
            if let Op::Ask { node, .. } | Op::During { node, .. } = op {
                *node = nodes - 1;
            }
        }
        let case = Case { setting, before: before.to_vec(), ops };
        if let Err(wrong) = through_nodes(&case) {
            panic!("{nodes} nodes: {wrong}");
        }
    }
}

#[test]
fn a_directory_that_became_a_file_is_stale_and_then_a_file() {
    let before = [Change::Mkdir { at: p("a") }];
    let ops = [
        keep("a"),
        Op::Change(Change::Remove { at: p("a") }),
        Op::Change(write("a", 1)),
        ask(Ask::ListKept { slot: 0, room: 4096 }),
        ask(Ask::ReadAll { at: p("a"), step: 4096 }),
    ];
    allowed(|_| {}, &before, &ops);
}

#[test]
fn a_directory_that_a_file_replaced_is_stale_to_who_lists_it() {
    let before = [Change::Mkdir { at: p("a") }, Change::Mkdir { at: p("a/b") }];
    for look in [Ask::ListKept { slot: 0, room: 320 }, Ask::Stream { slot: 0, room: 70 }] {
        let ops = [
            keep("a/b"),
            Op::Change(Change::Remove { at: p("a") }),
            Op::Change(Change::Mkdir { at: p("a") }),
            Op::Change(Change::Replace { at: p("a/b"), size: 0, seed: 0 }),
            ask(Ask::List { at: p("a"), room: 320 }),
            ask(look),
        ];
        allowed(|setting| setting.dir_ttl_us = 0, &before, &ops);
        allowed(|_| {}, &before, &ops);
    }
}

#[test]
fn a_file_that_became_a_directory_is_stale() {
    let ops = [
        keep("a"),
        Op::Change(Change::Remove { at: p("a") }),
        Op::Change(Change::Mkdir { at: p("a") }),
        read_kept(),
        ask(Ask::List { at: p("a"), room: 4096 }),
    ];
    allowed(|_| {}, &[write("a", 5)], &ops);
}

#[test]
fn a_file_below_what_became_a_file_is_stale() {
    let before = [Change::Mkdir { at: p("a") }, write("a/b", 5)];
    let change = [Op::Change(Change::Rename { from: p("a"), to: p("b") }), Op::Change(write("a", 1))];
    for look in [read_kept(), ask(Ask::StatKept { slot: 0 })] {
        // Twice: the first answer makes the node forget the name.
        let ops = [[keep("a/b")].as_slice(), &change, &[look.clone(), look]].concat();
        allowed(|setting| setting.attr_ttl_us = Some(0), &before, &ops);
        allowed(|_| {}, &before, &ops);
    }
}

#[test]
fn a_hard_link_that_goes_disturbs_no_reader_of_the_other() {
    let before = [write("a", 2 * CHUNK), Change::HardLink { from: p("a"), to: p("b") }];
    for look in [read_kept(), ask(Ask::StatKept { slot: 0 })] {
        let ops = [
            keep("a"),
            // The name by which the inode was seen last.
            ask(Ask::Stat(p("b"))),
            Op::Change(Change::Remove { at: p("b") }),
            Op::Pass(1),
            look,
        ];
        allowed(|setting| setting.attr_ttl_us = Some(0), &before, &ops);
        allowed(|_| {}, &before, &ops);
    }
}

#[test]
fn a_changed_file_is_found_anew_by_any_of_its_links() {
    let before = [write("a", 10), Change::HardLink { from: p("a"), to: p("b") }];
    let read = ask(Ask::ReadAll { at: p("a"), step: 4096 });
    let ops = [
        ask(Ask::Stat(p("a"))),
        ask(Ask::Stat(p("b"))),
        Op::Change(Change::Truncate { at: p("b"), size: 0 }),
        read.clone(),
        read,
    ];
    allowed(|_| {}, &before, &ops);
}

#[test]
fn a_listing_that_changes_while_it_is_read_loses_no_other_name() {
    let dir = p("a");
    let mut before = vec![Change::Mkdir { at: dir.clone() }];
    before.extend((0..4).map(|name| Change::Mkdir { at: dir.child(name) }));
    let more = ask(Ask::Stream { slot: 0, room: 100 });
    for gone in 0..4 {
        let mut ops = vec![keep("a"), more.clone(), more.clone()];
        ops.push(Op::Change(Change::Rmdir { at: dir.child(gone) }));
        // The node sees that the directory changed.
        ops.extend([Op::Pass(200_000), ask(Ask::Stat(dir.clone()))]);
        ops.extend(vec![more.clone(); 6]);
        allowed(|setting| setting.dir_ttl_us = 100_000, &before, &ops);
    }
}

#[test]
fn a_directory_that_another_one_replaced_is_stale() {
    let before = [Change::Mkdir { at: p("a") }, Change::Mkdir { at: p("a/b") }, Change::Mkdir { at: p("b") }];
    for look in [
        Ask::ListKept { slot: 0, room: 320 },
        Ask::StatIn { slot: 0, name: p("a") },
        Ask::StatIn { slot: 0, name: p("b") },
    ] {
        let ops = [
            keep("b"),
            Op::Change(Change::Rename { from: p("a"), to: p("b") }),
            ask(Ask::Stat(p("b"))),
            ask(look),
            ask(Ask::List { at: p("b"), room: 4096 }),
        ];
        allowed(|setting| setting.dir_ttl_us = 0, &before, &ops);
        allowed(|_| {}, &before, &ops);
    }
}

#[test]
fn a_name_that_a_listing_lacked_does_not_come_back_from_an_older_memory() {
    let before = [Change::Mkdir { at: p("a") }, Change::Mkdir { at: p("a/b") }];
    let ops = [
        // The root knows of it, for a minute.
        Op::Ask { node: 0, ask: Ask::Stat(p("a/b")) },
        Op::Change(Change::Remove { at: p("a/b") }),
        // Another node learns by a listing that it is gone.
        Op::Ask { node: 1, ask: Ask::List { at: p("a"), room: 4096 } },
        Op::Ask { node: 1, ask: Ask::Stat(p("a/b")) },
        Op::Pass(50_000),
        Op::Ask { node: 1, ask: Ask::Stat(p("a/b")) },
    ];
    let mut setting = Setting::new(2);
    (setting.enoent_ttl_us, setting.dir_ttl_us) = (40_000, 60_000_000);
    let case = Case { setting, before: before.to_vec(), ops: ops.to_vec() };
    if let Err(wrong) = through_nodes(&case) {
        panic!("{wrong}");
    }
}

#[test]
fn a_name_that_a_listing_lacked_does_not_come_back_when_its_directory_changes() {
    let before = [Change::Mkdir { at: p("a") }, write("a/b", 5)];
    let at = |node, ask| Op::Ask { node, ask };
    // The root knows of it, and the other node learns by a listing that it is gone.
    let gone = [
        at(0, Ask::Stat(p("a/b"))),
        Op::Change(Change::Remove { at: p("a/b") }),
        at(1, Ask::List { at: p("a"), room: 4096 }),
        at(1, Ask::Stat(p("a/b"))),
    ];
    let made = Op::Change(Change::Mkdir { at: p("a/b") });
    let other = [Op::Change(write("a/a", 1)), at(1, Ask::Stat(p("a/a")))];
    let listed = [Op::Pass(50_000), at(1, Ask::List { at: p("a"), room: 4096 })];
    let look = [at(1, Ask::Stat(p("a/b")))];
    for ops in [
        // Nothing is left of the listing but what it said: at once, after another name was found, after another listing
        // that has a name of this kind.
        [gone.as_slice(), std::slice::from_ref(&made), &look].concat(),
        [gone.as_slice(), &other, &look].concat(),
        [gone.as_slice(), &[made], &listed, &look].concat(),
    ] {
        let mut setting = Setting::new(2);
        (setting.enoent_ttl_us, setting.dir_ttl_us) = (40_000, 0);
        let case = Case { setting, before: before.to_vec(), ops };
        if let Err(wrong) = through_nodes(&case) {
            panic!("{wrong}");
        }
    }
}

#[test]
fn a_listing_that_another_reader_began_before_a_change_gives_no_name_after_it() {
    needs_fuse!("a_listing_that_another_reader_began_before_a_change_gives_no_name_after_it");
    let before = [Change::Mkdir { at: p("a") }, Change::Mkdir { at: p("a/b") }, write("a/a", 0)];
    let ops = vec![
        keep("a"),
        // The kernel keeps these names, and waits for the rest of them.
        ask(Ask::Stream { slot: 0, room: 70 }),
        Op::Change(Change::Remove { at: p("a/b") }),
        // It is told that the directory changed.
        ask(Ask::Stat(p("a"))),
        Op::Pass(100_000),
        // The end of this reading is the rest: what is read after it, from the middle on, is what was kept.
        ask(Ask::List { at: p("a"), room: 320 }),
    ];
    let mut setting = Setting::new(1);
    (setting.enoent_ttl_us, setting.dir_ttl_us) = (0, 0);
    let case = Case { setting, before: before.to_vec(), ops };
    if let Err(wrong) = through_mounts(&case) {
        panic!("{wrong}");
    }
}
