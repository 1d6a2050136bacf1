//! The standard input of a process: the writing side of its pipe, or its terminal's master.
use crate::failure::{not_found, Context, Result};
use crate::output::{with_chunk, Descriptor, CHUNK_BYTES};
use std::cell::RefCell;
use std::io;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::time::timeout;

/// A connection that carried so many bytes at once is likely to carry more: one buffer of the guest's driver.
const PACKET_BYTES: usize = 4 << 10;
/// While much comes the agent wakes for so many bytes, and so does the process: waking both for each packet costs several
/// times more than the bytes themselves.
const GATHERED_BYTES: libc::c_int = 32 << 10;
/// How long bytes wait for more to come.
const GATHER_TIMEOUT: Duration = Duration::from_millis(2);

pub struct Input {
    /// `None` after the input was closed.
    descriptor: RefCell<Option<Descriptor>>,
    terminal: bool,
    /// Keeps the bytes of concurrent WriteStdin calls from mixing.
    turn: Mutex<()>,
}

impl Input {
    /// `None`: the process has no input (it reads /dev/null).
    pub fn new(descriptor: Option<Descriptor>, terminal: bool) -> Rc<Self> {
        Rc::new(Self { descriptor: RefCell::new(descriptor), terminal, turn: Mutex::new(()) })
    }

    /// Ends the input: the process reads end of file after what was written. A terminal has no end of input of its own
    /// and stays open.
    pub fn close(&self) {
        if !self.terminal {
            self.descriptor.borrow_mut().take();
        }
    }

    /// Also a terminal's: the process is gone.
    pub fn discard(&self) {
        self.descriptor.borrow_mut().take();
    }

    /// WriteStdin: waits until everything is written.
    /// Errors: NOT_FOUND when the input is closed; INTERNAL with EPIPE when the process has closed its side.
    pub async fn write(&self, bytes: &[u8]) -> Result<()> {
        let _turn = self.turn.lock().await;
        let descriptor = self.descriptor.borrow().clone();
        let descriptor = descriptor.ok_or_else(|| not_found("stdio: the standard input is closed"))?;
        write_all(&descriptor, bytes).await.context(|| "stdio: write to standard input".to_owned())
    }

    /// Passes on what the host sends until it half-closes, then ends the input.
    pub async fn pump(&self, stream: UnixStream) {
        let mut gathers = false;
        loop {
            let mut rest = Vec::new();
            let mut pass_on = || self.pass_on(&stream, &mut rest);
            let passed = if gathers {
                let passed = timeout(GATHER_TIMEOUT, stream.async_io(Interest::READABLE, &mut pass_on)).await;
                passed.unwrap_or_else(|_| {
                    gathers = !wake_at(&stream, 1);
                    pass_on()
                })
            } else {
                stream.async_io(Interest::READABLE, &mut pass_on).await
            };
            let count = match passed {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                    continue
                }
                Err(_) => break,
            };
            if !rest.is_empty() {
                let Some(descriptor) = self.descriptor.borrow().clone() else { break };
                if write_all(&descriptor, &rest).await.is_err() {
                    break;
                }
            }
            if count >= PACKET_BYTES {
                gathers = gathers || wake_at(&stream, GATHERED_BYTES);
                if gathers && count < CHUNK_BYTES {
                    // What came meanwhile waits for more of its kind.
                    let _ = stream.try_io(Interest::READABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
                }
            }
        }
        self.close();
    }

    /// Reads once without waiting; what the process does not take at once goes into `rest`. 0 is the end.
    fn pass_on(&self, stream: &UnixStream, rest: &mut Vec<u8>) -> io::Result<usize> {
        // Borrowed for a moment only: the process sees the end of its input when the last reference goes.
        let descriptor = self.descriptor.borrow();
        let descriptor = descriptor.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        with_chunk(|chunk| {
            let count = rustix::io::read(stream, &mut *chunk)?;
            let written = match write(descriptor, &chunk[..count]) {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                written => written.unwrap_or(0),
            };
            rest.extend_from_slice(&chunk[written..count]);
            Ok(count)
        })
    }
}

/// Lets the stream be readable from so many bytes on, or at its end. `false`: this kind of stream cannot.
fn wake_at(stream: &UnixStream, bytes: libc::c_int) -> bool {
    let size = std::mem::size_of_val(&bytes) as libc::socklen_t;
    // SAFETY: pointer and size are those of one integer.
    let done = unsafe {
        libc::setsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVLOWAT, (&raw const bytes).cast(), size)
    };
    done == 0
}

fn write(descriptor: &Descriptor, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: pointer and length are those of one slice.
    let written = unsafe { libc::write(descriptor.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}

async fn write_all(descriptor: &Descriptor, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = descriptor.async_io(Interest::WRITABLE, |_| write(descriptor, bytes)).await?;
        bytes = &bytes[written..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::run;
    use rustix::pipe::{pipe_with, PipeFlags};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn input_arrives_whole_and_ends() {
        run(async {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
            let input = Input::new(Some(Rc::new(crate::poll::watch_both(write).unwrap())), false);
            let (mut host, guest) = UnixStream::pair().unwrap();
            let pumping = tokio::task::spawn_local({
                let input = Rc::clone(&input);
                async move { input.pump(guest).await }
            });
            let sender = tokio::task::spawn_local(async move {
                host.write_all(&vec![7; 300_000]).await.unwrap();
            });
            let reader = crate::poll::watch_both(read).unwrap();
            let mut total = 0;
            let mut buffer = vec![0; 10_000];
            loop {
                let mut ready = reader.readable().await.unwrap();
                match ready.try_io(|inner| rustix::io::read(inner.get_ref(), &mut buffer[..]).map_err(io::Error::from))
                {
                    Ok(Ok(0)) => break,
                    Ok(count) => total += count.unwrap(),
                    Err(_) => {}
                }
            }
            assert_eq!(total, 300_000);
            sender.await.unwrap();
            pumping.await.unwrap();
            assert!(input.write(b"late").await.unwrap_err().message.contains("closed"));
        });
    }

    #[test]
    fn an_input_that_pauses_after_much_is_passed_on_and_can_be_closed_meanwhile() {
        run(async {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
            let input = Input::new(Some(Rc::new(crate::poll::watch_both(write).unwrap())), false);
            let (mut host, guest) = UnixStream::pair().unwrap();
            let pumping = tokio::task::spawn_local({
                let input = Rc::clone(&input);
                async move { input.pump(guest).await }
            });
            let mut reader = tokio::net::unix::pipe::Receiver::from_owned_fd(read).unwrap();
            let mut buffer = vec![0; 20_000];
            for size in [20_000, 5, 20_000, 1] {
                host.write_all(&buffer[..size]).await.unwrap();
                reader.read_exact(&mut buffer[..size]).await.unwrap();
            }
            input.close();
            assert_eq!(reader.read(&mut buffer).await.unwrap(), 0);
            drop(host);
            pumping.await.unwrap();
        });
    }
}
