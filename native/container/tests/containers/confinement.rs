//! Capabilities, seccomp, limits, kernel parameters, namespaces.
use crate::support::*;
use kata_container::Step;
use kata_protocol::grpc::{self, linux_syscall::ErrnoRet};
use std::fs;
use std::os::fd::AsRawFd;
use std::time::Duration;

pub const TESTS: &[Test] = &[
    ("capabilities", capabilities),
    ("no_new_privileges", no_new_privileges),
    ("seccomp denies", seccomp),
    ("seccomp holds in every order of privileges", seccomp_orders),
    ("resource limits", resource_limits),
    ("kernel parameters", kernel_parameters),
    ("host name", host_name),
    ("namespaces joined by path", joined_namespaces),
    ("a pid namespace shared by two containers", shared_pid_namespace),
    ("a pid namespace that no container owns", held_pid_namespace),
    ("a user namespace", user_namespace),
    ("a time namespace", time_namespace),
    ("oom_score_adj", oom_score),
];

const STATUS: &str = "grep -E '^Cap' /proc/self/status | cut -f2";

fn capabilities() -> Outcome {
    // inheritable, permitted, effective, bounding, ambient
    assert_eq!(
        run(shell(STATUS)).out,
        "0000000000000000\n00000000a80425fb\n00000000a80425fb\n00000000a80425fb\n0000000000000000\n"
    );
    let mut none = shell(STATUS);
    none.process.as_mut().unwrap().capabilities = None;
    assert_eq!(run(none).out, "0000000000000000\n".repeat(5));
    let mut ambient = shell(STATUS);
    let names = strings(&["CAP_NET_BIND_SERVICE", "CAP_KILL"]);
    let process = ambient.process.as_mut().unwrap();
    process.user = Some(grpc::User { uid: 1000, gid: 1000, ..Default::default() });
    process.capabilities = Some(grpc::LinuxCapabilities {
        bounding: names.clone(),
        effective: names.clone(),
        inheritable: names.clone(),
        permitted: names.clone(),
        ambient: names,
    });
    assert_eq!(run(ambient).out, "0000000000000420\n".repeat(5));
    let mut user = shell(STATUS);
    user.process.as_mut().unwrap().user = Some(grpc::User { uid: 1000, gid: 1000, ..Default::default() });
    assert_eq!(run(user).out.lines().nth(2), Some("0000000000000000"));
    let mut unknown = spec(&["true"]);
    unknown.process.as_mut().unwrap().capabilities.as_mut().unwrap().bounding.push("CAP_TIME_TRAVEL".into());
    let error = refusal(unknown);
    assert_eq!((error.step, error.path.as_str()), (Step::Capabilities, "CAP_TIME_TRAVEL"));
    Outcome::Done
}

fn no_new_privileges() -> Outcome {
    let mut spec = shell("grep NoNewPrivs /proc/self/status");
    spec.process.as_mut().unwrap().no_new_privileges = true;
    assert_eq!(run(spec).out, "NoNewPrivs:\t1\n");
    Outcome::Done
}

