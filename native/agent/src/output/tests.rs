use super::*;
use crate::testing::run;
use rustix::pipe::{pipe_with, PipeFlags};
use tokio::io::AsyncReadExt;

fn pipe_output() -> (Rc<Output>, OwnedFd) {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
    (Output::new(Rc::new(crate::poll::watch_both(read).unwrap()), false), write)
}

fn write(fd: &OwnedFd, bytes: &[u8]) -> usize {
    rustix::io::write(fd, bytes).unwrap()
}

#[test]
fn own_bytes_are_counted_while_the_reader_is_stalled_and_a_descendant_writes_on() {
    run(async {
        let (output, writer) = pipe_output();
        let (host, guest) = UnixStream::pair().unwrap();
        let removed = Rc::new(Notify::new());
        let pump = tokio::task::spawn_local({
            let (output, removed) = (Rc::clone(&output), Rc::clone(&removed));
            async move { output.pump(guest, removed).await }
        });
        // Fill the socket and the pipe: the host does not read.
        let mut written = 0;
        let mut idle = 0;
        while idle < 20 {
            match rustix::io::write(&writer, &[b'o'; 4096]) {
                Ok(count) => {
                    written += count as u64;
                    idle = 0;
                }
                Err(_) => idle += 1,
            }
            tokio::task::yield_now().await;
        }
        assert_eq!(output.fix_own_bytes(), written);
        let descendant = rustix::io::dup(&writer).unwrap();
        drop(writer);
        let mut host = host;
        let mut own = vec![0; written as usize];
        host.read_exact(&mut own).await.unwrap();
        assert!(own.iter().all(|byte| *byte == b'o'));
        write(&descendant, b"later");
        let mut later = [0; 5];
        host.read_exact(&mut later).await.unwrap();
        assert_eq!(&later, b"later");
        drop(descendant);
        assert_eq!(host.read(&mut later).await.unwrap(), 0);
        pump.await.unwrap();
    });
}

#[test]
fn reads_end_after_the_own_bytes_even_when_the_pipe_stays_open() {
    run(async {
        let (output, writer) = pipe_output();
        write(&writer, b"hello");
        assert_eq!(output.read(2).await, b"he");
        assert_eq!(output.fix_own_bytes(), 5);
        write(&writer, b"descendant");
        assert_eq!(output.read(100).await, b"llo");
        assert_eq!(output.read(100).await, b"");
        let draining = tokio::task::spawn_local({
            let output = Rc::clone(&output);
            async move { output.discard_after_own().await }
        });
        tokio::task::yield_now().await;
        drop(writer);
        draining.await.unwrap();
    });
}

#[test]
fn a_waiting_read_is_woken_by_the_exit() {
    run(async {
        let (output, _writer) = pipe_output();
        let reading = tokio::task::spawn_local({
            let output = Rc::clone(&output);
            async move { output.read(10).await }
        });
        tokio::task::yield_now().await;
        assert_eq!(output.fix_own_bytes(), 0);
        assert!(reading.await.unwrap().is_empty());
    });
}

#[test]
fn a_host_that_closes_does_not_block_the_writer() {
    run(async {
        let (output, writer) = pipe_output();
        let (host, guest) = UnixStream::pair().unwrap();
        drop(host);
        let pump = tokio::task::spawn_local(async move { output.pump(guest, Rc::default()).await });
        let mut written = 0;
        while written < 1 << 20 {
            written += rustix::io::write(&writer, &[0; 4096]).unwrap_or(0);
            tokio::task::yield_now().await;
        }
        drop(writer);
        pump.await.unwrap();
    });
}

#[test]
fn a_terminal_is_read_dry_at_exit() {
    run(async {
        use std::os::fd::FromRawFd;
        let (mut master, mut slave) = (0, 0);
        // SAFETY: the kernel fills in two descriptors; the other arguments may be null.
        let done = unsafe {
            libc::openpty(
                &raw mut master,
                &raw mut slave,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                std::ptr::null_mut(),
            )
        };
        assert_eq!(done, 0);
        // SAFETY: both are new and owned by nobody else.
        let (master, slave) = unsafe { (OwnedFd::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
        rustix::io::ioctl_fionbio(&master, true).unwrap();
        let output = Output::new(Rc::new(crate::poll::watch_both(master).unwrap()), true);
        let mut expected = 0;
        for round in 0..20 {
            expected += write(&slave, &vec![b'a' + round; 500]) as u64;
        }
        assert_eq!(output.fix_own_bytes(), expected);
        assert_eq!(output.read(100_000).await.len() as u64, expected);
        assert!(output.read(10).await.is_empty());
    });
}
