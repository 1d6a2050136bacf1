//! What calls do to the guest itself: CPUs, memory, clock, random numbers, swap, volumes.
use crate::agent::Agent;
use crate::failure::{internal, invalid, Context, Result};
use crate::log;
use kata_protocol::agent_ext::{GuestMemory, OnlineRequest};
use kata_protocol::grpc::{
    volume_usage::Unit, AgentDetails, GuestDetailsRequest, GuestDetailsResponse, OnlineCpuMemRequest, VolumeCondition,
    VolumeStatsResponse, VolumeUsage,
};
use rustix::time::{clock_settime, ClockId, Timespec};
use std::ffi::CString;
use std::fs;
use std::io::{self, Read as _};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

const CPUS: &str = "/sys/devices/system/cpu";
const MEMORY: &str = "/sys/devices/system/memory";
/// Upstream waits as long for CPUs that the host has just plugged.
const ONLINE_TIMEOUT: Duration = Duration::from_secs(5);
/// 8 TiB in the smallest blocks.
const MAX_MEMORY_BLOCKS: u64 = 65_536;
const MAX_ENTROPY_BYTES: usize = 4096;
const MAX_PROBE_ADDRESSES: usize = 4096;
const MAX_LOG_BYTES: u64 = 4096;

/// GetGuestDetails.
pub fn details(request: &GuestDetailsRequest) -> Result<GuestDetailsResponse> {
    let mut response = GuestDetailsResponse {
        agent_details: Some(AgentDetails {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            init_daemon: std::process::id() == 1,
            device_handlers: Vec::new(),
            storage_handlers: crate::storage::DRIVERS.iter().map(|name| (*name).to_owned()).collect(),
            supports_seccomp: true,
            extra_features: crate::ready::EXTENSIONS.iter().map(|name| (*name).to_owned()).collect(),
        }),
        ..Default::default()
    };
    if request.mem_block_size {
        response.mem_block_size_bytes = memory_block_bytes()?;
    }
    if request.mem_hotplug_probe {
        response.support_mem_hotplug_probe = Path::new(MEMORY).join("probe").exists();
    }
    Ok(response)
}

/// 0 for a kernel without memory hotplug, as upstream's agent says it.
fn memory_block_bytes() -> Result<u64> {
    let path = format!("{MEMORY}/block_size_bytes");
    fs::read_to_string(&path).map_or(Ok(0), |text| u64::from_str_radix(text.trim(), 16).context(|| path))
}

/// Numbered directories (`cpu3`, `memory12`) whose `online` file says 0.
fn offline(directory: &str, prefix: &str) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter(|entry| {
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix(prefix));
            number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
        })
        .map(|entry| entry.path().join("online"))
        .filter(|path| fs::read_to_string(path).is_ok_and(|text| text.trim() == "0"))
        .collect()
}

fn bring_online(paths: &[std::path::PathBuf], limit: usize) -> usize {
    let mut count = 0;
    for path in paths.iter().take(limit) {
        match fs::write(path, "1") {
            Ok(()) => count += 1,
            Err(error) => log::warning!("guest", "{}: {error}", path.display()),
        }
    }
    count
}

/// OnlineCPUMem: brings up to `nb_cpus` CPUs, and all memory, into use. With `wait` the CPUs must appear in time.
pub async fn online(agent: &Agent, request: &OnlineCpuMemRequest) -> Result<()> {
    if request.nb_cpus > 0 {
        let wanted = request.nb_cpus as usize;
        let mut done = 0;
        let look = || {
            done += bring_online(&offline(CPUS, "cpu"), wanted - done);
            Ok((done >= wanted || !request.wait).then_some(()))
        };
        let what = format!("{wanted} more CPUs");
        agent.uevents.wait_for(&what, ONLINE_TIMEOUT, look).await?;
    }
    if !request.cpu_only {
        let blocks = offline(MEMORY, "memory");
        bring_online(&blocks, usize::MAX);
    }
    Ok(())
}

/// AgentExtension.Online. Hardware that is still to come is announced by the kernel.
pub async fn online_all(agent: &Agent, request: &OnlineRequest) -> Result<()> {
    let blocks = blocks_of(&request.memory, memory_block_bytes()?).map_err(invalid)?;
    let cpus = request.cpus as usize;
    let look = || {
        let mut online = cpus_online(&fs::read_to_string(format!("{CPUS}/online")).unwrap_or_default());
        online += bring_online(&offline(CPUS, "cpu"), cpus.saturating_sub(online));
        let missing = blocks.iter().filter(|block| !memory_online(**block)).count();
        Ok((online >= cpus && missing == 0).then_some(()))
    };
    let what = format!("hardware for {cpus} processors and {} added blocks of memory", blocks.len());
    agent.uevents.wait_for(&what, Duration::from_millis(u64::from(request.timeout_ms)), look).await
}

