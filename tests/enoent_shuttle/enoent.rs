//! A backend in which one name comes to be, clients that ask it and teach the map what they hear, and others whose names
//! fill the generations meanwhile.

#[path = "../../src/cache/enoent/generation.rs"]
#[expect(dead_code, reason = "what the map uses")]
mod generation;
#[path = "../../src/cache/enoent/ring.rs"]
#[expect(dead_code, unreachable_pub, clippy::enum_variant_names, reason = "what the map uses, and how others see it")]
mod ring;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use shuttle::{Config, Runner, thread};

use generation::Room;
use ring::{Bounds, Generations, Looked};

/// Name 0 comes to be; the others never do. All have one bucket and one tag.
const NAMES: u64 = 6;
const HASH: u64 = 1;
const KEYS: [&[u8]; NAMES as usize] = [b"name", b"a", b"bb", b"a longer one", b"one of 16 bytes.", b"e"];

/// Longer than a ring is in quarantine, so that generations are reused.
const STEP_US: u64 = 30_000;
const TTL_US: u64 = 8 * STEP_US;

struct World {
    map: Generations,
    now: AtomicU64,
    exists: AtomicBool,
    /// Somebody has heard that it exists, and told the map.
    is_known: AtomicBool,
}

impl World {
    fn new() -> Arc<World> {
        let room = Room { entries: 2, words: 10 };
        Arc::new(World {
            map: Generations::new(Bounds { generations: 2, room, buckets: 1 }),
            now: AtomicU64::new(NAMES),
            exists: AtomicBool::new(false),
            is_known: AtomicBool::new(false),
        })
    }

    fn later(&self) -> u64 {
        self.now.fetch_add(STEP_US, Ordering::SeqCst)
    }

    /// Asks the backend for a name, and teaches the map. `is_late`: with a token of after the answer, as must not be.
    fn ask(&self, name: u64, is_late: bool) {
        let early = self.map.moment(HASH);
        let now = self.later();
        let exists = name == 0 && self.exists.load(Ordering::SeqCst);
        let token = if is_late { self.map.moment(HASH) } else { early };
        let key = KEYS[name as usize];
        if exists {
            self.map.clear(HASH, key);
            self.is_known.store(true, Ordering::SeqCst);
        } else {
            // Whose it is can be told from an expiry.
            let expiry = (now + TTL_US).next_multiple_of(NAMES) + name;
            self.map.store(HASH, key, expiry, now, token);
        }
    }

    fn look(&self, name: u64) {
        let was_known = self.is_known.load(Ordering::SeqCst);
        let now = self.now.load(Ordering::SeqCst);
        if let Looked::Until(expiry) = self.map.lookup(HASH, KEYS[name as usize], now) {
            assert!(expiry > now, "over since {} us", now - expiry);
            assert_eq!(expiry % NAMES, name, "another name's entry");
            assert!(name != 0 || !was_known, "absent again after it was seen");
        }
    }
}

/// Gives how often a generation was used again in all runs together: there are three, which are made when needed.
fn run(scheduler: impl Scheduler + 'static, is_late: bool) -> usize {
    let reused = Arc::new(AtomicUsize::new(0));
    let sum = reused.clone();
    Runner::new(scheduler, Config::new()).run(move || {
        let world = World::new();
        let client = |work: fn(&World, bool)| {
            let world = world.clone();
            thread::spawn(move || work(&world, is_late))
        };
        let threads = [
            client(|world, is_late| (0..3).for_each(|_| world.ask(0, is_late))),
            client(|world, is_late| {
                world.ask(0, is_late);
                world.exists.store(true, Ordering::SeqCst);
                world.ask(0, is_late);
            }),
            client(|world, is_late| {
                for name in (1..NAMES).chain(1..NAMES) {
                    world.ask(name, is_late);
                    world.look(name);
                    world.map.maintain(world.later());
                }
            }),
            client(|world, _| [0, 1, 0, 5, 0].into_iter().for_each(|name| world.look(name))),
        ];
        for thread in threads {
            thread.join().expect("nobody panics");
        }
        (0..NAMES).for_each(|name| world.look(name));
        sum.fetch_add(world.map.rotations().saturating_sub(3) as usize, Ordering::Relaxed);
    });
    reused.load(Ordering::Relaxed)
}

#[test]
fn no_answer_outlives_a_clear() {
    const RUNS: usize = 800;
    let reused =
        run(RandomScheduler::new_from_seed(1, RUNS), false) + run(PctScheduler::new_from_seed(2, 4, RUNS), false);
    assert!(reused > RUNS, "only {reused} generations were used again");
}

#[test]
#[should_panic(expected = "absent again after it was seen")]
fn a_token_of_after_the_answer_has_answers_outlive_clears() {
    run(PctScheduler::new_from_seed(3, 3, 20_000), true);
}

#[test]
#[ignore = "for `make soak`: 200,000 interleavings of random seeds"]
fn many_interleavings() {
    run(RandomScheduler::new(100_000), false);
    run(PctScheduler::new(5, 100_000), false);
}
