//! GetMetrics: the guest's and the agent's figures as Prometheus text, with upstream's names.
use std::cell::Cell;
use std::fmt::Write as _;
use std::fs;

thread_local! {
    static SCRAPES: Cell<u64> = const { Cell::new(0) };
}

/// One family: its type line, then a line per sample.
fn family(out: &mut String, name: &str, samples: impl IntoIterator<Item = (String, f64)>) {
    let _ = writeln!(out, "# TYPE {name} gauge");
    for (labels, value) in samples {
        let _ = if labels.is_empty() {
            writeln!(out, "{name} {value}")
        } else {
            writeln!(out, "{name}{{{labels}}} {value}")
        };
    }
}

fn item(name: &str) -> String {
    let clean: String =
        name.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':')).collect();
    format!("item=\"{clean}\"")
}

/// `Name:  123 kB` lines as (name, bytes or count).
fn colon_lines(text: &str) -> Vec<(String, f64)> {
    let parse = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        let mut words = rest.split_ascii_whitespace();
        let value: f64 = words.next()?.parse().ok()?;
        let scale = if words.next() == Some("kB") { 1024.0 } else { 1.0 };
        Some((name.trim().to_owned(), value * scale))
    };
    text.lines().filter_map(parse).collect()
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn page_bytes() -> f64 {
    rustix::param::page_size() as f64
}

/// The whole text. What the kernel does not offer is left out.
pub fn text() -> String {
    let mut out = String::with_capacity(8 << 10);
    let scrapes = SCRAPES.with(|count| {
        count.set(count.get() + 1);
        count.get()
    });
    family(&mut out, "kata_agent_scrape_count", [(String::new(), scrapes as f64)]);
    agent(&mut out);
    guest(&mut out);
    out
}

fn agent(out: &mut String) {
    let statm = read("/proc/self/statm");
    let pages: Vec<f64> = statm.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect();
    if let [total, resident, ..] = pages[..] {
        family(out, "kata_agent_total_vm", [(String::new(), total * page_bytes())]);
        family(out, "kata_agent_total_rss", [(String::new(), resident * page_bytes())]);
    }
    let status = colon_lines(&read("/proc/self/status"));
    let threads = status.iter().find(|(name, _)| name == "Threads").map_or(0.0, |(_, count)| *count);
    family(out, "kata_agent_threads", [(String::new(), threads)]);
    let memory = status.into_iter().filter(|(name, _)| name.starts_with("Vm") || name.starts_with("Rss"));
    family(out, "kata_agent_proc_status", memory.map(|(name, value)| (item(&name.to_ascii_lowercase()), value)));
    let io = colon_lines(&read("/proc/self/io"));
    family(out, "kata_agent_io_stat", io.into_iter().map(|(name, value)| (item(&name), value)));
    // Fields 14 and 15 of /proc/self/stat, after the name, which may hold spaces and parentheses.
    let stat = read("/proc/self/stat");
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    let per_second = rustix::param::clock_ticks_per_second() as f64;
    let (user, system) = (ticks(11) / per_second, ticks(12) / per_second);
    family(out, "kata_agent_total_time", [(String::new(), user + system)]);
    family(out, "kata_agent_proc_stat", [(item("utime"), user), (item("stime"), system)]);
}

fn guest(out: &mut String) {
    let load = read("/proc/loadavg");
    let loads: Vec<&str> = load.split_ascii_whitespace().collect();
    let names = ["load1", "load5", "load15"];
    let samples = names.iter().zip(&loads).filter_map(|(name, value)| Some((item(name), value.parse().ok()?)));
    family(out, "kata_guest_load", samples);
    if let Some((running, all)) = loads.get(3).and_then(|tasks| tasks.split_once('/')) {
        let count = |text: &str| text.parse().unwrap_or(0.0);
        family(out, "kata_guest_tasks", [(item("cur"), count(running)), (item("max"), count(all))]);
    }
    cpu_times(out);
    let counters = read("/proc/vmstat");
    let parse = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        Some((item(name), value.parse().ok()?))
    };
    family(out, "kata_guest_vm_stat", counters.lines().filter_map(parse));
    family(
        out,
        "kata_guest_meminfo",
        colon_lines(&read("/proc/meminfo")).into_iter().map(|(name, value)| (item(&name), value)),
    );
    interfaces(out);
    disks(out);
    filesystem(out);
}

