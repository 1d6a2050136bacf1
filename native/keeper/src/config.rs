//! `keeper.json`, as docs/ARCHITECTURE.md gives it. Unknown members are refused; every problem is reported at once.
use crate::json::{self, Value, Writer};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// sun_path of sockaddr_un with its final NUL (unix(7)).
pub const MAX_SOCKET_BYTES: usize = 107;
const MAX_CONFIG_BYTES: u64 = 256 * 1024;

/// The guest's ports, as docs/ARCHITECTURE.md gives them, for the configuration that `start` writes.
pub const AGENT_PORT: u32 = 1024;
pub const LOG_PORT: u32 = 1025;
pub const STREAM_PORT: u32 = 1027;
pub const READY_PORT: u32 = 1030;

#[derive(Debug, Clone, PartialEq)]
pub enum VsockMode {
    /// A unix socket of the VMM or of a vhost-user device; `<socket>_<port>` for connections from the guest.
    Hybrid { socket: PathBuf, ready_port: u32 },
    /// The kernel's vhost-vsock device.
    Kernel,
    /// The kernel's where it can be had, else as "hybrid".
    Auto { socket: PathBuf, ready_port: u32 },
}

/// How an engine is started.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineStart {
    /// Empty: the keeper never starts one.
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
}

#[derive(Debug, Clone)]
pub struct Config {
    pub uid: String,
    pub cgroups: Vec<PathBuf>,
    pub vsock: VsockMode,
    pub engine: EngineStart,
    pub engine_socket: PathBuf,
    /// Where containerd calls; `None`: this sandbox has no door.
    pub task_socket: Option<PathBuf>,
    pub agent_port: u32,
    pub stream_port: u32,
    pub log_port: u32,
}

pub fn load(path: &Path) -> Result<Config, String> {
    let describe = |problem: String| format!("keeper configuration {}: {problem}", path.display());
    let text = read_bounded(path, MAX_CONFIG_BYTES).map_err(|error| describe(error.to_string()))?;
    parse(&text).map_err(describe)
}

/// Puts another engine into the configuration.
pub fn replace_engine(path: &Path, argv: &[String], env: &[String]) -> io::Result<EngineStart> {
    let text = with_engine(&read_bounded(path, MAX_CONFIG_BYTES)?, argv, env).map_err(io::Error::other)?;
    let engine = parse(&text).map_err(io::Error::other)?.engine;
    let temporary = path.with_extension("json.new");
    std::fs::write(&temporary, text)?;
    std::fs::rename(temporary, path)?;
    Ok(engine)
}

fn with_engine(text: &str, argv: &[String], env: &[String]) -> Result<String, String> {
    let Value::Object(members) = json::parse(text)? else { return Err("expected an object".to_owned()) };
    let mut changed = Writer::object();
    for (name, value) in members {
        changed = match name.as_str() {
            "engine" => changed.raw(&name, json::strings(argv)),
            "engine_env" => changed.raw(&name, json::strings(env)),
            _ => changed.raw(&name, value),
        };
    }
    match changed.end() + "\n" {
        text if text.len() as u64 > MAX_CONFIG_BYTES => Err(format!("over {MAX_CONFIG_BYTES} bytes")),
        text => Ok(text),
    }
}

/// A text file of at most `max` bytes.
pub fn read_bounded(path: &Path, max: u64) -> io::Result<String> {
    let mut text = String::new();
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("no regular file"));
    }
    file.take(max + 1).read_to_string(&mut text)?;
    match text.len() as u64 > max {
        true => Err(io::Error::other(format!("over {max} bytes"))),
        false => Ok(text),
    }
}

