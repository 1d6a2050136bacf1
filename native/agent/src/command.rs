//! Programs of the guest's image that the agent runs (mkfs.ext4, iptables-save, …).
use crate::failure::{internal, Result};
use crate::reaper::Reaper;
use kata_protocol::ttrpc::{status, Code};
use std::io;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;

const MAX_OUTPUT_BYTES: u64 = 1 << 20;
const TIMEOUT: Duration = Duration::from_secs(60);

/// Runs a program with the given standard input and gives its standard output (1 MiB at most).
/// Errors: UNIMPLEMENTED when the guest's image has no such program; INTERNAL with the end of what it said otherwise.
pub async fn run(argv: &[&str], input: Vec<u8>, reaper: &Reaper) -> Result<Vec<u8>> {
    let program = argv.first().copied().unwrap_or_default();
    let failed = |error: io::Error| internal(format!("run {program}: {error}"));
    let (stdin, stdout, stderr) =
        (make_pipe().map_err(failed)?, make_pipe().map_err(failed)?, make_pipe().map_err(failed)?);
    let mut command = Command::new(program);
    command.args(&argv[1..]).stdin(Stdio::from(stdin.0)).stdout(Stdio::from(stdout.1)).stderr(Stdio::from(stderr.1));
    let child = command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => status(Code::Unimplemented, format!("the guest's image has no {program}")),
        _ => failed(error),
    })?;
    // The agent's copies of the program's ends close here; otherwise their readers would never see the end.
    drop(command);
    let ended = reaper.ended(child.id() as i32);
    let mut writer = pipe::Sender::from_owned_fd(stdin.1).map_err(failed)?;
    let exchange = async {
        let feed = async move {
            // A program that does not read its input says why by its exit code.
            let _ = writer.write_all(&input).await;
        };
        let (_, output, said, ending) = tokio::join!(feed, collect(stdout.0), collect(stderr.0), ended);
        Ok::<_, io::Error>((output?, said?, ending.map_err(io::Error::other)?))
    };
    let outcome = tokio::time::timeout(TIMEOUT, exchange).await;
    let (output, said, ending) = match outcome {
        Ok(done) => done.map_err(failed)?,
        Err(_) => {
            // SAFETY: the child is not reaped before its ending is delivered, so the id is still its own.
            unsafe { libc::kill(child.id() as i32, libc::SIGKILL) };
            return Err(internal(format!("run {program}: not done after {} s, killed", TIMEOUT.as_secs())));
        }
    };
    if ending.status() != 0 {
        let text = String::from_utf8_lossy(&said);
        let tail: String = text.trim_end().chars().rev().take(500).collect::<Vec<_>>().into_iter().rev().collect();
        return Err(internal(format!("run {program}: exit code {}: {tail}", ending.status())));
    }
    Ok(output)
}

fn make_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(io::Error::from)
}

async fn collect(fd: OwnedFd) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    pipe::Receiver::from_owned_fd(fd)?.take(MAX_OUTPUT_BYTES).read_to_end(&mut bytes).await?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::run as run_test;
    use std::rc::Rc;

    #[test]
    fn programs_get_input_give_output_and_explain_failures() {
        run_test(async {
            let reaper = Rc::new(Reaper::default());
            let running = Rc::clone(&reaper);
            tokio::task::spawn_local(async move { running.run().await });
            assert_eq!(run(&["cat"], b"abc".to_vec(), &reaper).await.unwrap(), b"abc");
            let error = run(&["sh", "-c", "echo why >&2; exit 3"], Vec::new(), &reaper).await.unwrap_err();
            assert!(error.message.contains("exit code 3: why"), "{}", error.message);
            let error = run(&["/nonexistent/program"], Vec::new(), &reaper).await.unwrap_err();
            assert_eq!(error.code, Code::Unimplemented as i32);
        });
    }
}
