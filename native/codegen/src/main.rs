//! Writes the Rust messages of `proto/` to the folder named by the first argument.
use std::path::PathBuf;

fn main() {
    let out = PathBuf::from(std::env::args().nth(1).expect("usage: kata-codegen OUT_DIR"));
    let proto = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    let files = ["agent.proto", "health.proto", "types.proto", "csi.proto", "oci.proto", "ttrpc.proto", "agent_ext.proto", "keeper.proto", "containerd.proto"];
    let descriptors = protox::compile(files, [&proto]).expect("the protocol files compile");
    std::fs::create_dir_all(&out).expect("output folder");
    prost_build::Config::new()
        .out_dir(&out)
        .btree_map(["."])
        .compile_fds(descriptors)
        .expect("generation");
}
