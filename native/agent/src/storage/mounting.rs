//! One storage, one mount: what each driver does. The drivers share their steps and their tests, so they stay in one file.
use super::Surroundings;
use crate::failure::{internal, invalid, Context, Result};
use crate::mount_options::{parse, MountOptions};
use kata_protocol::envelope::Status;
use kata_protocol::grpc::{FsGroup, Storage};
use kata_protocol::types::FsGroupChangePolicy;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

const CREATE_DIRECTORY: &str = "io.katacontainers.volume.overlayfs.create_directory=";
const OVERLAY_RW: &str = "io.katacontainers.fs-opt.overlay-rw";
const OVERLAY_LAYER: &str = "io.katacontainers.fs-opt.layer=";
/// mount(2) takes at most a page of data.
const MAX_MOUNT_DATA_BYTES: usize = 4095;
/// Files that one fs_group change may visit; a volume with more is refused instead of holding the agent.
const MAX_OWNED_FILES: usize = 1_000_000;

/// Mounts a storage; false when it is a plain directory.
pub(super) async fn mount(storage: &Storage, target: &str, around: &Surroundings) -> Result<bool> {
    let target_path = Path::new(target);
    let words: Vec<&str> = storage.options.iter().map(String::as_str).collect();
    let mounted = match storage.driver.as_str() {
        "blk" | "mmioblk" | "nvdimm" => {
            let disk = block_device(storage, around).await?;
            create_mount_point(target_path)?;
            mount_raw(path_text(&disk)?, target, &storage.fstype, &parse(words))?;
            true
        }
        "virtio-fs" | "9p" => {
            create_mount_point(target_path)?;
            let kind = if storage.fstype.is_empty() { "virtiofs" } else { &storage.fstype };
            mount_share(&storage.source, target, kind, &parse(words), around).await?;
            true
        }
        "ephemeral" => {
            mount_ephemeral(storage, target)?;
            true
        }
        "bind" | "watchable-bind" => {
            mount_bind(&storage.source, target, &words)?;
            true
        }
        "overlayfs" => {
            mount_overlay(storage, target)?;
            true
        }
        "local" => {
            make_local(target_path, &words)?;
            false
        }
        other => {
            let known = super::DRIVERS.join(", ");
            return Err(invalid(format!("storage: driver {other:?} is not one of {known}")));
        }
    };
    if let Some(group) = &storage.fs_group {
        change_group(target_path, group)?;
    }
    Ok(mounted)
}

async fn block_device(storage: &Storage, around: &Surroundings) -> Result<PathBuf> {
    let (roots, events, timeout) = (&around.roots, &around.uevents, around.hotplug_timeout);
    let mut disk = roots.wait_for_disk(&storage.source, events, timeout).await?;
    for option in &storage.driver_options {
        if let Some(extent) = option.strip_prefix("partition=") {
            disk = roots.partition(&disk, extent, events, timeout).await?;
        } else if option == "create_filesystem" || option == "create_filesystem=true" {
            create_filesystem(&disk, storage, around).await?;
        } else if option.starts_with("encryption_key=") {
            return Err(invalid("storage: encrypted volumes need a confidential data hub, which this guest has not"));
        }
    }
    Ok(disk)
}

async fn create_filesystem(disk: &Path, storage: &Storage, around: &Surroundings) -> Result<()> {
    if storage.fstype != "ext4" {
        return Err(invalid(format!("storage: create_filesystem makes ext4, not {:?}", storage.fstype)));
    }
    let options = ["-F", "-O", "^has_journal", "-m", "0", "-i", "163840", "-I", "128"];
    let mut argv = vec!["mkfs.ext4"];
    argv.extend(options);
    argv.push(path_text(disk)?);
    crate::command::run(&argv, Vec::new(), &around.reaper).await.map(|_| ())
}

fn path_text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| internal("storage: path is not UTF-8"))
}

fn create_mount_point(path: &Path) -> Result<()> {
    fs::create_dir_all(path).context(|| format!("storage: create {}", path.display()))
}

/// Mounts a share, and waits for one that is plugged just now: until its driver knows the tag, virtio-fs says EINVAL. An
/// option that the kernel does not know is told in the same way, after the same time.
async fn mount_share(
    source: &str,
    target: &str,
    kind: &str,
    options: &MountOptions,
    around: &Surroundings,
) -> Result<()> {
    let mut refusal = None;
    let look = || match try_mount(source, target, kind, options) {
        Err((failure, Some(libc::EINVAL))) if kind == "virtiofs" => {
            refusal = Some(failure);
            Ok(None)
        }
        outcome => outcome.map(Some).map_err(|(failure, _)| failure),
    };
    let mounted = around.uevents.wait_for(&format!("the share {source}"), around.hotplug_timeout, look).await;
    mounted.map_err(|timeout| refusal.unwrap_or(timeout))
}