/// Brings a block of memory into use; false while it is not there.
fn memory_online(block: u64) -> bool {
    let path = format!("{MEMORY}/memory{block}/online");
    fs::read_to_string(&path).is_ok_and(|text| text.trim() == "1") || fs::write(&path, "1").is_ok()
}

/// Processors in a list such as `0-3,5`.
fn cpus_online(list: &str) -> usize {
    let count = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        Some((last + 1).saturating_sub(first))
    };
    list.trim().split(',').filter_map(count).sum()
}

/// The numbers of the kernel's memory blocks that the ranges are made of.
fn blocks_of(memory: &[GuestMemory], block_bytes: u64) -> std::result::Result<Vec<u64>, String> {
    if memory.is_empty() {
        return Ok(Vec::new());
    }
    let mut blocks = Vec::new();
    for GuestMemory { address, bytes } in memory {
        let whole = block_bytes > 0 && address % block_bytes == 0 && bytes % block_bytes == 0;
        let count = if whole { bytes / block_bytes } else { 0 };
        if count == 0 || blocks.len() as u64 + count > MAX_MEMORY_BLOCKS {
            return Err(format!("memory: {bytes} bytes at {address:#x} are no blocks of {block_bytes}"));
        }
        blocks.extend((0..count).map(|index| address / block_bytes + index));
    }
    Ok(blocks)
}

/// MemHotplugByProbe.
pub fn probe_memory(addresses: &[u64]) -> Result<()> {
    if addresses.len() > MAX_PROBE_ADDRESSES {
        return Err(invalid(format!("memory: {} addresses are over {MAX_PROBE_ADDRESSES}", addresses.len())));
    }
    let path = format!("{MEMORY}/probe");
    for address in addresses {
        fs::write(&path, format!("{address:#X}")).context(|| format!("memory: write {address:#x} to {path}"))?;
    }
    Ok(())
}

/// `struct rand_pool_info` with room for what one call may bring.
#[repr(C)]
struct Entropy {
    bits: libc::c_int,
    bytes: libc::c_int,
    pool: [u8; MAX_ENTROPY_BYTES],
}

const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;

/// ReseedRandomDev: mixes the host's bytes in, credits them, and makes the generator use them at once.
pub fn reseed(data: &[u8]) -> Result<()> {
    if data.is_empty() || data.len() > MAX_ENTROPY_BYTES {
        return Err(invalid(format!("random: {} bytes are not 1 to {MAX_ENTROPY_BYTES}", data.len())));
    }
    let device = fs::File::open("/dev/random").context(|| "random: open /dev/random".to_owned())?;
    let mut entropy = Entropy { bits: data.len() as i32 * 8, bytes: data.len() as i32, pool: [0; MAX_ENTROPY_BYTES] };
    entropy.pool[..data.len()].copy_from_slice(data);
    // SAFETY: the structure has the kernel's layout, its length field is within its pool, and it outlives the calls.
    let done = unsafe {
        let added = libc::ioctl(device.as_raw_fd(), RNDADDENTROPY as _, &raw const entropy);
        if added < 0 {
            added
        } else {
            libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG as _)
        }
    };
    if done < 0 {
        return Err(io::Error::last_os_error()).context(|| "random: reseed".to_owned());
    }
    Ok(())
}

/// SetGuestDateTime.
pub fn set_time(seconds: i64, microseconds: i64) -> Result<()> {
    if seconds < 0 || !(0..1_000_000).contains(&microseconds) {
        return Err(invalid(format!("clock: {seconds} s and {microseconds} us are no time")));
    }
    let time = Timespec { tv_sec: seconds, tv_nsec: microseconds * 1000 };
    clock_settime(ClockId::Realtime, time).context(|| "clock: set".to_owned())
}

/// AddSwap, AddSwapPath: the host has formatted the device.
pub async fn add_swap(agent: &Agent, source: &str) -> Result<()> {
    let around = agent.storages.surroundings();
    let disk = around.roots.wait_for_disk(source, &around.uevents, around.hotplug_timeout).await?;
    let path = CString::new(disk.as_os_str().as_encoded_bytes()).map_err(|_| invalid("swap: NUL in a path"))?;
    // SAFETY: the path is NUL-terminated and outlives the call.
    if unsafe { libc::swapon(path.as_ptr(), 0) } < 0 {
        return Err(io::Error::last_os_error()).context(|| format!("swap: use {}", disk.display()));
    }
    Ok(())
}

