//! Writes the Rust messages of `proto/` to the folder named by the first argument.
use std::path::PathBuf;

/// Every file but those that others import across packages.
const FILES: [&str; 9] = [
    "agent.proto", "health.proto", "types.proto", "csi.proto", "oci.proto", "ttrpc.proto", "agent_ext.proto", "keeper.proto",
    "containerd.proto",
];
/// Imported by the others under the module that native/protocol gives it.
const SHARED: (&str, &str, &str) = ("network.proto", ".kata.network.v1", "crate::network");

fn main() {
    let out = PathBuf::from(std::env::args().nth(1).expect("usage: kata-codegen OUT_DIR"));
    std::fs::create_dir_all(&out).expect("output folder");
    let (file, package, module) = SHARED;
    generate(prost_build::Config::new().extern_path(package, module), &out, &FILES);
    generate(&mut prost_build::Config::new(), &out, &[file]);
}

fn generate(config: &mut prost_build::Config, out: &PathBuf, files: &[&str]) {
    let proto = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    let descriptors = protox::compile(files, [&proto]).expect("the protocol files compile");
    config.out_dir(out).btree_map(["."]).compile_fds(descriptors).expect("generation");
}