/// mount(2). Errors: INTERNAL naming source, type, target and the kernel's reason.
pub fn mount_raw(source: &str, target: &str, kind: &str, options: &MountOptions) -> Result<()> {
    try_mount(source, target, kind, options).map_err(|(failure, _)| failure)
}

/// As mount_raw; with the kernel's errno where it was asked.
fn try_mount(
    source: &str,
    target: &str,
    kind: &str,
    options: &MountOptions,
) -> std::result::Result<(), (Status, Option<i32>)> {
    let unasked = |failure| (failure, None);
    crate::modules::load_on_demand(kind).map_err(unasked)?;
    if options.data.len() > MAX_MOUNT_DATA_BYTES {
        return Err(unasked(invalid(format!(
            "storage: options of {target} are longer than {MAX_MOUNT_DATA_BYTES} bytes"
        ))));
    }
    let text = |text: &str| CString::new(text).map_err(|_| unasked(invalid("storage: a NUL byte in a mount")));
    let (source_c, target_c, kind_c, data_c) = (text(source)?, text(target)?, text(kind)?, text(&options.data)?);
    // SAFETY: every pointer is a NUL-terminated string that outlives the call.
    let done = unsafe {
        libc::mount(source_c.as_ptr(), target_c.as_ptr(), kind_c.as_ptr(), options.flags, data_c.as_ptr().cast())
    };
    if done == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    let hint = match error.raw_os_error() {
        Some(libc::ENODEV) => " (the guest's kernel has no such file system, or no such share is attached)",
        Some(libc::EINVAL) => " (wrong file system, or an option that the kernel does not know)",
        _ => "",
    };
    let failure =
        internal(format!("storage: mount {source} ({kind}, options {:?}) at {target}: {error}{hint}", options.data));
    Err((failure, error.raw_os_error()))
}

/// A bind mount honours read-only and its like only when remounted with them.
fn mount_bind(source: &str, target: &str, words: &[&str]) -> Result<()> {
    let metadata = fs::metadata(source).context(|| format!("storage: bind source {source}"))?;
    let path = Path::new(target);
    if metadata.is_dir() {
        create_mount_point(path)?;
    } else {
        if let Some(parent) = path.parent() {
            create_mount_point(parent)?;
        }
        if !path.exists() {
            fs::File::create(path).context(|| format!("storage: create {target}"))?;
        }
    }
    let options = parse(words.iter().copied());
    let recursive = options.flags & libc::MS_REC;
    let bind = MountOptions { flags: libc::MS_BIND | recursive, data: String::new() };
    mount_raw(source, target, "none", &bind)?;
    let propagation = libc::MS_SHARED | libc::MS_SLAVE | libc::MS_PRIVATE;
    let attributes = options.flags & !(libc::MS_BIND | libc::MS_REC | propagation);
    if attributes != 0 {
        let remount = MountOptions { flags: libc::MS_BIND | libc::MS_REMOUNT | attributes, data: String::new() };
        mount_raw(source, target, "none", &remount).inspect_err(|_| {
            let _ = super::unmount(path);
        })?;
    }
    Ok(())
}

fn ephemeral_words(storage: &Storage) -> (Vec<&str>, Option<u32>) {
    let mut group = None;
    let words = storage.options.iter().map(String::as_str).filter(|word| match word.strip_prefix("fsgid=") {
        Some(id) => {
            group = id.parse().ok();
            false
        }
        None => true,
    });
    (words.collect(), group)
}

fn mount_ephemeral(storage: &Storage, target: &str) -> Result<()> {
    let path = Path::new(target);
    create_mount_point(path)?;
    let (words, group) = ephemeral_words(storage);
    let kind = if storage.fstype.is_empty() { "tmpfs" } else { &storage.fstype };
    if kind == "hugetlbfs" {
        reserve_huge_pages(&words)?;
    }
    mount_raw(&storage.source, target, kind, &parse(words))?;
    if let Some(group) = group {
        set_group(path, group).inspect_err(|_| {
            let _ = super::unmount(path);
        })?;
    }
    Ok(())
}

fn set_group(path: &Path, group: u32) -> Result<()> {
    std::os::unix::fs::chown(path, None, Some(group)).context(|| format!("storage: group of {}", path.display()))?;
    // As a kubelet does on a host: the group may write, and what is created inside belongs to it.
    let mode = fs::metadata(path).context(|| format!("storage: {}", path.display()))?.mode();
    fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o7777 | 0o2070))
        .context(|| format!("storage: mode of {}", path.display()))
}

