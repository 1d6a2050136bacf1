//! Mount options of the OCI runtime spec (config-linux.md, "mounts"; names of mount(8)).
use crate::sys::mount::{
    ATTR_ATIME, ATTR_NOATIME, ATTR_NODEV, ATTR_NODIRATIME, ATTR_NOEXEC, ATTR_NOSUID, ATTR_NOSYMFOLLOW, ATTR_RDONLY,
    ATTR_STRICTATIME,
};

/// Ours alone: no file system and no runtime knows it.
const FILL_OPTION: &str = "kata-ts.copyup=";

/// Attributes of a mount to set and to clear (ATTR_*).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub set: u64,
    pub clear: u64,
}

impl Attributes {
    fn apply(&mut self, set: u64, clear: u64) {
        // The last word wins, as with mount(8).
        self.set = (self.set & !clear) | set;
        self.clear = (self.clear & !set) | clear;
    }

    pub(crate) fn is_empty(self) -> bool {
        self.set == 0 && self.clear == 0
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MountOptions {
    pub bind: bool,
    /// rbind
    pub recursive: bool,
    pub remount: bool,
    /// tmpcopyup
    pub copy_up: bool,
    /// A volume's directory in the guest, which begins with what the image has at the mount's destination.
    pub fill: Option<String>,
    pub attributes: Attributes,
    /// `rro`, `rnosuid`, …: for the mount and everything below.
    pub recursive_attributes: Attributes,
    /// MS_PRIVATE, MS_SHARED, MS_SLAVE, MS_UNBINDABLE, with MS_REC.
    pub propagation: Vec<libc::c_ulong>,
    /// Flags of the file system, not of the mount: sync, dirsync, lazytime, mand.
    pub superblock_flags: Vec<&'static str>,
    /// Everything else: the file system's own options.
    pub data: Vec<String>,
}

/// Set and clear of an attribute's name, positive or negative.
fn attribute(name: &str) -> Option<(u64, u64)> {
    Some(match name {
        "ro" => (ATTR_RDONLY, 0),
        "rw" => (0, ATTR_RDONLY),
        "nosuid" => (ATTR_NOSUID, 0),
        "suid" => (0, ATTR_NOSUID),
        "nodev" => (ATTR_NODEV, 0),
        "dev" => (0, ATTR_NODEV),
        "noexec" => (ATTR_NOEXEC, 0),
        "exec" => (0, ATTR_NOEXEC),
        "nodiratime" => (ATTR_NODIRATIME, 0),
        "diratime" => (0, ATTR_NODIRATIME),
        "nosymfollow" => (ATTR_NOSYMFOLLOW, 0),
        "symfollow" => (0, ATTR_NOSYMFOLLOW),
        // The access-time modes share one field, which must be cleared whole to set one (mount_setattr(2)).
        "noatime" => (ATTR_NOATIME, ATTR_ATIME),
        "strictatime" => (ATTR_STRICTATIME, ATTR_ATIME),
        "relatime" | "atime" | "nostrictatime" => (0, ATTR_ATIME),
        "norelatime" => (ATTR_STRICTATIME, ATTR_ATIME),
        _ => return None,
    })
}

fn propagation(name: &str) -> Option<libc::c_ulong> {
    let (name, recursion) = match name.strip_prefix('r') {
        Some(rest) => (rest, libc::MS_REC),
        None => (name, 0),
    };
    let flag = match name {
        "private" => libc::MS_PRIVATE,
        "shared" => libc::MS_SHARED,
        "slave" => libc::MS_SLAVE,
        "unbindable" => libc::MS_UNBINDABLE,
        _ => return None,
    };
    Some(flag | recursion)
}

fn superblock_flag(name: &str) -> Option<&'static str> {
    ["sync", "dirsync", "lazytime", "mand"].into_iter().find(|flag| *flag == name)
}

/// `rootfsPropagation` of the spec. None: not a propagation.
pub(crate) fn parse_propagation(name: &str) -> Option<libc::c_ulong> {
    propagation(name)
}

pub(crate) fn parse(options: &[String]) -> MountOptions {
    let mut parsed = MountOptions::default();
    for option in options {
        let name = option.as_str();
        if let Some((set, clear)) = attribute(name) {
            parsed.attributes.apply(set, clear);
            continue;
        }
        if let Some(flag) = propagation(name) {
            parsed.propagation.push(flag);
            continue;
        }
        if let Some((set, clear)) = name.strip_prefix('r').and_then(attribute) {
            parsed.recursive_attributes.apply(set, clear);
            continue;
        }
        if let Some(directory) = name.strip_prefix(FILL_OPTION) {
            parsed.fill = Some(directory.to_owned());
            continue;
        }
        match name {
            "bind" => parsed.bind = true,
            "rbind" => (parsed.bind, parsed.recursive) = (true, true),
            "remount" => parsed.remount = true,
            "tmpcopyup" => parsed.copy_up = true,
            // The default, or what only mount(8) and /etc/fstab know.
            "" | "defaults" | "async" | "nolazytime" | "nomand" | "silent" | "loud" | "iversion" | "noiversion"
            | "nofail" | "auto" | "noauto" | "_netdev" => {}
            _ => match superblock_flag(name) {
                Some(flag) => parsed.superblock_flags.push(flag),
                None => parsed.data.push(option.clone()),
            },
        }
    }
    parsed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    fn parse_words(words: &str) -> MountOptions {
        parse(&words.split(',').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn reads_what_runtimes_send() {
        let options = parse_words("nosuid,strictatime,mode=755,size=65536k");
        assert_eq!(options.attributes, Attributes { set: ATTR_NOSUID | ATTR_STRICTATIME, clear: ATTR_ATIME });
        assert_eq!(options.data, ["mode=755", "size=65536k"]);
        let options = parse_words("rbind,rprivate,ro");
        assert!(options.bind && options.recursive);
        assert_eq!(options.propagation, [libc::MS_PRIVATE | libc::MS_REC]);
        assert_eq!(options.attributes.set, ATTR_RDONLY);
        let options = parse_words("rro,rnosuid,rw");
        assert_eq!(options.recursive_attributes.set, ATTR_RDONLY | ATTR_NOSUID);
        assert_eq!(options.attributes, Attributes { set: 0, clear: ATTR_RDONLY });
    }

    #[test]
    fn a_volume_to_fill_is_no_option_of_the_file_system() {
        let options = parse_words("rbind,rprivate,ro,kata-ts.copyup=/run/x-fill");
        assert_eq!(options.fill.as_deref(), Some("/run/x-fill"));
        assert!(options.data.is_empty() && options.bind);
        assert_eq!(parse_words("rbind,kata-ts.copyups=/x").fill, None);
    }

    #[test]
    fn the_r_of_relatime_is_no_recursion() {
        assert_eq!(parse_words("relatime").attributes.clear, ATTR_ATIME);
        assert!(parse_words("relatime").recursive_attributes.is_empty());
        assert_eq!(parse_words("rrelatime").recursive_attributes.clear, ATTR_ATIME);
    }

    /// Whatever the order and repetition: nothing is both set and cleared, the last of a pair wins, nothing is lost.
    #[test]
    fn any_sequence_is_consistent() {
        const PAIRS: [(&str, &str, u64); 5] = [
            ("ro", "rw", ATTR_RDONLY),
            ("nosuid", "suid", ATTR_NOSUID),
            ("nodev", "dev", ATTR_NODEV),
            ("noexec", "exec", ATTR_NOEXEC),
            ("nosymfollow", "symfollow", ATTR_NOSYMFOLLOW),
        ];
        let mut random = Random::new(7);
        for _ in 0..2000 {
            let mut options = Vec::new();
            let (mut expected, mut data) = ([None; PAIRS.len()], Vec::new());
            for _ in 0..random.below(12) {
                let pair = random.below(PAIRS.len() as u64 + 1) as usize;
                if pair == PAIRS.len() {
                    data.push(format!("key{}={}", random.below(9), random.below(99)));
                    options.push(data.last().cloned().unwrap());
                    continue;
                }
                let on = random.below(2) == 0;
                expected[pair] = Some(on);
                options.push(if on { PAIRS[pair].0 } else { PAIRS[pair].1 }.to_owned());
            }
            let parsed = parse(&options);
            assert_eq!(parsed.attributes.set & parsed.attributes.clear, 0, "{options:?}");
            assert_eq!(parsed.data, data);
            for (pair, expected) in PAIRS.iter().zip(expected) {
                assert_eq!(parsed.attributes.set & pair.2 != 0, expected == Some(true), "{options:?}");
                assert_eq!(parsed.attributes.clear & pair.2 != 0, expected == Some(false), "{options:?}");
            }
        }
    }
}
