//! containerd's command line, as Go's flag package reads one: `-name value`, `-name=value` or with two dashes, and a switch
//! alone or with `=true` or `=false`; the first word that is no flag is the action.

#[derive(Debug, Default, PartialEq)]
pub struct Flags {
    pub namespace: String,
    /// containerd's GRPC address.
    pub address: String,
    pub publish_binary: String,
    pub id: String,
    pub bundle: String,
    pub debug: bool,
    pub version: bool,
    pub info: bool,
    pub help: bool,
    pub action: String,
}

pub fn parse(arguments: &[String]) -> Result<Flags, String> {
    let mut flags = Flags::default();
    // Where the shim itself would serve; ours is fixed.
    let mut socket = String::new();
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let Some(body) = word.strip_prefix('-').filter(|body| !body.is_empty()) else {
            flags.action = word.clone();
            break;
        };
        let body = body.strip_prefix('-').unwrap_or(body);
        if body.is_empty() {
            flags.action = words.next().cloned().unwrap_or_default();
            break;
        }
        let (name, value) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (body, None),
        };
        let text = match name {
            "namespace" => &mut flags.namespace,
            "address" => &mut flags.address,
            "publish-binary" => &mut flags.publish_binary,
            "id" => &mut flags.id,
            "bundle" => &mut flags.bundle,
            "socket" => &mut socket,
            "debug" => {
                flags.debug = switch(word, value)?;
                continue;
            }
            "v" | "version" => {
                flags.version = switch(word, value)?;
                continue;
            }
            "info" => {
                flags.info = switch(word, value)?;
                continue;
            }
            "h" | "help" => {
                flags.help = switch(word, value)?;
                continue;
            }
            _ => return Err(format!("{word:?} is no flag of a shim")),
        };
        *text = match value.or_else(|| words.next().cloned()) {
            Some(value) => value,
            None => return Err(format!("{word} needs a value")),
        };
    }
    Ok(flags)
}

fn switch(word: &str, value: Option<String>) -> Result<bool, String> {
    match value.as_deref() {
        None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        Some(_) => Err(format!("{word} is neither true nor false")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_text(line: &str) -> Result<Flags, String> {
        parse(&line.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn reads_what_containerd_writes() {
        let line = "-namespace k8s.io -address /run/c.sock -publish-binary /usr/bin/containerd -id a1 -debug start";
        let flags = parse_text(line).unwrap();
        assert_eq!((flags.namespace.as_str(), flags.id.as_str(), flags.action.as_str()), ("k8s.io", "a1", "start"));
        assert!(flags.debug && !flags.version && flags.publish_binary == "/usr/bin/containerd");
        let same = line.replace("-address ", "--address=").replace("-debug", "--debug=true").replace("-id ", "--id ");
        assert_eq!(parse_text(&same), Ok(flags));
        assert_eq!(
            parse_text("-id -x -bundle=a=b -- delete more").unwrap(),
            Flags { id: "-x".into(), bundle: "a=b".into(), action: "delete".into(), ..Flags::default() }
        );
        assert!(parse_text("-v").unwrap().version && parse_text("--info").unwrap().info);
        assert!(!parse_text("-debug=false -socket /x").unwrap().debug);
    }

    #[test]
    fn refuses_others_by_name() {
        for (line, part) in [("-xyz 1", "-xyz"), ("-id", "-id needs"), ("-debug=maybe", "neither"), ("-=1", "no flag")]
        {
            assert!(parse_text(line).unwrap_err().contains(part), "{line}");
        }
    }
}
