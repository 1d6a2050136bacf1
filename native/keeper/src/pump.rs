//! Moves one output stream from the guest to the log and the attached clients. Each stream has a task of its own: what
//! delays one delays no other.
use crate::container_log::Stream;
use crate::frames::{self, HEADER_BYTES, MAX_PAYLOAD_BYTES};
use crate::process::Process;
use kata_protocol::clock;
use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::net::UnixStream;

/// How long output is held for the first client.
const HOLD: Duration = Duration::from_secs(30);
/// Buffers kept between chunks; silent streams hold none.
const SPARE_BUFFERS: usize = 2;

thread_local! {
    static BUFFERS: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A chunk with room for its frame's header in front, so that logging and sending copy nothing.
struct Buffer(Box<[u8]>);

impl Buffer {
    fn take() -> Self {
        let spare = BUFFERS.with_borrow_mut(Vec::pop);
        Buffer(spare.unwrap_or_else(|| vec![0; HEADER_BYTES + MAX_PAYLOAD_BYTES].into_boxed_slice()))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        BUFFERS.with_borrow_mut(|buffers| {
            if buffers.len() < SPARE_BUFFERS {
                buffers.push(std::mem::take(&mut self.0));
            }
        });
    }
}

/// Runs until the guest closes the stream. A descendant of the process may keep it open after the exit.
pub async fn run(process: Rc<Process>, stream: Stream, connection: UnixStream) {
    let output = process.output(stream);
    let mut held = process.held.subscribe();
    if tokio::time::timeout(HOLD, held.wait_for(|held| !held)).await.is_err() {
        process.held.send_replace(false);
    }
    loop {
        if connection.readable().await.is_err() {
            break;
        }
        let mut buffer = Buffer::take();
        match connection.try_read(&mut buffer.0[HEADER_BYTES..]) {
            Ok(0) => break,
            Ok(count) => deliver(&process, stream, &mut buffer.0[..HEADER_BYTES + count]).await,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => break,
        }
    }
    output.ended.set(true);
    if process.outputs.iter().all(|output| output.ended.get()) {
        if let Some(log) = process.log.borrow_mut().as_mut() {
            log.close();
        }
    }
    process.moved();
}

/// `frame`: room for the header, then the bytes that just arrived.
async fn deliver(process: &Process, stream: Stream, frame: &mut [u8]) {
    let output = process.output(stream);
    let count = frame.len() - HEADER_BYTES;
    output.read.set(output.read.get() + count as u64);
    if let Some(log) = process.log.borrow_mut().as_mut() {
        log.write(stream, clock::unix_nanos(), &frame[HEADER_BYTES..]);
    }
    let kind = match stream {
        Stream::Stdout => frames::STDOUT,
        Stream::Stderr => frames::STDERR,
    };
    frame[..HEADER_BYTES].copy_from_slice(&frames::header(kind, count));
    let clients: Vec<_> = process.clients.borrow().iter().filter(|client| client.wants(stream)).cloned().collect();
    for client in clients {
        output.blocked_since.set(Some(Instant::now()));
        if !client.send(frame).await {
            process.clients.borrow_mut().retain(|other| !Rc::ptr_eq(other, &client));
        }
    }
    if let Some(sink) = process.sink(stream) {
        output.blocked_since.set(Some(Instant::now()));
        // A logger that died takes its pipe with it; the log and the clients have the rest.
        if sink.write(&frame[HEADER_BYTES..]).await.is_err() {
            process.close_sink(stream);
        }
    }
    output.blocked_since.set(None);
    output.delivered.set(output.delivered.get() + count as u64);
    process.moved();
}
