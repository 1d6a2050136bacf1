//! One-time tokens of the data socket.
use crate::process::Process;
use crate::sys;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

const LIFETIME: Duration = Duration::from_secs(60);
pub const MAX_TOKENS: usize = 1024;

/// What a token's holder may do.
pub struct Grant {
    pub process: Rc<Process>,
    pub stdin: bool,
    /// Whether the client gets stdout and stderr.
    pub outputs: [bool; 2],
}

#[derive(Default)]
pub struct Tokens {
    grants: BTreeMap<String, (Instant, Grant)>,
}

impl Tokens {
    /// A fresh token of 128 random bits in hexadecimal; `None` when too many are unused.
    pub fn issue(&mut self, grant: Grant) -> io::Result<Option<String>> {
        self.issue_at(grant, Instant::now())
    }

    fn issue_at(&mut self, grant: Grant, now: Instant) -> io::Result<Option<String>> {
        self.grants.retain(|_, (expires, _)| *expires > now);
        if self.grants.len() >= MAX_TOKENS {
            return Ok(None);
        }
        let mut token = String::with_capacity(32);
        for byte in sys::random_bytes::<16>()? {
            let _ = write!(token, "{byte:02x}");
        }
        self.grants.insert(token.clone(), (now + LIFETIME, grant));
        Ok(Some(token))
    }

    /// Uses a token up.
    pub fn take(&mut self, token: &str) -> Option<Grant> {
        self.take_at(token, Instant::now())
    }

    fn take_at(&mut self, token: &str, now: Instant) -> Option<Grant> {
        let (expires, grant) = self.grants.remove(token)?;
        (expires > now).then_some(grant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant() -> Grant {
        Grant { process: Process::for_test(), stdin: false, outputs: [true, true] }
    }

    #[test]
    fn tokens_work_once_and_expire() {
        let mut tokens = Tokens::default();
        let now = Instant::now();
        let token = tokens.issue_at(grant(), now).unwrap().unwrap();
        assert_eq!(token.len(), 32);
        assert!(tokens.take_at(&token, now).is_some() && tokens.take_at(&token, now).is_none());
        let token = tokens.issue_at(grant(), now).unwrap().unwrap();
        assert!(tokens.take_at(&token, now + LIFETIME).is_none());
        assert!(tokens.take_at("", now).is_none());
    }

    #[test]
    fn tokens_are_bounded_and_expired_ones_make_room() {
        let mut tokens = Tokens::default();
        let now = Instant::now();
        for _ in 0..MAX_TOKENS {
            assert!(tokens.issue_at(grant(), now).unwrap().is_some());
        }
        assert!(tokens.issue_at(grant(), now).unwrap().is_none());
        assert!(tokens.issue_at(grant(), now + LIFETIME).unwrap().is_some());
    }
}
