//! Commands, exits, users, terminals, exec.
use crate::support::*;
use kata_container::{Container, Stdio, Step};
use kata_protocol::grpc;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;

pub const TESTS: &[Test] = &[
    ("exit codes", exit_codes),
    ("commands that cannot be executed", bad_commands),
    ("a command is looked up before start", early_lookup),
    ("PATH, HOME, arguments and environment", environment),
    ("users by number and by name", users),
    ("working directory", working_directory),
    ("standard streams", standard_streams),
    ("a terminal", terminal),
    ("a terminal for an exec", exec_terminal),
    ("exec joins everything", exec_joins),
    ("exec after the first process ended", exec_into_ended),
    ("exec by user, with its own capabilities", exec_confinement),
    ("signals and their dispositions", signals),
    ("nothing of the caller is inherited", no_inheritance),
    ("an unfinished container is undone", unfinished),
];

fn exit_codes() -> Outcome {
    assert_eq!(run(spec(&["true"])).status, 0);
    assert_eq!(run(shell("exit 42")).status, 42);
    assert_eq!(run(shell("echo out; echo err >&2; sleep 0")).out, "out\n");
    let running = Running::idle();
    assert_eq!(running.kill().status, 128 + 9);
    Outcome::Done
}

fn bad_commands() -> Outcome {
    let cases: [(&str, Step, i32, i32); 7] = [
        ("nothing-here", Step::Lookup, libc::ENOENT, 127),
        ("/bin/nothing-here", Step::Lookup, libc::ENOENT, 127),
        ("", Step::Lookup, libc::ENOENT, 127),
        ("/bin/not-executable", Step::Lookup, libc::EACCES, 126),
        ("not-executable", Step::Lookup, libc::EACCES, 126),
        ("/etc", Step::Lookup, libc::EACCES, 126),
        ("/bin/not-a-program", Step::Exec, libc::ENOEXEC, 126),
    ];
    let running = Running::idle();
    for (command, step, errno, code) in cases {
        for error in [refusal(spec(&[command])), running.try_exec(&process(&[command]), None).unwrap_err()] {
            assert_eq!((error.step, error.errno, error.exit_code()), (step, errno, code), "{command}: {error}");
            assert_eq!(error.path, command, "{error}");
        }
    }
    running.kill();
    Outcome::Done
}

fn early_lookup() -> Outcome {
    let (stdio, _output) = streams();
    let pending = Container::create(params(&image(), spec(&["missing"]), stdio)).unwrap();
    let error = settle(pending).err().unwrap();
    assert_eq!((error.step, error.errno), (Step::Lookup, libc::ENOENT));
    Outcome::Done
}

fn environment() -> Outcome {
    let mut wanted = spec(&["env"]);
    wanted.process.as_mut().unwrap().env = strings(&["PATH=/nowhere:/bin", "A=1 2", "EMPTY="]);
    let mut lines: Vec<String> = run(wanted).out.lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines, ["A=1 2", "EMPTY=", "HOME=/root", "PATH=/nowhere:/bin"]);
    let mut given = shell("echo $HOME; echo \"$0|$1\"");
    given.process.as_mut().unwrap().env.push("HOME=/given".into());
    given.process.as_mut().unwrap().args.extend(strings(&["zero", "one two"]));
    assert_eq!(run(given).out, "/given\nzero|one two\n");
    let mut unlisted = shell("echo $HOME");
    unlisted.process.as_mut().unwrap().user = Some(grpc::User { uid: 4242, gid: 4242, ..Default::default() });
    assert_eq!(run(unlisted).out, "/\n");
    Outcome::Done
}

fn users() -> Outcome {
    let mut numbers = shell("id -u; id -g; id -G; umask");
    numbers.process.as_mut().unwrap().user =
        Some(grpc::User { uid: 1234, gid: 2345, additional_gids: vec![7, 8], ..Default::default() });
    assert_eq!(run(numbers).out, "1234\n2345\n2345 7 8\n0022\n");
    let named = |user: &str| {
        let (stdio, output) = streams();
        let mut params = params(&image(), shell("id -u; id -g; id -G; echo $HOME"), stdio);
        params.string_user = Some(grpc::StringUser { uid: user.into(), ..Default::default() });
        Running::try_start(params, output).map(Running::end)
    };
    assert_eq!(named("web").unwrap().out, "1000\n1001\n1001 44\n/home/web\n");
    assert_eq!(named("web:video").unwrap().out, "1000\n44\n44\n/home/web\n");
    let error = named("nobody-here").unwrap_err();
    assert_eq!((error.step, error.errno), (Step::User, libc::ENOENT));
    let mut unchanged = spec(&["true"]);
    unchanged.process.as_mut().unwrap().user = Some(grpc::User { uid: u32::MAX, ..Default::default() });
    assert_eq!(refusal(unchanged).step, Step::User);
    Outcome::Done
}

