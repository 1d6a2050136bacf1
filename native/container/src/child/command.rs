//! The command: where it is, and its arguments and environment as execve wants them.
use crate::error::{ContainerError, Result, Step};
use crate::sys::{c_string, check, errno};
use kata_protocol::grpc;
use std::convert::Infallible;
use std::ffi::{c_char, CString};
use std::mem::MaybeUninit;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(crate) struct Command {
    path: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

fn strings(texts: impl Iterator<Item = impl Into<Vec<u8>>>, what: &str) -> Result<Vec<CString>> {
    texts
        .map(c_string)
        .collect::<std::result::Result<_, _>>()
        .map_err(|errno| ContainerError::new(Step::Exec, errno, "", format!("{what} with a NUL byte")))
}

impl Command {
    /// Finds the command as the user that this process is by now. `home` fills in for a HOME that is not given.
    pub(crate) fn find(process: &grpc::Process, home: &str) -> Result<Self> {
        let name = process.args.first().map_or("", String::as_str);
        let of = |key: &str| process.env.iter().rev().find_map(|entry| entry.strip_prefix(key)?.strip_prefix('='));
        let path = find(name, of("PATH").unwrap_or(DEFAULT_PATH))?;
        let mut environment = strings(process.env.iter().map(String::as_str), "environment")?;
        if of("HOME").is_none() {
            environment.extend(strings([format!("HOME={home}")].into_iter(), "home directory")?);
        }
        Ok(Self { path, arguments: strings(process.args.iter().map(String::as_str), "argument")?, environment })
    }

    pub(crate) fn execute(&self) -> Result<Infallible> {
        let pointers = |texts: &[CString]| -> Vec<*const c_char> {
            texts.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
        };
        let (arguments, environment) = (pointers(&self.arguments), pointers(&self.environment));
        // SAFETY: both arrays end with null and outlive the call, as do the strings.
        unsafe { libc::execve(self.path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
        Err(ContainerError::last(Step::Exec, self.path.to_string_lossy(), "execute"))
    }
}

/// As execvp(3): a name with a slash is a path, another is looked for along PATH, and a file that cannot be executed is
/// reported when no later directory has a better one.
fn find(name: &str, path: &str) -> Result<CString> {
    let failure = |errno, what: &str| ContainerError::new(Step::Lookup, errno, name, what);
    if name.is_empty() {
        return Err(failure(libc::ENOENT, "no command"));
    }
    if name.contains('/') {
        let candidate = c_string(name).map_err(|errno| failure(errno, "command"))?;
        return executable(&candidate).map(|()| candidate).map_err(|errno| failure(errno, "command"));
    }
    let mut worst = libc::ENOENT;
    for directory in path.split(':') {
        let directory = if directory.is_empty() { "." } else { directory };
        let candidate = c_string(format!("{directory}/{name}")).map_err(|errno| failure(errno, "command"))?;
        match executable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(libc::EACCES) => worst = libc::EACCES,
            Err(_) => {}
        }
    }
    Err(failure(worst, "command is not in PATH:"))
}

fn executable(path: &CString) -> std::result::Result<(), i32> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the kernel fills the structure when it returns 0; the path outlives both calls.
    unsafe {
        check(libc::c_long::from(libc::stat(path.as_ptr(), stat.as_mut_ptr())))?;
        if stat.assume_init().st_mode & libc::S_IFMT != libc::S_IFREG {
            return Err(libc::EACCES);
        }
        match libc::access(path.as_ptr(), libc::X_OK) {
            0 => Ok(()),
            _ => Err(errno()),
        }
    }
}
