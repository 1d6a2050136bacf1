//! Finding devices in sysfs: PCI paths as upstream's hosts write them, block devices, partitions of a shared disk.
use crate::failure::{internal, invalid, Context, Result};
use crate::uevent::Uevents;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where devices are looked for; tests give a tree of their own.
#[derive(Clone, Debug)]
pub struct DeviceRoots {
    pub sys: PathBuf,
    pub dev: PathBuf,
}

impl Default for DeviceRoots {
    fn default() -> Self {
        Self { sys: PathBuf::from("/sys"), dev: PathBuf::from("/dev") }
    }
}

/// Bridges behind bridges; more than any machine has.
const MAX_PCI_DEPTH: usize = 8;
const MAX_PARTITIONS: u32 = 255;

/// The slots of a PCI path from the root bus down: `02`, `01/03` or with functions `02.0/1f.1`, hexadecimal.
/// Errors: INVALID_ARGUMENT.
pub fn parse_pci_path(text: &str) -> Result<Vec<(u8, u8)>> {
    let slot = |part: &str| {
        let (slot, function) = part.split_once('.').unwrap_or((part, "0"));
        let plain =
            |text: &str, longest| (1..=longest).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
        if !plain(slot, 2) || !plain(function, 1) {
            return None;
        }
        let (slot, function) = (u8::from_str_radix(slot, 16).ok()?, u8::from_str_radix(function, 16).ok()?);
        (slot < 32 && function < 8).then_some((slot, function))
    };
    let slots: Option<Vec<_>> = text.split('/').map(slot).collect();
    slots
        .filter(|slots| slots.len() <= MAX_PCI_DEPTH)
        .ok_or_else(|| invalid(format!("device: {text:?} is no PCI path such as \"02\" or \"01/03\"")))
}

impl DeviceRoots {
    /// Directory of the PCI device at `slots`, or `None` while a part of the way is not there.
    pub fn pci_device(&self, slots: &[(u8, u8)]) -> Option<PathBuf> {
        // Every root complex is tried: firmware and machine types name the first one differently.
        let roots = fs::read_dir(self.sys.join("devices")).ok()?.flatten().filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let bus = name.strip_prefix("pci")?.to_owned();
            Some((bus, entry.path()))
        });
        let mut roots: Vec<_> = roots.collect();
        roots.sort();
        roots.into_iter().find_map(|(bus, path)| walk_pci(bus, path, slots))
    }

    /// `/dev` path of the disk that belongs to the device in `directory`, once its node exists.
    pub fn disk_of(&self, directory: &Path) -> Option<PathBuf> {
        let name = find_below(directory, "block", 3)?;
        let node = self.dev.join(name);
        is_block_device(&node).then_some(node)
    }

    /// Name of the network interface that belongs to the device in `directory`.
    pub fn interface_of(directory: &Path) -> Option<String> {
        find_below(directory, "net", 3)
    }

    /// Waits for the disk named by a PCI path or a `/dev/…` path. Errors: INVALID_ARGUMENT, DEADLINE_EXCEEDED.
    pub async fn wait_for_disk(&self, source: &str, events: &Uevents, timeout: Duration) -> Result<PathBuf> {
        if let Some(name) = source.strip_prefix("/dev/") {
            if name.is_empty() || name.contains("..") {
                return Err(invalid(format!("device: {source:?} is no device node")));
            }
            let node = self.dev.join(name);
            let look = || Ok(is_block_device(&node).then(|| node.clone()));
            return events.wait_for(source, timeout, look).await;
        }
        let slots = parse_pci_path(source)?;
        let what = format!("the disk at PCI path {source}");
        events.wait_for(&what, timeout, || Ok(self.pci_device(&slots).and_then(|path| self.disk_of(&path)))).await
    }

    /// Waits for the network interface at a PCI path and gives its name.
    pub async fn wait_for_interface(&self, path: &str, events: &Uevents, timeout: Duration) -> Result<String> {
        let slots = parse_pci_path(path)?;
        let what = format!("the network interface at PCI path {path}");
        events.wait_for(&what, timeout, || Ok(self.pci_device(&slots).as_deref().and_then(Self::interface_of))).await
    }

    /// Makes a part of a disk a device of its own and gives its node. A part that exists already is used as it is.
    /// `extent` is `<start>,<count>` in sectors of 512 bytes.
    pub async fn partition(&self, disk: &Path, extent: &str, events: &Uevents, timeout: Duration) -> Result<PathBuf> {
        let (start, sectors) = parse_extent(extent)?;
        let name = disk.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let directory = self.sys.join("class/block").join(&name);
        let number = match existing_partition(&directory, &name, start, sectors)? {
            Existing::Same(number) => number,
            Existing::FirstFree(number) => {
                add_partition(disk, number, start, sectors)
                    .context(|| format!("device: add sectors {extent} of {} as partition {number}", disk.display()))?;
                number
            }
        };
        let node = self.dev.join(partition_name(&name, number));
        let what = node.display().to_string();
        events.wait_for(&what, timeout, || Ok(is_block_device(&node).then(|| node.clone()))).await
    }
}