/// `pagesize=2M,size=64M` needs that many pages in the kernel's pool.
fn reserve_huge_pages(words: &[&str]) -> Result<()> {
    let find = |name: &str| words.iter().flat_map(|word| word.split(',')).find_map(|word| word.strip_prefix(name));
    let (Some(page), Some(size)) = (find("pagesize=").and_then(byte_count), find("size=").and_then(byte_count)) else {
        return Err(invalid("storage: hugetlbfs needs the options pagesize= and size="));
    };
    if page == 0 {
        return Err(invalid("storage: hugetlbfs pagesize is 0"));
    }
    let path = format!("/sys/kernel/mm/hugepages/hugepages-{}kB/nr_hugepages", page / 1024);
    let present: u64 = fs::read_to_string(&path)
        .context(|| format!("storage: pages of {page} bytes ({path})"))?
        .trim()
        .parse()
        .unwrap_or(0);
    fs::write(&path, (present + size / page).to_string()).context(|| format!("storage: reserve pages in {path}"))
}

/// `64M`, `1Gi`, `4096`: bytes.
fn byte_count(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|last: char| !last.is_ascii_digit());
    let scale = match text[digits.len()..].trim_end_matches('B').trim_end_matches('i').to_ascii_uppercase().as_str() {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << scale)
}

/// Applies new options to a mounted ephemeral storage.
pub fn remount_ephemeral(storage: &Storage, target: &str) -> Result<()> {
    let (words, _) = ephemeral_words(storage);
    let mut options = parse(words);
    options.flags |= libc::MS_REMOUNT;
    let kind = if storage.fstype.is_empty() { "tmpfs" } else { &storage.fstype };
    mount_raw(&storage.source, target, kind, &options)
}

fn make_local(path: &Path, words: &[&str]) -> Result<()> {
    create_mount_point(path)?;
    for word in words {
        if let Some(mode) = word.strip_prefix("mode=") {
            let mode = u32::from_str_radix(mode, 8).ok().filter(|mode| *mode <= 0o7777);
            let mode = mode.ok_or_else(|| invalid(format!("storage: {word:?} is no file mode")))?;
            fs::set_permissions(path, fs::Permissions::from_mode(mode))
                .context(|| format!("storage: mode of {}", path.display()))?;
        } else if let Some(group) = word.strip_prefix("fsgid=") {
            let group = group.parse().map_err(|_| invalid(format!("storage: {word:?} is no group id")))?;
            set_group(path, group)?;
        }
    }
    Ok(())
}

fn mount_overlay(storage: &Storage, target: &str) -> Result<()> {
    for option in &storage.driver_options {
        if let Some(directory) = option.strip_prefix(CREATE_DIRECTORY) {
            create_mount_point(Path::new(directory))?;
        }
    }
    let path = Path::new(target);
    create_mount_point(path)?;
    let mut words: Vec<String> = Vec::new();
    let mut layers = Vec::new();
    let mut read_write = false;
    for option in &storage.options {
        if let Some(layer) = option.strip_prefix(OVERLAY_LAYER) {
            layers.push(layer.to_owned());
        } else if option == OVERLAY_RW {
            read_write = true;
        } else if !option.starts_with("io.katacontainers.fs-opt.") {
            words.push(option.clone());
        }
    }
    if !layers.is_empty() {
        words.push(format!("lowerdir={}", layers.join(":")));
    }
    if read_write {
        // Beside the mount point: both directories must be on one file system that is not the overlay itself.
        let parent = path.parent().ok_or_else(|| invalid("storage: overlay without a parent directory"))?;
        for name in ["upper", "work"] {
            let directory = parent.join(name);
            create_mount_point(&directory)?;
            words.push(format!("{name}dir={}", path_text(&directory)?));
        }
    }
    let joined: Vec<&str> = words.iter().map(String::as_str).collect();
    let options = parse(joined);
    let source = if storage.source.is_empty() { "overlay" } else { &storage.source };
    if options.data.len() <= MAX_MOUNT_DATA_BYTES {
        return mount_raw(source, target, "overlay", &options);
    }
    mount_overlay_from_common_directory(source, target, &options)
}

