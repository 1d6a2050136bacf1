//! Control groups: what needs no controller runs everywhere with a v2 hierarchy; limits say when they cannot be tried.
use crate::support::*;
use kata_container::{Container, Step};
use kata_protocol::grpc;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

pub const TESTS: &[Test] = &[
    ("pause and resume", pause),
    ("processes and killing them all", pids),
    ("ids that are none", bad_ids),
    ("a group of that name exists", existing),
    ("a limit without its controller", missing_controller),
    ("groups that a container made", nested),
    ("exec into a container that manages groups", exec_nested),
    ("the device filter", device_filter),
    ("device rules are replaced", device_update),
    ("a device rule that is not understood", late_refusal),
    ("memory limit and OOM", memory),
    ("pids limit", pids_limit),
    ("cpu limit and weight", cpu),
    ("limits are changed", update),
    ("usage", stats),
];

fn skip_without(controller: &str) -> Option<Outcome> {
    (!has_controller(controller))
        .then(|| Outcome::Skipped(format!("no {controller} controller in the cgroup v2 hierarchy here")))
}

fn pause() -> Outcome {
    let mut running =
        Running::start(&image(), shell("i=0; while :; do i=$((i+1)); echo $i > /tmp/count; sleep 0.01; done"));
    let root = image().join("tmp/count");
    running.container.pause(WAIT).unwrap();
    let before = fs::read_to_string(&root).unwrap_or_default();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(fs::read_to_string(&root).unwrap_or_default(), before);
    let (stdio, _output) = streams();
    assert_eq!(
        running.container.exec(&process(&["true"]), None, stdio).err().map(|error| error.errno),
        Some(libc::EAGAIN)
    );
    running.container.resume(WAIT).unwrap();
    assert_eq!(running.exec("echo alive").out, "alive\n");
    running.container.pause(WAIT).unwrap();
    assert_eq!(running.kill().status, 137, "a paused container can be killed");
    let _ = fs::remove_file(root);
    Outcome::Done
}

fn pids() -> Outcome {
    let running = Running::start(&image(), shell("sleep 1000 & sleep 1000 & echo ready; wait"));
    assert_eq!(read_some(running.output.as_ref().unwrap()), "ready\n");
    let pids = running.container.pids().unwrap();
    assert_eq!(pids.len(), 3);
    assert!(pids.contains(&running.container.init.pid));
    assert_eq!(running.kill().status, 137);
    assert!(pids.iter().all(|pid| !std::path::Path::new(&format!("/proc/{pid}/exe")).exists()));
    Outcome::Done
}

fn bad_ids() -> Outcome {
    for id in ["", "..", "a/b", "x\0y", "-\n"] {
        let (stdio, _output) = streams();
        let mut params = params(&image(), spec(&["true"]), stdio);
        params.id = id.into();
        let error = Container::create(params).err().unwrap();
        assert_eq!((error.step, error.errno), (Step::Cgroup, libc::EINVAL), "{id:?}");
    }
    Outcome::Done
}

fn existing() -> Outcome {
    let running = Running::idle();
    let (stdio, _output) = streams();
    let mut params = params(&image(), spec(&["true"]), stdio);
    params.id = running.container.cgroup().file_name().unwrap().to_str().unwrap().to_owned();
    let error = Container::create(params).err().unwrap();
    assert_eq!((error.step, error.errno), (Step::Cgroup, libc::EEXIST));
    assert_eq!(running.exec("echo unharmed").out, "unharmed\n");
    running.kill();
    Outcome::Done
}

fn missing_controller() -> Outcome {
    if has_controller("memory") {
        return Outcome::Skipped("the memory controller is there".into());
    }
    let mut spec = spec(&["true"]);
    let memory = grpc::LinuxMemory { limit: 64 << 20, ..Default::default() };
    linux(&mut spec).resources = Some(grpc::LinuxResources { memory: Some(memory), ..Default::default() });
    let error = refusal(spec);
    assert_eq!((error.step, error.errno), (Step::Cgroup, libc::ENOENT));
    assert!(error.path.ends_with("/memory.max"), "{error}");
    Outcome::Done
}

fn writable_cgroups(script: &str) -> grpc::Spec {
    let mut spec = shell(script);
    for entry in spec.mounts.iter_mut().filter(|entry| entry.r#type == "cgroup") {
        entry.options = strings(&["rw", "nosuid", "noexec", "nodev"]);
    }
    spec
}

