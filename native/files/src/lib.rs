//! Trees of files as tar streams, for `cp`, `export`, `diff` and `commit`. The agent runs it in the guest, `kata-keeper` on the host:
//! each side packs what the other one unpacks.
//!
//! Names, links and sizes of a stream are believed by nobody: see `unpack`. A process has one thread and works on its standard
//! streams; its exit code is one of `Failure`'s.
mod arguments;
mod changes;
mod pack;
mod place;
mod sparse;
mod tape;
mod unpack;

use arguments::Arguments;
use std::io::Write;

/// What a caller decides by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Something could not be read or written.
    Failed = 1,
    /// The path does not exist.
    Missing = 2,
    /// Source and destination do not fit each other.
    Refused = 3,
    /// The stream is no tar archive, ends early, or wants something outside of the destination.
    Stream = 4,
    /// The other end of the stream went away.
    Closed = 5,
}

#[derive(Debug)]
pub struct Failure {
    pub kind: Kind,
    pub text: String,
}

type Result<T> = std::result::Result<T, Failure>;

fn fail<T>(kind: Kind, text: impl Into<String>) -> Result<T> {
    Err(Failure { kind, text: text.into() })
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// The failure that an errno at a path means.
fn at(path: &[u8], errno: i32) -> Failure {
    let kind = match errno {
        libc::ENOENT => Kind::Missing,
        libc::ENOTDIR | libc::EISDIR | libc::ELOOP | libc::EXDEV | libc::ENAMETOOLONG => Kind::Refused,
        libc::EPIPE => Kind::Closed,
        _ => Kind::Failed,
    };
    let reason = std::io::Error::from_raw_os_error(errno).to_string();
    let reason = reason.split(" (os error").next().unwrap_or(&reason).to_lowercase();
    Failure { kind, text: format!("{}: {reason}", shown(path)) }
}

/// A failed write to the standard output or read from the standard input.
fn on_stream(error: &std::io::Error) -> Failure {
    match error.raw_os_error() {
        Some(libc::EPIPE) => Failure { kind: Kind::Closed, text: "the reader of the stream went away".into() },
        Some(_) => Failure { kind: Kind::Failed, text: format!("stream: {error}") },
        None => Failure { kind: Kind::Stream, text: format!("not a tar stream: {error}") },
    }
}

/// `pack`, `unpack`, `changes` or `layer` with its options. Answers the exit code; problems go to the standard error.
pub fn run(words: Vec<String>) -> i32 {
    // SAFETY: the only thread; no handler is replaced. A write to a closed pipe answers EPIPE; modes are made as they are asked for.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
        libc::umask(0);
    }
    let mut arguments = Arguments::new(words);
    let done = match arguments.verb().as_str() {
        "pack" => pack::run(arguments),
        "unpack" => unpack::run(arguments),
        "changes" => changes::list(arguments),
        "layer" => changes::layer(arguments),
        verb => fail(Kind::Refused, format!("{verb:?} is none of pack, unpack, changes, layer")),
    };
    match done {
        Ok(()) => 0,
        Err(failure) => {
            let _ = writeln!(std::io::stderr(), "{}", failure.text);
            failure.kind as i32
        }
    }
}
