//! `kata-keeper`: the host side of one sandbox. Its contract is docs/ARCHITECTURE.md and proto/keeper.proto.
mod accept;
mod agent;
mod arguments;
mod bounded_file;
mod card;
mod cgroups;
mod cleanup;
mod client;
mod config;
mod console;
mod container_log;
mod create;
mod daemon;
mod data;
mod disk;
mod door;
mod ending;
mod engine;
mod failure;
mod frames;
mod journal;
mod json;
mod keeper;
mod kvm;
mod look;
mod loop_device;
mod macvtap;
mod netns;
mod network;
mod operations;
mod port_forward;
mod process;
mod pump;
mod ready_socket;
mod serve;
mod service;
mod share;
mod shim;
mod shutdown;
mod sk_lookup;
mod snapshot;
mod spawn;
mod stdio;
mod supervise;
mod sys;
mod tc;
#[cfg(test)]
mod testing;
mod text;
mod tokens;
mod vsock;

use arguments::Arguments;

const USAGE: &str = "usage:
  kata-keeper serve --dir DIR --uid UID --config FILE
  kata-keeper daemon --lock FILE --log FILE -- COMMAND...
  kata-keeper cleanup --dir DIR
  kata-keeper kvm-probe
  kata-keeper files pack|unpack OPTIONS...
  kata-keeper --version";

fn main() {
    let mut words: Vec<String> = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    if let Some(program) = shim::program() {
        std::process::exit(shim::run(&program, words));
    }
    if words.first().is_some_and(|word| word == "files") {
        std::process::exit(kata_files::run(words.split_off(1)));
    }
    let verb = if words.is_empty() { String::new() } else { words.remove(0) };
    let arguments = Arguments::new(words);
    let result = match verb.as_str() {
        "serve" => serve::run(arguments).map(|()| 0),
        "daemon" => daemon::run(arguments),
        "cleanup" => cleanup::run(arguments).map(|()| 0),
        "kvm-probe" => arguments.end().map(|()| kvm::print_probe()),
        "--version" => {
            println!("kata-keeper {}", env!("CARGO_PKG_VERSION"));
            Ok(0)
        }
        _ => {
            eprintln!("{USAGE}");
            Ok(64)
        }
    };
    match result {
        Ok(code) => std::process::exit(code),
        Err(problem) => {
            eprintln!("kata-keeper {verb}: {problem}");
            std::process::exit(1);
        }
    }
}
