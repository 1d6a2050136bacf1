//! Mounts, devices, masks, propagation, and images that try to break out of them.
use crate::support::*;
use kata_container::Step;
use kata_protocol::grpc;
use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{lchown, symlink, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

pub const TESTS: &[Test] = &[
    ("default devices and links", devices),
    ("devices of the spec", own_devices),
    ("masked and read-only paths", masks),
    ("a read-only root", read_only_root),
    ("bind mounts", binds),
    ("tmpfs and its options", tmpfs),
    ("volumes begin with what the image has", volumes),
    ("volumes that cannot or need not be filled", volumes_as_they_are),
    ("options that a file system refuses", bad_options),
    ("mount targets stay inside", targets_inside),
    ("nothing is mounted over proc", proc_is_safe),
    ("an image with hostile devices", hostile_dev),
    ("the guest's mounts are gone", guest_is_gone),
    ("propagation", propagation),
];

fn devices() -> Outcome {
    let ended = run(shell("stat -c '%n %t:%T %a' /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty; for l in fd stdin stdout stderr ptmx; do readlink /dev/$l; done; echo x > /dev/null; head -c 4 /dev/zero | wc -c"));
    let expected = "/dev/null 1:3 666\n/dev/zero 1:5 666\n/dev/full 1:7 666\n/dev/random 1:8 666\n/dev/urandom 1:9 666\n/dev/tty 5:0 666\n/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx\n4\n";
    assert_eq!(ended.out, expected, "{}", ended.err);
    Outcome::Done
}

fn own_devices() -> Outcome {
    let mut spec = shell("stat -c '%n %F %t:%T %a %u:%g' /dev/mine /dev/deep/er/disk /dev/pipe /dev/null");
    let device = |path: &str, kind: &str, major, minor, mode, uid, gid| grpc::LinuxDevice {
        path: path.into(),
        r#type: kind.into(),
        major,
        minor,
        file_mode: mode,
        uid,
        gid,
    };
    linux(&mut spec).devices = vec![
        device("/dev/mine", "c", 10, 200, 0o100600, 3, 4),
        device("/dev/deep/er/disk", "b", 254, 16, 0o640, 0, 6),
        device("/dev/pipe", "p", 0, 0, 0o620, 0, 0),
        device("/dev/null", "c", 1, 3, 0o640, 0, 0),
    ];
    let expected = "/dev/mine character special file a:c8 600 3:4\n/dev/deep/er/disk block special file fe:10 640 0:6\n/dev/pipe fifo 0:0 620 0:0\n/dev/null character special file 1:3 640 0:0\n";
    assert_eq!(run(spec.clone()).out, expected);
    for bad in
        [device("/dev/x", "q", 1, 1, 0, 0, 0), device("/dev/x", "c", -1, 1, 0, 0, 0), device("/", "c", 1, 1, 0, 0, 0)]
    {
        linux(&mut spec).devices = vec![bad];
        assert_eq!(refusal(spec.clone()).step, Step::Device);
    }
    Outcome::Done
}

fn masks() -> Outcome {
    let mut spec = shell("cat /secret; ls -A /hidden; echo x > /frozen/file; touch /frozen/new; echo $(cat /frozen/file); ls /proc/scsi 2>/dev/null | wc -l; echo 1 > /proc/sys/kernel/domainname");
    let root = fresh_rootfs("masks");
    fs::create_dir_all(root.join("hidden/below")).unwrap();
    fs::create_dir_all(root.join("frozen")).unwrap();
    fs::write(root.join("secret"), "secret").unwrap();
    fs::write(root.join("frozen/file"), "kept").unwrap();
    linux(&mut spec).masked_paths.extend(strings(&["/secret", "/hidden", "/not/there", "/secret/not/there"]));
    linux(&mut spec).readonly_paths.extend(strings(&["/frozen", "/not/there"]));
    let ended = try_run_at(&root, spec).unwrap();
    assert_eq!(ended.out, "kept\n0\n", "{}", ended.err);
    assert_eq!(ended.err.matches("Read-only file system").count(), 3, "{}", ended.err);
    Outcome::Done
}

fn read_only_root() -> Outcome {
    let mut spec = shell("touch /x 2>/dev/null && echo bad; touch /tmp/x 2>/dev/null && echo bad; touch /dev/shm/x && echo shm; echo y > /data/y && echo volume; pwd");
    let root = fresh_rootfs("read-only");
    let volume = base().join("volume");
    fs::create_dir_all(&volume).unwrap();
    spec.root.as_mut().unwrap().readonly = true;
    spec.process.as_mut().unwrap().cwd = "/work".into();
    spec.mounts.push(mount("/data", "bind", volume.to_str().unwrap(), "rbind,rw"));
    let ended = try_run_at(&root, spec).unwrap();
    assert_eq!(ended.out, "shm\nvolume\n/work\n", "{}", ended.err);
    assert_eq!(fs::read_to_string(volume.join("y")).unwrap(), "y\n");
    Outcome::Done
}

fn binds() -> Outcome {
    let source = base().join("bind");
    fs::create_dir_all(source.join("dir")).unwrap();
    fs::write(source.join("file"), "content\n").unwrap();
    let path = |name: &str| source.join(name).to_str().unwrap().to_owned();
    let mut spec = shell("cat /made/on/the/way/file; echo x >> /made/on/the/way/file; touch /rw/a /ro/b; grep -E ' /(rw|ro|way) ' /proc/self/mountinfo | cut -d' ' -f5,6");
    spec.mounts.push(mount("/made/on/the/way/file", "", &path("file"), "bind,ro"));
    spec.mounts.push(mount("/rw", "bind", &path("dir"), "rbind,rprivate,rw,nosuid,nodev,noexec"));
    spec.mounts.push(mount("/ro", "bind", &path("dir"), "rbind,ro"));
    let root = fresh_rootfs("binds");
    let ended = try_run_at(&root, spec.clone()).unwrap();
    assert_eq!(ended.out, "content\n/rw rw,nosuid,nodev,noexec,relatime\n/ro ro,relatime\n", "{}", ended.err);
    assert!(source.join("dir/a").exists() && !source.join("dir/b").exists());
    assert!(root.join("made/on/the/way/file").is_file() && root.join("rw").is_dir());
    spec.mounts.push(mount("/x", "bind", "/no/such/source", "bind"));
    let error = refusal(spec);
    assert_eq!((error.step, error.errno, error.path.as_str()), (Step::Mount, libc::ENOENT, "/no/such/source"));
    Outcome::Done
}

fn tmpfs() -> Outcome {
    let root = fresh_rootfs("tmpfs");
    fs::create_dir_all(root.join("seed/sub")).unwrap();
    fs::write(root.join("seed/sub/file"), "seed\n").unwrap();
    symlink("sub/file", root.join("seed/link")).unwrap();
    fs::set_permissions(root.join("seed/sub"), fs::Permissions::from_mode(0o711)).unwrap();
    std::os::unix::fs::chown(root.join("seed/sub/file"), Some(1000), Some(1001)).unwrap();
    let mut spec = shell("stat -c '%a' /small; dd if=/dev/zero of=/small/big bs=64k count=4 2>/dev/null || echo full; cat /seed/link; stat -c '%a %u:%g' /seed/sub /seed/sub/file; touch /seed/x 2>/dev/null || echo frozen; touch /again/x || echo remounted");
    spec.mounts.push(mount("/small", "tmpfs", "tmpfs", "mode=1700,size=128k,noexec"));
    spec.mounts.push(mount("/seed", "tmpfs", "tmpfs", "tmpcopyup,ro"));
    spec.mounts.push(mount("/again", "tmpfs", "tmpfs", ""));
    spec.mounts.push(mount("/again", "tmpfs", "tmpfs", "remount,ro"));
    let ended = try_run_at(&root, spec).unwrap();
    assert_eq!(ended.out, "1700\nfull\nseed\n711 0:0\n644 1000:1001\nfrozen\nremounted\n", "{}", ended.err);
    Outcome::Done
}

/// A bind of a new volume to be filled; `read_only`: by another path, as the host shares it.
fn volume(target: &str, name: &str, read_only: bool) -> (grpc::Mount, PathBuf) {
    let directory = base().join(name);
    fs::create_dir_all(&directory).unwrap();
    let path = directory.to_str().unwrap();
    let mut source = path.to_owned();
    if read_only {
        source += "-again";
        fs::create_dir(&source).unwrap();
        guest_mount(&["--bind", "-r", path, &source]);
    }
    let access = if read_only { "ro" } else { "rw" };
    (mount(target, "bind", &source, &format!("rbind,rprivate,{access},kata-ts.copyup={path}")), directory)
}

fn volumes() -> Outcome {
    let root = fresh_rootfs("volumes");
    let seed = root.join("seed");
    fs::create_dir_all(seed.join("sub")).unwrap();
    fs::write(seed.join("sub/file"), "content\n").unwrap();
    fs::hard_link(seed.join("sub/file"), seed.join("second-name")).unwrap();
    fs::write(seed.join("program"), "#!/bin/sh\n").unwrap();
    symlink("/etc/passwd", seed.join("link")).unwrap();
    fs::write(seed.join(OsStr::from_bytes(b"latin-\xe9")), "").unwrap();
    assert!(Command::new("mkfifo").args(["-m", "640"]).arg(seed.join("fifo")).status().unwrap().success());
    assert!(Command::new("mknod").arg(seed.join("device")).args(["c", "1", "3"]).status().unwrap().success());
    drop(UnixListener::bind(seed.join("socket")).unwrap());
    let owned = |name: &str, uid, gid, mode| {
        lchown(seed.join(name), Some(uid), Some(gid)).unwrap();
        fs::set_permissions(seed.join(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    owned("", 999, 998, 0o1711);
    owned("sub", 1000, 1001, 0o710);
    owned("program", 7, 8, 0o4755);
    lchown(seed.join("link"), Some(5), Some(6)).unwrap();
    let capability = b"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    set_capability(&seed.join("program"), capability);
    let long_ago = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    for name in ["sub/file", "sub", "."] {
        File::open(seed.join(name)).unwrap().set_modified(long_ago).unwrap();
    }
    // Where the image says, whatever its links: to another place of the image, and to nothing outside.
    fs::create_dir_all(root.join("other/sub/below")).unwrap();
    symlink("/other/sub", root.join("inside")).unwrap();
    fs::create_dir(root.join("frozen")).unwrap();
    fs::write(root.join("frozen/file"), "frozen\n").unwrap();
    lchown(root.join("frozen"), Some(999), Some(998)).unwrap();
    fs::create_dir(base().join("not-of-image")).unwrap();
    fs::write(base().join("not-of-image/secret"), "").unwrap();
    symlink(base().join("not-of-image"), root.join("escape")).unwrap();
    let mut spec = shell("echo changed > /seed/sub/file; cat /seed/second-name; touch /frozen/x; cat /frozen/file; stat -c '%u:%g %a' /frozen /seed /seed/sub; ls /inside /escape; cat /seed/below-own/from-image");
    fs::create_dir(seed.join("below-own")).unwrap();
    fs::write(seed.join("below-own/from-image"), "below\n").unwrap();
    File::open(&seed).unwrap().set_modified(long_ago).unwrap();
    let mut volumes = Vec::new();
    for (target, name, read_only) in [
        ("/seed", "filled", false),
        ("/seed/below-own", "filled-below", false),
        ("/frozen", "filled-ro", true),
        ("/inside", "filled-alias", false),
        ("/escape", "filled-escape", false),
        ("/absent/path", "filled-absent", false),
    ] {
        let (mount, directory) = volume(target, name, read_only);
        spec.mounts.push(mount);
        volumes.push(directory);
    }
    let ended = try_run_at(&root, spec).unwrap();
    assert_eq!(
        ended.out, "changed\nfrozen\n999:998 755\n999:998 1711\n1000:1001 710\n/escape:\n\n/inside:\nbelow\nbelow\n",
        "{}",
        ended.err
    );
    assert!(ended.err.contains("/frozen/x: Read-only file system"), "{}", ended.err);

    let filled = &volumes[0];
    let stat = |path: &str| fs::symlink_metadata(filled.join(path)).unwrap();
    assert_eq!((stat("program").mode() & 0o7777, stat("program").uid(), stat("program").gid()), (0o4755, 7, 8));
    assert_eq!((stat("link").uid(), fs::read_link(filled.join("link")).unwrap()), (5, PathBuf::from("/etc/passwd")));
    assert_eq!(stat("fifo").mode(), libc::S_IFIFO | 0o640);
    assert_eq!(get_capability(&filled.join("program")), capability);
    assert_eq!((stat("sub/file").ino(), stat("sub/file").nlink()), (stat("second-name").ino(), 2));
    assert_eq!(stat(".").mtime(), 1_000_000_000);
    let mut names: Vec<_> = fs::read_dir(filled).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    let latin = OsStr::from_bytes(b"latin-\xe9");
    let expected = ["below-own", "fifo"].map(OsStr::new).into_iter().chain([latin]);
    let expected: Vec<_> = expected.chain(["link", "program", "second-name", "sub"].map(OsStr::new)).collect();
    assert_eq!(names, expected);
    assert!(fs::read_dir(&volumes[5]).unwrap().next().is_none() && fs::read_dir(&volumes[4]).unwrap().next().is_none());
    // The image itself is as it was.
    assert_eq!(fs::read_to_string(seed.join("sub/file")).unwrap(), "content\n");
    Outcome::Done
}

fn volumes_as_they_are() -> Outcome {
    let root = fresh_rootfs("volumes-kept");
    fs::create_dir_all(root.join("seed")).unwrap();
    fs::write(root.join("seed/of-image"), "").unwrap();
    let (with_content, directory) = volume("/seed", "kept", false);
    fs::write(directory.join("of-user"), "").unwrap();
    let mut spec = shell("ls /seed");
    spec.mounts.push(with_content);
    assert_eq!(try_run_at(&root, spec).unwrap().out, "of-user\n");

    let mut on_file = shell("true");
    on_file.mounts.push(volume("/etc/passwd", "on-file", false).0);
    let error = try_run_at(&root, on_file).err().unwrap();
    assert_eq!((error.step, error.errno, error.path.as_str()), (Step::Mount, libc::ENOTDIR, "/etc/passwd"), "{error}");

    let mut deep = root.join("deep");
    fs::create_dir(&deep).unwrap();
    for _ in 0..260 {
        deep.push("d");
        fs::create_dir(&deep).unwrap();
    }
    let mut too_deep = shell("true");
    too_deep.mounts.push(volume("/deep", "too-deep", false).0);
    let error = try_run_at(&root, too_deep).err().unwrap();
    assert_eq!((error.step, error.errno), (Step::Mount, libc::ENAMETOOLONG));
    assert!(error.message.starts_with("copy ./d/d/d/"), "{error}");

    let mut absent = shell("true");
    absent.mounts.push(mount("/seed", "bind", directory.to_str().unwrap(), "bind,kata-ts.copyup=/no/such/volume"));
    let error = try_run_at(&root, absent).err().unwrap();
    assert_eq!((error.errno, error.path.as_str()), (libc::ENOENT, "/no/such/volume"));
    Outcome::Done
}

const CAPABILITY: &std::ffi::CStr = c"security.capability";

fn set_capability(path: &Path, value: &[u8]) {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: the value is as long as said; both strings outlive the call.
    let done = unsafe { libc::setxattr(path.as_ptr(), CAPABILITY.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

fn get_capability(path: &Path) -> Vec<u8> {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let mut value = vec![0_u8; 64];
    // SAFETY: the buffer is as long as said; both strings outlive the call.
    let length = unsafe { libc::getxattr(path.as_ptr(), CAPABILITY.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    value.truncate(usize::try_from(length).unwrap());
    value
}

fn bad_options() -> Outcome {
    for (kind, options) in [("tmpfs", "size=lots"), ("tmpfs", "no-such-option"), ("no-such-type", "")] {
        let mut spec = spec(&["true"]);
        spec.mounts.push(mount("/x", kind, "none", options));
        let error = refusal(spec);
        assert_eq!((error.step, error.path.as_str()), (Step::Mount, "/x"), "{error}");
    }
    let mut root = spec(&["true"]);
    root.mounts.push(mount("/../.", "tmpfs", "none", ""));
    assert_eq!(refusal(root).errno, libc::EINVAL);
    Outcome::Done
}

fn targets_inside() -> Outcome {
    let outside = base().join("outside");
    fs::create_dir_all(&outside).unwrap();
    fs::write(outside.join("file"), "host\n").unwrap();
    let root = fresh_rootfs("targets");
    let up = "../".repeat(20);
    symlink(&outside, root.join("absolute")).unwrap();
    symlink(format!("{up}{}", outside.display()), root.join("relative")).unwrap();
    symlink("/proc/1/root", root.join("magic")).unwrap();
    symlink("absolute/deep", root.join("chain")).unwrap();
    fs::remove_file(root.join("etc/group")).unwrap();
    symlink(outside.join("file"), root.join("etc/group")).unwrap();
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut spec = shell("true");
    let source = base().join("bind");
    fs::create_dir_all(&source).unwrap();
    for target in ["/absolute/a", "/relative/b", "/chain/c", "/../../d", "/magic/tmp/e"] {
        spec.mounts.push(mount(target, "tmpfs", "tmpfs", ""));
        spec.mounts.push(mount(target, "bind", source.to_str().unwrap(), "bind"));
    }
    spec.mounts.push(mount("/etc/group", "bind", "/bin/busybox", "bind,ro"));
    linux(&mut spec).masked_paths.extend(strings(&["/absolute", "/relative/b"]));
    linux(&mut spec).readonly_paths.push("/etc/group".into());
    linux(&mut spec).devices.push(grpc::LinuxDevice {
        path: "/absolute/dev".into(),
        r#type: "c".into(),
        major: 1,
        minor: 3,
        ..Default::default()
    });
    spec.process.as_mut().unwrap().cwd = "/absolute/cwd".into();
    let outcome = try_run_at(&root, spec);
    // Whether it runs or is refused: nothing outside the root has changed.
    if let Err(error) = &outcome {
        assert!(matches!(error.step, Step::Mount | Step::Device | Step::Chdir), "{error}");
    }
    let names: Vec<_> = fs::read_dir(&outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["file"]);
    assert_eq!(fs::read_to_string(outside.join("file")).unwrap(), "host\n");
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
    Outcome::Done
}

fn proc_is_safe() -> Outcome {
    let root = fresh_rootfs("proc");
    let source = base().join("bind");
    fs::create_dir_all(&source).unwrap();
    fs::write(source.join("meminfo"), "fake\n").unwrap();
    let directory = source.to_str().unwrap();
    let file = source.join("meminfo").to_str().unwrap().to_owned();
    symlink("/proc", root.join("alias")).unwrap();
    for (target, kind, source, options) in [
        ("/proc", "bind", directory, "bind"),
        ("/proc", "tmpfs", "tmpfs", ""),
        ("/proc/sys", "bind", directory, "bind"),
        ("/proc/self/attr", "tmpfs", "tmpfs", ""),
        ("/alias/sys/kernel", "bind", directory, "bind"),
        ("/proc/version", "bind", &file, "bind"),
        ("/sys/../proc/../proc/acpi", "tmpfs", "tmpfs", ""),
    ] {
        let mut spec = spec(&["true"]);
        spec.mounts.push(mount(target, kind, source, options));
        let error = try_run_at(&root, spec).err().unwrap_or_else(|| panic!("{target} was mounted"));
        assert!(error.step == Step::Mount && matches!(error.errno, libc::EPERM | libc::ENOENT), "{target}: {error}");
    }
    let mut allowed = shell("cat /proc/meminfo");
    allowed.mounts.push(mount("/proc/meminfo", "bind", &file, "bind,ro"));
    assert_eq!(try_run_at(&root, allowed).unwrap().out, "fake\n");
    // An image whose /proc is a link or a file decides nothing.
    for make in [(|path| symlink("data", path)) as fn(_) -> _, |path| fs::write(path, "")] {
        let _ = fs::remove_dir(root.join("proc")).or_else(|_| fs::remove_file(root.join("proc")));
        make(root.join("proc")).unwrap();
        let error = try_run_at(&root, spec(&["true"])).err().unwrap();
        assert!(error.step == Step::Mount && matches!(error.errno, libc::ELOOP | libc::ENOTDIR), "{error}");
    }
    Outcome::Done
}

fn hostile_dev() -> Outcome {
    let root = fresh_rootfs("hostile-dev");
    let victim = base().join("victim");
    fs::write(&victim, "kept\n").unwrap();
    for name in ["null", "zero", "console", "ptmx"] {
        symlink(format!("{}{}", "../".repeat(20), victim.display()), root.join("dev").join(name)).unwrap();
    }
    fs::write(root.join("dev/full"), "a file").unwrap();
    let mut spec = shell("stat -c '%n %t:%T' /dev/null /dev/zero /dev/full; readlink /dev/ptmx; echo x > /dev/null");
    // The image's own directory serves as /dev.
    spec.mounts.retain(|entry| entry.destination != "/dev");
    let ended = try_run_at(&root, spec).unwrap();
    assert_eq!(ended.out, "/dev/null 1:3\n/dev/zero 1:5\n/dev/full 1:7\npts/ptmx\n", "{}", ended.err);
    assert_eq!(fs::read_to_string(&victim).unwrap(), "kept\n");
    assert_eq!(fs::metadata(&victim).unwrap().mode() & 0o170_000, 0o100_000);
    Outcome::Done
}

fn guest_is_gone() -> Outcome {
    let listing = run(shell("cut -d' ' -f5 /proc/self/mountinfo")).out;
    let expected = ["/", "/dev", "/dev/mqueue", "/dev/pts", "/dev/shm", "/proc", "/sys", "/sys/fs/cgroup"];
    let mut mounts: Vec<&str> =
        listing.lines().filter(|line| !line.starts_with("/proc/") && !line.starts_with("/sys/firmware")).collect();
    mounts.sort_unstable();
    assert_eq!(mounts, expected);
    assert_eq!(run(shell("ls / | sort | head -3")).out, "bin\ndata\ndev\n");
    Outcome::Done
}

fn propagation() -> Outcome {
    let with = |kind: &str| {
        let mut spec = shell(
            "grep -E '^[0-9]+ [0-9]+ [0-9:]+ [^ ]+ / ' /proc/self/mountinfo | grep -o -E 'shared|master|unbindable'",
        );
        linux(&mut spec).rootfs_propagation = kind.into();
        spec
    };
    for (kind, expected) in [
        ("", ""),
        ("private", ""),
        ("rprivate", ""),
        ("slave", ""),
        ("shared", "shared\n"),
        ("rshared", "shared\n"),
        ("unbindable", "unbindable\n"),
    ] {
        assert_eq!(run(with(kind)).out, expected, "{kind}");
    }
    let error = refusal(with("sideways"));
    assert_eq!((error.step, error.errno), (Step::Rootfs, libc::EINVAL));
    // What a guest mounts later arrives in a slave, and what a container mounts does not arrive in the guest.
    let source = base().join("propagated");
    fs::create_dir_all(source.join("later")).unwrap();
    guest_mount(&["--bind", source.to_str().unwrap(), source.to_str().unwrap()]);
    guest_mount(&["--make-shared", source.to_str().unwrap()]);
    let mut spec = shell(
        "mount -t tmpfs own /mnt/own; echo ready; while ! test -e /mnt/later/file; do sleep 0.05; done; echo arrived",
    );
    spec.mounts.push(mount("/mnt", "bind", source.to_str().unwrap(), "rbind,rslave"));
    let capabilities = spec.process.as_mut().unwrap().capabilities.as_mut().unwrap();
    for set in [&mut capabilities.bounding, &mut capabilities.effective, &mut capabilities.permitted] {
        set.push("CAP_SYS_ADMIN".into());
    }
    fs::create_dir_all(source.join("own")).unwrap();
    let running = Running::start(&image(), spec);
    assert_eq!(read_some(running.output.as_ref().unwrap()), "ready\n");
    assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains("propagated/own"));
    guest_mount(&["-t", "tmpfs", "later", source.join("later").to_str().unwrap()]);
    fs::write(source.join("later/file"), "").unwrap();
    assert_eq!(running.end().out, "arrived\n");
    Outcome::Done
}

fn guest_mount(arguments: &[&str]) {
    assert!(std::process::Command::new("mount").args(arguments).status().unwrap().success(), "mount {arguments:?}");
}
