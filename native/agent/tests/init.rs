//! The agent's program under the name of the init of containers.
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

fn init(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kata-agent"));
    command.arg0("/sbin/kata-init").args(arguments).stdin(Stdio::null());
    command
}

fn output(arguments: &[&str]) -> Output {
    init(arguments).output().expect("the agent runs")
}

#[test]
fn ends_as_its_command_ends() {
    assert_eq!(output(&["--", "sh", "-c", "exit 7"]).status.code(), Some(7));
    assert_eq!(output(&["true"]).status.code(), Some(0));
    assert_eq!(output(&["--", "sh", "-c", "kill -KILL $$"]).status.code(), Some(137));
}

#[test]
fn tells_a_missing_command_from_one_that_cannot_run() {
    let missing = output(&["--", "/no/such/command"]);
    assert_eq!(missing.status.code(), Some(127));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("/no/such/command: No such file"));
    assert_eq!(output(&["--", "/etc/passwd"]).status.code(), Some(126));
    assert_eq!(output(&[]).status.code(), Some(125));
}

#[test]
fn hands_signals_on() {
    for (name, number) in [("TERM", libc::SIGTERM), ("USR1", libc::SIGUSR1), ("HUP", libc::SIGHUP)] {
        let script =
            format!("trap 'echo got {name}; exit 3' {name}; echo ready; while :; do read -r _ < /proc/self/fd/9; done");
        // The pipe on descriptor 9 is never written to: the shell waits in it.
        let wait = format!("exec 9<>/tmp/kata-init-$$; {script}");
        let setup = format!("mkfifo /tmp/kata-init-$$; trap 'rm -f /tmp/kata-init-$$' EXIT; {wait}");
        let mut child = init(&["--", "sh", "-c", &setup]).stdout(Stdio::piped()).spawn().expect("the agent runs");
        let mut lines = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        lines.read_line(&mut line).expect("readable");
        assert_eq!(line, "ready\n");
        // SAFETY: plain numbers; the child is not reaped yet.
        assert_eq!(unsafe { libc::kill(libc::pid_t::try_from(child.id()).expect("fits"), number) }, 0);
        let mut rest = String::new();
        lines.read_to_string(&mut rest).expect("readable");
        assert_eq!(rest, format!("got {name}\n"));
        assert_eq!(child.wait().expect("waits").code(), Some(3));
    }
}

#[test]
fn gives_its_command_a_clean_signal_mask() {
    let status = output(&["--", "grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"]);
    let text = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(text.contains("SigBlk:\t0000000000000000"), "{text}");
    // SIGTTIN and SIGTTOU, 21 and 22, are back to what they were.
    let ignored = text.lines().find_map(|line| line.strip_prefix("SigIgn:\t")).expect("there");
    assert_eq!(u64::from_str_radix(ignored, 16).expect("a number") & 0x0030_0000, 0);
}

/// With a process namespace of its own, as in a container: orphans come to it.
#[test]
fn reaps_orphans_as_process_1() {
    let script = "for i in 1 2 3; do sh -c 'true & sleep 0.05' & done; wait; sleep 0.2; grep -l '^State:.Z' /proc/[0-9]*/status; true";
    let agent = env!("CARGO_BIN_EXE_kata-agent");
    let outer = "exec -a /sbin/kata-init \"$0\" -- sh -c \"$1\"";
    let result = Command::new("unshare")
        .args(["-p", "-f", "-m", "--mount-proc", "bash", "-c", outer, agent, script])
        .output()
        .expect("unshare runs");
    assert_eq!(String::from_utf8_lossy(&result.stdout), "", "no zombie is left");
    assert_eq!(result.status.code(), Some(0), "{}", String::from_utf8_lossy(&result.stderr));
}
