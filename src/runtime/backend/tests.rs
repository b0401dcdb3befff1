use super::*;
use std::os::unix::fs::symlink;

fn backend(dir: &Path) -> Backend {
    Backend::new(dir, 1, Arc::new(Counters::default())).unwrap()
}

#[test]
fn attributes_bytes_and_names_are_the_backends() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("d")).unwrap();
    std::fs::write(dir.path().join("d/f"), b"hello").unwrap();
    let b = backend(dir.path());
    let Found { attr, target } = b.attr(b"d/f").unwrap();
    assert_eq!((attr.kind(), attr.size, target), (Kind::File, 5, None));
    assert_eq!(attr.backend_dev, TARGET_DEV, "another node's number for this filesystem is another one");
    let mut bytes = [0; 5];
    assert_eq!(b.chunk(b"d/f", &attr.version(), 0, &mut bytes), Ok((crc32c::crc32c(b"hello"), attr.ctime)));
    assert_eq!(&bytes, b"hello");
    let Listed { listing, is_complete, settled } = b.list(b"d", 1).unwrap();
    assert_eq!((is_complete, settled), (true, None), "it was made just now");
    assert_eq!(listing.get(0).map(|e| (e.name, e.kind)), Some((&b"f"[..], Kind::File)));
    assert_eq!(b.attr(b"d/g"), Err(Errno::NOENT));
    assert_eq!(b.list(b"d/f", 1).unwrap_err(), Errno::NOTDIR);
    assert!(b.attr(b"").unwrap().attr.is_dir());
    assert_eq!(b.counters.get(Counter::BackendEnoent), 1);
}

#[test]
fn a_directory_with_too_many_names_is_no_shorter_one() {
    let dir = tempfile::tempdir().unwrap();
    for n in 0..10 {
        std::fs::write(dir.path().join(format!("f{n}")), b"").unwrap();
    }
    let b = backend(dir.path());
    for names_max in [0, 1, 9] {
        assert_eq!(b.list(b"", names_max).unwrap_err(), Errno::TOOBIG);
    }
    assert_eq!(b.list(b"", 10).unwrap().listing.len(), 10);
}

#[test]
fn a_changed_file_is_stale_and_never_short() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f");
    std::fs::write(&file, vec![1; 2 << 20]).unwrap();
    let b = backend(dir.path());
    let version = b.attr(b"f").unwrap().attr.version();
    let mut bytes = vec![0; 1 << 20];
    b.chunk(b"f", &version, 0, &mut bytes).unwrap();
    std::fs::write(&file, b"short").unwrap();
    let stale = Err(ChunkFailure::Errno(Errno::STALE.raw_os_error()));
    assert_eq!(b.chunk(b"f", &version, 1 << 20, &mut bytes), stale);
    let version = b.attr(b"f").unwrap().attr.version();
    let mut bytes = vec![0; 5];
    b.chunk(b"f", &version, 0, &mut bytes).unwrap();
    assert_eq!(bytes, b"short");
}

#[test]
fn a_comparison_that_meets_something_else_is_stale() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f");
    std::fs::write(&file, b"hello").unwrap();
    let b = backend(dir.path());
    let attr = b.attr(b"f").unwrap().attr;
    let chunks = [(0, crc32c::crc32c(b"hello"))];
    assert_eq!(b.recheck(b"f", &attr.version(), &chunks).unwrap().map(|now| now.version()), Some(attr.version()));
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    assert_eq!(b.recheck(b"f", &attr.version(), &chunks), Err(Errno::STALE));
}

#[test]
fn symlinks_stay_in_the_tree() {
    let dir = tempfile::tempdir().unwrap();
    let at = |p: &str| dir.path().join(p);
    std::fs::create_dir_all(at("a/b")).unwrap();
    for (text, link) in [
        (at("a/x").into_os_string(), "a/b/down"),
        (dir.path().as_os_str().to_owned(), "a/b/top"),
        (dir.path().as_os_str().to_owned(), "self"),
        ("/outside".into(), "out"),
        ("../rel".into(), "a/rel"),
        (format!("{}2/y", dir.path().display()).into(), "sibling"),
    ] {
        symlink(text, at(link)).unwrap();
    }
    let b = backend(dir.path());
    let text = |p: &[u8]| {
        let Found { attr, target } = b.attr(p).unwrap();
        let text = target.unwrap();
        assert_eq!(attr.size, text.len() as u64);
        String::from_utf8(text.into()).unwrap()
    };
    assert_eq!(text(b"a/b/down"), "../../a/x");
    assert_eq!(text(b"a/b/top"), "../..");
    assert_eq!(text(b"self"), ".");
    assert_eq!(text(b"out"), "/outside");
    assert_eq!(text(b"a/rel"), "../rel");
    assert_eq!(text(b"sibling"), format!("{}2/y", dir.path().display()));
}

#[test]
fn no_path_leads_out() {
    let dir = tempfile::tempdir().unwrap();
    symlink("/etc", dir.path().join("etc")).unwrap();
    let b = backend(dir.path());
    assert_eq!(b.attr(b"etc/passwd"), Err(Errno::STALE));
    assert!(b.attr(b"../x").is_err());
}

#[test]
fn a_target_that_is_none_is_named() {
    let counters = Arc::new(Counters::default());
    let error = Backend::new(Path::new("/no/such"), 1, counters.clone()).unwrap_err().to_string();
    assert!(error.contains("/no/such") && error.contains("--target"), "{error}");
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = Backend::new(file.path(), 1, counters).unwrap_err().to_string();
    assert!(error.contains("not a directory"), "{error}");
}
