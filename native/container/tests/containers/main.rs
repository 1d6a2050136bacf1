//! Real containers from a busybox root file system, on this host, as root. One thread, one test after the other.
//!
//! `cargo test -p kata-container --test containers [-- NAME…]`. A test that this kernel cannot run says so and why.
mod cgroups;
mod confinement;
mod filesystem;
mod processes;
mod support;

use std::panic::catch_unwind;
use std::process::exit;
use support::{Outcome, Test};

const TEST_GUARD_SECONDS: u32 = 60;

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    if let Err(reason) = support::prepare() {
        println!("skipped: no test of containers can run here: {reason}");
        return;
    }
    let tests: Vec<Test> = [processes::TESTS, filesystem::TESTS, confinement::TESTS, cgroups::TESTS].concat();
    let (mut passed, mut failed, mut skipped) = (0, Vec::new(), 0);
    for (name, test) in tests {
        if !wanted.is_empty() && !wanted.iter().any(|word| name.contains(word.as_str())) {
            continue;
        }
        // A hang ends the whole run with SIGALRM, and the last line names the test.
        println!("test {name} ...");
        // SAFETY: takes a number.
        unsafe { libc::alarm(TEST_GUARD_SECONDS) };
        match catch_unwind(test) {
            Ok(Outcome::Done) => passed += 1,
            Ok(Outcome::Skipped(reason)) => {
                println!("     {name}: skipped: {reason}");
                skipped += 1;
            }
            Err(_) => failed.push(name),
        }
        let left = support::residue();
        if !left.is_empty() {
            println!("     {name}: left behind: {left:?}");
            failed.push(name);
        }
    }
    support::clean_up();
    println!("containers: {passed} passed, {} failed, {skipped} skipped", failed.len());
    for name in &failed {
        println!("FAILED {name}");
    }
    exit(i32::from(!failed.is_empty()));
}
