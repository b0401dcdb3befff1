use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestCaseError, TestRunner};

use super::*;

fn map(entries_max: usize) -> EnoentMap {
    EnoentMap::new(EnoentConfig { entries_max, ..EnoentConfig::new([1, 2]) })
}

const NOW: Micros = Micros(1_000_000);
const SECOND: u64 = 1_000_000;

#[test]
fn answers_with_what_remains_until_it_is_over() {
    let map = map(1000);
    assert_eq!(map.lookup(b"a", NOW), None);
    let token = map.begin(b"a");
    assert_eq!(map.store(b"a", NOW.after_us(500), NOW, token), Stored::Stored);
    assert_eq!(map.lookup(b"a", NOW), Some(500));
    assert_eq!(map.lookup(b"a", NOW.after_us(499)), Some(1));
    assert_eq!(map.lookup(b"a", NOW.after_us(500)), None);
    assert_eq!(map.lookup(b"b", NOW), None);
    assert_eq!(map.store(b"a", NOW.after_us(300), NOW, token), Stored::Stored);
    assert_eq!(map.lookup(b"a", NOW), Some(500), "only ever prolonged");
    assert_eq!(map.store(b"a", Micros::FOREVER, NOW, token), Stored::Stored);
    assert_eq!(map.lookup(b"a", NOW), Some(u64::MAX));
    let stats = EnoentStats { entries: 1, stores: 3, serves: 4, expires: 1, rotations: 1, ..EnoentStats::default() };
    assert_eq!(map.stats(), stats);
}

#[test]
fn keys_of_every_length_are_told_apart() {
    let map = map(1000);
    let text: Vec<u8> = (1..=100).collect();
    for len in 0..text.len() {
        let key = &text[..len];
        assert_eq!(map.store(key, NOW.after_us(9), NOW, map.begin(key)), Stored::Stored, "{len} bytes");
        assert_eq!(map.lookup(key, NOW), Some(9), "{len} bytes");
        assert_eq!(map.lookup(&text[..=len], NOW), None, "{len} bytes and one more");
        for at in [0, len / 2, len.saturating_sub(1)].into_iter().filter(|at| *at < len) {
            let mut other = key.to_vec();
            other[at] ^= 0x80;
            assert_eq!(map.lookup(&other, NOW), None, "{len} bytes, byte {at} another");
        }
    }
}

#[test]
fn what_cannot_be_kept_is_dropped() {
    let map = EnoentMap::new(EnoentConfig { entries_max: 2, key_bytes_max: 3, hash_key: [0, 0] });
    assert_eq!(map.store(b"a", NOW, NOW, map.begin(b"a")), Stored::Expired);
    assert_eq!(map.store(b"long", NOW.after_us(1), NOW, map.begin(b"long")), Stored::Full);
    for key in [b"a", b"b"] {
        assert_eq!(map.store(key, NOW.after_us(1), NOW, map.begin(key)), Stored::Stored);
    }
    assert_eq!(map.store(b"c", NOW.after_us(9), NOW, map.begin(b"c")), Stored::Full);
    let later = NOW.after_us(SECOND);
    assert_eq!(map.store(b"c", later.after_us(9), later, map.begin(b"c")), Stored::Stored);
    assert_eq!((map.stats().entries, map.stats().full), (1, 2));
}

#[test]
fn an_answer_older_than_a_clear_loses() {
    let map = map(1000);
    let (old, others) = (map.begin(b"a"), map.begin(b"b"));
    map.clear(b"a");
    assert_eq!(map.store(b"a", Micros::FOREVER, NOW, old), Stored::Raced);
    assert_eq!(map.store(b"b", Micros::FOREVER, NOW, others), Stored::Stored);
    assert_eq!(map.store(b"a", Micros::FOREVER, NOW, map.begin(b"a")), Stored::Stored);
    let before = map.begin(b"a");
    map.clear_all();
    assert_eq!((map.lookup(b"a", NOW), map.lookup(b"b", NOW)), (None, None));
    assert_eq!(map.store(b"a", Micros::FOREVER, NOW, before), Stored::Raced);
    let stats = map.stats();
    assert_eq!((stats.entries, stats.clears, stats.raced), (0, 2, 2));
}

