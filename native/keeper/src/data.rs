//! The data socket: clients with one-time tokens (docs/ARCHITECTURE.md, "Data socket").
use crate::agent::{self, AGENT_SERVICE};
use crate::client::{Client, Verdict};
use crate::frames::{self, ClientFrame};
use crate::keeper::Keeper;
use crate::process::Process;
use crate::sys;
use crate::tokens::Grant;
use kata_protocol::grpc::{SignalProcessRequest, TtyWinResizeRequest};
use prost::Message;
use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::OwnedReadHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, Notify};
use tokio::time::timeout;

/// Bytes of stdin that a client may have under way.
const STDIN_WINDOW: usize = 128 * 1024;
/// Credit is told again once so much of the window was consumed.
const CREDIT_STEP: usize = STDIN_WINDOW / 4;
const MAX_CLIENTS: usize = 256;
const TOKEN_BOUND: Duration = Duration::from_secs(10);
/// How long a client that got its last frame may take to close.
const CLOSE_BOUND: Duration = Duration::from_secs(5);
const CONTROL_BOUND: Duration = Duration::from_secs(10);
/// Signals and resizes under way; a client that sends more waits.
const QUEUED_CONTROLS: usize = 16;

pub async fn serve(keeper: Rc<Keeper>, listener: UnixListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::task::spawn_local(guard_session(Rc::clone(&keeper), stream));
            }
            Err(error) => {
                keeper.note(&format!("d.sock: {error}"));
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn guard_session(keeper: Rc<Keeper>, mut stream: UnixStream) {
    if !matches!(sys::peer(stream.as_fd()), Ok((_, 0))) {
        let _ = stream.write_all(&frames::error("PERMISSION_DENIED", "only root attaches")).await;
        return;
    }
    if keeper.clients.get() >= MAX_CLIENTS {
        let text = format!("{MAX_CLIENTS} clients are attached");
        let _ = stream.write_all(&frames::error("RESOURCE_EXHAUSTED", &text)).await;
        return;
    }
    keeper.clients.set(keeper.clients.get() + 1);
    session(&keeper, stream).await;
    keeper.clients.set(keeper.clients.get() - 1);
}

async fn session(keeper: &Rc<Keeper>, stream: UnixStream) {
    let (mut reader, writer) = stream.into_split();
    let token = match timeout(TOKEN_BOUND, frames::read_token(&mut reader)).await {
        Ok(Ok(token)) => token,
        Ok(Err(error)) => return refuse(writer, "INVALID_ARGUMENT", &error.to_string()).await,
        Err(_) => return refuse(writer, "DEADLINE_EXCEEDED", "no token within 10 s").await,
    };
    let grant = keeper.tokens.borrow_mut().take(&token);
    let Some(Grant { process, stdin, outputs }) = grant else {
        return refuse(writer, "PERMISSION_DENIED", "the token is unknown, used or expired").await;
    };
    let takes_stdin = stdin && process.has_stdin;
    let client = Client::new(writer, outputs);
    if !client.send(&frames::ready(if takes_stdin { STDIN_WINDOW as u32 } else { 0 })).await {
        return;
    }
    // No await between these lines: no byte is lost between "attached" and the next chunk.
    process.clients.borrow_mut().push(Rc::clone(&client));
    process.held.send_replace(false);
    process.dismiss_clients();
    let attachment = Attachment {
        keeper,
        process: &process,
        client: &client,
        takes_stdin,
        credit: Cell::new(if takes_stdin { STDIN_WINDOW } else { 0 }),
        input: RefCell::new(Vec::new()),
        input_ended: Cell::new(false),
        input_came: Notify::new(),
    };
    attachment.run(&mut reader).await;
    process.clients.borrow_mut().retain(|other| !Rc::ptr_eq(other, &client));
    // The last reference but a blocked sender's, which gives up now: the client sees the end of the stream.
    drop(client);
    // What the client still sends is read away: closing with unread bytes would reset the connection under its last frame.
    let _ = timeout(CLOSE_BOUND, drain(&mut reader)).await;
}

async fn refuse(mut writer: tokio::net::unix::OwnedWriteHalf, code: &str, message: &str) {
    let _ = timeout(CLOSE_BOUND, writer.write_all(&frames::error(code, message))).await;
}

async fn drain(reader: &mut OwnedReadHalf) {
    let mut buffer = [0; 1024];
    while let Ok(1..) = reader.read(&mut buffer).await {}
}

enum Control {
    Signal(u32),
    Resize(u16, u16),
}

struct Attachment<'a> {
    keeper: &'a Rc<Keeper>,
    process: &'a Rc<Process>,
    client: &'a Rc<Client>,
    takes_stdin: bool,
    /// Bytes of stdin that the client may still send.
    credit: Cell<usize>,
    /// What it sent and the process has not taken; the credit bounds it.
    input: RefCell<Vec<u8>>,
    input_ended: Cell<bool>,
    input_came: Notify,
}