fn cpu_times(out: &mut String) {
    let names = ["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guest_nice"];
    let stat = read("/proc/stat");
    let per_second = rustix::param::clock_ticks_per_second() as f64;
    let lines = stat.lines().filter(|line| line.starts_with("cpu"));
    let samples = lines.flat_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let cpu = words.next().unwrap_or_default().trim_start_matches("cpu");
        let cpu = if cpu.is_empty() { "total".to_owned() } else { cpu.to_owned() };
        let values =
            names.iter().zip(words).filter_map(|(name, value)| Some((*name, value.parse::<f64>().ok()? / per_second)));
        values.map(|(name, value)| (format!("cpu=\"{cpu}\",{}", item(name)), value)).collect::<Vec<_>>()
    });
    family(out, "kata_guest_cpu_time", samples);
}

fn interfaces(out: &mut String) {
    let samples = crate::stats::network().into_iter().flat_map(|net| {
        let label = |name: &str| format!("interface=\"{}\",{}", net.name.replace(['"', '\\', '\n'], ""), item(name));
        [
            (label("recv_bytes"), net.rx_bytes as f64),
            (label("recv_packets"), net.rx_packets as f64),
            (label("recv_errs"), net.rx_errors as f64),
            (label("recv_drop"), net.rx_dropped as f64),
            (label("sent_bytes"), net.tx_bytes as f64),
            (label("sent_packets"), net.tx_packets as f64),
            (label("sent_errs"), net.tx_errors as f64),
            (label("sent_drop"), net.tx_dropped as f64),
        ]
    });
    family(out, "kata_guest_netdev_stat", samples);
}

fn disks(out: &mut String) {
    let names = [
        "reads",
        "merged",
        "sectors_read",
        "time_reading",
        "writes",
        "writes_merged",
        "sectors_written",
        "time_writing",
        "in_progress",
        "time_in_progress",
        "weighted_time_in_progress",
    ];
    let text = read("/proc/diskstats");
    let samples = text.lines().flat_map(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let disk = words.get(2).copied().unwrap_or_default().to_owned();
        let values = names
            .iter()
            .zip(words.into_iter().skip(3))
            .filter_map(|(name, value)| Some((*name, value.parse::<f64>().ok()?)));
        values.map(|(name, value)| (format!("disk=\"{disk}\",{}", item(name)), value)).collect::<Vec<_>>()
    });
    family(out, "kata_guest_diskstat", samples);
}

fn filesystem(out: &mut String) {
    let Ok(stats) = rustix::fs::statvfs("/run") else { return };
    let mount = "mount=\"/run\",";
    let scaled = |count: u64| (count * stats.f_frsize) as f64;
    let bytes =
        [("size", scaled(stats.f_blocks)), ("free", scaled(stats.f_bfree)), ("available", scaled(stats.f_bavail))];
    family(out, "kata_guest_filesystem_bytes", bytes.map(|(name, value)| (format!("{mount}{}", item(name)), value)));
    let inodes = [("size", stats.f_files as f64), ("free", stats.f_ffree as f64)];
    family(out, "kata_guest_filesystem_inodes", inodes.map(|(name, value)| (format!("{mount}{}", item(name)), value)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_prometheus_and_has_upstreams_families() {
        let text = text();
        for name in [
            "kata_agent_scrape_count",
            "kata_agent_total_rss",
            "kata_agent_threads",
            "kata_guest_load",
            "kata_guest_cpu_time",
            "kata_guest_meminfo",
            "kata_guest_vm_stat",
            "kata_guest_netdev_stat",
        ] {
            assert!(text.contains(&format!("# TYPE {name} gauge\n{name}")), "{name}");
        }
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(name.starts_with("kata_") && value.parse::<f64>().is_ok(), "{line}");
        }
    }
}
