//! The calling side of one connection.
use super::frame::{encode, Body, FrameReader, MAX_MESSAGE_BYTES, TYPE_REQUEST, TYPE_RESPONSE};
use super::status::{status, Code};
use crate::envelope::{Request, Response, Status};
use prost::Message;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;

type Answer = Result<Vec<u8>, Status>;
/// Frames waiting for the socket; a caller waits for a place within its own timeout.
const QUEUED_FRAMES: usize = 32;
const MAX_CALLS: usize = 4096;

/// A connection to a ttrpc server. Clones share it; it closes when the last clone is dropped.
#[derive(Clone)]
pub struct Client {
    shared: Rc<Shared>,
}

struct Shared {
    pending: Rc<Pending>,
    frames: mpsc::Sender<Vec<u8>>,
    tasks: [AbortHandle; 2],
}

struct Pending {
    calls: RefCell<BTreeMap<u32, oneshot::Sender<Answer>>>,
    next_id: Cell<u32>,
    /// Why the connection is over; `None` while it lives.
    end: watch::Sender<Option<String>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        self.pending.finish("the client was closed");
    }
}

impl Pending {
    fn finish(&self, reason: &str) {
        self.end.send_if_modified(|end| {
            let first = end.is_none();
            if first {
                *end = Some(reason.to_owned());
            }
            first
        });
        for (_, caller) in std::mem::take(&mut *self.calls.borrow_mut()) {
            let _ = caller.send(Err(lost(reason)));
        }
    }
}

fn lost(reason: &str) -> Status {
    status(Code::Unavailable, format!("ttrpc connection lost: {reason}"))
}

/// Forgets a call whose caller stopped waiting; ttrpc has no message for it, a late answer is thrown away.
struct Registration {
    pending: Rc<Pending>,
    stream_id: u32,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.pending.calls.borrow_mut().remove(&self.stream_id);
    }
}

impl Client {
    /// Takes over a connected socket and starts its reader and writer on the current `LocalSet`.
    pub fn new(stream: UnixStream) -> Self {
        let (read, write) = stream.into_split();
        let (frames, queue) = mpsc::channel(QUEUED_FRAMES);
        let pending = Rc::new(Pending {
            calls: RefCell::new(BTreeMap::new()),
            next_id: Cell::new(1),
            end: watch::Sender::new(None),
        });
        let reader = tokio::task::spawn_local(read_answers(FrameReader::new(read), Rc::clone(&pending)));
        let writer = tokio::task::spawn_local(write_frames(write, queue, Rc::clone(&pending)));
        let tasks = [reader.abort_handle(), writer.abort_handle()];
        Self { shared: Rc::new(Shared { pending, frames, tasks }) }
    }

    /// Calls with an encoded request and gives the encoded answer. Dropping the future gives the call up.
    /// Errors: the server's status unchanged; UNAVAILABLE when the connection is or gets lost; DEADLINE_EXCEEDED after
    /// `timeout` (`None`: no bound, the server is told none either); RESOURCE_EXHAUSTED for a request over 4 MiB.
    pub async fn call_raw(&self, service: &str, method: &str, payload: Vec<u8>, timeout: Option<Duration>) -> Answer {
        let timeout_nano = timeout.map_or(0, |bound| i64::try_from(bound.as_nanos()).unwrap_or(i64::MAX).max(1));
        let request = Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload,
            timeout_nano,
            metadata: Vec::new(),
        };
        if request.encoded_len() > MAX_MESSAGE_BYTES {
            let text = format!("{service}/{method}: request of {} bytes is too long", request.encoded_len());
            return Err(status(Code::ResourceExhausted, text));
        }
        let Some(timeout) = timeout else { return self.exchange(request).await };
        match tokio::time::timeout(timeout, self.exchange(request)).await {
            Ok(answer) => answer,
            Err(_) => {
                let text = format!("{service}/{method}: no answer within {} ms", timeout.as_millis());
                Err(status(Code::DeadlineExceeded, text))
            }
        }
    }

    /// `call_raw` with typed messages. Errors also: INTERNAL when the answer does not decode.
    pub async fn call<Q: Message, R: Message + Default>(
        &self,
        service: &str,
        method: &str,
        request: &Q,
        timeout: Option<Duration>,
    ) -> Result<R, Status> {
        let answer = self.call_raw(service, method, request.encode_to_vec(), timeout).await?;
        R::decode(answer.as_slice())
            .map_err(|error| status(Code::Internal, format!("{service}/{method}: malformed answer: {error}")))
    }

    /// Completes with the reason when the connection is over.
    pub async fn closed(&self) -> String {
        let mut end = self.shared.pending.end.subscribe();
        let reason = end.wait_for(Option::is_some).await.ok().and_then(|end| end.clone());
        reason.unwrap_or_default()
    }

    pub fn is_closed(&self) -> bool {
        self.shared.pending.end.borrow().is_some()
    }

    async fn exchange(&self, request: Request) -> Answer {
        let pending = &self.shared.pending;
        let stream_id = pending.next_id.get();
        let (sender, receiver) = oneshot::channel();
        {
            let mut calls = pending.calls.borrow_mut();
            if let Some(reason) = pending.end.borrow().as_deref() {
                return Err(lost(reason));
            }
            if calls.len() >= MAX_CALLS {
                return Err(status(Code::ResourceExhausted, format!("{MAX_CALLS} calls are in progress")));
            }
            let Some(next) = stream_id.checked_add(2) else {
                return Err(lost("its stream ids are used up"));
            };
            pending.next_id.set(next);
            calls.insert(stream_id, sender);
        }
        let _registration = Registration { pending: Rc::clone(pending), stream_id };
        let frame = encode(stream_id, TYPE_REQUEST, &request);
        drop(request);
        // A failed send means that the writer is gone; it has told every pending call why.
        let _ = self.shared.frames.send(frame).await;
        receiver.await.unwrap_or_else(|_| Err(lost("the call was dropped")))
    }
}

async fn write_frames(mut socket: OwnedWriteHalf, mut queue: mpsc::Receiver<Vec<u8>>, pending: Rc<Pending>) {
    while let Some(frame) = queue.recv().await {
        if let Err(error) = socket.write_all(&frame).await {
            pending.finish(&format!("write: {error}"));
            return;
        }
    }
}

async fn read_answers(mut reader: FrameReader, pending: Rc<Pending>) {
    let reason = loop {
        let frame = match reader.next().await {
            Err(error) => break format!("read: {error}"),
            Ok(None) => break "the peer closed it".to_owned(),
            Ok(Some(frame)) => frame,
        };
        if frame.kind != TYPE_RESPONSE {
            break "the peer sent a request".to_owned();
        }
        let Some(caller) = pending.calls.borrow_mut().remove(&frame.stream_id) else { continue };
        let _ = caller.send(answer_of(frame.body));
    };
    pending.finish(&reason);
}

fn answer_of(body: Body) -> Answer {
    let message = match body {
        Body::Message(message) => message,
        Body::TooLong(length) => {
            return Err(status(Code::ResourceExhausted, format!("answer of {length} bytes is over the limit")));
        }
    };
    let response = Response::decode(message.as_slice())
        .map_err(|error| status(Code::Internal, format!("malformed ttrpc response: {error}")))?;
    match response.status {
        Some(status) if status.code != Code::Ok as i32 => Err(status),
        _ => Ok(response.payload),
    }
}
