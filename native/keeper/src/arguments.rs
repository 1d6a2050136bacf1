//! Command-line arguments: `--name value` pairs and flags, in any order, then what follows `--`.
pub struct Arguments {
    rest: Vec<String>,
    /// What followed `--`.
    pub command: Vec<String>,
}

impl Arguments {
    pub fn new(mut rest: Vec<String>) -> Self {
        let command = match rest.iter().position(|argument| argument == "--") {
            Some(at) => {
                let command = rest.split_off(at + 1);
                rest.pop();
                command
            }
            None => Vec::new(),
        };
        Arguments { rest, command }
    }

    /// The value of an option that must be given exactly once.
    pub fn value(&mut self, name: &str) -> Result<String, String> {
        self.optional(name)?.ok_or_else(|| format!("{name} is missing"))
    }

    /// The value of an option, `None` when it is not given (any more).
    pub fn optional(&mut self, name: &str) -> Result<Option<String>, String> {
        let Some(at) = self.rest.iter().position(|argument| argument == name) else { return Ok(None) };
        if at + 1 >= self.rest.len() {
            return Err(format!("{name} needs a value"));
        }
        self.rest.remove(at);
        Ok(Some(self.rest.remove(at)))
    }

    pub fn flag(&mut self, name: &str) -> bool {
        let at = self.rest.iter().position(|argument| argument == name);
        at.map(|at| self.rest.remove(at)).is_some()
    }

    /// Errors when something was not asked for.
    pub fn end(&self) -> Result<(), String> {
        match self.rest.first() {
            Some(argument) => Err(format!("unknown argument {argument:?}")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Arguments;

    #[test]
    fn takes_options_and_a_command() {
        let words = ["--b", "2", "--x", "--a", "1", "--", "cmd", "--a"].map(str::to_owned).to_vec();
        let mut arguments = Arguments::new(words);
        assert_eq!((arguments.value("--a").unwrap(), arguments.value("--b").unwrap()), ("1".into(), "2".into()));
        assert!(arguments.end().is_err() && arguments.flag("--x") && !arguments.flag("--x") && arguments.end().is_ok());
        assert_eq!(arguments.command, ["cmd", "--a"]);
        assert!(arguments.value("--a").is_err());
        assert!(Arguments::new(vec!["--a".into()]).value("--a").is_err());
    }
}
