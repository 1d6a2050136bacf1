//! Figures that are not a cgroup's: network interfaces.
use kata_protocol::grpc::NetworkStats;
use std::fs;

const MAX_INTERFACES: usize = 256;

/// Counters of every interface but the loopback's.
pub fn network() -> Vec<NetworkStats> {
    let entries = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let mut found: Vec<NetworkStats> = entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok().filter(|name| name != "lo")?;
            let directory = entry.path().join("statistics");
            let read = |file: &str| {
                fs::read_to_string(directory.join(file)).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
            };
            Some(NetworkStats {
                rx_bytes: read("rx_bytes"),
                rx_packets: read("rx_packets"),
                rx_errors: read("rx_errors"),
                rx_dropped: read("rx_dropped"),
                tx_bytes: read("tx_bytes"),
                tx_packets: read("tx_packets"),
                tx_errors: read("tx_errors"),
                tx_dropped: read("tx_dropped"),
                name,
            })
        })
        .take(MAX_INTERFACES)
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}
