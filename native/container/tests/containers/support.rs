//! A scratch mount namespace with a busybox root file system, and containers in it.
use kata_container::{Container, ContainerError, CreateParams, Pending, Process, Result, Stdio};
use kata_protocol::grpc;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{symlink, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

pub enum Outcome {
    Done,
    Skipped(String),
}

pub type Test = (&'static str, fn() -> Outcome);

pub const WAIT: Duration = Duration::from_secs(30);
const APPLETS: &str = "sh cat echo id ls env true false sleep kill mount umount hostname pwd stat touch mkdir mknod readlink head grep ps tty stty dd ln chroot seq wc cut sysctl sort test nice dmesg setsid sync";
const UNIFIED: [&str; 2] = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];

pub fn base() -> PathBuf {
    std::env::temp_dir().join(format!("kata-containers-{}", std::process::id()))
}

/// Root of the cgroup v2 hierarchy.
fn unified() -> Option<&'static str> {
    UNIFIED.into_iter().find(|path| Path::new(path).join("cgroup.controllers").exists())
}

pub fn cgroup_parent() -> PathBuf {
    Path::new(unified().unwrap_or_default()).join(format!("kata-test-{}", std::process::id()))
}

/// Whether a controller can limit containers here.
pub fn has_controller(name: &str) -> bool {
    fs::read_to_string(cgroup_parent().join("cgroup.controllers"))
        .unwrap_or_default()
        .split_whitespace()
        .any(|one| one == name)
}

/// A mount namespace of our own with a tmpfs at `base()`: whatever a test mounts ends with this process.
pub fn prepare() -> std::result::Result<(), String> {
    // SAFETY: constant strings; geteuid cannot fail.
    unsafe {
        if libc::geteuid() != 0 {
            return Err("not root".into());
        }
        if libc::unshare(libc::CLONE_NEWNS) < 0 {
            return Err(format!("unshare: {}", io::Error::last_os_error()));
        }
        libc::mount(
            c"none".as_ptr(),
            c"/".as_ptr(),
            std::ptr::null(),
            libc::MS_REC | libc::MS_PRIVATE,
            std::ptr::null(),
        );
        // Orphans of containers come to us, as they come to PID 1 in the guest.
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    }
    // As the agent does; without it an initramfs could not be left.
    kata_container::make_root_pivotable().map_err(|error| error.to_string())?;
    let hierarchy = unified().ok_or("no cgroup v2 hierarchy")?;
    for controller in
        fs::read_to_string(format!("{hierarchy}/cgroup.controllers")).unwrap_or_default().split_whitespace()
    {
        let _ = fs::write(format!("{hierarchy}/cgroup.subtree_control"), format!("+{controller}"));
    }
    fs::create_dir_all(base()).and_then(|()| fs::create_dir(cgroup_parent())).map_err(|error| error.to_string())?;
    let target = std::ffi::CString::new(base().to_str().unwrap()).unwrap();
    // SAFETY: the strings outlive the call.
    if unsafe { libc::mount(c"tmpfs".as_ptr(), target.as_ptr(), c"tmpfs".as_ptr(), 0, c"mode=755".as_ptr().cast()) } < 0
    {
        return Err(format!("tmpfs: {}", io::Error::last_os_error()));
    }
    make_rootfs(&base().join("image")).map_err(|error| format!("root file system: {error}"))
}

fn make_rootfs(root: &Path) -> io::Result<()> {
    for directory in ["bin", "etc", "proc", "sys", "dev", "tmp", "root", "home/web", "usr/bin", "data"] {
        fs::create_dir_all(root.join(directory))?;
    }
    fs::copy("/bin/busybox", root.join("bin/busybox"))?;
    for applet in APPLETS.split(' ') {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1001::/home/web:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\nvideo:x:44:web\nweb:x:1001:\n")?;
    fs::write(root.join("bin/not-executable"), "#!/bin/sh\n")?;
    fs::write(root.join("bin/not-a-program"), "neither ELF nor script\n")?;
    fs::set_permissions(root.join("bin/not-a-program"), fs::Permissions::from_mode(0o755))?;
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))
}

/// What tests left behind: cgroups and processes.
pub fn residue() -> Vec<String> {
    reap_all();
    let groups = fs::read_dir(cgroup_parent()).into_iter().flatten().flatten();
    let mut left: Vec<String> =
        groups.filter(|entry| entry.path().is_dir()).map(|entry| format!("cgroup {:?}", entry.file_name())).collect();
    let children = fs::read_to_string(format!("/proc/self/task/{}/children", std::process::id())).unwrap_or_default();
    left.extend(children.split_whitespace().map(|pid| format!("process {pid}")));
    left
}