#[test]
fn a_clear_finds_the_name_in_every_generation() {
    let map = map(9);
    let mut now = NOW;
    // Three entries fill a generation: the name is in each.
    for number in 0..3u8 {
        for key in [&[number, 0][..], &[number, 1], b"name"] {
            assert_eq!(map.store(key, now.after_us(SECOND), now, map.begin(key)), Stored::Stored);
        }
        now = now.after_us(1);
    }
    assert_eq!((map.stats().entries, map.stats().rotations), (9, 3));
    assert!(map.lookup(b"name", now).is_some());
    map.clear(b"name");
    assert_eq!(map.lookup(b"name", now), None);
    assert_eq!((map.stats().entries, map.stats().clears), (6, 1));
}

#[test]
#[cfg_attr(miri, ignore = "too long for an interpreter")]
fn generations_take_turns_by_their_age_and_are_dropped_as_a_whole() {
    let map = map(3300);
    let (mut now, mut number) = (NOW, 0u32);
    // A name each millisecond, each for 2 s: so there are some 2,000, or half as many more until a generation goes.
    for _ in 0..20_000 {
        now = now.after_us(1000);
        number += 1;
        let key = number.to_le_bytes();
        assert_eq!(map.store(&key, now.after_us(2 * SECOND), now, map.begin(&key)), Stored::Stored);
        if number % 50 == 0 {
            map.maintain(now);
            assert!(map.stats().entries <= 3300, "{:?}", map.stats());
            let living = (number.saturating_sub(1999)..=number).filter(|n| *n > 0);
            let known = living.clone().filter(|n| map.lookup(&n.to_le_bytes(), now).is_some()).count();
            assert_eq!(known, living.count(), "what lives is kept");
        }
    }
    assert!((15..=25).contains(&map.stats().rotations), "one a second or so: {:?}", map.stats());
    map.maintain(now.after_us(3 * SECOND));
    assert_eq!(map.stats().entries, 0);
}

#[test]
#[cfg_attr(miri, ignore = "too long for an interpreter")]
fn an_entry_that_was_cleared_too_often_stays_so_until_its_generation_goes() {
    let map = map(3);
    let store = |now: Micros| map.store(b"a", now.after_us(SECOND), now, map.begin(b"a"));
    for round in 0..=u16::MAX {
        let stored = store(NOW);
        let is_last = round == u16::MAX;
        assert_eq!(stored, if is_last { Stored::Full } else { Stored::Stored }, "round {round}");
        map.clear(b"a");
        assert_eq!(map.lookup(b"a", NOW), None, "round {round}");
    }
    assert_eq!(map.stats().clears, u64::from(u16::MAX));
    let later = NOW.after_us(2 * SECOND);
    map.maintain(later);
    assert_eq!(store(later), Stored::Stored);
    assert_eq!(map.lookup(b"a", later), Some(SECOND));
}

#[test]
fn who_asks_again_after_the_time_is_over_is_counted() {
    let map = map(1000);
    let stale = || map.stats().stale_completed;
    let store = |now: Micros| map.store(b"a", now.after_us(SECOND), now, map.begin(b"a"));
    store(NOW);
    assert_eq!(stale(), 0, "asked for the first time");
    // Long after the generation was dropped as well.
    store(NOW.after_us(SECOND));
    map.maintain(NOW.after_us(100 * SECOND));
    store(NOW.after_us(100 * SECOND));
    assert_eq!(stale(), 2);
    map.clear(b"a");
    let _ = map.begin(b"a");
    assert_eq!(stale(), 2, "it exists");
    store(NOW.after_us(200 * SECOND));
    map.clear_all();
    let _ = map.begin(b"a");
    assert_eq!(stale(), 2, "not known of any name");
}

#[test]
fn no_lookup_store_or_clear_waits_for_the_lock() {
    let map = std::sync::Arc::new(map(3));
    assert_eq!(map.store(b"a", NOW.after_us(9), NOW, map.begin(b"a")), Stored::Stored);
    let (done, is_done) = std::sync::mpsc::channel();
    let other = map.clone();
    map.generations.while_locked(|| {
        std::thread::spawn(move || {
            let looked = (other.lookup(b"a", NOW), other.lookup(b"b", NOW));
            let again = other.store(b"a", NOW.after_us(10), NOW, other.begin(b"a"));
            // It would have to begin a generation.
            let full = other.store(b"b", NOW.after_us(9), NOW, other.begin(b"b"));
            other.clear(b"a");
            // Nobody listens any more when it was too late.
            let _ = done.send((looked, again, full, other.stats().clears));
        });
        let got = is_done.recv_timeout(Duration::from_secs(60)).expect("none of them waits");
        assert_eq!(got, ((Some(9), None), Stored::Stored, Stored::Full, 1));
    });
}

