//! Ends of the agent: PID 1 never exits, it powers the machine off.
use crate::log;
use std::io::Write as _;

/// Writes back what is dirty and powers the machine off; a process that is not PID 1 exits instead.
pub fn off(code: i32) -> ! {
    if std::process::id() != 1 {
        std::process::exit(code);
    }
    // SAFETY: neither call touches memory of this process.
    unsafe {
        libc::sync();
        libc::reboot(libc::RB_POWER_OFF);
        // The kernel may lack a way to power off; halting leaves the decision to the host, exiting would be a panic.
        libc::reboot(libc::RB_HALT_SYSTEM);
    }
    loop {
        std::thread::park();
    }
}

/// A panic is a defect of the agent: it is said on the console and in the log, then the machine goes off, since nobody
/// could serve the sandbox any more.
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(|panic| {
        let _ = writeln!(std::io::stderr(), "kata-agent: {panic}");
        log::error!("agent", "{panic}");
        off(70);
    }));
}
