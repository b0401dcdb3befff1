//! A reference model: generated operations on a backend and on the nodes that serve it, every answer judged by what
//! docs/SEMANTICS.md allows.
//!
//! The reference is a plain directory with its history (`truth`), the rules are in `judge`, the clients in `client`.
//! The same cases run against nodes without a mount in virtual time (`nodes`), and through real mounts (`mounts`).
//! A case that fails prints its operations and is kept in `tests/model/regressions.txt`.

#[path = "../common/mod.rs"]
mod common;

mod client;
mod found;
mod judge;
mod mounts;
mod nodes;
mod ops;
mod truth;

use std::cell::Cell;

use client::{Did, Run};
use mounts::Mounts;
use nodes::Nodes;
use ops::Case;
use proptest::prelude::*;
use proptest::test_runner::{FileFailurePersistence, TestRunner};
use truth::Truth;

fn through_nodes(case: &Case) -> Result<Did, String> {
    let truth = Truth::new(&case.before);
    let world = Nodes::new(&case.setting, &truth);
    let mut run = Run::new(case, truth, world);
    run.all(&case.ops)?;
    Ok(run.did)
}

fn through_mounts(case: &Case) -> Result<Did, String> {
    let truth = Truth::new(&case.before);
    let world = Mounts::new(&case.setting, &truth);
    let mut run = Run::new(case, truth, world);
    run.all(&case.ops)?;
    Ok(run.did)
}

/// So many cases have every kind of answer: of 150 some ten have the rarest.
const MANY: u32 = 150;

/// Runs `cases` cases of `nodes` nodes and up to `ops` operations; `MODEL_CASES` overrides the number of cases. No
/// kind of answer may be missing at the end.
fn many(nodes: u8, cases: u32, ops: usize, run: impl Fn(&Case) -> Result<Did, String>) {
    let cases = std::env::var("MODEL_CASES").ok().map_or(cases, |n| n.parse().expect("a number of cases"));
    let regressions = FileFailurePersistence::Direct("tests/model/regressions.txt");
    let config = ProptestConfig {
        cases,
        max_shrink_iters: 4_000,
        failure_persistence: Some(Box::new(regressions)),
        ..ProptestConfig::default()
    };
    let did = Cell::new(Did::default());
    let result = TestRunner::new(config).run(&ops::case(nodes, ops), |case| {
        let one = run(&case).map_err(TestCaseError::fail)?;
        let mut all = did.get();
        all.add(one);
        did.set(all);
        Ok(())
    });
    let did = did.get();
    println!("{did:?}");
    if let Err(error) = result {
        panic!("{error}");
    }
    let common = [did.present, did.absent, did.bytes, did.listings];
    let rare = [did.links, did.stale, did.failed];
    // A few cases need not have the rare ones.
    let lacks_rare = rare.contains(&0) || did.listed == Some(0);
    let lacks = common.contains(&0) || (cases >= MANY && lacks_rare);
    assert!(!lacks, "some answers never came: the test shows little: {did:?}");
}

#[test]
fn one_node_gives_allowed_answers() {
    many(1, 250, 120, through_nodes);
}

#[test]
fn a_chain_of_nodes_gives_allowed_answers() {
    many(3, 150, 120, through_nodes);
}

#[test]
fn one_mount_gives_allowed_answers() {
    needs_fuse!("one_mount_gives_allowed_answers");
    many(1, 12, 160, through_mounts);
}

#[test]
fn four_mounts_give_allowed_answers() {
    needs_fuse!("four_mounts_give_allowed_answers");
    many(4, 10, 160, through_mounts);
}

#[test]
#[ignore = "takes minutes: make soak"]
fn many_more_cases_without_mounts() {
    for nodes in [1, 2, 4] {
        many(nodes, 4_000, 120, through_nodes);
    }
}

#[test]
#[ignore = "takes minutes: make soak"]
fn many_more_cases_through_mounts() {
    needs_fuse!("many_more_cases_through_mounts");
    for nodes in [1, 4] {
        many(nodes, 150, 160, through_mounts);
    }
}
