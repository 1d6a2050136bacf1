//! containerd's ends of a process's streams (`StdioSpec` in proto/keeper.proto): FIFOs, files, logger programs.
use crate::failure;
use crate::keeper::Keeper;
use crate::process::Process;
use crate::sys;
use kata_protocol::envelope::Status;
use kata_protocol::keeper::StdioSpec;
use kata_protocol::ttrpc::{status, Code};
use std::cell::RefCell;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;

/// How long a logger program may take to say that it is ready.
const LOGGER_BOUND: Duration = Duration::from_secs(10);
const READ_BYTES: usize = 64 * 1024;
/// What a logger program finds: its numbers for stdout, stderr and "I am ready".
const LOGGER_FDS: [RawFd; 3] = [3, 4, 5];
/// Descriptors of ours that a child gets are first moved up here, out of the way of the numbers above.
const FIRST_FREE_FD: RawFd = 64;

/// Where one output stream goes. Whoever writes waits for the other side, and for nobody else.
pub enum Sink {
    /// A FIFO, or a pipe to a logger program.
    Pipe(AsyncFd<OwnedFd>),
    File(File),
}

impl Sink {
    pub async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        match self {
            Sink::File(file) => (&*file).write_all(bytes),
            Sink::Pipe(pipe) => {
                while !bytes.is_empty() {
                    let mut ready = pipe.writable().await?;
                    if let Ok(written) = ready.try_io(|fd| sys::write(fd.get_ref(), bytes)) {
                        bytes = &bytes[written?..];
                    }
                }
                Ok(())
            }
        }
    }
}

/// The process's input FIFO. Its `keep` end holds the input open while no writer is there.
pub struct Input {
    reader: AsyncFd<OwnedFd>,
    keep: Rc<RefCell<Option<OwnedFd>>>,
}

#[derive(Default)]
pub struct Streams {
    pub input: Option<Input>,
    pub sinks: [Option<Sink>; 2],
}

/// Opens what the specification names. Errors name the path.
pub async fn open(spec: &StdioSpec, terminal: bool) -> Result<Streams, Status> {
    let outputs = [spec.stdout.as_str(), if terminal { "" } else { spec.stderr.as_str() }];
    let sinks = match outputs.iter().any(|uri| uri.starts_with("binary://")) {
        true => start_logger(spec, outputs).await.map_err(|error| describe(outputs[0], &error))?,
        false => {
            let [stdout, stderr] = outputs.map(open_output);
            [stdout?, stderr?]
        }
    };
    let input = match spec.stdin.as_str() {
        "" => None,
        path => Some(open_input(Path::new(path)).map_err(|error| describe(path, &error))?),
    };
    Ok(Streams { input, sinks })
}

fn describe(what: &str, error: &io::Error) -> Status {
    failure::from_io(&format!("stdio {what}"), error)
}

fn open_output(uri: &str) -> Result<Option<Sink>, Status> {
    if uri.is_empty() {
        return Ok(None);
    }
    let sink = match uri.split_once("://") {
        None => open_fifo(Path::new(uri)),
        Some(("file", path)) => open_file(Path::new(&decode(path, false))),
        Some(("fifo", path)) => open_fifo(Path::new(path)),
        Some((scheme, _)) => return Err(status(Code::InvalidArgument, format!("stdio {uri}: scheme {scheme:?}"))),
    };
    sink.map(Some).map_err(|error| describe(uri, &error))
}

fn open_file(path: &Path) -> io::Result<Sink> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    OpenOptions::new().append(true).create(true).mode(0o644).open(path).map(Sink::File)
}

/// Read and write: a FIFO without a reader takes its 64 KiB, and a reader that goes away is no error (fifo(7)).
fn open_fifo(path: &Path) -> io::Result<Sink> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.file_type().is_fifo() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    sys::watch(file.into()).map(Sink::Pipe)
}

fn open_input(path: &Path) -> io::Result<Input> {
    let reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !reader.metadata()?.file_type().is_fifo() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let keep = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    Ok(Input { reader: sys::watch(reader.into())?, keep: Rc::new(RefCell::new(Some(keep.into()))) })
}