#[test]
#[should_panic(expected = "the key it was taken for")]
fn a_token_of_another_key_is_a_defect() {
    let map = map(1000);
    let token = map.begin(b"a");
    map.store(b"b", Micros::FOREVER, NOW, token);
}

#[derive(Clone, Debug)]
enum Step {
    Begin(u8),
    Store(prop::sample::Index, u64),
    Clear(u8),
    ClearAll,
    Advance(u64),
    Maintain,
}

const KEYS: u8 = 24;

fn step() -> impl Strategy<Value = Step> {
    let key = 0..KEYS;
    // Some time to live is shorter than what others wait, some is longer than a generation fills.
    let ttl = prop_oneof![0..300u64, Just(SECOND), Just(10 * SECOND), Just(u64::MAX)];
    prop_oneof![
        6 => key.clone().prop_map(Step::Begin),
        8 => (any::<prop::sample::Index>(), ttl).prop_map(|(token, ttl)| Step::Store(token, ttl)),
        2 => key.prop_map(Step::Clear),
        1 => Just(Step::ClearAll),
        3 => (1..120u64).prop_map(Step::Advance),
        2 => (1..SECOND).prop_map(Step::Advance),
        1 => Just(Step::Maintain),
    ]
}

/// What is known of a key: the expiries that were stored since it was seen to exist.
type Model = BTreeMap<u8, Vec<Micros>>;

fn agrees_with_a_model(config: ProptestConfig) {
    let histories = (prop_oneof![1usize..90, Just(4096)], proptest::collection::vec(step(), 1..200));
    TestRunner::new(config)
        .run(&histories, |(entries_max, steps)| history(entries_max, steps))
        .unwrap_or_else(|error| panic!("{error}"));
}

fn history(entries_max: usize, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let map = map(entries_max);
    let mut now = NOW;
    let mut model = Model::new();
    let mut tokens: Vec<(u8, Token, usize)> = Vec::new();
    // By the number of the step: the key that was cleared, none for all keys.
    let mut clears: Vec<(usize, Option<u8>)> = Vec::new();
    for (number, step) in steps.into_iter().enumerate() {
        match step {
            Step::Begin(key) => tokens.push((key, map.begin(&[key]), number)),
            Step::Store(token, ttl) if !tokens.is_empty() => {
                let (key, token, taken) = tokens[token.index(tokens.len())];
                let expiry = now.after_us(ttl);
                let since: Vec<_> = clears.iter().filter(|clear| clear.0 > taken).collect();
                let lost = since.iter().any(|clear| clear.1.is_none_or(|cleared| cleared == key));
                match map.store(&[key], expiry, now, token) {
                    Stored::Expired => prop_assert_eq!(ttl, 0),
                    Stored::Raced => prop_assert!(lost || !since.is_empty(), "no clear since the token"),
                    // All keys have room in each generation of a large map. After all was cleared, it may be that
                    // no generation has been out of use for long enough.
                    Stored::Full => prop_assert!(
                        !lost && (entries_max < 3 * usize::from(KEYS) || clears.iter().any(|c| c.1.is_none()))
                    ),
                    Stored::Stored => {
                        prop_assert!(!lost && ttl > 0);
                        model.entry(key).or_default().push(expiry);
                    }
                }
            }
            Step::Store(..) => {}
            Step::Clear(key) => {
                map.clear(&[key]);
                clears.push((number, Some(key)));
                model.remove(&key);
            }
            Step::ClearAll => {
                map.clear_all();
                prop_assert_eq!(map.stats().entries, 0);
                clears.push((number, None));
                model.clear();
            }
            Step::Advance(us) => now = now.after_us(us),
            Step::Maintain => map.maintain(now),
        }
        for key in 0..KEYS {
            let expiries = model.get(&key).map_or(&[][..], Vec::as_slice);
            let lives = expiries.iter().any(|expiry| *expiry > now);
            // A newer generation may know a shorter time than an older one, but none that nobody stored.
            match map.lookup(&[key], now) {
                Some(remaining) => prop_assert!(
                    remaining > 0 && expiries.iter().any(|expiry| expiry.remaining_us(now) == remaining),
                    "key {} for {} us, of {:?} at {:?}",
                    key,
                    remaining,
                    expiries,
                    now
                ),
                None => prop_assert!(!lives, "key {} was lost, of {:?} at {:?}", key, expiries, now),
            }
        }
        prop_assert!(map.stats().entries <= entries_max as u64);
    }
    Ok(())
}