fn profile(default: &str, rules: &[(&[&str], &str, Option<u32>)]) -> grpc::LinuxSeccomp {
    let rules = rules.iter().map(|(names, action, errno)| grpc::LinuxSyscall {
        names: strings(names),
        action: (*action).into(),
        args: vec![],
        errno_ret: errno.map(ErrnoRet::Errnoret),
    });
    grpc::LinuxSeccomp {
        default_action: default.into(),
        architectures: strings(&["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]),
        flags: vec![],
        syscalls: rules.collect(),
    }
}

fn deny_mkdir() -> grpc::LinuxSeccomp {
    profile(
        "SCMP_ACT_ALLOW",
        &[
            (&["mkdir", "mkdirat"], "SCMP_ACT_ERRNO", None),
            (&["sethostname"], "SCMP_ACT_ERRNO", Some(71)),
            (&["sync"], "SCMP_ACT_KILL_PROCESS", None),
        ],
    )
}

fn seccomp() -> Outcome {
    let mut spec = shell("grep Seccomp: /proc/self/status; mkdir /tmp/x; hostname other; sync; echo $?");
    linux(&mut spec).seccomp = Some(deny_mkdir());
    spec.process.as_mut().unwrap().args[0] = "/bin/sh".into();
    let ended = run(spec);
    assert_eq!(ended.out, "Seccomp:\t2\n159\n", "128 + SIGSYS: {}", ended.err);
    assert!(ended.err.contains("Operation not permitted") && ended.err.contains("Protocol error"), "{}", ended.err);
    let mut broken = shell("true");
    linux(&mut broken).seccomp = Some(profile("SCMP_ACT_PERHAPS", &[]));
    assert_eq!(refusal(broken).step, Step::Seccomp);
    Outcome::Done
}

fn seccomp_orders() -> Outcome {
    for (uid, nnp) in [(0, false), (0, true), (1000, false), (1000, true)] {
        let mut spec = shell(&format!("mkdir /tmp/y; grep -E 'Seccomp:|CapPrm' /proc/self/status; {STATUS}"));
        linux(&mut spec).seccomp = Some(deny_mkdir());
        let process = spec.process.as_mut().unwrap();
        process.no_new_privileges = nnp;
        process.user = Some(grpc::User { uid, gid: uid, ..Default::default() });
        let ended = run(spec.clone());
        assert!(ended.err.contains("Operation not permitted"), "{uid} {nnp}: {ended:?}");
        assert!(ended.out.contains("Seccomp:\t2"), "{uid} {nnp}: {ended:?}");
        // CAP_SYS_ADMIN, kept to load the filter, is not there afterwards.
        let permitted = if uid == 0 { "00000000a80425fb" } else { "0000000000000000" };
        assert!(ended.out.contains(&format!("CapPrm:\t{permitted}")), "{uid} {nnp}: {ended:?}");
        spec.process.as_mut().unwrap().args = strings(&["sleep", "1000"]);
        let running = Running::start(&image(), spec);
        let ended = running.exec("grep Seccomp: /proc/self/status; mkdir /tmp/z");
        assert!(ended.out.contains("Seccomp:\t2") && ended.err.contains("Operation not permitted"), "{ended:?}");
        running.kill();
    }
    Outcome::Done
}

fn resource_limits() -> Outcome {
    let mut spec = shell("ulimit -n; ulimit -Hn; ulimit -c");
    let limit = |name: &str, soft, hard| grpc::PosixRlimit { r#type: name.into(), soft, hard };
    spec.process.as_mut().unwrap().rlimits = vec![limit("RLIMIT_NOFILE", 77, 99), limit("RLIMIT_CORE", 0, 0)];
    assert_eq!(run(spec.clone()).out, "77\n99\n0\n");
    // Few descriptors leave enough to get as far as the command.
    spec.process.as_mut().unwrap().rlimits = vec![limit("RLIMIT_NOFILE", 4, 4)];
    assert_eq!(run(spec.clone()).out.lines().next(), Some("4"));
    for bad in [limit("RLIMIT_FUN", 1, 1), limit("RLIMIT_NOFILE", 9, 8)] {
        spec.process.as_mut().unwrap().rlimits = vec![bad.clone()];
        let error = refusal(spec.clone());
        assert_eq!((error.step, error.path), (Step::Rlimit, bad.r#type));
    }
    Outcome::Done
}

fn kernel_parameters() -> Outcome {
    let before = fs::read_to_string("/proc/sys/kernel/shmmni").unwrap();
    let mut spec = shell("cat /proc/sys/kernel/shmmni /proc/sys/kernel/sem /proc/sys/fs/mqueue/msg_max");
    let values = [("kernel.shmmni", "1234"), ("kernel.sem", "250 64000 32 256"), ("fs.mqueue.msg_max", "99")];
    linux(&mut spec).sysctl = values.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    assert_eq!(run(spec.clone()).out, "1234\n250\t64000\t32\t256\n99\n");
    assert_eq!(fs::read_to_string("/proc/sys/kernel/shmmni").unwrap(), before, "the guest's own value");
    for (name, errno) in [
        ("kernel.core_pattern", libc::EPERM),
        ("vm.swappiness", libc::EPERM),
        ("net.no_such_thing", libc::ENOENT),
        ("kernel/sem/../modprobe", libc::EINVAL),
    ] {
        linux(&mut spec).sysctl = [(name.to_owned(), "1".to_owned())].into();
        let error = refusal(spec.clone());
        assert_eq!((error.step, error.errno, error.path.as_str()), (Step::Sysctl, errno, name), "{error}");
    }
    linux(&mut spec).namespaces.retain(|entry| entry.r#type != "ipc");
    linux(&mut spec).sysctl = [("kernel.shmmni".to_owned(), "1".to_owned())].into();
    assert_eq!(refusal(spec).errno, libc::EPERM);
    assert_eq!(fs::read_to_string("/proc/sys/kernel/shmmni").unwrap(), before);
    Outcome::Done
}

fn host_name() -> Outcome {
    let ours = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(run(shell("hostname")).out, "box\n");
    let mut without = shell("hostname");
    linux(&mut without).namespaces.retain(|entry| entry.r#type != "uts");
    assert_eq!(run(without).out, ours, "without a namespace of its own the name stays");
    let mut long = shell("hostname");
    long.hostname = "x".repeat(65);
    assert_eq!(refusal(long).step, Step::Namespace);
    Outcome::Done
}

fn joined_namespaces() -> Outcome {
    let running = Running::idle();
    let pid = running.container.init.pid;
    let mut spec = shell("hostname; readlink /proc/self/ns/ipc; readlink /proc/self/ns/uts");
    spec.hostname.clear();
    linux(&mut spec).namespaces = vec![
        namespace("mount", ""),
        namespace("pid", ""),
        namespace("ipc", &format!("/proc/{pid}/ns/ipc")),
        namespace("uts", &format!("/proc/{pid}/ns/uts")),
    ];
    let link = |name: &str| fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap().display().to_string();
    assert_eq!(run(spec.clone()).out, format!("box\n{}\n{}\n", link("ipc"), link("uts")));
    let second = Running::start(&image(), {
        spec.process.as_mut().unwrap().args = strings(&["sleep", "1000"]);
        spec.clone()
    });
    assert_eq!(second.exec("hostname; readlink /proc/self/ns/ipc").out, format!("box\n{}\n", link("ipc")));
    second.kill();
    linux(&mut spec).namespaces[2].path = "/etc/passwd".into();
    assert_eq!(refusal(spec).step, Step::Namespace);
    running.kill();
    Outcome::Done
}

fn shared_pid_namespace() -> Outcome {
    let running = Running::idle();
    let path = format!("/proc/{}/ns/pid", running.container.init.pid);
    let mut spec = shell("ps -o args | grep -x 'sleep 1000'; test $$ != 1 && echo guest; sleep 0");
    // A host adds an entry, and the agent adds another.
    linux(&mut spec).namespaces.push(namespace("pid", &path));
    let ended = run(spec);
    assert_eq!(ended.out, "sleep 1000\nguest\n");
    let child = std::process::Command::new("/bin/sh").args(["-c", "readlink /proc/self/ns/pid"]).output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&child.stdout).trim(),
        fs::read_link("/proc/self/ns/pid").unwrap().to_str().unwrap()
    );
    running.kill();
    Outcome::Done
}

fn held_pid_namespace() -> Outcome {
    let pending = kata_container::hold_pid_namespace().unwrap();
    let holder = pending.pid();
    let held = pending.wait(Duration::from_secs(60)).unwrap();
    let path = format!("/proc/self/fd/{}", held.as_raw_fd());
    // An orphan is reaped, and no signal from inside ends the holder.
    let script = "(sleep 0 &); sleep 1; ps -o comm,stat; kill -9 1; grep -E '^Cap' /proc/1/status";
    for _ in 0..2 {
        let mut spec = shell(script);
        linux(&mut spec).namespaces.push(namespace("pid", &path));
        let out = run(spec).out;
        assert!(out.contains("pause") && !out.contains('Z'), "{out}");
        assert_eq!(out.matches("0000000000000000").count(), 5, "{out}");
    }
    let status = fs::read_to_string(format!("/proc/{holder}/status")).unwrap();
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    assert_eq!(fs::read_dir(format!("/proc/{holder}/root/")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(format!("/proc/{holder}/fd")).unwrap().count(), 0);
    // SAFETY: the pid of our own child, which nobody else reaps.
    unsafe {
        libc::kill(holder, libc::SIGKILL);
        libc::waitpid(holder, std::ptr::null_mut(), 0);
    }
    let mut late = shell("true");
    linux(&mut late).namespaces.push(namespace("pid", &path));
    assert_eq!(refusal(late).errno, libc::ESRCH);
    Outcome::Done
}

fn user_namespace() -> Outcome {
    let mut spec = shell("id -u; cut -c1-40 /proc/self/uid_map; touch /tmp/mine && stat -c %u /tmp/mine; echo x > /dev/null && echo null");
    let root = fresh_rootfs("userns");
    let mapping = |host| vec![grpc::LinuxIdMapping { host_id: host, container_id: 0, size: 65_536 }];
    linux(&mut spec).uid_mappings = mapping(100_000);
    linux(&mut spec).gid_mappings = mapping(100_000);
    linux(&mut spec).namespaces.push(namespace("user", ""));
    linux(&mut spec).namespaces.push(namespace("network", ""));
    let status = std::process::Command::new("chown")
        .args(["-R", "100000:100000"])
        .arg(root.join("tmp"))
        .arg(root.join("dev"))
        .status()
        .unwrap();
    assert!(status.success());
    std::os::unix::fs::chown(&root, Some(100_000), Some(100_000)).unwrap();
    let ended = match try_run_at(&root, spec.clone()) {
        Err(error) if error.step == Step::Namespace && error.errno == libc::ENOSPC => {
            return Outcome::Skipped("user namespaces are off (user.max_user_namespaces)".into())
        }
        outcome => outcome.unwrap(),
    };
    assert_eq!(ended.out, "0\n         0     100000      65536\n0\nnull\n", "{}", ended.err);
    spec.process.as_mut().unwrap().args = strings(&["sleep", "1000"]);
    let running = Running::start(&root, spec);
    assert_eq!(running.exec("id -u; readlink /proc/self/ns/user | wc -l").out, "0\n1\n");
    running.kill();
    Outcome::Done
}

fn time_namespace() -> Outcome {
    if !std::path::Path::new("/proc/self/ns/time").exists() {
        return Outcome::Skipped("the kernel has no time namespaces".into());
    }
    let mut spec = spec(&["sleep", "1000"]);
    linux(&mut spec).namespaces.push(namespace("time", ""));
    let running = Running::start(&image(), spec);
    let theirs = fs::read_link(format!("/proc/{}/ns/time", running.container.init.pid)).unwrap();
    assert_ne!(theirs, fs::read_link("/proc/self/ns/time").unwrap());
    assert_eq!(running.exec("readlink /proc/self/ns/time").out.trim(), theirs.to_str().unwrap());
    running.kill();
    Outcome::Done
}

fn oom_score() -> Outcome {
    let mut spec = shell("cat /proc/self/oom_score_adj");
    spec.process.as_mut().unwrap().oom_score_adj = 321;
    assert_eq!(run(spec.clone()).out, "321\n");
    spec.process.as_mut().unwrap().oom_score_adj = 5000;
    assert_eq!(refusal(spec).step, Step::Rlimit);
    Outcome::Done
}
