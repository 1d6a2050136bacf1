//! What the keeper's caller sees at paths of the host: a volume may have been mounted where only the caller's mount namespace has it.
use crate::failure;
use crate::sys;
use kata_protocol::envelope::Status;
use kata_protocol::keeper::{LookRequest, LookResponse, PathFacts};
use kata_protocol::ttrpc::{status, Code};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

const MAX_PATHS: usize = 4096;

pub fn look(host_mounts: BorrowedFd, request: &LookRequest) -> Result<LookResponse, Status> {
    if request.paths.len() > MAX_PATHS {
        return Err(status(Code::InvalidArgument, format!("look: {} paths are over {MAX_PATHS}", request.paths.len())));
    }
    let facts = sys::in_mount_namespace(host_mounts, || -> io::Result<Vec<PathFacts>> {
        let mounts = mount_points(&fs::read("/proc/thread-self/mountinfo")?);
        let fact = |path: &String| facts_of(Path::new(path), &mounts);
        let failed = |error: io::Error| PathFacts { error: error.to_string(), ..Default::default() };
        Ok(request.paths.iter().map(|path| fact(path).unwrap_or_else(failed)).collect())
    });
    let facts = facts.and_then(|facts| facts).map_err(|error| failure::from_io("look", &error))?;
    Ok(LookResponse { facts })
}

fn facts_of(path: &Path, mounts: &[PathBuf]) -> io::Result<PathFacts> {
    if !path.is_absolute() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not an absolute path"));
    }
    let metadata = fs::metadata(path)?;
    let kind = metadata.file_type();
    let mut facts = PathFacts::default();
    let name = match kind {
        _ if kind.is_dir() => "directory",
        _ if kind.is_file() => "file",
        _ if kind.is_block_device() => "block",
        _ if kind.is_char_device() => "character",
        _ if kind.is_socket() => "socket",
        _ => "fifo",
    };
    facts.kind = name.to_owned();
    if matches!(name, "block" | "character") {
        (facts.major, facts.minor) = (libc::major(metadata.rdev()), libc::minor(metadata.rdev()));
    } else {
        facts.tmpfs_bytes = sys::tmpfs_bytes(path)?.unwrap_or_default();
    }
    if name == "directory" {
        let place = fs::canonicalize(path)?;
        facts.has_mounts = mounts.iter().any(|mount| *mount != place && mount.starts_with(&place));
    }
    Ok(facts)
}

/// The fifth field of each line of proc_pid_mountinfo(5), in which blanks and backslashes are octal numbers.
fn mount_points(mountinfo: &[u8]) -> Vec<PathBuf> {
    let fields = mountinfo.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    fields.map(mount_point).collect()
}

/// The path that such a field stands for.
pub fn mount_point(field: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescape(field)))
}

fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let number = match rest {
            [b'\\', digits @ ..] if digits.len() >= 3 => std::str::from_utf8(&digits[..3]).ok(),
            _ => None,
        };
        match number.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = &rest[4..];
            }
            None => {
                out.push(first);
                rest = after;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    #[test]
    fn mount_points_are_read_with_their_blanks() {
        let text = b"22 1 8:1 / / rw - ext4 /dev/a rw\n23 22 0:5 / /a\\040b\\134 rw - tmpfs x rw\n\nshort\n";
        assert_eq!(mount_points(text), [PathBuf::from("/"), PathBuf::from("/a b\\")]);
    }

    #[test]
    fn paths_are_told_in_order_and_the_missing_one_with_its_reason() {
        let namespace = File::open("/proc/self/ns/mnt").unwrap();
        let paths = ["/", "/dev/null", "/proc/version", "/nonexistent-path", "proc"].map(str::to_owned).to_vec();
        // Without root nobody may enter a mount namespace, not even the own one.
        let Ok(answer) = look(namespace.as_fd(), &LookRequest { paths }) else { return };
        let kinds: Vec<&str> = answer.facts.iter().map(|facts| facts.kind.as_str()).collect();
        assert_eq!(kinds, ["directory", "character", "file", "", ""]);
        assert!(answer.facts[0].has_mounts && (answer.facts[1].major, answer.facts[1].minor) == (1, 3));
        assert!(answer.facts[3].error.contains("No such file") && answer.facts[4].error.contains("absolute"));
    }
}
