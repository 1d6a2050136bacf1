//! Resources of the OCI runtime spec as cgroup v2 settings.
use super::Cgroup;
use crate::error::{ContainerError, Result, Step};
use kata_protocol::grpc::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources, LinuxThrottleDevice};

const DEFAULT_PERIOD_US: u64 = 100_000;
/// Page sizes that hugetlb can be asked for: the file's name is made of it.
const PAGE_SIZE_LENGTH: usize = 8;

/// One write: file of the group, and value.
type Setting = (String, String);

fn setting(file: &str, value: impl ToString) -> Setting {
    (file.to_owned(), value.to_string())
}

fn invalid(value: impl ToString, what: &str) -> ContainerError {
    ContainerError::invalid(Step::Cgroup, value.to_string(), what)
}

pub(super) fn apply(group: &Cgroup, resources: &LinuxResources) -> Result<()> {
    for (file, value) in settings(resources)? {
        match (file.as_str(), group.try_write(&file, &value)) {
            (_, Ok(())) => {}
            // A kernel without swap has no limit of it, and none is needed.
            ("memory.swap.max", Err(libc::ENOENT)) => {}
            ("memory.max" | "memory.swap.max", Err(libc::EBUSY)) => {
                return Err(invalid(value, "more memory is in use than"))
            }
            // The default scheduler's weight has one name, BFQ's another.
            ("io.weight", Err(libc::ENOENT)) => group.write("io.bfq.weight", &value)?,
            _ => group.write(&file, &value)?,
        }
    }
    Ok(())
}

fn settings(resources: &LinuxResources) -> Result<Vec<Setting>> {
    let mut settings = Vec::new();
    if let Some(memory) = &resources.memory {
        memory_settings(memory, &mut settings)?;
    }
    if let Some(cpu) = &resources.cpu {
        cpu_settings(cpu, &mut settings);
    }
    match resources.pids.map_or(0, |pids| pids.limit) {
        0 => {}
        limit if limit < 0 => settings.push(setting("pids.max", "max")),
        limit => settings.push(setting("pids.max", limit)),
    }
    if let Some(io) = &resources.block_io {
        io_settings(io, &mut settings);
    }
    for page in &resources.hugepage_limits {
        let size = &page.pagesize;
        if size.is_empty() || size.len() > PAGE_SIZE_LENGTH || !size.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(invalid(size, "no size of huge pages:"));
        }
        settings.push(setting(&format!("hugetlb.{size}.max"), page.limit));
    }
    Ok(settings)
}

/// -1 is no limit, 0 leaves it as it is.
fn limit_value(bytes: i64) -> Option<String> {
    match bytes {
        0 => None,
        bytes if bytes < 0 => Some("max".to_owned()),
        bytes => Some(bytes.to_string()),
    }
}

fn memory_settings(memory: &LinuxMemory, settings: &mut Vec<Setting>) -> Result<()> {
    // In the spec swap is memory and swap together (cgroup v1); here it is swap alone.
    let swap = match (memory.swap, memory.limit) {
        (0, _) => None,
        (swap, _) if swap < 0 => Some("max".to_owned()),
        (swap, limit) if limit <= 0 => return Err(invalid(swap, "a limit of memory and swap needs one of memory:")),
        (swap, limit) if swap < limit => {
            return Err(invalid(swap, "memory and swap together cannot be less than memory:"))
        }
        (swap, limit) => Some((swap - limit).to_string()),
    };
    settings.extend(swap.map(|value| setting("memory.swap.max", value)));
    settings.extend(limit_value(memory.limit).map(|value| setting("memory.max", value)));
    settings.extend(limit_value(memory.reservation).map(|value| setting("memory.low", value)));
    Ok(())
}

fn cpu_settings(cpu: &LinuxCpu, settings: &mut Vec<Setting>) {
    if cpu.shares != 0 {
        settings.push(setting("cpu.weight", weight_of_shares(cpu.shares)));
    }
    if cpu.quota != 0 || cpu.period != 0 {
        let period = if cpu.period == 0 { DEFAULT_PERIOD_US } else { cpu.period };
        let quota = if cpu.quota > 0 { cpu.quota.to_string() } else { "max".to_owned() };
        settings.push(setting("cpu.max", format!("{quota} {period}")));
    }
    if !cpu.cpus.is_empty() {
        settings.push(setting("cpuset.cpus", &cpu.cpus));
    }
    if !cpu.mems.is_empty() {
        settings.push(setting("cpuset.mems", &cpu.mems));
    }
}

