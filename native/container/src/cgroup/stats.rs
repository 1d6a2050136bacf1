//! Usage of a group as Kata's protocol reports it: the fields are those of cgroup v1.
use super::Cgroup;
use kata_protocol::grpc::{
    BlkioStats, BlkioStatsEntry, CgroupStats, CpuStats, CpuUsage, HugetlbStats, MemoryData, MemoryStats, PidsStats,
    ThrottlingData,
};
use std::collections::BTreeMap;

const NANOS_PER_MICRO: u64 = 1000;

/// A controller that is off leaves its part out.
pub(super) fn collect(group: &Cgroup) -> CgroupStats {
    CgroupStats {
        cpu_stats: group.read("cpu.stat").map(|text| cpu(&pairs(&text))),
        memory_stats: memory(group),
        pids_stats: number(group, "pids.current")
            .map(|current| PidsStats { current, limit: number(group, "pids.max").unwrap_or(0) }),
        blkio_stats: group.read("io.stat").map(|text| io(&text)),
        hugetlb_stats: huge_pages(group),
    }
}

fn pairs(text: &str) -> BTreeMap<String, u64> {
    let pair =
        |line: &str| line.split_once(' ').and_then(|(name, value)| Some((name.to_owned(), value.trim().parse().ok()?)));
    text.lines().filter_map(pair).collect()
}

/// A file of one number; `max` is the largest.
fn number(group: &Cgroup, file: &str) -> Option<u64> {
    match group.read(file)?.trim() {
        "max" => Some(u64::MAX),
        text => text.parse().ok(),
    }
}

fn cpu(stat: &BTreeMap<String, u64>) -> CpuStats {
    let value = |name: &str| stat.get(name).copied().unwrap_or(0);
    let nanos = |name: &str| value(name).saturating_mul(NANOS_PER_MICRO);
    CpuStats {
        cpu_usage: Some(CpuUsage {
            total_usage: nanos("usage_usec"),
            percpu_usage: Vec::new(),
            usage_in_kernelmode: nanos("system_usec"),
            usage_in_usermode: nanos("user_usec"),
        }),
        throttling_data: Some(ThrottlingData {
            periods: value("nr_periods"),
            throttled_periods: value("nr_throttled"),
            throttled_time: nanos("throttled_usec"),
        }),
    }
}

fn memory(group: &Cgroup) -> Option<MemoryStats> {
    let usage = number(group, "memory.current")?;
    let stats = pairs(&group.read("memory.stat").unwrap_or_default());
    let swap = number(group, "memory.swap.current");
    Some(MemoryStats {
        cache: stats.get("file").copied().unwrap_or(0),
        usage: Some(MemoryData {
            usage,
            max_usage: number(group, "memory.peak").unwrap_or(0),
            failcnt: group.keyed("memory.events", "max"),
            limit: number(group, "memory.max").unwrap_or(0),
        }),
        // As runc reports it: memory and swap together, the way cgroup v1 counted.
        swap_usage: swap.map(|swap| MemoryData {
            usage: usage.saturating_add(swap),
            max_usage: 0,
            failcnt: group.keyed("memory.swap.events", "max"),
            limit: number(group, "memory.max")
                .unwrap_or(0)
                .saturating_add(number(group, "memory.swap.max").unwrap_or(0)),
        }),
        kernel_usage: stats.get("kernel").map(|usage| MemoryData { usage: *usage, ..MemoryData::default() }),
        use_hierarchy: true,
        stats,
    })
}

/// Lines such as `254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`.
fn io(text: &str) -> BlkioStats {
    let mut stats = BlkioStats::default();
    for line in text.lines() {
        let mut words = line.split(' ');
        let numbers =
            words.next().and_then(|device| device.split_once(':')).map(|(major, minor)| (major.parse(), minor.parse()));
        let Some((Ok(major), Ok(minor))) = numbers else { continue };
        for (name, value) in words.filter_map(|word| word.split_once('=')) {
            let (list, op) = match name {
                "rbytes" => (&mut stats.io_service_bytes_recursive, "Read"),
                "wbytes" => (&mut stats.io_service_bytes_recursive, "Write"),
                "dbytes" => (&mut stats.io_service_bytes_recursive, "Discard"),
                "rios" => (&mut stats.io_serviced_recursive, "Read"),
                "wios" => (&mut stats.io_serviced_recursive, "Write"),
                "dios" => (&mut stats.io_serviced_recursive, "Discard"),
                _ => continue,
            };
            let Ok(value) = value.parse() else { continue };
            list.push(BlkioStatsEntry { major, minor, op: op.to_owned(), value });
        }
    }
    stats
}

fn huge_pages(group: &Cgroup) -> BTreeMap<String, HugetlbStats> {
    // x86_64's sizes; the files of one that the machine lacks are missing.
    let sizes = ["2MB", "1GB"].into_iter();
    sizes
        .filter_map(|size| {
            let usage = number(group, &format!("hugetlb.{size}.current"))?;
            let failcnt = group.keyed(&format!("hugetlb.{size}.events"), "max");
            Some((size.to_owned(), HugetlbStats { usage, max_usage: 0, failcnt }))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_lines_are_read() {
        let stats = io("254:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\nbroken line\n7:1 rbytes=x wios=5\n");
        let texts: Vec<String> = stats
            .io_service_bytes_recursive
            .iter()
            .map(|e| format!("{}:{} {} {}", e.major, e.minor, e.op, e.value))
            .collect();
        assert_eq!(texts, ["254:0 Read 10", "254:0 Write 20", "254:0 Discard 0"]);
        assert_eq!(stats.io_serviced_recursive.len(), 4);
    }

    #[test]
    fn cpu_microseconds_become_nanoseconds() {
        let stats = cpu(&pairs(
            "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 9\nnr_throttled 4\nthrottled_usec 7\nbroken\n",
        ));
        assert_eq!(stats.cpu_usage.unwrap().total_usage, 5000);
        assert_eq!(
            stats.throttling_data.unwrap(),
            ThrottlingData { periods: 9, throttled_periods: 4, throttled_time: 7000 }
        );
    }
}
