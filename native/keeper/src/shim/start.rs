//! `start`: finds the sandbox of a pod's container, or makes a sandbox with a keeper behind a door. Gives what containerd reads.
use super::bundle::{self, Role};
use super::flags::Flags;
use super::places::{self, Key, Lock, Places};
use super::{delete, Settings};
use crate::config;
use crate::json::{self, Writer};
use crate::{serve, sys};
use kata_protocol::containerd::{Any, BootstrapParams, BootstrapResult};
use prost::Message;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const MAX_STDIN_BYTES: usize = 10 * 1024 * 1024;
/// What door.json has room for.
const MAX_OPTIONS_BYTES: usize = 512 * 1024;
const STDIN_BOUND: Duration = Duration::from_secs(5);
const READY_BOUND: Duration = Duration::from_secs(10);
const MAX_READY_BYTES: usize = 4096;
/// How long another start or clean-up of the same sandbox is waited for.
const LOCK_BOUND: Duration = Duration::from_secs(2);
const ATTEMPTS: usize = 8;
/// The version of the task service that a containerd with bootstrap parameters is told; older ones take 2 for granted.
const BOOTSTRAP_VERSION: i32 = 3;
const RUNTIME_OPTIONS: &str = "runtimeoptions.v1.Options";
const KEEPER_ENVIRONMENT: [(&str, &str); 2] =
    [("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"), ("LC_ALL", "C")];

/// What containerd wrote to stdin.
struct Input {
    /// It speaks the bootstrap protocol (2.3 and newer).
    bootstrap: bool,
    /// The runtime's options, a serialised Any; empty: none.
    options: Vec<u8>,
}

pub fn run(flags: &Flags, settings: &Settings) -> Result<Vec<u8>, String> {
    let bundle = match flags.bundle.as_str() {
        "" => std::env::current_dir().map_err(|error| format!("working directory: {error}"))?,
        path => PathBuf::from(path),
    };
    if bundle.to_str().is_none() {
        return Err(format!("the bundle's path {bundle:?} is not UTF-8"));
    }
    let input = read_input(flags)?;
    let places = Places { run: settings.run.clone() };
    let address = match bundle::role(&bundle)? {
        Some(Role::Container { sandbox_id }) => {
            let address = join(&places, flags, &sandbox_id)?;
            write_address(&bundle, &address)?;
            address
        }
        role => {
            let role = if role == Some(Role::Single) { "single" } else { "sandbox" };
            create(&places, settings, &Door { flags, bundle: &bundle, role, options: &input.options })?
        }
    };
    Ok(match input.bootstrap {
        false => address.into_bytes(),
        true => {
            let protocol = "ttrpc".to_owned();
            BootstrapResult { version: BOOTSTRAP_VERSION, address, protocol }.encode_to_vec()
        }
    })
}

fn read_input(flags: &Flags) -> Result<Input, String> {
    let bytes = read_stdin().map_err(|error| format!("options on stdin: {error}"))?;
    let input = parse_input(flags, bytes);
    match input.options.len() {
        0..=MAX_OPTIONS_BYTES => Ok(input),
        length => Err(format!("the runtime's options have {length} bytes, at most {MAX_OPTIONS_BYTES} are taken")),
    }
}

fn read_stdin() -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // A person's terminal and /dev/null are character devices, and have nothing to say.
    if fs::metadata("/proc/self/fd/0").map_or(true, |metadata| metadata.file_type().is_char_device()) {
        return Ok(bytes);
    }
    let deadline = Instant::now() + STDIN_BOUND;
    let mut buffer = [0; 16 * 1024];
    loop {
        if !sys::wait_readable(0, deadline) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "their end does not come"));
        }
        match io::stdin().lock().read(&mut buffer)? {
            0 => return Ok(bytes),
            count => bytes.extend_from_slice(&buffer[..count]),
        }
        if bytes.len() > MAX_STDIN_BYTES {
            return Err(io::Error::other(format!("over {MAX_STDIN_BYTES} bytes")));
        }
    }
}

fn parse_input(flags: &Flags, bytes: Vec<u8>) -> Input {
    // The options of an older containerd decode as parameters, too, but name no instance of ours.
    match BootstrapParams::decode(bytes.as_slice()) {
        Ok(params) if params.instance_id == flags.id && params.namespace == flags.namespace => {
            let mut extensions: Vec<Any> = params.extensions.into_iter().filter_map(|one| one.value).collect();
            let at = extensions.iter().position(|any| any.type_url.ends_with(RUNTIME_OPTIONS)).unwrap_or(0);
            let options = if extensions.is_empty() { Vec::new() } else { extensions.swap_remove(at).encode_to_vec() };
            Input { bootstrap: true, options }
        }
        _ => Input { bootstrap: false, options: bytes },
    }
}

fn address(dir: &Path) -> String {
    format!("unix://{}", dir.join("t.sock").display())
}

