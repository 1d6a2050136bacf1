//! The keeper's side of one attached client: ordered frames on one socket, given up as soon as the client is gone.
use crate::container_log::Stream;
use crate::frames;
use crate::process::Exit;
use std::rc::Rc;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{watch, Mutex};

/// What a client's session ends with.
#[derive(Debug, Clone)]
pub enum Verdict {
    Attached,
    /// Its socket failed, it detached or broke the protocol.
    Gone,
    /// Its process ended and it has every byte.
    Exited(Rc<Exit>),
}

pub struct Client {
    writer: Mutex<OwnedWriteHalf>,
    outputs: [bool; 2],
    verdict: watch::Sender<Verdict>,
}

impl Client {
    pub fn new(writer: OwnedWriteHalf, outputs: [bool; 2]) -> Rc<Self> {
        Rc::new(Client { writer: Mutex::new(writer), outputs, verdict: watch::Sender::new(Verdict::Attached) })
    }

    pub fn wants(&self, stream: Stream) -> bool {
        self.outputs[stream as usize]
    }

    /// Sends a whole frame, waiting as long as the client does not read. `false`: the client is gone.
    pub async fn send(&self, frame: &[u8]) -> bool {
        let mut verdict = self.verdict.subscribe();
        let write = async { self.writer.lock().await.write_all(frame).await };
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
        self.send(frame).await && self.writer.lock().await.shutdown().await.is_ok()
    }

    pub async fn close_with_exit(&self, exit: &Exit) -> bool {
        let frame = frames::exit(exit.code, exit.signal, exit.oom, &exit.cause, &exit.evidence);
        self.close_with(&frame).await
    }
}