fn walk_pci(mut bus: String, mut path: PathBuf, slots: &[(u8, u8)]) -> Option<PathBuf> {
    for (depth, (slot, function)) in slots.iter().enumerate() {
        path.push(format!("{bus}:{slot:02x}.{function}"));
        if !path.is_dir() {
            return None;
        }
        if depth + 1 < slots.len() {
            // A bridge has exactly one bus behind it, named `dddd:bb`.
            let mut buses = fs::read_dir(path.join("pci_bus")).ok()?.flatten();
            bus = buses.next()?.file_name().into_string().ok()?;
        }
    }
    Some(path)
}

/// First entry of a directory called `class` at most `depth` levels below.
fn find_below(directory: &Path, class: &str, depth: usize) -> Option<String> {
    if let Ok(mut entries) = fs::read_dir(directory.join(class)) {
        return entries.next()?.ok()?.file_name().into_string().ok();
    }
    if depth == 0 {
        return None;
    }
    fs::read_dir(directory)
        .ok()?
        .flatten()
        // Symbolic links lead out of the device.
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .find_map(|entry| find_below(&entry.path(), class, depth - 1))
}

/// Whether the node is there and its disk answers. The kernel makes the node before the disk can be opened (ENXIO until
/// then), and sends the event when it can.
fn is_block_device(path: &Path) -> bool {
    let answers = || !File::open(path).is_err_and(|error| error.raw_os_error() == Some(libc::ENXIO));
    fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device()) && answers()
}

fn parse_extent(text: &str) -> Result<(u64, u64)> {
    text.split_once(',')
        .and_then(|(start, count)| Some((start.parse().ok()?, count.parse().ok()?)))
        .filter(|(start, count): &(u64, u64)| *count > 0 && start.checked_add(*count).is_some_and(|end| end < 1 << 54))
        .ok_or_else(|| invalid(format!("device: partition={text:?} is not <start sector>,<sectors>")))
}

/// `vda1`, but `nvme0n1p1`: a disk whose name ends in a digit gets a `p` between.
fn partition_name(disk: &str, number: u32) -> String {
    let between = if disk.ends_with(|last: char| last.is_ascii_digit()) { "p" } else { "" };
    format!("{disk}{between}{number}")
}

enum Existing {
    Same(u32),
    FirstFree(u32),
}

fn existing_partition(directory: &Path, disk: &str, start: u64, sectors: u64) -> Result<Existing> {
    let entries = fs::read_dir(directory).context(|| format!("device: list {}", directory.display()))?;
    let mut taken = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(suffix) = name.to_str().and_then(|name| name.strip_prefix(disk)) else { continue };
        let Ok(number) = suffix.trim_start_matches('p').parse::<u32>() else { continue };
        let read = |file: &str| fs::read_to_string(entry.path().join(file)).ok()?.trim().parse::<u64>().ok();
        if (read("start"), read("size")) == (Some(start), Some(sectors)) {
            return Ok(Existing::Same(number));
        }
        taken.push(number);
    }
    let free = (1..=MAX_PARTITIONS).find(|number| !taken.contains(number));
    free.map(Existing::FirstFree).ok_or_else(|| internal(format!("device: {disk} has {MAX_PARTITIONS} partitions")))
}