impl Attachment<'_> {
    async fn run(&self, reader: &mut OwnedReadHalf) {
        let (control, controls) = mpsc::channel(QUEUED_CONTROLS);
        let result = tokio::select! {
            verdict = self.client.wait_verdict() => {
                if let Verdict::Exited(exit) = verdict {
                    // No bound: a slow reader gets its exit after its bytes, a vanished one fails the write.
                    self.client.close_with_exit(&exit).await;
                }
                return;
            }
            result = self.read_frames(reader, control) => result,
            never = self.feed() => match never {},
            never = self.control(controls) => match never {},
        };
        if let Err(error) = &result {
            if error.kind() == io::ErrorKind::InvalidData {
                let frame = frames::error("INVALID_ARGUMENT", &error.to_string());
                let _ = timeout(CLOSE_BOUND, self.client.close_with(&frame)).await;
            }
        }
        if !matches!(result, Ok(Departure::Detached)) {
            self.end_input();
        }
        self.client.leave();
    }

    /// A task of its own: another client may be writing to a process that does not read.
    fn end_input(&self) {
        if self.takes_stdin && self.process.stdin_once {
            let process = Rc::clone(self.process);
            tokio::task::spawn_local(async move { process.close_stdin().await });
        }
    }

    async fn read_frames(&self, reader: &mut OwnedReadHalf, control: mpsc::Sender<Control>) -> io::Result<Departure> {
        loop {
            match frames::read_client(reader, &self.credit).await? {
                None => return Ok(Departure::Closed),
                Some(ClientFrame::Detach) => return Ok(Departure::Detached),
                Some(ClientFrame::Stdin(bytes)) => {
                    self.credit.set(self.credit.get() - bytes.len());
                    self.input.borrow_mut().extend_from_slice(&bytes);
                    self.input_came.notify_one();
                }
                Some(ClientFrame::StdinEnd) => {
                    self.input_ended.set(true);
                    self.input_came.notify_one();
                }
                Some(ClientFrame::Signal(signal)) => {
                    let _ = control.send(Control::Signal(signal)).await;
                }
                Some(ClientFrame::Resize { rows, columns }) => {
                    let _ = control.send(Control::Resize(rows, columns)).await;
                }
            }
        }
    }

    /// Writes the client's input to the process and grants credit for what was taken.
    async fn feed(&self) -> std::convert::Infallible {
        let mut consumed = 0;
        loop {
            self.input_came.notified().await;
            let bytes = std::mem::take(&mut *self.input.borrow_mut());
            self.process.write_stdin(&bytes).await;
            consumed += bytes.len();
            if consumed >= CREDIT_STEP {
                self.credit.set(self.credit.get() + consumed);
                self.client.send(&frames::credit(consumed as u32)).await;
                consumed = 0;
            }
            if self.input_ended.get() && self.input.borrow().is_empty() {
                self.end_input();
            }
        }
    }

    /// Passes signals and sizes on to the agent, so that they work while no engine runs.
    async fn control(&self, mut controls: mpsc::Receiver<Control>) -> std::convert::Infallible {
        loop {
            let Some(first) = controls.recv().await else { std::future::pending().await };
            let key = &self.process.key;
            let (container_id, exec_id) = (key.container_id.clone(), key.exec_id.clone());
            let (method, payload) = match first {
                Control::Signal(signal) => {
                    ("SignalProcess", SignalProcessRequest { container_id, exec_id, signal }.encode_to_vec())
                }
                Control::Resize(rows, columns) => {
                    let (row, column) = (u32::from(rows), u32::from(columns));
                    ("TtyWinResize", TtyWinResizeRequest { container_id, exec_id, row, column }.encode_to_vec())
                }
            };
            let result = match agent::connected(self.keeper) {
                Ok(agent) => agent.client.call_raw(AGENT_SERVICE, method, payload, Some(CONTROL_BOUND)).await.map(drop),
                Err(refusal) => Err(refusal),
            };
            if let Err(refusal) = result {
                self.keeper.note(&format!("{method} for {key}: {}", refusal.message));
            }
        }
    }
}

enum Departure {
    Closed,
    Detached,
}
