//! The agent's own log: one JSON object a line, to the console and to the readers of the log port.
//! Lines: `{"msg","level","ts","subsystem"}` as upstream's agent writes them (levels ERRO, WARN, INFO, DEBG, TRCE).
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

/// True when a line of this level would be kept; lets callers skip costly text.
pub fn enabled(level: Level) -> bool {
    LOGGER.with(|logger| level <= logger.level.get())
}

/// Writes one line. Use the macros `error!`, `warn!`, `info!`, `debug!`.
pub fn write(level: Level, subsystem: &str, message: fmt::Arguments) {
    LOGGER.with(|logger| {
        if level > logger.level.get() {
            return;
        }
        let line = format_line(level, subsystem, &message.to_string(), unix_time());
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
                return Some(format_line(Level::Warn, "log", &text, unix_time()).into());
            }
            let line = ring.lines.get(usize::try_from(self.next - ring.first).ok()?).cloned()?;
            self.next += 1;
            Some(line)
        })
    }
}

/// Seconds and nanoseconds since 1970.
pub fn unix_time() -> (i64, u32) {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    (now.tv_sec, now.tv_nsec as u32)
}

fn format_line(level: Level, subsystem: &str, message: &str, time: (i64, u32)) -> String {
    let mut end = message.len().min(MAX_MESSAGE_BYTES);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    let mut line = String::with_capacity(end + 96);
    line.push_str("{\"msg\":\"");
    escape(&message[..end], &mut line);
    let _ = write!(line, "\",\"level\":\"{}\",\"ts\":\"", level.tag());
    timestamp(time, &mut line);
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

/// RFC 3339 in UTC. The civil date is Howard Hinnant's `civil_from_days`.
fn timestamp((seconds, nanos): (i64, u32), out: &mut String) {
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    let _ = write!(out, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z");
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
        let line = format_line(Level::Warn, "a\"b", "x\\\"\n\u{1b}[0mé", (1_795_239_253, 123_456_789));
        let expected =
            r#"{"msg":"x\\\"\n\u001b[0mé","level":"WARN","ts":"2026-11-21T05:34:13.123456789Z","subsystem":"a\"b"}"#;
        assert_eq!(line.trim_end(), expected);
        let long = "é".repeat(MAX_MESSAGE_BYTES);
        assert!(format_line(Level::Info, "s", &long, (0, 0)).len() < MAX_MESSAGE_BYTES + 100);
        assert!(format_line(Level::Info, "s", "m", (951_782_400, 0)).contains("2000-02-29T00:00:00.0"));
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
        assert_eq!(Level::parse("WARNING"), Some(Level::Warn));
        assert_eq!(Level::parse("loud"), None);
        set_level(Level::Error);
        assert!(!enabled(Level::Warn) && enabled(Level::Error));
        set_level(Level::Info);
    }
}
