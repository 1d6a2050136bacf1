//! The serving side of one connection.
use super::frame::{answer_head, encode, Body, Frame, FrameReader, MAX_MESSAGE_BYTES, TYPE_REQUEST, TYPE_RESPONSE};
use super::status::{status, Code};
use crate::envelope::{Request, Response, Status};
use prost::bytes::Buf;
use prost::Message;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

/// Leaves room for the field around the payload.
const MAX_PAYLOAD_BYTES: usize = MAX_MESSAGE_BYTES - 16;

/// The encoded answer, or the status that refuses the call.
pub type HandlerFuture = Pin<Box<dyn Future<Output = Result<Vec<u8>, Status>>>>;

/// Answers the calls of a connection; calls run concurrently.
pub trait Handler {
    /// Answers one call. An unknown service or method is UNIMPLEMENTED. The future is dropped when the call's
    /// `timeout_nano` has passed (the caller gets DEADLINE_EXCEEDED) or the connection ended: work that must not stop
    /// half way is spawned by the handler.
    fn call(&self, request: Request) -> HandlerFuture;
}

/// Bounds of what one connection may hold; a call over a bound is answered RESOURCE_EXHAUSTED.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Calls accepted whose answer is not yet written.
    pub calls: usize,
    /// Sum of those calls' request messages.
    pub request_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { calls: 1024, request_bytes: 4 * MAX_MESSAGE_BYTES }
    }
}

struct Connection {
    writer: Mutex<OwnedWriteHalf>,
    active: RefCell<BTreeSet<u32>>,
    held_bytes: Cell<usize>,
}

/// Holds a call's place in the connection's bounds until its answer is written.
struct Place {
    connection: Rc<Connection>,
    stream_id: u32,
    bytes: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connection.active.borrow_mut().remove(&self.stream_id);
        self.connection.held_bytes.set(self.connection.held_bytes.get() - self.bytes);
    }
}

impl Connection {
    async fn answer(&self, stream_id: u32, result: Result<Vec<u8>, Status>) -> io::Result<()> {
        let result = result.and_then(|payload| match payload.len() {
            0..=MAX_PAYLOAD_BYTES => Ok(payload),
            length => {
                let text = format!("answer of {length} bytes is over the limit of {MAX_PAYLOAD_BYTES}");
                Err(status(Code::ResourceExhausted, text))
            }
        });
        let (head, payload) = match result {
            Ok(payload) => (answer_head(stream_id, &payload), payload),
            Err(status) => {
                let response = Response { status: Some(status), payload: Vec::new() };
                (encode(stream_id, TYPE_RESPONSE, &response), Vec::new())
            }
        };
        let mut whole = Buf::chain(head.as_slice(), payload.as_slice());
        self.writer.lock().await.write_all_buf(&mut whole).await
    }
}

/// Serves one connection until the peer closes it. Dropping the future ends every call.
/// Errors: the socket's, or `InvalidData` for a malformed frame; the connection is closed in each case.
pub async fn serve(stream: UnixStream, handler: Rc<dyn Handler>, limits: Limits) -> io::Result<()> {
    let (read, write) = stream.into_split();
    let mut reader = FrameReader::new(read);
    let connection = Rc::new(Connection {
        writer: Mutex::new(write),
        active: RefCell::new(BTreeSet::new()),
        held_bytes: Cell::new(0),
    });
    let mut calls: JoinSet<io::Result<()>> = JoinSet::new();
    loop {
        tokio::select! {
            frame = reader.next() => {
                let Some(frame) = frame? else { return Ok(()) };
                accept(frame, &connection, &handler, limits, &mut calls)?;
            }
            Some(done) = calls.join_next(), if !calls.is_empty() => done.unwrap_or(Ok(()))?,
        }
    }
}

fn accept(
    frame: Frame,
    connection: &Rc<Connection>,
    handler: &Rc<dyn Handler>,
    limits: Limits,
    calls: &mut JoinSet<io::Result<()>>,
) -> io::Result<()> {
    let stream_id = frame.stream_id;
    if frame.kind != TYPE_REQUEST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a client sent a response"));
    }
    // Refusals count as calls too: a peer that sends and never reads must not pile them up without bound.
    if calls.len() >= limits.calls + 64 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the peer goes on calling and does not read answers"));
    }
    let admitted = admit(frame, connection, limits);
    let handler = Rc::clone(handler);
    let connection = Rc::clone(connection);
    calls.spawn_local(async move {
        match admitted {
            Err(refusal) => connection.answer(stream_id, Err(refusal)).await,
            Ok((place, request)) => {
                let result = run(handler, request).await;
                let written = connection.answer(stream_id, result).await;
                drop(place);
                written
            }
        }
    });
    Ok(())
}

fn admit(frame: Frame, connection: &Rc<Connection>, limits: Limits) -> Result<(Place, Request), Status> {
    let stream_id = frame.stream_id;
    let message = match frame.body {
        Body::Message(message) => message,
        Body::TooLong(length) => {
            let text = format!("message of {length} bytes is over the limit of {MAX_MESSAGE_BYTES}");
            return Err(status(Code::ResourceExhausted, text));
        }
    };
    if stream_id % 2 == 0 {
        return Err(status(Code::InvalidArgument, format!("stream id {stream_id} is even; a client's ids are odd")));
    }
    let mut active = connection.active.borrow_mut();
    let held = connection.held_bytes.get() + message.len();
    if active.len() >= limits.calls || held > limits.request_bytes {
        let text = format!("{} calls with {} bytes are in progress", active.len(), connection.held_bytes.get());
        return Err(status(Code::ResourceExhausted, text));
    }
    if !active.insert(stream_id) {
        return Err(status(Code::InvalidArgument, format!("stream id {stream_id} is in use")));
    }
    drop(active);
    connection.held_bytes.set(held);
    let place = Place { connection: Rc::clone(connection), stream_id, bytes: message.len() };
    match Request::decode(message.as_slice()) {
        Ok(request) => Ok((place, request)),
        Err(error) => Err(status(Code::InvalidArgument, format!("malformed ttrpc request: {error}"))),
    }
}

async fn run(handler: Rc<dyn Handler>, request: Request) -> Result<Vec<u8>, Status> {
    let timeout_nanos = request.timeout_nano;
    let method = format!("{}/{}", request.service, request.method);
    let answer = handler.call(request);
    match u64::try_from(timeout_nanos) {
        Err(_) => Err(status(Code::DeadlineExceeded, format!("{method}: the deadline passed before the call"))),
        Ok(0) => answer.await,
        Ok(nanos) => tokio::time::timeout(Duration::from_nanos(nanos), answer).await.unwrap_or_else(|_| {
            let text = format!("{method}: no answer within the caller's {} ms", nanos / 1_000_000);
            Err(status(Code::DeadlineExceeded, text))
        }),
    }
}
