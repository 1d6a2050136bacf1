//! The agent's own log: one JSON object a line, to the console and to the readers of the log port.
//! Lines: `{"msg","level","ts","subsystem"}` as upstream's agent writes them (levels ERRO, WARN, INFO, DEBG, TRCE).
use kata_protocol::clock;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::rc::Rc;
use tokio::sync::Notify;

/// What late readers still get; a reader that is slower than the log loses lines and is told so.
const RING_BYTES: usize = 64 << 10;
/// Text beyond this is cut: messages may carry what a caller sent.
const MAX_MESSAGE_BYTES: usize = 4 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl Level {
    /// The level of a name as in `agent.log=` (`warning` and `critical` as upstream also accepts).
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            "critical" | "error" => Self::Error,
            "warn" | "warning" => Self::Warn,
            "info" => Self::Info,
            "debug" => Self::Debug,
            "trace" => Self::Trace,
            _ => return None,
        })
    }

    fn tag(self) -> &'static str {
        match self {
            Self::Error => "ERRO",
            Self::Warn => "WARN",
            Self::Info => "INFO",
            Self::Debug => "DEBG",
            Self::Trace => "TRCE",
        }
    }
}

struct Logger {
    level: Cell<Level>,
    console: Cell<bool>,
    ring: RefCell<Ring>,
    grown: Rc<Notify>,
}

#[derive(Default)]
struct Ring {
    lines: VecDeque<Rc<str>>,
    bytes: usize,
    /// Number of the first line in `lines`.
    first: u64,
}

impl Ring {
    fn push(&mut self, line: Rc<str>) {
        self.bytes += line.len();
        self.lines.push_back(line);
        while self.bytes > RING_BYTES {
            let Some(oldest) = self.lines.pop_front() else { return };
            self.bytes -= oldest.len();
            self.first += 1;
        }
    }
}

thread_local! {
    static LOGGER: Logger = Logger {
        level: Cell::new(Level::Info),
        console: Cell::new(true),
        ring: RefCell::default(),
        grown: Rc::new(Notify::new()),
    };
}

pub fn set_level(level: Level) {
    LOGGER.with(|logger| logger.level.set(level));
}

/// Writes one line. Use the macros `error!`, `warn!`, `info!`, `debug!`.
pub fn write(level: Level, subsystem: &str, message: fmt::Arguments) {
    LOGGER.with(|logger| {
        if level > logger.level.get() {
            return;
        }
        let line = format_line(level, subsystem, &message.to_string(), clock::unix_nanos());
        if logger.console.get() {
            // A console that is gone or full must not stop the agent.
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
        logger.ring.borrow_mut().push(line.into());
        logger.grown.notify_waiters();
    });
}

/// A reader's place in the log.
#[derive(Default)]
pub struct Cursor {
    next: u64,
}

impl Cursor {
    /// The next line; waits for one. Lines lost since the last call are counted in a line of their own.
    pub async fn next(&mut self) -> Rc<str> {
        let grown = LOGGER.with(|logger| Rc::clone(&logger.grown));
        loop {
            let waiting = grown.notified();
            if let Some(line) = self.take() {
                return line;
            }
            waiting.await;
        }
    }

    fn take(&mut self) -> Option<Rc<str>> {
        LOGGER.with(|logger| {
            let ring = logger.ring.borrow();
            if self.next < ring.first {
                let lost = ring.first - self.next;
                self.next = ring.first;
                let text = format!("{lost} lines were lost: the log's reader is slower than the log");
                return Some(format_line(Level::Warn, "log", &text, clock::unix_nanos()).into());
            }
            let line = ring.lines.get(usize::try_from(self.next - ring.first).ok()?).cloned()?;
            self.next += 1;
            Some(line)
        })
    }
}

fn format_line(level: Level, subsystem: &str, message: &str, unix_nanos: i64) -> String {
    let mut end = message.len().min(MAX_MESSAGE_BYTES);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    let mut line = String::with_capacity(end + 96);
    line.push_str("{\"msg\":\"");
    escape(&message[..end], &mut line);
    let _ = write!(line, "\",\"level\":\"{}\",\"ts\":\"", level.tag());
    line.push_str(&String::from_utf8_lossy(&clock::rfc3339(unix_nanos)));
    line.push_str("\",\"subsystem\":\"");
    escape(subsystem, &mut line);
    line.push_str("\"}\n");
    line
}

fn escape(text: &str, out: &mut String) {
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            control if control.is_control() => {
                let _ = write!(out, "\\u{:04x}", control as u32);
            }
            other => out.push(other),
        }
    }
}

macro_rules! error { ($subsystem:expr, $($text:tt)*) => { $crate::log::write($crate::log::Level::Error, $subsystem, format_args!($($text)*)) } }
macro_rules! warning { ($subsystem:expr, $($text:tt)*) => { $crate::log::write($crate::log::Level::Warn, $subsystem, format_args!($($text)*)) } }
macro_rules! info { ($subsystem:expr, $($text:tt)*) => { $crate::log::write($crate::log::Level::Info, $subsystem, format_args!($($text)*)) } }
macro_rules! debug { ($subsystem:expr, $($text:tt)*) => { $crate::log::write($crate::log::Level::Debug, $subsystem, format_args!($($text)*)) } }
pub(crate) use {debug, error, info, warning};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_json_whatever_the_message_holds() {
        let line = format_line(Level::Warn, "a\"b", "x\\\"\n\u{1b}[0mé", 1_795_239_253_123_456_789);
        let expected =
            r#"{"msg":"x\\\"\n\u001b[0mé","level":"WARN","ts":"2026-11-21T05:34:13.123456789Z","subsystem":"a\"b"}"#;
        assert_eq!(line.trim_end(), expected);
        let long = "é".repeat(MAX_MESSAGE_BYTES);
        assert!(format_line(Level::Info, "s", &long, 0).len() < MAX_MESSAGE_BYTES + 100);
    }

    #[test]
    fn a_late_or_slow_reader_learns_how_much_it_lost() {
        LOGGER.with(|logger| logger.console.set(false));
        let mut cursor = Cursor::default();
        for number in 0..5000 {
            write(Level::Info, "test", format_args!("line {number}"));
        }
        let first = cursor.take().unwrap();
        assert!(first.contains("lines were lost"), "{first}");
        let mut count = 0;
        let mut last = None;
        while let Some(line) = cursor.take() {
            count += 1;
            last = Some(line);
        }
        assert!(last.unwrap().contains("line 4999"));
        assert!(first.contains(&format!("{} lines", 5000 - count)));
        assert!(LOGGER.with(|logger| logger.ring.borrow().bytes) <= RING_BYTES);
    }

    #[test]
    fn levels_parse_and_filter() {
        LOGGER.with(|logger| logger.console.set(false));
        assert_eq!(Level::parse("WARNING"), Some(Level::Warn));
        assert_eq!(Level::parse("loud"), None);
        set_level(Level::Error);
        let mut cursor = Cursor::default();
        while cursor.take().is_some() {}
        write(Level::Warn, "test", format_args!("left out"));
        assert!(cursor.take().is_none());
        write(Level::Error, "test", format_args!("kept"));
        assert!(cursor.take().unwrap().contains("\"msg\":\"kept\",\"level\":\"ERRO\""));
        set_level(Level::Info);
    }
}
