//! What a bundle's config.json says about the container's place in a pod.
use crate::config;
use crate::json::{self, Value};
use std::io;
use std::path::Path;

const MAX_SPEC_BYTES: u64 = 32 * 1024 * 1024;

/// Annotations that tell containers of a pod from its sandbox: containerd's, CRI-O's, the former dockershim's.
struct Dialect {
    kind: &'static str,
    sandbox: &'static str,
    container: &'static str,
    sandbox_id: &'static str,
}

const DIALECTS: [Dialect; 3] = [
    Dialect {
        kind: "io.kubernetes.cri.container-type",
        sandbox: "sandbox",
        container: "container",
        sandbox_id: "io.kubernetes.cri.sandbox-id",
    },
    Dialect {
        kind: "io.kubernetes.cri-o.ContainerType",
        sandbox: "sandbox",
        container: "container",
        sandbox_id: "io.kubernetes.cri-o.SandboxID",
    },
    Dialect {
        kind: "io.kubernetes.docker.type",
        sandbox: "podsandbox",
        container: "container",
        sandbox_id: "io.kubernetes.sandbox.id",
    },
];

#[derive(Debug, PartialEq)]
pub enum Role {
    Sandbox,
    /// A container without a pod: sandbox and container in one.
    Single,
    Container {
        sandbox_id: String,
    },
}

/// `None`: there is no config.json. containerd's sandbox service starts a shim without one, and `delete` may find the bundle gone.
pub fn role(bundle: &Path) -> Result<Option<Role>, String> {
    let path = bundle.join("config.json");
    let describe = |problem: String| format!("the bundle's {}: {problem}", path.display());
    match config::read_bounded(&path, MAX_SPEC_BYTES) {
        Ok(text) => role_of(&text).map(Some).map_err(describe),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(describe(error.to_string())),
    }
}

fn role_of(spec: &str) -> Result<Role, String> {
    let annotations = match json::member(spec, "annotations")? {
        None | Some(Value::Null) => return Ok(Role::Single),
        Some(Value::Object(annotations)) => annotations,
        Some(_) => return Err("annotations is no object".to_owned()),
    };
    let find = |name: &str| match annotations.iter().find(|(other, _)| other == name) {
        Some((_, Value::String(text))) => Some(text.as_str()),
        _ => None,
    };
    for dialect in &DIALECTS {
        match find(dialect.kind) {
            Some(kind) if kind == dialect.sandbox => return Ok(Role::Sandbox),
            Some(kind) if kind == dialect.container => {
                return match find(dialect.sandbox_id) {
                    Some(id) => Ok(Role::Container { sandbox_id: id.to_owned() }),
                    None => Err(format!("a container of a pod needs the annotation {}", dialect.sandbox_id)),
                };
            }
            Some(kind) => return Err(format!("annotation {}={kind:?} is not known", dialect.kind)),
            None => {}
        }
    }
    Ok(Role::Single)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_roles_by_every_engines_annotations() {
        for dialect in &DIALECTS {
            let of = |kind: &str| {
                format!(
                    r#"{{"x":[1.5],"annotations":{{"{}":"{kind}","{}":"pod1","o":""}}}}"#,
                    dialect.kind, dialect.sandbox_id
                )
            };
            assert_eq!(role_of(&of(dialect.sandbox)), Ok(Role::Sandbox));
            assert_eq!(role_of(&of(dialect.container)), Ok(Role::Container { sandbox_id: "pod1".into() }));
            assert!(role_of(&of("thing")).is_err());
        }
        for single in ["{}", r#"{"annotations":null}"#, r#"{"annotations":{"a":"b"},"process":{"rlimit":1e9}}"#] {
            assert_eq!(role_of(single), Ok(Role::Single));
        }
        for bad in
            ["", "[]", r#"{"annotations":[]}"#, r#"{"annotations":{"io.kubernetes.cri.container-type":"container"}}"#]
        {
            assert!(role_of(bad).is_err(), "{bad}");
        }
    }
}