impl Input {
    /// What `CloseStdin` lets go: the input ends when its last writer has.
    pub fn keep(&self) -> Rc<RefCell<Option<OwnedFd>>> {
        Rc::clone(&self.keep)
    }

    /// Moves the input to the process until it ends.
    pub async fn run(self, process: Rc<Process>) {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let readable = tokio::select! {
                readable = self.reader.readable() => readable,
                () = process.wait_exit() => break,
            };
            let Ok(mut ready) = readable else { break };
            match ready.try_io(|fd| sys::read(fd.get_ref(), &mut buffer)) {
                Ok(Ok(0)) | Ok(Err(_)) => break,
                Ok(Ok(count)) => process.write_stdin(&buffer[..count]).await,
                Err(_) => {}
            }
        }
        process.close_stdin().await;
    }
}

/// `binary:///PATH?key=value&…`: starts the program and waits until it says that it is ready.
async fn start_logger(spec: &StdioSpec, outputs: [&str; 2]) -> io::Result<[Option<Sink>; 2]> {
    let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
    let uri = outputs[0].strip_prefix("binary://").ok_or_else(invalid)?;
    let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
    if !path.starts_with('/') || (!outputs[1].is_empty() && outputs[1] != outputs[0]) {
        return Err(invalid());
    }
    let (stdout_read, stdout) = sys::pipe()?;
    let (stderr_read, stderr) = sys::pipe()?;
    let (ready, ready_write) = sys::pipe()?;
    let inherited = [&stdout_read, &stderr_read, &ready_write].map(|fd| sys::duplicate_above(fd, FIRST_FREE_FD));
    let [first, second, third] = inherited;
    let inherited = [first?, second?, third?];
    drop((stdout_read, stderr_read, ready_write));
    let numbers = inherited.each_ref().map(AsRawFd::as_raw_fd);
    let mut command = Command::new(PathBuf::from(decode(path, false)));
    command.args(arguments(query)).env_clear();
    command.env("CONTAINER_ID", &spec.container_id).env("CONTAINER_NAMESPACE", &spec.namespace);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: system calls only.
    unsafe {
        command.pre_exec(move || {
            for (from, to) in numbers.iter().zip(LOGGER_FDS) {
                sys::check(libc::dup2(*from, to) as libc::c_long)?;
            }
            Ok(())
        });
    }
    let child = command.spawn()?;
    drop(inherited);
    tokio::task::spawn_local(crate::engine::reap(child.id() as i32));
    // It writes a byte or closes its end; so does its death.
    sys::set_nonblocking(&ready)?;
    let ready = sys::watch(ready)?;
    let told = tokio::time::timeout(LOGGER_BOUND, ready.readable()).await;
    told.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the logger does not say that it is ready"))??
        .clear_ready();
    Ok([Some(pipe_sink(stdout)?), Some(pipe_sink(stderr)?)])
}

fn pipe_sink(fd: OwnedFd) -> io::Result<Sink> {
    sys::set_nonblocking(&fd)?;
    sys::watch(fd).map(Sink::Pipe)
}

/// containerd's form: each key and its value as two arguments, percent-encoding undone.
fn arguments(query: &str) -> Vec<String> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .flat_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            [key, value].map(|word| decode(word, true)).into_iter().filter(|word| !word.is_empty())
        })
        .collect()
}