#[test]
fn generated_histories_agree_with_a_model() {
    let cases = if cfg!(miri) { 2 } else { 96 };
    agrees_with_a_model(ProptestConfig {
        cases,
        rng_seed: RngSeed::Fixed(7),
        failure_persistence: None,
        ..ProptestConfig::default()
    });
}

#[test]
#[ignore = "for `make soak`: 20,000 histories of random seeds"]
fn many_generated_histories_agree_with_a_model() {
    agrees_with_a_model(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() });
}

/// Storers try for ever to store under the token of the current round; the main thread clears and begins the next
/// round. A reader that saw the clear of round `c` done before its lookup, and no later round begun after it, must
/// not be told "absent".
#[test]
fn no_reader_sees_an_answer_older_than_a_clear() {
    const ROUNDS: u64 = if cfg!(miri) { 3 } else { 200 };
    /// Lets the other threads end whatever happens to the one that holds it.
    struct Finish<'a>(&'a AtomicU64);
    impl Drop for Finish<'_> {
        fn drop(&mut self) {
            self.0.store(ROUNDS, Ordering::SeqCst);
        }
    }
    let deadline = Instant::now() + Duration::from_secs(if cfg!(miri) { 600 } else { 60 });
    let map = map(64);
    let key = b"usr/lib/python3/site-packages";
    let clock = AtomicU64::new(NOW.0);
    let time = || Micros(clock.load(Ordering::Relaxed));
    let (begun, cleared) = (AtomicU64::new(0), AtomicU64::new(0));
    let token = Mutex::new(map.begin(key));
    let running = || cleared.load(Ordering::SeqCst) < ROUNDS && Instant::now() < deadline;
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while running() {
                    let token = *token.lock().expect("no panic");
                    for _ in 0..20 {
                        map.store(key, time().after_us(SECOND), time(), token);
                    }
                }
            });
            scope.spawn(|| {
                while running() {
                    let done = cleared.load(Ordering::SeqCst);
                    let absent = map.lookup(key, time()).is_some();
                    let stale = absent && begun.load(Ordering::SeqCst) == done;
                    assert!(!stale, "told absent after the clear of round {done}");
                }
            });
        }
        // Others fill the generations, so that they change under the readers.
        scope.spawn(|| {
            for number in (0..40u32).cycle().take_while(|_| running()) {
                let now = Micros(clock.fetch_add(20_000, Ordering::Relaxed));
                let other = number.to_le_bytes();
                map.store(&other, now.after_us(SECOND / 2), now, map.begin(&other));
                map.maintain(now);
            }
        });
        let _finish = Finish(&cleared);
        for round in 1..=ROUNDS {
            begun.store(round, Ordering::SeqCst);
            *token.lock().expect("no panic") = map.begin(key);
            while map.lookup(key, time()).is_none() && Instant::now() < deadline {
                std::thread::yield_now();
            }
            map.clear(key);
            cleared.store(round, Ordering::SeqCst);
            for _ in 0..20 {
                assert_eq!(map.lookup(key, time()), None, "round {round}");
            }
        }
    });
    assert!(Instant::now() < deadline, "did not finish within its time");
    let stats = map.stats();
    assert!(stats.raced > 0, "no store came late, so nothing was tested: {stats:?}");
    assert!(cfg!(miri) || stats.rotations > 10, "the generations hardly changed: {stats:?}");
}

#[test]
fn a_flood_of_names_stays_within_the_bound() {
    const MAX: usize = 4096;
    const NAMES: u32 = if cfg!(miri) { 1500 } else { 100_000 };
    let map = map(MAX);
    let mut now = NOW;
    let mut stored = 0;
    for number in 0..NAMES {
        let key = number.to_le_bytes();
        stored += u64::from(map.store(&key, now.after_us(100_000), now, map.begin(&key)) == Stored::Stored);
        now = now.after_us(100);
        if number % 500 == 0 {
            assert!(map.stats().entries <= MAX as u64);
            map.maintain(now);
        }
    }
    let stats = map.stats();
    assert_eq!(stats.stores, stored);
    assert_eq!(stats.stores + stats.full, u64::from(NAMES));
    assert_eq!(stats.full, 0, "dropped though a thousand live at a time");
    now = now.after_us(SECOND);
    map.maintain(now);
    assert_eq!(map.stats().entries, 0);
}
