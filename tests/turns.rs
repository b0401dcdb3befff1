//! Work that grows with what a node holds is done in steps, so that one turn of the engine stays short.

#[path = "common/attr.rs"]
mod attr;

use std::sync::Arc;

use attr::attr;
use bornite::cache::arena::ArenaConfig;
use bornite::cache::enoent::{EnoentConfig, EnoentMap};
use bornite::cache::names::{Names, NamesConfig, NamesWriter};
use bornite::cache::store::ChunkStore;
use bornite::cache::types::{Attr, Micros, Timestamp};
use bornite::core::{Node, NodeConfig, NodeId, Output, Swept, Topology};

/// A root without peers that knows `files` files in a directory and one beside it.
fn root(files: u64) -> (Node, Arc<Names>) {
    let config = NodeConfig::new(Topology::new(1, NodeId(0), 1, None).expect("one node"), 1, 1, 64);
    let (mut writer, names) = NamesWriter::new(NamesConfig::new([1, 2]));
    for (path, number) in [("", 1), ("dir", 2), ("other", 3)] {
        writer.insert(path.as_bytes(), attr(0o040_755, number, 0), None, Micros::FOREVER);
    }
    for number in 0..files {
        let path = format!("dir/file{number}");
        writer.insert(path.as_bytes(), attr(0o100_644, 10 + number, 0), None, Micros::FOREVER);
    }
    let enoent = Arc::new(EnoentMap::new(EnoentConfig::new([1, 2])));
    let mut node = Node::new(config, (writer, names.clone()), enoent, ChunkStore::new(ArenaConfig::new(1 << 20)).0);
    node.open_for_service();
    (node, names)
}

#[test]
fn an_invalidation_of_many_names_comes_in_steps_and_ends_when_all_have_expired() {
    const FILES: u64 = 200_000;
    const STEP_MAX: usize = 4_000;
    let (mut node, names) = root(FILES);
    let now = Micros(1_000_000);
    let (mut expired, mut steps, mut fenced, mut largest) = (0, 0, 0, 0);
    let mut ended = None;
    node.sweep(now, b"dir", 7);
    while ended.is_none() {
        let mut outputs = 0;
        while let Some(output) = node.poll_output() {
            outputs += 1;
            match output {
                Output::Expire { path, .. } => {
                    assert!(fenced == 0 && path.starts_with(b"dir"), "the fence comes after all of them");
                    expired += 1;
                }
                Output::Fence { id } => {
                    fenced += 1;
                    node.fenced(now, id);
                }
                Output::Swept { waiter: 7, swept } => ended = Some(swept),
                other => panic!("{other:?}"),
            }
        }
        largest = largest.max(outputs);
        steps += 1;
        assert!(steps < 10_000, "no end");
        if ended.is_none() && fenced == 0 {
            assert!(node.next_deadline().expect("there is more to do") <= now);
            node.timer(now);
        }
    }
    assert_eq!((expired, fenced, ended), (FILES + 1, 1, Some(Swept { reached: 1, missing: 0 })));
    assert!((100..=300).contains(&steps) && largest <= STEP_MAX, "{steps} steps of at most {largest}");
    assert!(!names.get(b"dir/file7").expect("it is known").is_fresh(now));
    assert!(names.get(b"other").expect("it is known").is_fresh(now));
}
