//! The standard input of a process: the writing side of its pipe, or its terminal's master.
use crate::failure::{not_found, Context, Result};
use crate::output::Descriptor;
use std::cell::RefCell;
use std::io;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::Mutex;

const CHUNK_BYTES: usize = 64 << 10;

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
        let mut chunk = Vec::new();
        loop {
            if stream.readable().await.is_err() {
                break;
            }
            chunk.resize(CHUNK_BYTES, 0);
            match stream.try_read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => {
                    let Some(descriptor) = self.descriptor.borrow().clone() else { break };
                    if write_all(&descriptor, &chunk[..count]).await.is_err() {
                        break;
                    }
                    // An idle input holds no memory.
                    chunk = Vec::new();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
        }
        self.close();
    }
}

async fn write_all(descriptor: &Descriptor, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = descriptor
            .async_io(Interest::WRITABLE, |inner| {
                // SAFETY: pointer and length are those of one slice.
                let written = unsafe { libc::write(inner.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
                usize::try_from(written).map_err(|_| io::Error::last_os_error())
            })
            .await?;
        bytes = &bytes[written..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::run;
    use rustix::pipe::{pipe_with, PipeFlags};
    use tokio::io::AsyncWriteExt;

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
}