/// 2…262144 onto 1…10000 (Kubernetes KEP-2254, as runc and systemd have it).
fn weight_of_shares(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

fn io_settings(io: &LinuxBlockIo, settings: &mut Vec<Setting>) {
    // 10…1000 onto 1…10000.
    let weight = |weight: u32| 1 + u64::from(weight.clamp(10, 1000) - 10) * 9999 / 990;
    if io.weight != 0 {
        settings.push(setting("io.weight", weight(io.weight)));
    }
    for device in &io.weight_device {
        settings.push(setting("io.weight", format!("{}:{} {}", device.major, device.minor, weight(device.weight))));
    }
    let mut throttle = |devices: &[LinuxThrottleDevice], key: &str| {
        for device in devices {
            let rate = if device.rate == 0 { "max".to_owned() } else { device.rate.to_string() };
            settings.push(setting("io.max", format!("{}:{} {key}={rate}", device.major, device.minor)));
        }
    };
    throttle(&io.throttle_read_bps_device, "rbps");
    throttle(&io.throttle_write_bps_device, "wbps");
    throttle(&io.throttle_read_iops_device, "riops");
    throttle(&io.throttle_write_iops_device, "wiops");
}

#[cfg(test)]
mod tests {
    use super::*;
    use kata_protocol::grpc::{LinuxHugepageLimit, LinuxPids};

    fn texts(resources: &LinuxResources) -> Vec<String> {
        settings(resources).unwrap().into_iter().map(|(file, value)| format!("{file}={value}")).collect()
    }

    #[test]
    fn values_become_settings() {
        let resources = LinuxResources {
            memory: Some(LinuxMemory { limit: 64 << 20, swap: 96 << 20, reservation: 1 << 20, ..Default::default() }),
            cpu: Some(LinuxCpu { shares: 1024, quota: 50_000, cpus: "0-1".into(), ..Default::default() }),
            pids: Some(LinuxPids { limit: 100 }),
            block_io: Some(LinuxBlockIo {
                weight: 500,
                throttle_write_bps_device: vec![LinuxThrottleDevice { major: 254, minor: 0, rate: 1000 }],
                ..Default::default()
            }),
            hugepage_limits: vec![LinuxHugepageLimit { pagesize: "2MB".into(), limit: 4 << 20 }],
            ..Default::default()
        };
        let expected = [
            "memory.swap.max=33554432",
            "memory.max=67108864",
            "memory.low=1048576",
            "cpu.weight=39",
            "cpu.max=50000 100000",
            "cpuset.cpus=0-1",
            "pids.max=100",
            "io.weight=4950",
            "io.max=254:0 wbps=1000",
            "hugetlb.2MB.max=4194304",
        ];
        assert_eq!(texts(&resources), expected);
    }

    #[test]
    fn nothing_asked_is_nothing_set() {
        assert!(texts(&LinuxResources::default()).is_empty());
        let unlimited = LinuxResources {
            memory: Some(LinuxMemory { limit: -1, swap: -1, ..Default::default() }),
            cpu: Some(LinuxCpu { quota: -1, period: 50_000, ..Default::default() }),
            pids: Some(LinuxPids { limit: -1 }),
            ..Default::default()
        };
        assert_eq!(texts(&unlimited), ["memory.swap.max=max", "memory.max=max", "cpu.max=max 50000", "pids.max=max"]);
    }

    #[test]
    fn contradictions_are_refused() {
        let memory = |limit, swap| LinuxResources {
            memory: Some(LinuxMemory { limit, swap, ..Default::default() }),
            ..Default::default()
        };
        assert!(settings(&memory(0, 5)).is_err());
        assert!(settings(&memory(10, 5)).is_err());
        let page = LinuxHugepageLimit { pagesize: "../x".into(), limit: 1 };
        assert!(settings(&LinuxResources { hugepage_limits: vec![page], ..Default::default() }).is_err());
    }

    #[test]
    fn weights_stay_in_range() {
        assert_eq!([0, 2, 1024, 262_144, u64::MAX].map(weight_of_shares), [1, 1, 39, 10_000, 10_000]);
    }
}
