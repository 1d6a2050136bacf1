//! Mount options as words, the way fstab and OCI write them, turned into mount(2)'s flags and data.
use std::ffi::c_ulong;

/// Flags to set, flags to clear, and what is left for the file system itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct MountOptions {
    pub flags: c_ulong,
    pub data: String,
}

const FLAGS: &[(&str, c_ulong, bool)] = &[
    ("async", libc::MS_SYNCHRONOUS, false),
    ("atime", libc::MS_NOATIME, false),
    ("bind", libc::MS_BIND, true),
    ("dev", libc::MS_NODEV, false),
    ("diratime", libc::MS_NODIRATIME, false),
    ("dirsync", libc::MS_DIRSYNC, true),
    ("exec", libc::MS_NOEXEC, false),
    ("noatime", libc::MS_NOATIME, true),
    ("nodev", libc::MS_NODEV, true),
    ("nodiratime", libc::MS_NODIRATIME, true),
    ("noexec", libc::MS_NOEXEC, true),
    ("norelatime", libc::MS_RELATIME, false),
    ("nosuid", libc::MS_NOSUID, true),
    ("private", libc::MS_PRIVATE, true),
    ("rbind", libc::MS_BIND | libc::MS_REC, true),
    ("relatime", libc::MS_RELATIME, true),
    ("remount", libc::MS_REMOUNT, true),
    ("ro", libc::MS_RDONLY, true),
    ("rprivate", libc::MS_PRIVATE | libc::MS_REC, true),
    ("rshared", libc::MS_SHARED | libc::MS_REC, true),
    ("rslave", libc::MS_SLAVE | libc::MS_REC, true),
    ("rw", libc::MS_RDONLY, false),
    ("shared", libc::MS_SHARED, true),
    ("slave", libc::MS_SLAVE, true),
    ("strictatime", libc::MS_STRICTATIME, true),
    ("suid", libc::MS_NOSUID, false),
    ("sync", libc::MS_SYNCHRONOUS, true),
];

/// Later words win over earlier ones. `defaults` and empty words mean nothing.
pub fn parse<'a>(words: impl IntoIterator<Item = &'a str>) -> MountOptions {
    let mut options = MountOptions::default();
    for word in words {
        match FLAGS.iter().find(|(name, ..)| *name == word) {
            Some((_, flag, true)) => options.flags |= flag,
            Some((_, flag, false)) => options.flags &= !flag,
            None if word.is_empty() || word == "defaults" => {}
            None => {
                if !options.data.is_empty() {
                    options.data.push(',');
                }
                options.data.push_str(word);
            }
        }
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_become_flags_or_data_and_later_words_win() {
        let options = parse(["ro", "defaults", "nosuid", "size=1k", "rw", "", "mode=1777", "rbind"]);
        assert_eq!(options.flags, libc::MS_NOSUID | libc::MS_BIND | libc::MS_REC);
        assert_eq!(options.data, "size=1k,mode=1777");
    }
}
