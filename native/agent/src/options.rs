//! What the agent is told at its start: the kernel's command line (`agent.<name>=<value>`), or `--listen` for tests.
use crate::log::Level;
use std::path::PathBuf;
use std::time::Duration;

pub const AGENT_PORT: u32 = 1024;
pub const LOG_PORT: u32 = 1025;
pub const DEBUG_CONSOLE_PORT: u32 = 1026;
pub const STREAM_PORT: u32 = 1027;
/// On the host (CID 2), where the command line names no other.
pub const READY_PORT: u32 = 1030;

/// Where the agent listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Vsock,
    /// `<dir>/<port>.sock` for each port; for tests and development on a host.
    Unix(PathBuf),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    pub address: Address,
    pub log_level: Level,
    pub log_port: u32,
    pub stream_port: u32,
    /// On the host.
    pub ready_port: u32,
    pub debug_console_port: Option<u32>,
    pub hotplug_timeout: Duration,
    /// Base of everything the agent creates: `/run/kata-containers` in a guest.
    pub run_dir: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            address: Address::Vsock,
            log_level: Level::Info,
            log_port: LOG_PORT,
            stream_port: STREAM_PORT,
            ready_port: READY_PORT,
            debug_console_port: None,
            hotplug_timeout: Duration::from_secs(3),
            run_dir: PathBuf::from("/run/kata-containers"),
        }
    }
}

impl Options {
    /// Reads the kernel's command line. Unknown `agent.` options are upstream's or from a newer host and are returned
    /// as warnings, as are values that do not parse; the default stays in force for those.
    pub fn from_kernel_command_line(text: &str) -> (Self, Vec<String>) {
        let mut options = Self::default();
        let mut warnings = Vec::new();
        for word in text.split_ascii_whitespace() {
            let Some(option) = word.strip_prefix("agent.") else { continue };
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            if !options.set(name, value) {
                warnings.push(format!("kernel command line: {word:?} is not understood and has no effect"));
            }
        }
        (options, warnings)
    }

    fn set(&mut self, name: &str, value: &str) -> bool {
        let flag = matches!(value, "" | "true" | "1");
        match name {
            "log" => return Level::parse(value).map(|level| self.log_level = level).is_some(),
            "log_vport" => return port(value).map(|port| self.log_port = port).is_some(),
            "passfd_listener_port" => return port(value).map(|port| self.stream_port = port).is_some(),
            "ready_vport" => return port(value).map(|port| self.ready_port = port).is_some(),
            "debug_console_vport" => return port(value).map(|port| self.debug_console_port = Some(port)).is_some(),
            "debug_console" if flag => {
                self.debug_console_port.get_or_insert(DEBUG_CONSOLE_PORT);
            }
            "debug_console" => {}
            "hotplug_timeout" => {
                let Some(seconds) = value.parse().ok().filter(|seconds| (1..=600).contains(seconds)) else {
                    return false;
                };
                self.hotplug_timeout = Duration::from_secs(seconds);
            }
            _ => return false,
        }
        true
    }
}

fn port(value: &str) -> Option<u32> {
    value.parse().ok().filter(|port| *port > 0 && *port < u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_sets_what_it_names() {
        let text = "quiet agent.log=debug agent.log_vport=99 agent.debug_console agent.hotplug_timeout=7 agent.ready_vport=2147483647 root=/dev/x\n";
        let (options, warnings) = Options::from_kernel_command_line(text);
        assert!(warnings.is_empty());
        assert_eq!((options.log_level, options.log_port), (Level::Debug, 99));
        assert_eq!(options.ready_port, 0x7fff_ffff);
        assert_eq!(options.debug_console_port, Some(DEBUG_CONSOLE_PORT));
        assert_eq!(options.hotplug_timeout, Duration::from_secs(7));
    }

    #[test]
    fn what_is_not_understood_is_said_and_changes_nothing() {
        let text = "agent.ready_vport=4294967295 agent.log=loud agent.hotplug_timeout=-1 agent.passfd_listener_port=0 agent.nope agent.";
        let (options, warnings) = Options::from_kernel_command_line(text);
        assert_eq!(warnings.len(), 6);
        assert_eq!(options, Options::default());
    }
}
