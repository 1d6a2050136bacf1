//! `--name=value` and `--flag`, in any order: a value is never taken for an option.
use crate::{fail, Kind, Result};

pub struct Arguments(Vec<String>);

impl Arguments {
    pub fn new(words: Vec<String>) -> Self {
        Self(words)
    }

    pub fn verb(&mut self) -> String {
        if self.0.is_empty() {
            return String::new();
        }
        self.0.remove(0)
    }

    pub fn value(&mut self, name: &str) -> Result<String> {
        match self.optional(name) {
            Some(value) => Ok(value),
            None => fail(Kind::Refused, format!("--{name} is missing")),
        }
    }

    /// The first value that is left of the option.
    pub fn optional(&mut self, name: &str) -> Option<String> {
        let value = |word: &String| Some(word.strip_prefix("--")?.strip_prefix(name)?.strip_prefix('=')?.to_owned());
        let (at, value) = self.0.iter().enumerate().find_map(|(at, word)| Some((at, value(word)?)))?;
        self.0.remove(at);
        Some(value)
    }

    pub fn all(&mut self, name: &str) -> Vec<String> {
        std::iter::from_fn(|| self.optional(name)).collect()
    }

    pub fn flag(&mut self, name: &str) -> bool {
        let at = self.0.iter().position(|word| word.strip_prefix("--") == Some(name));
        at.map(|at| self.0.remove(at)).is_some()
    }

    /// Refuses what nobody asked for.
    pub fn end(self) -> Result<()> {
        match self.0.first() {
            Some(word) => fail(Kind::Refused, format!("unknown argument {word:?}")),
            None => Ok(()),
        }
    }
}
