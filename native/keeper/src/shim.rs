//! The program as containerd's shim: `start`, `delete`, `-info` and `-v`, without an engine on their path
//! (docs/ARCHITECTURE.md, "The containerd door").
mod bundle;
mod delete;
mod flags;
pub mod places;
mod sha256;
mod start;

use crate::config::{self, Reader};
use flags::Flags;
use kata_protocol::containerd::{Any, RuntimeInfo, RuntimeVersion};
use prost::Message;
use std::io::Write;
use std::path::{Path, PathBuf};

const PREFIX: &str = "containerd-shim-";
const MAX_SETTINGS_BYTES: u64 = 256 * 1024;
/// The kernel's remark on a program whose file was replaced while it runs.
const REPLACED: &str = " (deleted)";

/// What the guest does for a container, as containerd asks a runtime for it (the OCI runtime spec's features.md). By `rro` it knows
/// that a volume can be read-only with everything that is mounted below it; what is not said it takes for missing.
const FEATURES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";
const FEATURES: &str = r#"{"ociVersionMin":"1.0.0","ociVersionMax":"1.3.0","hooks":[],"mountOptions":["async","atime","bind","dev","diratime","dirsync","exec","lazytime","noatime","nodev","nodiratime","noexec","norelatime","nostrictatime","nosuid","nosymfollow","private","ratime","rbind","rdev","rdiratime","relatime","remount","rexec","rnoatime","rnodev","rnodiratime","rnoexec","rnorelatime","rnostrictatime","rnosuid","rnosymfollow","ro","rprivate","rrelatime","rro","rrw","rshared","rslave","rstrictatime","rsuid","rsymfollow","runbindable","rw","shared","slave","strictatime","suid","symfollow","sync","tmpcopyup","unbindable"],"linux":{"namespaces":["ipc","mount","network","pid","uts"]}}"#;

const USAGE: &str = "usage (by containerd):
  containerd-shim-kata-v2 -namespace NS -address SOCKET -publish-binary FILE -id ID [-debug] start
  containerd-shim-kata-v2 -namespace NS -address SOCKET -id ID -bundle DIR delete
  containerd-shim-kata-v2 -info | -v";

/// `<program>.json`, beside the program.
pub struct Settings {
    keeper: PathBuf,
    run: PathBuf,
    engine: Vec<String>,
    engine_env: Vec<String>,
    engine_socket: PathBuf,
}

/// The file of this program, when its name says that it is a shim.
pub fn program() -> Option<PathBuf> {
    let path = std::fs::read_link("/proc/self/exe").ok()?;
    let text = path.to_str()?;
    let path = PathBuf::from(text.strip_suffix(REPLACED).unwrap_or(text));
    let is_shim = path.file_name()?.to_str()?.starts_with(PREFIX);
    is_shim.then_some(path)
}

/// Runs the shim; gives the exit code.
pub fn run(program: &Path, arguments: Vec<String>) -> i32 {
    unsafe { libc::umask(0o077) };
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    let result = flags::parse(&arguments).map_err(|problem| (String::new(), format!("{problem}\n{USAGE}")));
    let result = result.and_then(|flags| {
        let action = flags.action.clone();
        act(program, &name, flags).map_err(|problem| (format!(" {action}"), problem))
    });
    match result {
        // Whoever asked may be gone; there is nobody else to tell.
        Ok(output) => i32::from(std::io::stdout().write_all(&output).is_err()),
        Err((action, problem)) => {
            eprintln!("{name}{action}: {problem}");
            1
        }
    }
}

fn act(program: &Path, name: &str, flags: Flags) -> Result<Vec<u8>, String> {
    if flags.help {
        return Ok(format!("{USAGE}\n").into_bytes());
    }
    if flags.version {
        return Ok(format!("{name}:\n  Version:  {}\n", env!("CARGO_PKG_VERSION")).into_bytes());
    }
    if flags.info {
        return Ok(info(name).encode_to_vec());
    }
    for (flag, value) in [("-namespace", &flags.namespace), ("-id", &flags.id)] {
        if !places::is_identifier(value) {
            return Err(format!("{flag} {value:?} is not an identifier of containerd\n{USAGE}"));
        }
    }
    let settings = load_settings(program)?;
    match flags.action.as_str() {
        "start" => start::run(&flags, &settings),
        "delete" => Ok(delete::run(&flags, &settings, name)),
        other => Err(format!("no action {other:?}: this shim serves from a keeper and starts by \"start\"\n{USAGE}")),
    }
}

/// containerd names a runtime `io.containerd.kata.v2` whose shim is `containerd-shim-kata-v2`.
fn info(name: &str) -> RuntimeInfo {
    let parts = name.strip_prefix(PREFIX).unwrap_or(name);
    let runtime = match parts.rsplit_once('-') {
        Some((runtime, version)) => format!("io.containerd.{runtime}.{version}"),
        None => format!("io.containerd.{parts}"),
    };
    let version = RuntimeVersion { version: env!("CARGO_PKG_VERSION").to_owned(), revision: String::new() };
    let features = Any { type_url: FEATURES_TYPE.to_owned(), value: FEATURES.into() };
    RuntimeInfo { name: runtime, version: Some(version), features: Some(features), ..Default::default() }
}

fn load_settings(program: &Path) -> Result<Settings, String> {
    let mut path = program.as_os_str().to_owned();
    path.push(".json");
    let path = PathBuf::from(path);
    let describe =
        |problem: String| format!("settings {}: {problem}; `kata install --containerd` writes them", path.display());
    let text = config::read_bounded(&path, MAX_SETTINGS_BYTES).map_err(|error| describe(error.to_string()))?;
    parse_settings(&text).map_err(describe)
}

fn parse_settings(text: &str) -> Result<Settings, String> {
    let mut reader = Reader::new(text)?;
    let settings = Settings {
        keeper: reader.path("keeper"),
        run: reader.path("run"),
        engine: reader.strings("engine"),
        engine_env: reader.strings("engine_env"),
        engine_socket: reader.path("engine_socket"),
    };
    if settings.run.as_os_str().len() > places::MAX_RUN_BYTES {
        let text = format!("run must not be longer than {} bytes: sockets lie below it", places::MAX_RUN_BYTES);
        reader.problem(&text);
    }
    reader.finish(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_runtime_as_containerd_does() {
        assert_eq!(info("containerd-shim-kata-v2").name, "io.containerd.kata.v2");
        assert_eq!(info("containerd-shim-kata-qemu-v2").name, "io.containerd.kata-qemu.v2");
        assert_eq!(info("containerd-shim-x").name, "io.containerd.x");
    }

    #[test]
    fn reads_its_settings_and_tells_every_problem() {
        let good = r#"{"version":1,"keeper":"/k","run":"/run/kata-ts","engine":["/k","daemon"],"engine_env":["A=b"],"engine_socket":"/s"}"#;
        assert_eq!(parse_settings(good).map(|settings| settings.run).unwrap(), PathBuf::from("/run/kata-ts"));
        let long = format!("/{}", "x".repeat(60));
        let bad = good
            .replace("/run/kata-ts", &long)
            .replace("\"/k\",\"run", "\"k\",\"run")
            .replace("\"version\":1", "\"version\":1,\"y\":2");
        let problems = parse_settings(&bad).err().unwrap();
        for part in ["keeper must be an absolute path", "60 bytes", "\"y\" is not known"] {
            assert!(problems.contains(part), "{problems}");
        }
    }
}