/// GetVolumeStats.
pub fn volume_stats(path: &str) -> Result<VolumeStatsResponse> {
    if !path.starts_with('/') {
        return Err(invalid(format!("volume: {path:?} is not an absolute path")));
    }
    let stats = rustix::fs::statvfs(path).map_err(|error| internal(format!("volume: {path}: {error}")))?;
    let usage = |total: u64, free: u64, available: u64, scale: u64, unit: Unit| VolumeUsage {
        available: available * scale,
        total: total * scale,
        used: total.saturating_sub(free) * scale,
        unit: unit as i32,
    };
    Ok(VolumeStatsResponse {
        usage: vec![
            usage(stats.f_blocks, stats.f_bfree, stats.f_bavail, stats.f_frsize, Unit::Bytes),
            usage(stats.f_files, stats.f_ffree, stats.f_favail, 1, Unit::Inodes),
        ],
        volume_condition: Some(VolumeCondition { abnormal: false, message: "OK".into() }),
    })
}

/// GetDiagnosticData: the end message of a container, 4 KiB at most, looked up inside its root.
pub fn termination_log(rootfs: &Path, path: &str) -> Result<String> {
    use rustix::fs::{openat2, Mode, OFlags, ResolveFlags};
    let what = || format!("diagnostics: {path:?}");
    let root =
        rustix::fs::open(rootfs, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).context(what)?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = fs::File::from(openat2(&root, path, flags, Mode::empty(), resolve).context(what)?);
    if !file.metadata().context(what)?.is_file() {
        return Err(invalid(format!("diagnostics: {path:?} is no regular file")));
    }
    let mut bytes = Vec::new();
    file.take(MAX_LOG_BYTES).read_to_end(&mut bytes).context(what)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn offline_parts_are_those_that_say_so() {
        let dir = TempDir::new();
        for (name, text) in
            [("cpu0", None), ("cpu1", Some("0\n")), ("cpu2", Some("1\n")), ("cpufreq", Some("0")), ("cpu", Some("0"))]
        {
            fs::create_dir(dir.path().join(name)).unwrap();
            if let Some(text) = text {
                fs::write(dir.path().join(name).join("online"), text).unwrap();
            }
        }
        let found = offline(dir.path().to_str().unwrap(), "cpu");
        assert_eq!(found, [dir.path().join("cpu1/online")]);
        assert_eq!(bring_online(&found, 0), 0);
        assert_eq!(bring_online(&found, 5), 1);
        assert!(offline(dir.path().to_str().unwrap(), "cpu").is_empty());
    }

    #[test]
    fn processors_in_a_list_are_counted() {
        for (list, count) in [("0\n", 1), ("0-3\n", 4), ("0-1,4,6-7", 5), ("", 0), ("x,3-1,2", 1)] {
            assert_eq!(cpus_online(list), count, "{list:?}");
        }
    }

    #[test]
    fn added_memory_is_whole_blocks() {
        let block = 128 << 20;
        let memory = |address, bytes| vec![GuestMemory { address, bytes }];
        assert_eq!(blocks_of(&memory(32 * block, 2 * block), block).unwrap(), [32, 33]);
        assert_eq!(blocks_of(&[], 0).unwrap(), []);
        for (address, bytes, block) in [
            (1, block, block),
            (0, block + 1, block),
            (0, 0, block),
            (0, block, 0),
            (0, (MAX_MEMORY_BLOCKS + 1) << 27, block),
        ] {
            assert!(blocks_of(&memory(address, bytes), block).is_err(), "{address} {bytes} {block}");
        }
    }

    #[test]
    fn volumes_are_measured() {
        let stats = volume_stats("/").unwrap();
        assert!(stats.usage[0].total >= stats.usage[0].used && stats.usage[0].total > 0);
        assert!(volume_stats("relative").is_err() && volume_stats("/does/not/exist").is_err());
    }

    #[test]
    fn termination_messages_stay_inside_the_root_and_short() {
        let dir = TempDir::new();
        let root = dir.path().join("root");
        fs::create_dir(&root).unwrap();
        fs::write(dir.path().join("secret"), "outside").unwrap();
        fs::write(root.join("log"), "x".repeat(10_000)).unwrap();
        std::os::unix::fs::symlink("../secret", root.join("link")).unwrap();
        assert_eq!(termination_log(&root, "/log").unwrap().len(), 4096);
        assert!(termination_log(&root, "/link").is_err());
        assert!(termination_log(&root, "/../secret").is_err());
        assert!(termination_log(&root, "/").is_err());
    }

    #[test]
    fn arguments_are_checked() {
        assert!(reseed(&[]).is_err() && reseed(&vec![0; MAX_ENTROPY_BYTES + 1]).is_err());
        assert!(set_time(-1, 0).is_err() && set_time(0, 1_000_000).is_err());
        assert!(probe_memory(&vec![0; MAX_PROBE_ADDRESSES + 1]).is_err());
    }
}