/// `struct blkpg_ioctl_arg` and `struct blkpg_partition` of linux/blkpg.h.
#[repr(C)]
struct BlkpgRequest {
    operation: libc::c_int,
    flags: libc::c_int,
    length: libc::c_int,
    data: *const BlkpgPartition,
}

#[repr(C)]
struct BlkpgPartition {
    start_bytes: libc::c_longlong,
    length_bytes: libc::c_longlong,
    number: libc::c_int,
    unused_names: [u8; 128],
}

const BLKPG: libc::c_ulong = 0x1269;
const BLKPG_ADD_PARTITION: libc::c_int = 1;

fn add_partition(disk: &Path, number: u32, start: u64, sectors: u64) -> io::Result<()> {
    let disk = fs::File::open(disk)?;
    let partition = BlkpgPartition {
        start_bytes: (start * 512) as i64,
        length_bytes: (sectors * 512) as i64,
        number: number as i32,
        unused_names: [0; 128],
    };
    let request = BlkpgRequest {
        operation: BLKPG_ADD_PARTITION,
        flags: 0,
        length: size_of::<BlkpgPartition>() as i32,
        data: &raw const partition,
    };
    // SAFETY: both structures have the kernel's layout and outlive the call.
    let done = unsafe { libc::ioctl(disk.as_raw_fd(), BLKPG as _, &raw const request) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn pci_paths_parse_or_are_refused() {
        assert_eq!(parse_pci_path("02").unwrap(), [(2, 0)]);
        assert_eq!(parse_pci_path("01/1f.7").unwrap(), [(1, 0), (31, 7)]);
        for bad in ["", "/", "20", "zz", "01/", "01//02", "1.8", "-1", "+1", "001", "01.", "..", "1/1/1/1/1/1/1/1/1"] {
            assert!(parse_pci_path(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn pci_paths_resolve_through_bridges_of_a_fake_sysfs() {
        let dir = TempDir::new();
        let roots = DeviceRoots { sys: dir.path().join("sys"), dev: dir.path().join("dev") };
        let root = roots.sys.join("devices/pci0000:00");
        let disk = root.join("0000:00:02.0/virtio1/block/vda");
        let behind = root.join("0000:00:01.0/0000:01:03.0");
        fs::create_dir_all(&disk).unwrap();
        fs::create_dir_all(behind.join("virtio4/net/eth0")).unwrap();
        fs::create_dir_all(root.join("0000:00:01.0/pci_bus/0000:01")).unwrap();
        fs::create_dir_all(&roots.dev).unwrap();
        let device = roots.pci_device(&[(2, 0)]).unwrap();
        assert_eq!(device, root.join("0000:00:02.0"));
        assert_eq!(find_below(&device, "block", 3).unwrap(), "vda");
        // The node is not there yet: the disk does not count as found.
        assert_eq!(roots.disk_of(&device), None);
        let device = roots.pci_device(&[(1, 0), (3, 0)]).unwrap();
        assert_eq!(DeviceRoots::interface_of(&device).unwrap(), "eth0");
        for absent in [vec![(4, 0)], vec![(2, 0), (1, 0)], vec![(1, 0), (4, 0)]] {
            assert_eq!(roots.pci_device(&absent), None);
        }
    }

    #[test]
    fn partitions_are_reused_or_get_the_first_free_number() {
        let dir = TempDir::new();
        for (number, start, size) in [(1, 0, 8), (3, 8, 16)] {
            let partition = dir.path().join(partition_name("vda", number));
            fs::create_dir_all(&partition).unwrap();
            fs::write(partition.join("start"), format!("{start}\n")).unwrap();
            fs::write(partition.join("size"), format!("{size}\n")).unwrap();
        }
        let found = |start, size| existing_partition(dir.path(), "vda", start, size).unwrap();
        assert!(matches!(found(8, 16), Existing::Same(3)));
        assert!(matches!(found(8, 15), Existing::FirstFree(2)));
        assert_eq!(partition_name("nvme0n1", 2), "nvme0n1p2");
    }

    #[test]
    fn extents_are_checked() {
        assert_eq!(parse_extent("0,8").unwrap(), (0, 8));
        for bad in ["", "1", "1,", "1,0", "-1,2", "1,2,3", "18446744073709551615,1", "36028797018963968,1"] {
            assert!(parse_extent(bad).is_err(), "{bad}");
        }
    }
}
