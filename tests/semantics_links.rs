//! Symlinks, mounts and filesystems below the target: what docs/SEMANTICS.md says of them, through mounts at root, child
//! and grandchild.

mod common;

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

use bornite::observe::Counter;
use common::tree::list;
use common::{Cluster, DEPTHS, Plan, errno};
use rustix::io::Errno;

/// Where a link leads.
enum Leads<'a> {
    /// To this path below the target.
    Inside(&'a str),
    /// To this path, outside.
    Outside(PathBuf),
    /// Nowhere.
    Fails(Errno),
}

#[test]
fn links_mean_the_same_in_the_mount_and_at_the_original_path() {
    needs_fuse!("links_mean_the_same_in_the_mount_and_at_the_original_path");
    let dir = tempfile::tempdir().unwrap();
    let base = fs::canonicalize(dir.path()).unwrap();
    let target = base.join("scratch/env");
    for at in ["scratch/env/lib/python/site", "scratch/env/bin", "scratch/env2", "scratch/other"] {
        fs::create_dir_all(base.join(at)).unwrap();
    }
    for at in ["scratch/env/lib/python/site/module", "scratch/env/bin/tool", "scratch/env2/x", "scratch/other/y"] {
        fs::write(base.join(at), at).unwrap();
    }
    // The target by another name, as users write it.
    symlink("scratch", base.join("alias")).unwrap();
    let named = base.join("alias/env");
    let real = |path: &str| target.join(path).into_os_string().into_string().unwrap();
    let outside = |path: &str| base.join(path).into_os_string().into_string().unwrap();
    use Leads::{Fails, Inside, Outside};
    // Where it is, its text, its text as served, where it leads.
    let links: Vec<(&str, String, String, Leads<'_>)> = vec![
        ("lib/relative", "python/site/module".into(), "python/site/module".into(), Inside("lib/python/site/module")),
        ("lib/python/up", "../../bin/tool".into(), "../../bin/tool".into(), Inside("bin/tool")),
        ("lib/python/absolute", real("bin/tool"), "../../bin/tool".into(), Inside("bin/tool")),
        ("top", real("bin"), "bin".into(), Inside("bin")),
        ("lib/python/named", named.join("bin/tool").display().to_string(), "../../bin/tool".into(), Inside("bin/tool")),
        ("bin/whole", real(""), "..".into(), Inside("")),
        ("whole", real("").trim_end_matches('/').into(), ".".into(), Inside("")),
        ("lib/slashes", format!("{}//bin//tool", target.display()), "../bin//tool".into(), Inside("bin/tool")),
        ("lib/chain", real("lib/python/absolute"), "../lib/python/absolute".into(), Inside("bin/tool")),
        ("lib/outside", outside("scratch/other/y"), outside("scratch/other/y"), Outside(base.join("scratch/other/y"))),
        // A sibling that begins like the target lies outside.
        ("lib/sibling", outside("scratch/env2/x"), outside("scratch/env2/x"), Outside(base.join("scratch/env2/x"))),
        // A relative text that climbs out of the target would mean something else below the mount point.
        ("climbs", "../other/y".into(), outside("scratch/other/y"), Outside(base.join("scratch/other/y"))),
        ("lib/climbs", "../../env2/x".into(), outside("scratch/env2/x"), Outside(base.join("scratch/env2/x"))),
        ("lib/returns", "../../env/bin/tool".into(), "../bin/tool".into(), Inside("bin/tool")),
        ("bin/to base", "../../..".into(), base.display().to_string(), Outside(base.clone())),
        ("loop", "loop".into(), "loop".into(), Fails(Errno::LOOP)),
        ("lib/loop a", real("lib/loop b"), "../lib/loop b".into(), Fails(Errno::LOOP)),
        ("lib/loop b", "loop a".into(), "loop a".into(), Fails(Errno::LOOP)),
        ("dangling", "lib/nothing/there".into(), "lib/nothing/there".into(), Fails(Errno::NOENT)),
        ("lib/dangling", real("nothing"), "../nothing".into(), Fails(Errno::NOENT)),
        ("through a file", "bin/tool/x".into(), "bin/tool/x".into(), Fails(Errno::NOTDIR)),
    ];
    for (at, text, ..) in &links {
        symlink(text, target.join(at)).unwrap();
    }
    let cluster = Cluster::start(4, &named);
    for node in DEPTHS.into_iter().rev() {
        let mount = cluster.mount(node);
        for (at, _, served, leads) in &links {
            let link = mount.join(at);
            assert_eq!(fs::read_link(&link).unwrap(), Path::new(served), "text of {at} at node {node}");
            let meta = fs::symlink_metadata(&link).unwrap();
            assert_eq!(meta.len(), served.len() as u64, "st_size of {at} at node {node}");
            // The served text, put where the link is in the target, leads to the same.
            let original = target.join(at).parent().unwrap().join(served);
            match leads {
                Inside(path) => {
                    assert_eq!(fs::canonicalize(&link).unwrap(), trimmed(mount, path), "{at} at node {node}");
                    if !at.contains("loop") {
                        assert_eq!(fs::canonicalize(original).unwrap(), trimmed(&target, path), "{at} in the target");
                    }
                }
                Outside(path) => {
                    assert_eq!(fs::canonicalize(&link).unwrap(), *path, "{at} at node {node}");
                    assert_eq!(fs::canonicalize(original).unwrap(), *path, "{at} in the target");
                }
                Fails(expected) => {
                    assert_eq!(errno(fs::metadata(&link)), Some(*expected), "{at} at node {node}");
                    assert_eq!(errno(fs::metadata(target.join(at))), Some(*expected), "{at} in the target");
                }
            }
        }
    }
    assert_eq!(cluster.count(0, Counter::BackendReadlink), links.len() as u64, "each is read once");
    cluster.assert_only_root_asked();
}