fn parse(text: &str) -> Result<Config, String> {
    let mut reader = Reader::new(text)?;
    let config = Config {
        uid: reader.string("uid"),
        cgroups: reader.paths("cgroups"),
        vsock: reader.vsock_and_ready_port(),
        engine: EngineStart { argv: reader.strings("engine"), env: reader.environment("engine_env") },
        engine_socket: reader.path("engine_socket"),
        task_socket: reader.has("task_socket").then(|| reader.path("task_socket")),
        agent_port: reader.port("agent_port"),
        stream_port: reader.port("stream_port"),
        log_port: reader.port("log_port"),
    };
    if config.task_socket.as_ref().is_some_and(|path| path.as_os_str().len() > MAX_SOCKET_BYTES) {
        reader.problem(&format!(
            "task_socket must not be longer than {MAX_SOCKET_BYTES} bytes, as no unix socket can be"
        ));
    }
    if config.uid.len() != 12 || !config.uid.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        reader.problem("uid must be 12 hexadecimal digits");
    }
    reader.finish(config)
}

/// Takes the members of a version 1 document one by one and collects what is wrong.
pub struct Reader {
    members: Vec<(String, Value)>,
    problems: Vec<String>,
}

impl Reader {
    pub fn new(text: &str) -> Result<Self, String> {
        let Value::Object(members) = json::parse(text)? else { return Err("expected an object".to_owned()) };
        let mut reader = Reader { members, problems: Vec::new() };
        if reader.take("version") != Some(Value::Integer(1)) {
            reader.problem("version must be 1");
        }
        Ok(reader)
    }

    /// `value`, when nothing was wrong and nothing is left.
    pub fn finish<T>(mut self, value: T) -> Result<T, String> {
        self.problems.extend(self.members.iter().map(|(name, _)| format!("{name:?} is not known")));
        match self.problems.is_empty() {
            true => Ok(value),
            false => Err(self.problems.join("; ")),
        }
    }

    pub fn take(&mut self, name: &str) -> Option<Value> {
        let at = self.members.iter().position(|(other, _)| other == name)?;
        Some(self.members.swap_remove(at).1)
    }

    fn has(&self, name: &str) -> bool {
        self.members.iter().any(|(other, _)| other == name)
    }

    pub fn problem(&mut self, text: &str) {
        self.problems.push(text.to_owned());
    }

    pub fn string(&mut self, name: &str) -> String {
        match self.take(name) {
            Some(Value::String(text)) if !text.contains('\0') => text,
            _ => {
                self.problem(&format!("{name} must be a string"));
                String::new()
            }
        }
    }

    pub fn strings(&mut self, name: &str) -> Vec<String> {
        let mut texts = Vec::new();
        let Some(Value::Array(items)) = self.take(name) else {
            self.problem(&format!("{name} must be an array of strings"));
            return texts;
        };
        for item in items {
            match item {
                Value::String(text) if !text.contains('\0') => texts.push(text),
                _ => self.problem(&format!("{name} must hold strings only")),
            }
        }
        texts
    }

    fn absolute(&mut self, name: &str, text: String) -> PathBuf {
        if !text.starts_with('/') {
            self.problem(&format!("{name} must be an absolute path"));
        }
        PathBuf::from(text)
    }

    pub fn path(&mut self, name: &str) -> PathBuf {
        let text = self.string(name);
        self.absolute(name, text)
    }

    fn paths(&mut self, name: &str) -> Vec<PathBuf> {
        self.strings(name).into_iter().map(|text| self.absolute(name, text)).collect()
    }

    pub fn environment(&mut self, name: &str) -> Vec<(String, String)> {
        let mut pairs = Vec::new();
        for text in self.strings(name) {
            match text.split_once('=') {
                Some((key, value)) if !key.is_empty() => pairs.push((key.to_owned(), value.to_owned())),
                _ => self.problem(&format!("{name} must hold NAME=VALUE")),
            }
        }
        pairs
    }

    fn port(&mut self, name: &str) -> u32 {
        match self.take(name) {
            // 0xffffffff is VMADDR_PORT_ANY.
            Some(Value::Integer(port)) if (1..0xffff_ffff).contains(&port) => port as u32,
            _ => {
                self.problem(&format!("{name} must be a vsock port"));
                0
            }
        }
    }

