//! Kernel modules: those without which the guest cannot serve, and those of a file system or a kind of
//! device, loaded before the first one is needed. Lists name one module file a line, in order; `#` begins a comment.
use crate::failure::{internal, Result};
use crate::log;
use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

const BOOT_LIST: &str = "/etc/modules.list";
const ON_DEMAND_LISTS: &str = "/etc/modules";
const LOADED: &str = "/sys/module";

/// Loads what the guest needs to serve.
pub fn load_boot() -> std::result::Result<(), String> {
    load_list(Path::new(BOOT_LIST))
}

/// Loads the modules of a file system that is about to be mounted, or of a driver, unless they are there.
pub fn load_on_demand(kind: &str) -> Result<()> {
    match on_demand_list(kind) {
        Some(list) => load_list(&list).map_err(internal),
        None => Ok(()),
    }
}

/// The image's name for the agent as the kernel's module loader.
const LOADER: &str = "/sbin/kata-modprobe";

/// From now on the kernel asks the agent for what a container's system call needs (a bridge, say). Not before: a booting
/// kernel asks for much that no image has.
pub fn serve_kernel() {
    if let Err(error) = fs::write("/proc/sys/kernel/modprobe", LOADER) {
        log::warning!("boot", "modules on demand: {error}");
    }
}

pub fn is_asked_for(program: &CStr) -> bool {
    program.to_bytes() == LOADER.as_bytes()
}

/// `modprobe -q -- NAME`, started by the kernel. A module that the image does not have is none of the kernel's errors.
pub fn answer_kernel(name: &CStr) -> i32 {
    i32::from(load_on_demand(&name.to_string_lossy()).is_err())
}

/// None for a name that no list can have: it comes from outside and must not lead anywhere else.
fn on_demand_list(kind: &str) -> Option<PathBuf> {
    let plain = !kind.is_empty() && kind.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    plain.then(|| Path::new(ON_DEMAND_LISTS).join(format!("{kind}.list")))
}

/// A list that is missing means that the kernel needs none.
fn load_list(path: &Path) -> std::result::Result<(), String> {
    let list = match fs::read_to_string(path) {
        Ok(list) => list,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("{}: {error}", path.display())),
    };
    for module in entries(&list).filter(|module| !is_loaded(module)) {
        load(module, "").map_err(|error| format!("kernel module {module}: {error}"))?;
    }
    Ok(())
}

fn entries(list: &str) -> impl Iterator<Item = &str> {
    list.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// Asking is a hundredth of the kernel's work to find out by itself.
fn is_loaded(file: &str) -> bool {
    Path::new(file).file_stem().is_some_and(|name| Path::new(LOADED).join(name).exists())
}

/// Loads one module file. A module that is there already, or whose hardware is not, is no error.
pub fn load(path: &str, parameters: &str) -> io::Result<()> {
    let file = fs::File::open(path)?;
    let parameters = CString::new(parameters)?;
    // SAFETY: the descriptor is open and the parameters are NUL-terminated.
    let done = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), parameters.as_ptr(), 0) };
    if done == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EEXIST) => Ok(()),
        Some(libc::ENODEV) => {
            log::warning!("boot", "kernel module {path}: its device is not there");
            Ok(())
        }
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_have_comments() {
        assert_eq!(entries("# 6.1\n/a.ko\n\n  /b.ko \n").collect::<Vec<_>>(), ["/a.ko", "/b.ko"]);
    }

    #[test]
    fn only_plain_names_have_a_list() {
        assert_eq!(on_demand_list("virtiofs"), Some(PathBuf::from("/etc/modules/virtiofs.list")));
        for kind in ["", "..", "a/b", "../modules", "a.b", "a\0"] {
            assert_eq!(on_demand_list(kind), None, "{kind:?}");
        }
    }

    #[test]
    fn a_missing_list_and_a_missing_module_are_told_apart() {
        let dir = crate::testing::TempDir::new();
        assert_eq!(load_list(&dir.path().join("none.list")), Ok(()));
        let list = dir.path().join("some.list");
        fs::write(&list, "/does/not/exist.ko\n").unwrap();
        assert!(load_list(&list).unwrap_err().starts_with("kernel module /does/not/exist.ko: "));
    }
}