fn nested() -> Outcome {
    let script = "cd /sys/fs/cgroup; mkdir -p a/b/c d; sleep 1000 & echo $! > a/b/c/cgroup.procs; mkdir $(seq 2000) 2>/dev/null; echo ready; wait";
    let running = Running::start(&image(), writable_cgroups(script));
    assert_eq!(read_some(running.output.as_ref().unwrap()), "ready\n");
    assert_eq!(running.container.pids().unwrap().iter().filter(|pid| **pid != running.container.init.pid).count(), 1);
    running.kill();
    Outcome::Done
}

fn exec_nested() -> Outcome {
    let script = "cd /sys/fs/cgroup; mkdir init; echo 1 > init/cgroup.procs; for c in $(cat cgroup.controllers); do echo +$c > cgroup.subtree_control; done; echo ready; sleep 1000";
    let running = Running::start(&image(), writable_cgroups(script));
    assert_eq!(read_some(running.output.as_ref().unwrap()), "ready\n");
    let ended = running.exec("grep 0:: /proc/self/cgroup");
    let delegated =
        !fs::read_to_string(running.container.cgroup().join("cgroup.subtree_control")).unwrap().trim().is_empty();
    running.kill();
    if !delegated {
        return Outcome::Skipped("no controller to hand on here".into());
    }
    assert_eq!(ended.out, "0::/init\n");
    Outcome::Done
}

/// A device that a container has not by itself and that opening does no harm to: path, major, minor.
fn foreign_device() -> Option<(&'static str, i64, i64)> {
    let openable = |path: &&str| fs::File::open(path).is_ok();
    let path = ["/dev/loop-control", "/dev/fuse", "/dev/net/tun", "/dev/rtc0", "/dev/hwrng", "/dev/vsock", "/dev/kvm"]
        .into_iter()
        .find(openable)?;
    let device = fs::metadata(path).ok()?.rdev();
    Some((path, i64::from(libc::major(device)), i64::from(libc::minor(device))))
}

fn device_script(major: i64, minor: i64) -> String {
    format!("test -e /tmp/foreign || mknod /tmp/foreign c {major} {minor} && echo made; (: 3< /tmp/foreign) && echo opened; (: 3<> /tmp/foreign) && echo written; head -c 1 /dev/zero | wc -c")
}