/// Many layers with long paths do not fit into mount(2)'s page of data: paths relative to their common directory do.
/// The working directory belongs to the whole process; nothing else runs between the two changes.
fn mount_overlay_from_common_directory(source: &str, target: &str, options: &MountOptions) -> Result<()> {
    let is_directory = |word: &&str| ["lowerdir=", "upperdir=", "workdir="].iter().any(|name| word.starts_with(name));
    let paths: Vec<&str> = options
        .data
        .split(',')
        .filter(is_directory)
        .filter_map(|word| word.split_once('='))
        .flat_map(|(_, paths)| paths.split(':'))
        .collect();
    let common =
        common_directory(&paths).ok_or_else(|| invalid("storage: overlay directories have nothing in common"))?;
    let shorten = |word: &str| match word.split_once('=') {
        Some((name, paths)) if is_directory(&word) => {
            let short: Vec<&str> = paths.split(':').map(|path| path.strip_prefix(&common).unwrap_or(path)).collect();
            format!("{name}={}", short.join(":"))
        }
        _ => word.to_owned(),
    };
    let words: Vec<String> = options.data.split(',').map(shorten).collect();
    let short = MountOptions { flags: options.flags, data: words.join(",") };
    std::env::set_current_dir(&common).context(|| format!("storage: enter {common}"))?;
    let mounted = mount_raw(source, target, "overlay", &short);
    std::env::set_current_dir("/").context(|| "storage: return to /".to_owned())?;
    mounted
}

/// Longest directory, with its final slash, that all paths begin with.
fn common_directory(paths: &[&str]) -> Option<String> {
    let first = paths.first()?;
    let mut length = first.len();
    for path in paths {
        let same = first.bytes().zip(path.bytes()).take_while(|(a, b)| a == b).count();
        length = length.min(same);
    }
    let end = first.get(..length)?.rfind('/')?;
    (end > 0).then(|| first[..=end].to_owned())
}

/// Gives a volume to a group: files become readable and writable for it, directories pass it on.
fn change_group(root: &Path, group: &FsGroup) -> Result<()> {
    let metadata = fs::metadata(root).context(|| format!("storage: {}", root.display()))?;
    let on_mismatch = group.group_change_policy == FsGroupChangePolicy::OnRootMismatch as i32;
    if on_mismatch && metadata.gid() == group.group_id && metadata.mode() & 0o2070 == 0o2070 {
        return Ok(());
    }
    let mut waiting = vec![root.to_owned()];
    let mut visited = 0;
    while let Some(path) = waiting.pop() {
        visited += 1;
        if visited > MAX_OWNED_FILES {
            return Err(internal(format!("storage: {} has over {MAX_OWNED_FILES} files", root.display())));
        }
        let metadata = fs::symlink_metadata(&path).context(|| format!("storage: {}", path.display()))?;
        std::os::unix::fs::lchown(&path, None, Some(group.group_id))
            .context(|| format!("storage: group of {}", path.display()))?;
        if metadata.is_symlink() {
            continue;
        }
        let added = if metadata.is_dir() { 0o2070 } else { 0o060 };
        fs::set_permissions(&path, fs::Permissions::from_mode(metadata.mode() & 0o7777 | added))
            .context(|| format!("storage: mode of {}", path.display()))?;
        if metadata.is_dir() {
            let entries = fs::read_dir(&path).context(|| format!("storage: {}", path.display()))?;
            waiting.extend(entries.flatten().map(|entry| entry.path()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn byte_counts_parse() {
        let cases = [("4096", Some(4096)), ("2M", Some(2 << 20)), ("1Gi", Some(1 << 30)), ("3KB", Some(3072))];
        for (text, expected) in cases {
            assert_eq!(byte_count(text), expected, "{text}");
        }
        for bad in ["", "M", "5x", "99999999999999999999", "17179869184G"] {
            assert_eq!(byte_count(bad), None, "{bad}");
        }
    }

    #[test]
    fn overlay_paths_share_a_directory() {
        let paths = ["/run/i/c1/l10", "/run/i/c1/l1", "/run/i/c1/rw/upper"];
        assert_eq!(common_directory(&paths).unwrap(), "/run/i/c1/");
        assert_eq!(common_directory(&["/a/b", "/c/d"]), None);
        assert_eq!(common_directory(&[]), None);
    }

    #[test]
    fn a_group_change_reaches_every_file_and_follows_no_link() {
        let dir = TempDir::new();
        let outside = dir.path().join("outside");
        let volume = dir.path().join("volume");
        fs::create_dir_all(volume.join("sub")).unwrap();
        fs::write(&outside, "x").unwrap();
        fs::set_permissions(&outside, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(volume.join("sub/file"), "x").unwrap();
        std::os::unix::fs::symlink(&outside, volume.join("link")).unwrap();
        let gid = fs::metadata(&volume).unwrap().gid();
        let group = FsGroup { group_id: gid, group_change_policy: FsGroupChangePolicy::Always as i32 };
        change_group(&volume, &group).unwrap();
        assert_eq!(fs::metadata(volume.join("sub")).unwrap().mode() & 0o2070, 0o2070);
        assert_eq!(fs::metadata(volume.join("sub/file")).unwrap().mode() & 0o060, 0o060);
        assert_eq!(fs::metadata(&outside).unwrap().mode() & 0o777, 0o600);
    }
}