fn reap_all() {
    for _ in 0..200 {
        // SAFETY: a null status is allowed.
        match unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } {
            -1 => return,
            0 => std::thread::sleep(Duration::from_millis(5)),
            _ => {}
        }
    }
}

pub fn clean_up() {
    let _ = fs::remove_dir(cgroup_parent());
    let path = std::ffi::CString::new(base().to_str().unwrap()).unwrap();
    // SAFETY: the path outlives the call.
    unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
    let _ = fs::remove_dir(base());
}

/// A copy of the image for one test that changes it. Hard links save space; what a test replaces it removes first.
pub fn fresh_rootfs(name: &str) -> PathBuf {
    let root = base().join(format!("root-{name}"));
    let status = std::process::Command::new("cp").args(["-al"]).arg(base().join("image")).arg(&root).status().unwrap();
    assert!(status.success());
    root
}

pub fn mount(destination: &str, kind: &str, source: &str, options: &str) -> grpc::Mount {
    let options = options.split(',').filter(|option| !option.is_empty()).map(str::to_owned).collect();
    grpc::Mount { destination: destination.into(), source: source.into(), r#type: kind.into(), options }
}

pub fn namespace(kind: &str, path: &str) -> grpc::LinuxNamespace {
    grpc::LinuxNamespace { r#type: kind.into(), path: path.into() }
}

pub fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

pub fn docker_capabilities() -> grpc::LinuxCapabilities {
    let names = strings(&[
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FSETID",
        "CAP_FOWNER",
        "CAP_MKNOD",
        "CAP_NET_RAW",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETFCAP",
        "CAP_SETPCAP",
        "CAP_NET_BIND_SERVICE",
        "CAP_SYS_CHROOT",
        "CAP_KILL",
        "CAP_AUDIT_WRITE",
    ]);
    grpc::LinuxCapabilities {
        bounding: names.clone(),
        effective: names.clone(),
        permitted: names,
        ..Default::default()
    }
}

pub fn process(args: &[&str]) -> grpc::Process {
    grpc::Process {
        args: strings(args),
        env: strings(&["PATH=/bin:/usr/bin"]),
        cwd: "/".into(),
        capabilities: Some(docker_capabilities()),
        ..Default::default()
    }
}

/// What Docker sends, for `sh -c script`.
pub fn shell(script: &str) -> grpc::Spec {
    spec(&["sh", "-c", script])
}

pub fn spec(args: &[&str]) -> grpc::Spec {
    let masked =
        ["/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi", "/sys/firmware"];
    let readonly = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
    grpc::Spec {
        version: "1.2.0".into(),
        process: Some(process(args)),
        root: Some(grpc::Root { path: "rootfs".into(), readonly: false }),
        hostname: "box".into(),
        mounts: vec![
            mount("/proc", "proc", "proc", "nosuid,noexec,nodev"),
            mount("/dev", "tmpfs", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
            mount("/dev/pts", "devpts", "devpts", "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"),
            mount("/dev/shm", "tmpfs", "shm", "nosuid,noexec,nodev,mode=1777,size=65536k"),
            mount("/dev/mqueue", "mqueue", "mqueue", "nosuid,noexec,nodev"),
            mount("/sys", "sysfs", "sysfs", "nosuid,noexec,nodev,ro"),
            mount("/sys/fs/cgroup", "cgroup", "cgroup", "ro,nosuid,noexec,nodev,relatime"),
        ],
        linux: Some(grpc::Linux {
            namespaces: ["pid", "ipc", "uts", "mount", "cgroup"].map(|kind| namespace(kind, "")).to_vec(),
            masked_paths: strings(&masked),
            readonly_paths: strings(&readonly),
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub fn linux(spec: &mut grpc::Spec) -> &mut grpc::Linux {
    spec.linux.as_mut().unwrap()
}

pub fn pipe() -> (OwnedFd, OwnedFd) {
    let mut pair = [0; 2];
    // SAFETY: two descriptors, as pipe2 wants, and both are ours.
    unsafe {
        assert_eq!(libc::pipe2(pair.as_mut_ptr(), libc::O_CLOEXEC), 0);
        (OwnedFd::from_raw_fd(pair[0]), OwnedFd::from_raw_fd(pair[1]))
    }
}

/// The readable ends of a process's output.
pub struct Output(OwnedFd, OwnedFd);

pub fn streams() -> (Stdio, Output) {
    let (out, out_writer) = pipe();
    let (err, err_writer) = pipe();
    let input = File::open("/dev/null").unwrap();
    (Stdio::Streams([input.into(), out_writer, err_writer]), Output(out, err))
}

#[derive(Debug)]
pub struct Ended {
    /// Exit code, or 128 + signal.
    pub status: i32,
    pub out: String,
    pub err: String,
}

pub fn wait_for(pid: i32) -> i32 {
    let mut status = 0;
    // SAFETY: the integer outlives the call.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!(waited, pid, "{}", io::Error::last_os_error());
    if libc::WIFSIGNALED(status) {
        return 128 + libc::WTERMSIG(status);
    }
    libc::WEXITSTATUS(status)
}

impl Output {
    pub fn end(self, pid: i32) -> Ended {
        let status = wait_for(pid);
        let read = |fd: OwnedFd| {
            let mut text = Vec::new();
            File::from(fd).read_to_end(&mut text).unwrap();
            String::from_utf8_lossy(&text).into_owned()
        };
        Ended { status, out: read(self.0), err: read(self.1) }
    }
}

pub fn params(rootfs: &Path, spec: grpc::Spec, stdio: Stdio) -> CreateParams {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    CreateParams {
        id: format!("c{}", NEXT.fetch_add(1, Ordering::Relaxed)),
        rootfs: rootfs.into(),
        spec,
        string_user: None,
        cgroup_parent: cgroup_parent(),
        oom_group: false,
        stdio,
    }
}

/// Waits, and reaps the process when it could not be made.
pub fn settle<T>(pending: Pending<T>) -> Result<T> {
    let pid = pending.pid();
    pending.wait(WAIT).inspect_err(|_| {
        wait_for(pid);
    })
}

/// A started container that ends with the test.
pub struct Running {
    pub container: Container,
    pub output: Option<Output>,
}

impl Drop for Running {
    /// A test that failed leaves its container; its processes are reaped by `residue`.
    fn drop(&mut self) {
        let _ = self.container.destroy(WAIT);
    }
}

impl Running {
    pub fn try_start(params: CreateParams, output: Output) -> Result<Self> {
        let mut container = settle(Container::create(params)?)?;
        if let Err(error) = container.start().and_then(|pending| pending.wait(WAIT)) {
            wait_for(container.init.pid);
            container.destroy(WAIT).unwrap();
            return Err(error);
        }
        Ok(Self { container, output: Some(output) })
    }

    pub fn start(rootfs: &Path, spec: grpc::Spec) -> Self {
        let (stdio, output) = streams();
        Self::try_start(params(rootfs, spec, stdio), output).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Sleeps until it is destroyed.
    pub fn idle() -> Self {
        Self::start(&image(), spec(&["sleep", "1000"]))
    }

    /// Ends by itself.
    pub fn end(mut self) -> Ended {
        let ended = self.output.take().unwrap().end(self.container.init.pid);
        self.container.destroy(WAIT).unwrap();
        ended
    }

    pub fn kill(self) -> Ended {
        self.container.kill_all().unwrap();
        self.end()
    }

    pub fn try_exec(&self, process: &grpc::Process, user: Option<&grpc::StringUser>) -> Result<Ended> {
        let (stdio, output) = streams();
        let process: Process = settle(self.container.exec(process, user, stdio)?)?;
        Ok(output.end(process.pid))
    }

    pub fn exec(&self, script: &str) -> Ended {
        self.try_exec(&process(&["sh", "-c", script]), None).unwrap_or_else(|error| panic!("{error}"))
    }
}

pub fn image() -> PathBuf {
    base().join("image")
}

pub fn try_run_at(rootfs: &Path, spec: grpc::Spec) -> Result<Ended> {
    let (stdio, output) = streams();
    Running::try_start(params(rootfs, spec, stdio), output).map(Running::end)
}

pub fn try_run(spec: grpc::Spec) -> Result<Ended> {
    try_run_at(&image(), spec)
}

/// Runs to the end and expects that it could be executed.
pub fn run(spec: grpc::Spec) -> Ended {
    try_run(spec).unwrap_or_else(|error| panic!("{error}"))
}

pub fn refusal(spec: grpc::Spec) -> ContainerError {
    match try_run(spec) {
        Ok(ended) => panic!("expected a refusal: {ended:?}"),
        Err(error) => error,
    }
}

/// Waits for a line of a container's output.
pub fn read_some(output: &Output) -> String {
    let mut buffer = [0_u8; 4096];
    // SAFETY: the buffer is as long as said.
    let length = unsafe { libc::read(output.0.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
    String::from_utf8_lossy(&buffer[..usize::try_from(length).unwrap()]).into_owned()
}