fn device_rule(allow: bool, kind: &str, major: i64, minor: i64, access: &str) -> grpc::LinuxDeviceCgroup {
    grpc::LinuxDeviceCgroup { allow, r#type: kind.into(), major, minor, access: access.into() }
}

fn device_spec(script: &str, rules: &[grpc::LinuxDeviceCgroup]) -> grpc::Spec {
    let mut spec = limited(grpc::LinuxResources { devices: rules.to_vec(), ..Default::default() }, script);
    // A file system of this test: the scratch one may be mounted without devices.
    spec.mounts.push(mount("/tmp", "tmpfs", "tmpfs", ""));
    spec
}

/// What a run says when the kernel has no device filters.
fn no_filter(error: &kata_container::ContainerError) -> Option<Outcome> {
    (error.step == Step::Device && error.errno == libc::EINVAL)
        .then(|| Outcome::Skipped(format!("no eBPF device filters here: {error}")))
}

fn device_filter() -> Outcome {
    let Some((path, major, minor)) = foreign_device() else {
        return Outcome::Skipped("no device to try it with".into());
    };
    let script = device_script(major, minor);
    let denied = match try_run(device_spec(&script, &[])) {
        Err(error) => return no_filter(&error).unwrap_or_else(|| panic!("{error}")),
        Ok(ended) => ended,
    };
    assert_eq!(denied.out, "made\n1\n", "{path}: {}", denied.err);
    assert_eq!(denied.err.matches("Operation not permitted").count(), 2, "{}", denied.err);
    let everything = device_rule(false, "a", -1, -1, "rwm");
    let out = |rules: &[grpc::LinuxDeviceCgroup]| run(device_spec(&script, rules)).out;
    assert_eq!(out(&[everything.clone(), device_rule(true, "c", major, minor, "r")]), "made\nopened\n1\n");
    assert_eq!(out(&[everything, device_rule(true, "c", major, -1, "rw")]), "made\nopened\nwritten\n1\n");
    assert_eq!(out(&[device_rule(true, "a", -1, -1, "rwm")]), "made\nopened\nwritten\n1\n");
    Outcome::Done
}

fn device_update() -> Outcome {
    let Some((_, major, minor)) = foreign_device() else { return Outcome::Skipped("no device to try it with".into()) };
    let mut spec = device_spec("", &[]);
    spec.process.as_mut().unwrap().args = strings(&["sleep", "1000"]);
    let (stdio, output) = streams();
    let mut running = match Running::try_start(params(&image(), spec, stdio), output) {
        Err(error) => return no_filter(&error).unwrap_or_else(|| panic!("{error}")),
        Ok(running) => running,
    };
    let script = device_script(major, minor);
    assert_eq!(running.exec(&script).out, "made\n1\n");
    for (access, expected) in [("rw", "made\nopened\nwritten\n1\n"), ("r", "made\nopened\n1\n")] {
        let rules = vec![device_rule(true, "c", major, minor, access)];
        running.container.update(&grpc::LinuxResources { devices: rules, ..Default::default() }).unwrap();
        assert_eq!(running.exec(&script).out, expected, "{access}");
    }
    running.kill();
    Outcome::Done
}

fn limited(resources: grpc::LinuxResources, script: &str) -> grpc::Spec {
    let mut spec = shell(script);
    linux(&mut spec).resources = Some(resources);
    spec
}

fn memory() -> Outcome {
    if let Some(skipped) = skip_without("memory") {
        return skipped;
    }
    let memory = grpc::LinuxMemory { limit: 16 << 20, swap: 16 << 20, ..Default::default() };
    let resources = grpc::LinuxResources { memory: Some(memory), ..Default::default() };
    let script = "cat /sys/fs/cgroup/memory.max; dd if=/dev/zero of=/dev/null bs=64M count=1; echo survived $?";
    let mut running = Running::start(&image(), limited(resources, script));
    let ended = running.output.take().unwrap().end(running.container.init.pid);
    assert!(ended.out.starts_with("16777216\n"), "{ended:?}");
    assert_eq!(running.container.oom_kills(), 1, "{ended:?}");
    assert!(running.container.memory_events().exists());
    running.container.destroy(WAIT).unwrap();
    Outcome::Done
}

fn pids_limit() -> Outcome {
    if let Some(skipped) = skip_without("pids") {
        return skipped;
    }
    let resources = grpc::LinuxResources { pids: Some(grpc::LinuxPids { limit: 5 }), ..Default::default() };
    let running = Running::start(
        &image(),
        limited(resources, "cat /sys/fs/cgroup/pids.max; for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done; wait"),
    );
    assert_eq!(read_some(running.output.as_ref().unwrap()), "5\n");
    let ended = running.kill();
    assert!(ended.err.contains("fork") || ended.status == 137, "{ended:?}");
    Outcome::Done
}

fn cpu() -> Outcome {
    if let Some(skipped) = skip_without("cpu") {
        return skipped;
    }
    let cpu = grpc::LinuxCpu { shares: 2048, quota: 20_000, period: 100_000, ..Default::default() };
    let resources = grpc::LinuxResources { cpu: Some(cpu), ..Default::default() };
    assert_eq!(
        run(limited(resources, "cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/cpu.weight")).out,
        "20000 100000\n79\n"
    );
    Outcome::Done
}

fn update() -> Outcome {
    if let Some(skipped) = skip_without("pids") {
        return skipped;
    }
    let mut running = Running::idle();
    running
        .container
        .update(&grpc::LinuxResources { pids: Some(grpc::LinuxPids { limit: 33 }), ..Default::default() })
        .unwrap();
    assert_eq!(running.exec("cat /sys/fs/cgroup/pids.max").out, "33\n");
    running.kill();
    Outcome::Done
}

fn stats() -> Outcome {
    let mut running = Running::idle();
    let stats = running.container.stats().unwrap();
    assert!(stats.cpu_stats.unwrap().cpu_usage.unwrap().total_usage > 0);
    assert_eq!(stats.memory_stats.is_some(), has_controller("memory"));
    assert_eq!(stats.pids_stats.map(|pids| pids.current), has_controller("pids").then_some(1));
    running.container.kill_all().unwrap();
    running.output.take().unwrap().end(running.container.init.pid);
    running.container.destroy(WAIT).unwrap();
    assert!(running.container.stats().is_err());
    Outcome::Done
}

/// A refusal that comes when the process is already waiting leaves neither it nor its group behind.
fn late_refusal() -> Outcome {
    let mut spec = spec(&["true"]);
    let rules = vec![device_rule(true, "c", 1, 1, "rq")];
    linux(&mut spec).resources = Some(grpc::LinuxResources { devices: rules, ..Default::default() });
    let error = refusal(spec);
    assert_eq!((error.step, error.errno), (Step::Device, libc::EINVAL), "{error}");
    Outcome::Done
}