    fn vsock_and_ready_port(&mut self) -> VsockMode {
        let Some(Value::Object(members)) = self.take("vsock") else {
            self.problem("vsock must be an object");
            return VsockMode::Kernel;
        };
        let mut inner = Reader { members, problems: Vec::new() };
        let mode = match inner.string("mode").as_str() {
            "hybrid" => VsockMode::Hybrid { socket: inner.path("socket"), ready_port: self.port("ready_port") },
            "kernel" => VsockMode::Kernel,
            "auto" => VsockMode::Auto { socket: inner.path("socket"), ready_port: self.port("ready_port") },
            _ => {
                inner.problem("mode must be \"hybrid\" or \"kernel\"");
                VsockMode::Kernel
            }
        };
        self.problems.extend(inner.problems.into_iter().map(|problem| format!("vsock: {problem}")));
        self.problems.extend(inner.members.iter().map(|(name, _)| format!("vsock: {name:?} is not known")));
        mode
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"version":1,"uid":"0123456789ab","cgroups":["/sys/fs/cgroup/x"],
        "vsock":{"mode":"hybrid","socket":"/run/k/v.sock"},"engine":["/bin/true"],"engine_env":["A=b=c"],
        "engine_socket":"/run/katad.sock","agent_port":1024,"stream_port":1027,"log_port":1025,"ready_port":1030}"#;

    #[test]
    fn reads_the_documented_form() {
        let config = parse(GOOD).unwrap();
        assert_eq!(config.vsock, VsockMode::Hybrid { socket: PathBuf::from("/run/k/v.sock"), ready_port: 1030 });
        assert_eq!(config.engine.env, vec![("A".to_owned(), "b=c".to_owned())]);
        assert_eq!((config.agent_port, config.task_socket), (1024, None));
        let door = GOOD.replace("\"engine\"", "\"task_socket\":\"/run/t.sock\",\"engine\"");
        assert_eq!(parse(&door).unwrap().task_socket, Some(PathBuf::from("/run/t.sock")));
        let long = door.replace("/run/t", &format!("/{}", "x".repeat(107)));
        assert!(parse(&long).unwrap_err().contains("107 bytes"));
        let kernel = GOOD.replace(r#"{"mode":"hybrid","socket":"/run/k/v.sock"}"#, r#"{"mode":"kernel"}"#);
        assert!(parse(&kernel).unwrap_err().contains("\"ready_port\" is not known"));
        assert_eq!(parse(&kernel.replace(r#","ready_port":1030"#, "")).unwrap().vsock, VsockMode::Kernel);
    }

    #[test]
    fn another_engine_takes_the_first_ones_place_and_nothing_else_changes() {
        let (argv, env) = (["/new/kata-keeper", "a \"b\""].map(str::to_owned), ["A=c".to_owned()]);
        let text = with_engine(GOOD, &argv, &env).unwrap();
        let (old, new) = (parse(GOOD).unwrap(), parse(&text).unwrap());
        assert_eq!(new.engine, EngineStart { argv: argv.to_vec(), env: vec![("A".to_owned(), "c".to_owned())] });
        assert_eq!(format!("{:?}", Config { engine: old.engine.clone(), ..new }), format!("{old:?}"));
        assert!(with_engine(GOOD, &vec!["x".repeat(1000); 1000], &env).unwrap_err().contains("over"));
    }

    #[test]
    fn reports_every_problem() {
        let bad = GOOD.replace("\"version\":1", "\"version\":2,\"more\":1").replace("1030", "0").replace("/run/k/", "");
        let problems = parse(&bad).unwrap_err();
        for part in ["version must be 1", "\"more\" is not known", "ready_port", "vsock: socket must be an absolute"] {
            assert!(problems.contains(part), "{problems}");
        }
        assert!(parse(&GOOD.replace("0123456789ab", "../x")).unwrap_err().contains("uid"));
    }
}