fn working_directory() -> Outcome {
    let at = |cwd: &str, uid: u32| {
        let mut spec = shell("pwd");
        let process = spec.process.as_mut().unwrap();
        process.cwd = cwd.into();
        process.user = Some(grpc::User { uid, gid: uid, ..Default::default() });
        spec
    };
    assert_eq!(run(at("/made/on/the/way", 0)).out, "/made/on/the/way\n");
    assert_eq!(run(at("", 0)).out, "/\n");
    assert_eq!(run(at("/made/on/the/way", 1000)).out, "/made/on/the/way\n");
    let error = refusal(at("/etc/passwd/x", 0));
    assert_eq!((error.step, error.errno), (Step::Chdir, libc::ENOTDIR));
    // Descriptors of the runtime are no way out (CVE-2024-21626).
    for number in 3..12 {
        let outcome = try_run(at(&format!("/proc/self/fd/{number}"), 0));
        assert_eq!(outcome.err().map(|error| error.step), Some(Step::Chdir), "descriptor {number}");
    }
    Outcome::Done
}

fn standard_streams() -> Outcome {
    let (input, writer) = pipe();
    let (stdio, output) = streams();
    let Stdio::Streams([_, out, err]) = stdio else { unreachable!() };
    let mut spec = shell("cat; echo again > /dev/stdout; echo err > /dev/stderr");
    // Somebody who is not root can open what he was given.
    spec.process.as_mut().unwrap().user = Some(grpc::User { uid: 1000, gid: 1000, ..Default::default() });
    let running = Running::try_start(params(&image(), spec, Stdio::Streams([input, out, err])), output).unwrap();
    File::from(writer).write_all(b"typed\n").unwrap();
    let ended = running.end();
    assert_eq!((ended.status, ended.out.as_str(), ended.err.as_str()), (0, "typed\nagain\n", "err\n"));
    Outcome::Done
}

