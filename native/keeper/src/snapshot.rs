//! The mounts by which containerd's snapshotters describe a root file system.
use kata_protocol::keeper::RootfsMount;
use std::path::PathBuf;

/// What containerd's snapshotters use.
const ROOTFS_TYPES: [&str; 5] = ["overlay", "ext4", "xfs", "erofs", "tmpfs"];

pub fn is_known(mount: &RootfsMount) -> bool {
    ROOTFS_TYPES.contains(&mount.r#type.as_str()) || is_bind(mount)
}

pub fn is_bind(mount: &RootfsMount) -> bool {
    mount.r#type == "bind" || mount.options.iter().any(|option| option == "bind" || option == "rbind")
}

/// mount(8)'s words to mount(2)'s flags and data; whether "loop" is among them.
pub fn mount_options(options: &[String]) -> (libc::c_ulong, Vec<String>, bool) {
    const FLAGS: [(&str, libc::c_ulong); 7] = [
        ("ro", libc::MS_RDONLY),
        ("nosuid", libc::MS_NOSUID),
        ("nodev", libc::MS_NODEV),
        ("noexec", libc::MS_NOEXEC),
        ("noatime", libc::MS_NOATIME),
        ("relatime", libc::MS_RELATIME),
        ("sync", libc::MS_SYNCHRONOUS),
    ];
    const WORDS: [&str; 7] = ["rw", "suid", "dev", "exec", "bind", "rbind", "loop"];
    let flags = FLAGS.iter().filter(|(word, _)| options.iter().any(|option| option == word));
    let data = options
        .iter()
        .filter(|option| !FLAGS.iter().any(|(word, _)| option == word) && !WORDS.contains(&option.as_str()));
    let is_loop = options.iter().any(|option| option == "loop");
    (flags.fold(0, |all, (_, flag)| all | flag), data.cloned().collect(), is_loop)
}

/// Many layers' absolute names are longer than mount(2)'s page of options: their common directory, and the options with
/// names below it. Upper and work directory stay absolute.
pub fn relative_layers(mut data: Vec<String>) -> (PathBuf, Vec<String>) {
    let lower = data.iter().position(|option| option.starts_with("lowerdir="));
    let Some(lower) = lower else { return (PathBuf::from("/"), data) };
    let layers: Vec<&str> = data[lower]["lowerdir=".len()..].split(':').collect();
    let parent = |layer: &str| layer.rsplit_once('/').map(|(parent, _)| parent.to_owned()).unwrap_or_default();
    let mut base = layers.first().map(|layer| parent(layer)).unwrap_or_default();
    while !base.is_empty() && !layers.iter().all(|layer| layer.starts_with(&format!("{base}/"))) {
        base = parent(&base);
    }
    if base.is_empty() || data[lower].contains('\\') {
        return (PathBuf::from("/"), data);
    }
    let names: Vec<&str> = layers.iter().map(|layer| &layer[base.len() + 1..]).collect();
    data[lower] = format!("lowerdir={}", names.join(":"));
    (PathBuf::from(base), data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_options_are_flags_data_and_loop() {
        let options = ["ro", "nodev", "loop", "volatile", "lowerdir=/a/b/1/fs:/a/b/2/fs", "rw"].map(str::to_owned);
        let (flags, data, is_loop) = mount_options(&options);
        assert_eq!((flags, is_loop), (libc::MS_RDONLY | libc::MS_NODEV, true));
        assert_eq!(data, ["volatile", "lowerdir=/a/b/1/fs:/a/b/2/fs"]);
        let (base, data) = relative_layers(data);
        assert_eq!((base, data[1].as_str()), (PathBuf::from("/a/b"), "lowerdir=1/fs:2/fs"));
        for unchanged in ["lowerdir=/a:/b", "upperdir=/a", "lowerdir=/a/b\\:c/1:/a/b/2"] {
            assert_eq!(relative_layers(vec![unchanged.into()]), (PathBuf::from("/"), vec![unchanged.to_owned()]));
        }
    }
}
