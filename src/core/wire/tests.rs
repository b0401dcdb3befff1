use super::*;
use proptest::prelude::*;

fn header() -> impl Strategy<Value = Header> {
    (any::<u32>(), any::<[u64; 4]>()).prop_map(|(from, [job, incarnation, id, session])| Header {
        from: NodeId(from),
        job,
        incarnation,
        id,
        session,
    })
}

#[derive(Clone, Debug)]
struct Parts {
    path: Vec<u8>,
    bytes: Vec<u8>,
    words: [u64; 6],
    halves: [u32; 4],
    spans: Vec<Span>,
    nonce: [u8; NONCE_BYTES],
    mac: [u8; MAC_BYTES],
}

fn parts() -> impl Strategy<Value = Parts> {
    (
        "([a-z]{1,9}(/[a-z. ]{3,9}){0,4})?",
        prop::collection::vec(1u8..255, 0..4000),
        any::<[u64; 6]>(),
        any::<[u32; 4]>(),
        prop::collection::vec(1u32..9, 1..60),
        any::<[u8; NONCE_BYTES]>(),
        any::<[u8; MAC_BYTES]>(),
    )
        .prop_map(|(path, bytes, words, halves, steps, nonce, mac)| Parts {
            path: path.into_bytes(),
            bytes,
            words,
            halves,
            spans: spans_of(&steps),
            nonce,
            mac,
        })
}

/// Ranges of these lengths, as far from each other.
fn spans_of(steps: &[u32]) -> Vec<Span> {
    let mut at = 0;
    let mut next = |step: &u32| {
        let first = at + step;
        at = first + step;
        Span::new(first, at)
    };
    steps.iter().map(&mut next).collect()
}

fn messages(p: &Parts) -> Vec<Message<'_>> {
    let (path, bytes, [a, b, c, d, e, f], [g, h, i, j]) = (&p.path[..], &p.bytes[..], p.words, p.halves);
    let mtime = Timestamp { secs: a as i64, nanos: g };
    let attr = Attr {
        mode: g,
        uid: h,
        gid: i,
        blksize: j,
        nlink: a,
        rdev: b,
        size: c,
        blocks: d,
        mtime,
        ctime: mtime,
        backend_ino: e,
        backend_dev: f,
        change: h,
    };
    let small = bytes.len() as u32;
    vec![
        Message::Probe { begun: a },
        Message::Attr { path, bytes: 7 },
        Message::Look { path },
        Message::List { path, stamp: a, from: g, purpose: Purpose::Reading },
        Message::List { path, stamp: b, from: h, purpose: Purpose::Absence },
        Message::Unchanged { stamp: a, remaining_us: b, absent_us: c },
        Message::Chunk { path, version: Version { ino: a, size: b, mtime, change: i }, index: h },
        Message::Statfs,
        Message::Release { grant: a },
        Message::Sweep { tree: b as u8, path, down: a & 1 == 1 },
        Message::Swept(Swept { reached: g, missing: h }),
        Message::Alive { serving: a & 1 == 1, credits: g, begun: b },
        Message::Found { attr, remaining_us: b, target: bytes },
        Message::Absent { remaining_us: a },
        Message::Failed { errno: 5 },
        Message::Pending,
        Message::Ready { spans: &p.spans },
        Message::Noted,
        Message::Hello { nonce: &p.nonce, mac: &p.mac },
        Message::Welcome { nonce: &p.nonce, mac: &p.mac },
        Message::Part {
            stamp: a,
            remaining_us: b,
            absent_us: c,
            from: g / 2,
            total: (g / 2).saturating_add(small),
            bytes,
        },
        Message::Inline { crc: g, bytes },
        Message::Granted(Grant { grant: a, key: b, offset: c, len: g, crc: h }),
        Message::Filesystem(Statfs {
            blocks: a,
            bfree: b,
            bavail: c,
            files: d,
            ffree: e,
            bsize: g,
            frsize: h,
            namelen: i,
        }),
    ]
}

proptest! {
    #[test]
    fn messages_survive_the_wire(header in header(), parts in parts()) {
        for message in messages(&parts) {
            let frame = message.encode(&header);
            prop_assert_eq!(decode(&frame), Ok((header, message)));
        }
    }

    #[test]
    fn decoding_is_total(frame in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode(&frame);
    }

    #[test]
    fn decoding_damaged_frames_is_total(
        header in header(), parts in parts(), at in any::<prop::sample::Index>(), to in any::<u8>(),
        cut in any::<prop::sample::Index>(),
    ) {
        for message in messages(&parts) {
            let mut frame = message.encode(&header);
            let n = frame.len();
            frame[at.index(n)] = to;
            frame.truncate(cut.index(n + 1));
            if let Ok((header, message)) = decode(&frame) {
                prop_assert_eq!(message.encode(&header), frame);
            }
        }
    }
}

#[test]
fn paths_are_checked() {
    for good in [&b""[..], b"a", b"a/b", b"...", b"a b/\n/\xff"] {
        assert!(path_is_valid(good), "{good:?}");
    }
    for bad in
        [&b"/"[..], b"/a", b"a/", b"a//b", b".", b"..", b"a/../b", b"a/./b", b"a\0b", &[b'x'; 256], &[b'/'; 4096]]
    {
        assert!(!path_is_valid(bad), "{bad:?}");
    }
}

#[test]
fn absence_never_travels_as_a_failure() {
    let header = Header { from: NodeId(0), job: 0, incarnation: 0, id: 0, session: 0 };
    let enoent = rustix::io::Errno::NOENT.raw_os_error();
    for errno in [0, -1, enoent, 4096] {
        assert!(decode(&Message::Failed { errno }.encode(&header)).is_err(), "errno {errno}");
    }
}

#[test]
fn ranges_are_in_order_and_apart() {
    let header = Header { from: NodeId(0), job: 0, incarnation: 0, id: 0, session: 0 };
    let span = Span::new;
    let is_read = |spans: &[Span]| decode(&Message::Ready { spans }.encode(&header)).is_ok();
    assert!(is_read(&[span(0, 1)]) && is_read(&[span(0, 1), span(2, u32::MAX)]));
    for bad in [&[][..], &[span(1, 1)], &[span(2, 1)], &[span(0, 1), span(1, 2)], &[span(3, 4), span(0, 1)]] {
        assert!(!is_read(bad), "{bad:?}");
    }
    let most: Vec<_> = (0..SPANS_MAX as u32).map(|at| span(2 * at, 2 * at + 1)).collect();
    assert!(is_read(&most));
}

#[test]
fn a_session_is_put_where_it_is_read() {
    let header = Header { from: NodeId(1), job: 2, incarnation: 3, id: 4, session: 0 };
    let mut frame = Message::Absent { remaining_us: 5 }.encode(&header);
    set_session(&mut frame, 0x0123_4567_89ab_cdef);
    assert_eq!(decode(&frame).unwrap().0, Header { session: 0x0123_4567_89ab_cdef, ..header });
}