/// Reads a terminal until its last user is gone (EIO).
fn read_terminal(master: OwnedFd) -> String {
    let mut text = Vec::new();
    let mut buffer = [0_u8; 4096];
    let mut master = File::from(master);
    loop {
        match master.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => text.extend_from_slice(&buffer[..length]),
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {
                std::thread::sleep(std::time::Duration::from_millis(5))
            }
            Err(_) => break,
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

fn with_terminal(script: &str) -> grpc::Process {
    let mut process = process(&["sh", "-c", script]);
    process.terminal = true;
    process.console_size = Some(grpc::Box { height: 33, width: 101 });
    process
}

const TERMINAL_SCRIPT: &str = "tty; stty size; stat -c %t:%T /dev/console; test -t 0 && test -t 1 && test -t 2 && echo terminals; echo hi > /dev/tty; echo con > /dev/console; ps -o pid,sid,tty | head -2";

fn terminal() -> Outcome {
    let mut spec = spec(&[]);
    spec.process = Some(with_terminal(TERMINAL_SCRIPT));
    let mut container = settle(Container::create(params(&image(), spec, Stdio::Terminal)).unwrap()).unwrap();
    let master = container.init.master.take().unwrap();
    container.start().unwrap().wait(WAIT).unwrap();
    let text = read_terminal(master);
    assert_eq!(wait_for(container.init.pid), 0, "{text}");
    for line in ["/dev/pts/0\r\n", "33 101\r\n", "terminals\r\n", "hi\r\n", "con\r\n", "88:0\r\n"] {
        assert!(text.contains(line), "{line:?} in {text:?}");
    }
    container.destroy(WAIT).unwrap();
    Outcome::Done
}

fn exec_terminal() -> Outcome {
    let running = Running::idle();
    let mut process = settle(
        running.container.exec(&with_terminal("tty; stty size; echo hi > /dev/tty"), None, Stdio::Terminal).unwrap(),
    )
    .unwrap();
    let text = read_terminal(process.master.take().unwrap());
    assert_eq!(wait_for(process.pid), 0);
    assert_eq!(text, "/dev/pts/0\r\n33 101\r\nhi\r\n");
    running.kill();
    Outcome::Done
}

fn exec_joins() -> Outcome {
    let running = Running::idle();
    let mut names: Vec<&str> = vec!["mnt", "pid", "ipc", "uts", "cgroup"];
    for name in &names {
        let inside = running.exec(&format!("readlink /proc/self/ns/{name}")).out;
        let of_init = running.exec(&format!("readlink /proc/1/ns/{name}")).out;
        let ours = fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        assert!(!inside.is_empty() && inside == of_init, "{name}: {inside} {of_init}");
        assert_ne!(inside.trim(), ours.to_str().unwrap(), "{name}");
    }
    names.clear();
    assert_eq!(running.exec("hostname").out, "box\n");
    assert_eq!(running.exec("cat /proc/self/cgroup").out.lines().last(), Some("0::/"));
    let listing = running.exec("ps -o pid,args").out;
    assert!(listing.contains("1 sleep 1000"), "{listing}");
    assert!(running.exec("ls -l /proc/self/fd | wc -l").out.trim().parse::<u32>().unwrap() <= 5);
    running.kill();
    Outcome::Done
}

fn exec_into_ended() -> Outcome {
    let mut running = Running::start(&image(), spec(&["true"]));
    let output = running.output.take().unwrap();
    assert_eq!(output.end(running.container.init.pid).status, 0);
    let error = running.try_exec(&process(&["true"]), None).unwrap_err();
    assert_eq!((error.step, error.errno), (Step::Namespace, libc::ESRCH), "{error}");
    running.container.destroy(WAIT).unwrap();
    // The caller is still in its own pid namespace: its next child has a pid that it knows.
    let status = std::process::Command::new("/bin/true").status().unwrap();
    assert!(status.success());
    Outcome::Done
}

fn exec_confinement() -> Outcome {
    let mut limited = spec(&["sleep", "1000"]);
    limited.process.as_mut().unwrap().capabilities = Some(grpc::LinuxCapabilities::default());
    let running = Running::start(&image(), limited);
    let mut plain = process(&["grep", "CapEff", "/proc/self/status"]);
    plain.capabilities = None;
    assert_eq!(running.try_exec(&plain, None).unwrap().out, "CapEff:\t0000000000000000\n");
    let user = grpc::StringUser { uid: "web".into(), ..Default::default() };
    assert_eq!(running.try_exec(&process(&["sh", "-c", "id -u; id -G"]), Some(&user)).unwrap().out, "1000\n1001 44\n");
    running.kill();
    Outcome::Done
}

fn signals() -> Outcome {
    let ended = run(spec(&["grep", "-E", "Sig(Blk|Ign|Cgt)", "/proc/self/status"]));
    for line in ended.out.lines() {
        assert!(line.ends_with("\t0000000000000000"), "{}", ended.out);
    }
    let running =
        Running::start(&image(), shell("trap 'echo got; exit 7' TERM; echo ready; while :; do sleep 0.1; done"));
    assert_eq!(read_some(running.output.as_ref().unwrap()), "ready\n");
    running.container.init.signal(libc::SIGTERM).unwrap();
    let ended = running.end();
    assert_eq!((ended.status, ended.out.as_str()), (7, "got\n"));
    Outcome::Done
}

fn no_inheritance() -> Outcome {
    // Descriptors without close-on-exec, as a careless library could leave them.
    let leaked: Vec<i32> = (200..203).collect();
    for number in &leaked {
        // SAFETY: the numbers are free; they are closed below.
        unsafe { assert_eq!(libc::dup2(1, *number), *number) };
    }
    let script = "ls /proc/self/fd; cat /proc/self/oom_score_adj; grep -E 'NoNewPrivs|Seccomp:' /proc/self/status";
    let running = Running::idle();
    for ended in [run(shell(script)), running.exec(script)] {
        assert_eq!(ended.out, "0\n1\n2\n3\n0\nNoNewPrivs:\t0\nSeccomp:\t0\n", "ls itself has 3 open");
    }
    running.kill();
    for number in leaked {
        // SAFETY: opened above.
        unsafe { libc::close(number) };
    }
    Outcome::Done
}

fn unfinished() -> Outcome {
    let (stdio, _output) = streams();
    let pending = Container::create(params(&image(), spec(&["true"]), stdio)).unwrap();
    let pid = pending.pid();
    drop(pending);
    let status = wait_for(pid);
    assert!(status == 128 + libc::SIGKILL || status == 70, "{status}");
    // Created, never started: its process waits, and goes with it.
    let (stdio, _output) = streams();
    let mut container = settle(Container::create(params(&image(), spec(&["true"]), stdio)).unwrap()).unwrap();
    let error = container.exec(&process(&["true"]), None, Stdio::Terminal).err().unwrap();
    assert_eq!(error.errno, libc::EAGAIN);
    container.destroy(WAIT).unwrap();
    wait_for(container.init.pid);
    Outcome::Done
}