fn trimmed(base: &Path, path: &str) -> PathBuf {
    if path.is_empty() { base.to_owned() } else { base.join(path) }
}

#[test]
fn with_the_whole_system_as_target_pseudo_filesystems_are_empty() {
    needs_fuse!("with_the_whole_system_as_target_pseudo_filesystems_are_empty");
    const PSEUDO: [&str; 8] = ["proc", "sysfs", "devtmpfs", "devpts", "cgroup", "cgroup2", "mqueue", "fuse.bornite"];
    let dir = tempfile::tempdir().unwrap();
    let base = fs::canonicalize(dir.path()).unwrap();
    fs::create_dir(base.join("mounts")).unwrap();
    fs::write(base.join("file"), b"content").unwrap();
    // Out of the root directory and back, as many `..` as one likes.
    let below = base.strip_prefix("/").unwrap();
    symlink(format!("{}{}", "../".repeat(30), below.join("file").display()), base.join("climbs")).unwrap();
    symlink("/proc/self", base.join("to proc")).unwrap();
    let cluster = Plan { mounts: Some(base.join("mounts")), ..Plan::new(4, Path::new("/")) }.start();
    let mounted = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut pseudo: Vec<PathBuf> = mounted
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            let at = fields.iter().position(|field| *field == "-")?;
            (PSEUDO.contains(&fields[at + 1]) && !fields[4].contains('\\')).then(|| fields[4].into())
        })
        .collect();
    // Those of other tests come and go.
    pseudo.retain(|path| !path.starts_with("/tmp") || path.starts_with(&base));
    assert!(pseudo.contains(&"/proc".into()) && pseudo.len() > 4, "{pseudo:?}");
    for node in DEPTHS.into_iter().rev() {
        let mount = cluster.mount(node);
        for path in &pseudo {
            let here = mount.join(path.strip_prefix("/").unwrap());
            // One pseudo filesystem inside another is not there at all.
            let inside = pseudo.iter().any(|other| other != path && path.starts_with(other));
            if inside {
                assert_eq!(errno(fs::symlink_metadata(&here)), Some(Errno::NOENT), "{} at node {node}", path.display());
            } else {
                assert!(fs::symlink_metadata(&here).unwrap().is_dir(), "{} at node {node}", path.display());
                assert_eq!(list(&here), Ok([].into()), "{} at node {node}", path.display());
                assert_eq!(errno(fs::metadata(here.join("self"))), Some(Errno::NOENT));
            }
        }
        // All else is as it is: another filesystem, the way up to it, and links.
        let here = mount.join(below);
        assert_eq!(fs::read(here.join("file")).unwrap(), b"content");
        let names = list(&here).unwrap();
        assert_eq!(names.into_keys().collect::<Vec<_>>(), ["climbs", "file", "mounts", "to proc"]);
        let root: Vec<_> = list(Path::new("/")).unwrap().into_keys().collect();
        assert_eq!(list(mount).unwrap().into_keys().collect::<Vec<_>>(), root);
        let climbs = fs::canonicalize(here.join("climbs")).unwrap();
        assert_eq!(climbs, here.join("file"), "a link beyond the root stays in the mount");
        assert_eq!(fs::metadata(&climbs).unwrap().dev(), fs::metadata(mount).unwrap().dev());
        let text = fs::read_link(here.join("to proc")).unwrap();
        assert!(text.as_os_str().as_bytes().ends_with(b"proc/self") && text.is_relative(), "{}", text.display());
        assert_eq!(
            errno(fs::metadata(here.join("to proc"))),
            Some(Errno::NOENT),
            "the root's processes are nobody else's"
        );
    }
    cluster.assert_only_root_asked();
}