/// The address of the sandbox that a container of a pod goes to.
fn join(places: &Places, flags: &Flags, sandbox_id: &str) -> Result<String, String> {
    if !places::is_identifier(sandbox_id) {
        return Err(format!("the container's sandbox {sandbox_id:?} is no identifier of containerd"));
    }
    let key = places.key(&flags.address, &flags.namespace, sandbox_id);
    let dir = find(places, &key)?;
    let dir =
        dir.ok_or_else(|| format!("no sandbox {sandbox_id} is here for container {}: start the pod anew", flags.id))?;
    UnixStream::connect(dir.join("t.sock")).map_err(|error| {
        format!("sandbox {sandbox_id} has ended ({}: {error}): start the pod anew", dir.join("t.sock").display())
    })?;
    Ok(address(&dir))
}

fn find(places: &Places, key: &Key) -> Result<Option<PathBuf>, String> {
    places.find(key).map_err(|error| format!("{}: {error}; remove it if nothing uses it", key.path().display()))
}

/// containerd reads it again after its own restart.
fn write_address(bundle: &Path, address: &str) -> Result<(), String> {
    let path = bundle.join("address");
    fs::write(&path, address).map_err(|error| format!("{}: {error}", path.display()))
}

struct Door<'a> {
    flags: &'a Flags,
    bundle: &'a Path,
    role: &'a str,
    options: &'a [u8],
}

/// Removes what a start that failed has made.
struct Undo {
    dir: PathBuf,
    key: Option<Key>,
    keeper: Option<Child>,
    armed: bool,
}

impl Drop for Undo {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        if let Some(keeper) = &mut self.keeper {
            let _ = keeper.kill();
            let _ = keeper.wait();
        }
        if let Some(key) = &self.key {
            let _ = key.release(&self.dir);
        }
        let _ = places::remove_directory(&self.dir);
    }
}

fn create(places: &Places, settings: &Settings, door: &Door) -> Result<String, String> {
    for dir in [places.sandboxes(), places.keys()] {
        make_private(&dir, true)?;
    }
    let uid: String = sys::random_bytes::<6>()
        .map_err(|error| format!("random numbers: {error}"))?
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let dir = places.sandboxes().join(&uid);
    make_private(&dir, false)?;
    let mut undo = Undo { dir: dir.clone(), key: None, keeper: None, armed: true };
    // Held until this process ends: whoever finds the key meanwhile waits, and does not take a starting keeper for a dead one.
    let lock = Lock::take(&dir, LOCK_BOUND).map_err(|error| format!("{}: {error}", dir.display()))?;
    write_state(&dir, &uid, settings, door)?;
    let key = places.key(&door.flags.address, &door.flags.namespace, &door.flags.id);
    claim(places, &key, &uid, door.flags)?;
    undo.key = Some(key);
    start_keeper(&dir, &uid, settings, &mut undo)?;
    let address = address(&dir);
    write_address(door.bundle, &address)?;
    undo.armed = false;
    drop(lock);
    Ok(address)
}

fn make_private(dir: &Path, may_exist: bool) -> Result<(), String> {
    let made = DirBuilder::new().recursive(may_exist).mode(0o700).create(dir);
    made.map_err(|error| format!("directory {}: {error}", dir.display()))
}

