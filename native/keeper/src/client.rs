//! The keeper's side of one attached client: ordered frames on one socket, given up as soon as the client is gone.
use crate::container_log::Stream;
use crate::frames;
use crate::process::Exit;
use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{watch, Mutex, Notify};

/// What a client's session ends with.
#[derive(Debug, Clone)]
pub enum Verdict {
    Attached,
    /// Its socket failed, it detached or broke the protocol.
    Gone,
    /// Its process ended and it has every byte.
    Exited(Rc<Exit>),
}

/// What a client that does not read may be owed once its process has ended: the rest of a guest's pipes and sockets.
const SPOOL_BYTES: usize = 4 << 20;

pub struct Client {
    writer: Mutex<OwnedWriteHalf>,
    /// Bytes that wait for the client to read, after its process ended; `None` before that.
    spool: RefCell<Option<Vec<u8>>>,
    spooling: Notify,
    outputs: [bool; 2],
    verdict: watch::Sender<Verdict>,
}

impl Client {
    pub fn new(writer: OwnedWriteHalf, outputs: [bool; 2]) -> Rc<Self> {
        Rc::new(Client {
            writer: Mutex::new(writer),
            spool: RefCell::new(None),
            spooling: Notify::new(),
            outputs,
            verdict: watch::Sender::new(Verdict::Attached),
        })
    }

    pub fn wants(&self, stream: Stream) -> bool {
        self.outputs[stream as usize]
    }

    /// Sends a whole frame, waiting as long as the client does not read. `false`: the client is gone.
    pub async fn send(&self, frame: &[u8]) -> bool {
        let mut verdict = self.verdict.subscribe();
        let write = async { self.write(&mut *self.writer.lock().await, frame).await };
        let sent = tokio::select! {
            biased;
            _ = verdict.wait_for(|verdict| matches!(verdict, Verdict::Gone)) => false,
            written = write => written.is_ok(),
        };
        if !sent {
            self.leave();
        }
        sent
    }

    async fn write(&self, writer: &mut OwnedWriteHalf, mut frame: &[u8]) -> io::Result<()> {
        while !frame.is_empty() {
            let spooling = self.spooling.notified();
            if let Some(spool) =
                self.spool.borrow_mut().as_mut().filter(|spool| spool.len() + frame.len() <= SPOOL_BYTES)
            {
                spool.extend_from_slice(frame);
                return Ok(());
            }
            // A full spool goes out before what did not fit: this writer holds the lock.
            let owed = self.spool.take().unwrap_or_default();
            if !owed.is_empty() {
                writer.write_all(&owed).await?;
            }
            tokio::select! {
                written = writer.write(frame) => match written? {
                    0 => return Err(io::ErrorKind::WriteZero.into()),
                    count => frame = &frame[count..],
                },
                () = spooling => {}
            }
        }
        Ok(())
    }

    /// From now on the client's bytes are kept in memory, within a bound, instead of being waited for: its process has
    /// ended, and the guest, which still holds some of them, may go.
    pub fn spool(&self) {
        self.spool.borrow_mut().get_or_insert_default();
        self.spooling.notify_waiters();
    }

    /// The client is gone: whoever waits for it to read stops waiting.
    pub fn leave(&self) {
        self.decide(Verdict::Gone);
    }

    /// The process ended and every byte was sent; the session sends the exit.
    pub fn finish(&self, exit: Rc<Exit>) {
        self.decide(Verdict::Exited(exit));
    }

    /// The first verdict stands, except that a client may vanish before it has read its exit.
    fn decide(&self, new: Verdict) {
        self.verdict.send_if_modified(|verdict| {
            let changes = matches!((&*verdict, &new), (Verdict::Attached, _) | (Verdict::Exited(_), Verdict::Gone));
            if changes {
                *verdict = new;
            }
            changes
        });
    }

    /// Completes with the end of the attachment.
    pub async fn wait_verdict(&self) -> Verdict {
        let mut verdict = self.verdict.subscribe();
        let end = verdict.wait_for(|verdict| !matches!(verdict, Verdict::Attached)).await;
        end.map_or(Verdict::Gone, |verdict| verdict.clone())
    }

    /// Sends the last frame and ends the keeper's direction; `false` when the client took it not.
    pub async fn close_with(&self, frame: &[u8]) -> bool {
        let owed = self.spool.take().unwrap_or_default();
        (owed.is_empty() || self.send(&owed).await)
            && self.send(frame).await
            && self.writer.lock().await.shutdown().await.is_ok()
    }

    pub async fn close_with_exit(&self, exit: &Exit) -> bool {
        let frame = frames::exit(exit.code, exit.signal, exit.oom, &exit.cause, &exit.evidence);
        self.close_with(&frame).await
    }
}
