//! Names of the other members of the sandbox's network, from the file in which the engine keeps them.
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::SystemTime;

const MAX_BYTES: u64 = 4 * 1024 * 1024;

/// What tells one content of the file from another: it is replaced, never changed.
type Stamp = (u64, u64, SystemTime);

type Addresses = BTreeMap<String, Vec<IpAddr>>;

pub struct Names {
    path: PathBuf,
    known: RefCell<(Option<Stamp>, Addresses)>,
}

impl Names {
    pub fn new(path: &str) -> Self {
        Names { path: path.into(), known: RefCell::default() }
    }

    /// The addresses of a member; `None`: nobody has this name.
    pub fn find(&self, name: &str) -> Option<Vec<IpAddr>> {
        self.refresh();
        self.known.borrow().1.get(name).cloned()
    }

    fn refresh(&self) {
        let stamp = self.stamp();
        if stamp == self.known.borrow().0 {
            return;
        }
        let text = stamp.and_then(|_| fs::read_to_string(&self.path).ok()).unwrap_or_default();
        *self.known.borrow_mut() = (stamp, parse(&text));
    }

    fn stamp(&self) -> Option<Stamp> {
        use std::os::unix::fs::MetadataExt;
        let facts = fs::metadata(&self.path).ok().filter(|facts| facts.len() <= MAX_BYTES)?;
        Some((facts.ino(), facts.len(), facts.modified().ok()?))
    }
}

fn parse(text: &str) -> Addresses {
    let mut names = Addresses::new();
    for line in text.lines() {
        if let Some((Ok(address), name)) = line.split_once(' ').map(|(address, name)| (address.parse(), name)) {
            names.entry(name.to_owned()).or_default().push(address);
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;

    #[test]
    fn a_file_that_is_replaced_is_read_again() {
        let dir = TempDir::new();
        let path = dir.path().join("names");
        let names = Names::new(path.to_str().unwrap());
        assert_eq!(names.find("web"), None);
        fs::write(&path, "10.0.0.2 web\nfd00::2 web\nnonsense\n").unwrap();
        assert_eq!(names.find("web").unwrap().len(), 2);
        fs::write(dir.path().join("new"), "10.0.0.3 db\n").unwrap();
        fs::rename(dir.path().join("new"), &path).unwrap();
        assert_eq!((names.find("web"), names.find("db").unwrap().len()), (None, 1));
    }
}