fn write_state(dir: &Path, uid: &str, settings: &Settings, door: &Door) -> Result<(), String> {
    let flags = door.flags;
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let described = Writer::object()
        .raw("version", 1)
        .string("uid", uid)
        .string("namespace", &flags.namespace)
        .string("id", &flags.id)
        .string("containerd", &flags.address)
        .string("events", &std::env::var("TTRPC_ADDRESS").unwrap_or_default())
        .string("publish_binary", &flags.publish_binary)
        .string("bundle", &text(door.bundle))
        .string("role", door.role)
        .raw("debug", flags.debug)
        .string("options", &base64(door.options))
        .end();
    let wish = settings.engine_env.iter().find_map(|pair| pair.strip_prefix("KATA_VSOCK="));
    let vsock = wish.filter(|wish| ["hybrid", "kernel"].contains(wish)).unwrap_or("auto");
    let mut keeper = Writer::object()
        .raw("version", 1)
        .string("uid", uid)
        .raw("cgroups", "[]")
        .raw("engine", json::strings(&settings.engine))
        .raw("engine_env", json::strings(&settings.engine_env))
        .string("engine_socket", &text(&settings.engine_socket))
        .string("task_socket", &text(&dir.join("t.sock")))
        .raw("agent_port", config::AGENT_PORT)
        .raw("stream_port", config::STREAM_PORT)
        .raw("log_port", config::LOG_PORT);
    let mut side = Writer::object().string("mode", vsock);
    if vsock != "kernel" {
        side = side.string("socket", &text(&dir.join("vsock/v.sock")));
        keeper = keeper.raw("ready_port", config::READY_PORT);
    }
    let keeper = keeper.raw("vsock", side.end()).end();
    for name in ["vsock", "shared"] {
        make_private(&dir.join(name), false)?;
    }
    for (name, text) in [("door.json", described), ("keeper.json", keeper)] {
        let path = dir.join(name);
        fs::write(&path, text + "\n").map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

/// Makes the key lead to the new sandbox; a dead one that it leads to is cleaned up first.
fn claim(places: &Places, key: &Key, uid: &str, flags: &Flags) -> Result<(), String> {
    for _ in 0..ATTEMPTS {
        match key.point(uid) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(format!("{}: {error}", key.path().display())),
        }
        let Some(old) = find(places, key)? else { continue };
        let describe = |error: io::Error| format!("what is left of sandbox {} in {}: {error}", flags.id, old.display());
        let lock = Lock::take(&old, LOCK_BOUND).map_err(describe)?;
        if places::lives(&old) {
            return Err(format!(
                "sandbox {} of namespace {} already exists and lives ({}): delete its task first",
                flags.id,
                flags.namespace,
                old.display()
            ));
        }
        delete::end_dead(&old);
        key.release(&old).map_err(describe)?;
        places::remove_directory(&old).map_err(describe)?;
        drop(lock);
    }
    Err(format!("sandbox {}: others start and delete it at the same time; try again", flags.id))
}

/// Starts the keeper and waits until it listens.
fn start_keeper(dir: &Path, uid: &str, settings: &Settings, undo: &mut Undo) -> Result<(), String> {
    let describe = |error: io::Error| format!("keeper {}: {error}", settings.keeper.display());
    let log_path = dir.join("keeper.log");
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&log_path).map_err(describe)?;
    let (reading, writing) = sys::pipe().map_err(describe)?;
    let ready = writing.as_raw_fd();
    // While the child's number is taken here, the pipe on which std reports a failed exec cannot have it.
    let _placeholder = occupy(serve::READY_FD, ready).map_err(describe)?;
    let mut command = Command::new(&settings.keeper);
    command.args(["serve", "--dir"]).arg(dir).args(["--uid", uid, "--config"]).arg(dir.join("keeper.json"));
    command.env_clear().envs(KEEPER_ENVIRONMENT).current_dir("/").stdin(Stdio::null());
    command.stdout(log.try_clone().map_err(describe)?).stderr(log);
    // SAFETY: system calls only.
    unsafe {
        command.pre_exec(move || {
            sys::check(libc::dup2(ready, serve::READY_FD) as libc::c_long)?;
            sys::set_cloexec(serve::READY_FD, false)
        })
    };
    undo.keeper = Some(command.spawn().map_err(describe)?);
    drop(writing);
    drop(_placeholder);
    match read_ready(File::from(reading)) {
        Ok(said) if said == "ready" => Ok(()),
        Ok(said) if said.is_empty() => {
            Err(format!("keeper {}: it ended before it was ready", settings.keeper.display()))
        }
        Ok(said) => Err(format!("keeper {}: {said}", settings.keeper.display())),
        Err(error) => Err(describe(error)),
    }
}

/// Takes a number with a copy of `fd` until the value is dropped; `None`: it is in use.
fn occupy(number: i32, fd: i32) -> io::Result<Option<OwnedFd>> {
    if unsafe { libc::fcntl(number, libc::F_GETFD) } >= 0 {
        return Ok(None);
    }
    sys::check(unsafe { libc::dup3(fd, number, libc::O_CLOEXEC) } as libc::c_long)?;
    // SAFETY: the number was free and now is this copy.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(number) }))
}

/// What the keeper says on its pipe: one line.
fn read_ready(mut pipe: File) -> io::Result<String> {
    let deadline = Instant::now() + READY_BOUND;
    let mut said = Vec::new();
    let mut buffer = [0; 512];
    while !said.ends_with(b"\n") && said.len() < MAX_READY_BYTES {
        if !sys::wait_readable(pipe.as_raw_fd(), deadline) {
            let text = format!("it was not ready within {} s", READY_BOUND.as_secs());
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        match pipe.read(&mut buffer)? {
            0 => break,
            count => said.extend_from_slice(&buffer[..count]),
        }
    }
    Ok(String::from_utf8_lossy(&said).trim_end().to_owned())
}

/// RFC 4648 with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = (0..3).fold(0, |bits, at| bits << 8 | u32::from(*group.get(at).unwrap_or(&0)));
        for digit in 0..4 {
            match digit <= group.len() {
                true => text.push(DIGITS[(bits >> (18 - 6 * digit) & 63) as usize] as char),
                false => text.push('='),
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn encodes_the_rfcs_examples() {
        for (text, encoded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("fooba", "Zm9vYmE=")]
        {
            assert_eq!(base64(text.as_bytes()), encoded);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xfe]), "+//+");
    }
}