/// Undoes percent-encoding. In a query, and nowhere else, `+` is a space.
fn decode(text: &str, is_query: bool) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        match (first, hex.and_then(|two| u8::from_str_radix(two, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            (b'+', _) if is_query => {
                bytes.push(b' ');
                rest = after;
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// See `CloseStdin` in proto/keeper.proto.
pub async fn close_stdin(keeper: &Keeper, container_id: String, exec_id: String) -> Result<(), Status> {
    let key = crate::process::ProcessKey { container_id, exec_id };
    let process = keeper.processes.borrow().get(&key).cloned().ok_or_else(|| failure::not_found(&key))?;
    let keep = process.input_keep.borrow_mut().take();
    match keep {
        Some(keep) => drop(keep.borrow_mut().take()),
        // Attached clients write it, or nobody.
        None => process.close_stdin().await,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;
    use std::io::Read;

    fn fifo(dir: &TempDir, name: &str) -> String {
        let path = dir.path().join(name);
        let name = sys::c_path(&path).unwrap();
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        path.to_string_lossy().into_owned()
    }

    fn run<F: std::future::Future>(test: F) -> F::Output {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new()
            .block_on(&runtime, async { tokio::time::timeout(Duration::from_secs(60), test).await.unwrap() })
    }

    #[test]
    fn a_fifo_without_a_reader_takes_what_fits_and_its_reader_may_come_late() {
        run(async {
            let dir = TempDir::new();
            let path = fifo(&dir, "out");
            let streams = open(&StdioSpec { stdout: path.clone(), ..Default::default() }, false).await.unwrap();
            let [Some(sink), None] = streams.sinks else { panic!("one sink") };
            sink.write(b"early ").await.unwrap();
            let mut reader = OpenOptions::new().read(true).open(&path).unwrap();
            sink.write(b"late").await.unwrap();
            drop(sink);
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            assert_eq!(text, "early late");
        });
    }

    #[test]
    fn input_ends_when_it_is_closed_and_its_writers_are_gone() {
        run(async {
            let dir = TempDir::new();
            let path = fifo(&dir, "in");
            let streams = open(&StdioSpec { stdin: path.clone(), ..Default::default() }, false).await.unwrap();
            let input = streams.input.unwrap();
            let keep = input.keep();
            let process = Process::for_test();
            let task = tokio::task::spawn_local(input.run(Rc::clone(&process)));
            fs::write(&path, "bytes").unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert!(!task.is_finished(), "a writer that left is no end");
            keep.borrow_mut().take();
            task.await.unwrap();
        });
    }

    #[test]
    fn files_are_appended_to_and_bad_places_are_refused() {
        run(async {
            let dir = TempDir::new();
            let path = dir.path().join("a b/+c/log");
            let uri = format!("file://{}", path.display()).replace(' ', "%20");
            for text in ["one\n", "two\n"] {
                let spec = StdioSpec { stdout: uri.clone(), stderr: uri.clone(), ..Default::default() };
                let [Some(out), Some(_)] = open(&spec, false).await.unwrap().sinks else { panic!("two sinks") };
                out.write(text.as_bytes()).await.unwrap();
            }
            assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntwo\n");
            for bad in ["/nonexistent/fifo", "/etc/passwd", "http://x", "binary://relative", "binary:///nonexistent"] {
                assert!(open(&StdioSpec { stdout: bad.into(), ..Default::default() }, false).await.is_err(), "{bad}");
            }
        });
    }

    #[test]
    fn a_logger_gets_both_streams_its_arguments_and_who_it_is_for() {
        run(async {
            use std::os::unix::fs::PermissionsExt;
            let dir = TempDir::new();
            let (script, out) = (dir.path().join("log ger"), dir.path().join("out"));
            let body = format!(
                "#!/bin/sh\nexec 5>&-\n{{ echo \"$@ $CONTAINER_ID $CONTAINER_NAMESPACE\"; cat <&3; cat <&4; }} >{}\n",
                out.display()
            );
            fs::write(&script, body).unwrap();
            fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
            let uri = format!("binary://{}?key=a%20b&flag", script.display().to_string().replace(' ', "%20"));
            let spec = StdioSpec {
                stdout: uri.clone(),
                stderr: uri,
                container_id: "c1".into(),
                namespace: "ns".into(),
                ..Default::default()
            };
            let [Some(stdout), Some(stderr)] = open(&spec, false).await.unwrap().sinks else { panic!("two sinks") };
            stdout.write(b"O").await.unwrap();
            stderr.write(b"E").await.unwrap();
            drop((stdout, stderr));
            for _ in 0..600 {
                if fs::read_to_string(&out).is_ok_and(|text| text.ends_with('E')) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            assert_eq!(fs::read_to_string(&out).unwrap(), "key a b flag c1 ns\nOE");
        });
    }
}
