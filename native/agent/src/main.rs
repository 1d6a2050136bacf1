//! kata-agent: PID 1 of the guest. It prepares the guest, then runs containers as the host asks over vsock.
//!
//! `main` is C's: the standard library's own start aborts when descriptors 0 to 2 are closed and /dev/null does not exist
//! yet, which is how a kernel without a console driver starts PID 1.
#![cfg_attr(not(test), no_main)]

mod agent;
mod boot;
mod command;
mod container;
mod copy_file;
mod debug_console;
mod device;
mod devices;
mod dial;
mod events;
mod failure;
mod guest;
mod init;
mod input;
mod lifecycle;
mod log;
mod metrics;
mod modules;
mod mount_namespace;
mod mount_options;
mod network;
mod options;
mod output;
mod poll;
mod power;
mod process;
mod processes;
mod ready;
mod reaper;
mod sandbox;
mod server;
mod service;
mod socket;
mod stats;
mod storage;
mod streams;
#[cfg(test)]
mod testing;
mod tools;
mod uevent;

use agent::Agent;
use options::{Address, Options};
use std::ffi::{c_char, c_int, CStr};
use std::path::PathBuf;
use std::rc::Rc;

const USAGE: &str = "kata-agent runs as PID 1 of a guest.
For tests on a host: kata-agent --listen unix:DIR [--run-dir DIR] [--cgroup DIR] [--log LEVEL]
";

/// # Safety
/// To be called by the C library: `arguments` are `count` NUL-terminated strings.
#[cfg_attr(not(test), no_mangle)]
pub unsafe extern "C" fn main(count: c_int, arguments: *const *const c_char) -> c_int {
    let count = usize::try_from(count).unwrap_or(0);
    // SAFETY: C's main gets `count` NUL-terminated strings.
    let word = |index| unsafe { CStr::from_ptr(*arguments.add(index)) };
    // A container's init has process id 1, too, in a namespace of its own.
    if count > 0 && init::is_asked_for(word(0)) {
        return init::run((1..count).map(|index| word(index).to_owned()).collect());
    }
    if count > 0 && modules::is_asked_for(word(0)) {
        return modules::answer_kernel(word(count - 1));
    }
    if count > 0 && tools::is_files(word(0)) {
        return kata_files::run((1..count).map(|index| word(index).to_string_lossy().into_owned()).collect());
    }
    ignore_broken_pipes();
    if std::process::id() == 1 {
        guest_main();
    }
    host_main((1..count).map(|index| word(index).to_string_lossy().into_owned()))
}

/// A handler that does nothing, not SIG_IGN: an ignored signal would stay ignored in the containers' programs.
fn ignore_broken_pipes() {
    extern "C" fn nothing(_signal: c_int) {}
    // SAFETY: the handler touches nothing.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(libc::SIGPIPE, &raw const action, std::ptr::null_mut());
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("epoll works")
}

fn guest_main() -> ! {
    let started_us = ready::boot_time_us();
    power::install_panic_hook();
    let console = kata_container::make_root_pivotable().map_err(|error| error.to_string());
    let console = console.and_then(|()| boot::open_console());
    let mounted = console.and_then(|()| boot::mount_all());
    let command_line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let (options, warnings) = Options::from_kernel_command_line(&command_line);
    log::set_level(options.log_level);
    for warning in warnings {
        log::warning!("boot", "{warning}");
    }
    let prepared = mounted.and_then(|()| prepare());
    let runtime = runtime();
    tokio::task::LocalSet::new().block_on(&runtime, async move {
        let agent = Agent::new(options, PathBuf::from(boot::CONTAINERS_CGROUP));
        let serving = prepared.and_then(|()| server::start(&agent));
        if let Err(failure) = serving {
            log::error!("boot", "the guest cannot be used: {failure}");
            ready::push(&agent.options, &ready::message(started_us, &failure)).await;
            power::off(1);
        }
        run(&agent, started_us).await
    })
}

fn prepare() -> Result<(), String> {
    boot::raise_descriptor_limit();
    boot::set_defaults();
    modules::load_boot()?;
    modules::serve_kernel();
    boot::set_up_cgroups()?;
    network::loopback_up().map_err(|error| format!("set the loopback interface up: {error}"))
}

/// Says "ready" and serves for ever.
async fn run(agent: &Rc<Agent>, started_us: u64) -> ! {
    let events = Rc::clone(&agent.uevents);
    tokio::task::spawn_local(async move {
        if let Err(error) = events.run().await {
            log::error!("uevent", "hot-plugged devices will not be noticed: {error}");
        }
    });
    let message = ready::message(started_us, "");
    log::info!("agent", "kata-agent {} serves {:?}", message.agent_version, agent.options.address);
    let options = agent.options.clone();
    tokio::task::spawn_local(async move { ready::push(&options, &message).await });
    let error = agent.reaper.run().await.err();
    panic!("children cannot be reaped: {error:?}");
}

fn host_main(words: impl Iterator<Item = String>) -> c_int {
    let started_us = ready::boot_time_us();
    let mut options = Options::default();
    let mut cgroup = PathBuf::from(boot::CONTAINERS_CGROUP);
    let mut words = words;
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap_or_default();
        match word.as_str() {
            "--version" | "-v" => {
                println!("kata-agent {}", env!("CARGO_PKG_VERSION"));
                return 0;
            }
            "--listen" => match value().strip_prefix("unix:") {
                Some(directory) if !directory.is_empty() => options.address = Address::Unix(PathBuf::from(directory)),
                _ => return usage("--listen wants unix:DIR"),
            },
            "--run-dir" => options.run_dir = PathBuf::from(value()),
            "--cgroup" => cgroup = PathBuf::from(value()),
            "--log" => match log::Level::parse(&value()) {
                Some(level) => log::set_level(level),
                None => return usage("--log wants error, warn, info, debug or trace"),
            },
            other => return usage(&format!("{other:?} is not understood")),
        }
    }
    if options.address == Address::Vsock {
        return usage("--listen is missing");
    }
    power::install_panic_hook();
    let runtime = runtime();
    tokio::task::LocalSet::new().block_on(&runtime, async move {
        let agent = Agent::new(options, cgroup);
        match server::start(&agent) {
            Ok(()) => run(&agent, started_us).await,
            Err(failure) => usage(&failure),
        }
    })
}

fn usage(problem: &str) -> c_int {
    eprint!("kata-agent: {problem}\n{USAGE}");
    2
}
