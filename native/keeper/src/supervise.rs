//! Waits for a process's end and tells it in order: after its bytes, in the journal before anybody hears of it.
use crate::agent::{AGENT_SERVICE, EXTENSION_SERVICE, WAIT_EXTENSION};
use crate::container_log::Stream;
use crate::keeper::{Agent, End, Keeper};
use crate::process::{Exit, Process};
use crate::text;
use kata_protocol::agent_ext::{WaitProcessExtRequest, WaitProcessExtResponse};
use kata_protocol::envelope::Status;
use kata_protocol::grpc::{WaitProcessRequest, WaitProcessResponse};
use kata_protocol::keeper::JournalEntry;
use kata_protocol::ttrpc::Code;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// How long an exit waits for announced bytes when none arrives: the agent counts what it has already sent.
const ANNOUNCED_QUIET: Duration = Duration::from_secs(10);
/// The same when the agent announces nothing: a descendant may hold the streams open for ever.
const UNANNOUNCED_QUIET: Duration = Duration::from_secs(1);
/// The same after the sandbox's end: the sockets hold what was sent and nothing follows.
const ENDED_QUIET: Duration = Duration::from_millis(500);
const TICK: Duration = Duration::from_millis(50);
/// How long an exited process stays known after the engine acknowledged its exit, and how many of them.
const KEEP: Duration = Duration::from_secs(60);
const KEEP_MAX: usize = 256;

/// An exit as it was learnt, before its bytes are drained.
struct Outcome {
    exit: Exit,
    announced: [u64; 2],
    quiet: Duration,
}

/// The task of one process, from its creation to its journaled exit.
pub async fn run(keeper: Rc<Keeper>, process: Rc<Process>, agent: Agent) {
    let outcome = tokio::select! {
        outcome = wait(&keeper, &process, &agent) => outcome,
        end = keeper.wait_end() => Some(ended_with(&end)),
    };
    let Some(Outcome { mut exit, announced, quiet }) = outcome else { return forget(&keeper, &process) };
    for (output, bytes) in process.outputs.iter().zip(announced) {
        output.announce(bytes);
    }
    let drained = drain(&process, quiet).await;
    for output in &process.outputs {
        // Nothing more is waited for; a stalled client alone still gets what it is owed before its exit.
        if !output.is_settled() && !output.is_stalled() {
            output.announce(output.read.get());
        }
    }
    if announced.iter().any(|bytes| *bytes != u64::MAX) && !drained.is_empty() {
        let separator = if exit.evidence.is_empty() { "" } else { "; " };
        exit.evidence = format!("{}{separator}{drained}", exit.evidence);
    }
    let stdin = Rc::clone(&process);
    tokio::task::spawn_local(async move { stdin.close_stdin().await });
    let entry = JournalEntry {
        kind: "exit".into(),
        container_id: process.key.container_id.clone(),
        exec_id: process.key.exec_id.clone(),
        status: exit.code,
        signal: exit.signal,
        oom_killed: exit.oom,
        cause: exit.cause.clone(),
        evidence: exit.evidence.clone(),
        dropped_lines: process.dropped_lines(),
        ..Default::default()
    };
    keeper.record(entry);
    process.exit_sequence.set(keeper.journal.borrow().last_sequence());
    process.exited_at.set(Some(Instant::now()));
    process.exit.send_replace(Some(Rc::new(exit)));
    process.moved();
}

fn forget(keeper: &Keeper, process: &Rc<Process>) {
    keeper.note(&format!("{} was removed without having run", process.key));
    let exit =
        Exit { code: 137, cause: "process".into(), evidence: "the container was removed".into(), ..Default::default() };
    process.exit.send_replace(Some(Rc::new(exit)));
    for output in &process.outputs {
        output.announce(0);
    }
    process.moved();
    keeper.processes.borrow_mut().retain(|_, other| !Rc::ptr_eq(other, process));
}

fn ended_with(end: &End) -> Outcome {
    let exit = Exit { code: 137, signal: 9, oom: false, cause: end.cause.clone(), evidence: end.evidence.clone() };
    Outcome { exit, announced: [u64::MAX; 2], quiet: ENDED_QUIET }
}

/// `None`: the container was removed before the process ever ran.
async fn wait(keeper: &Keeper, process: &Process, agent: &Agent) -> Option<Outcome> {
    let (container_id, exec_id) = (process.key.container_id.clone(), process.key.exec_id.clone());
    let answer: Result<WaitProcessExtResponse, Status> =
        if agent.ready.extensions.iter().any(|name| name == WAIT_EXTENSION) {
            let request = WaitProcessExtRequest { container_id, exec_id };
            agent.client.call(EXTENSION_SERVICE, "WaitProcess", &request, None).await
        } else {
            let request = WaitProcessRequest { container_id, exec_id };
            let answer =
                agent.client.call::<_, WaitProcessResponse>(AGENT_SERVICE, "WaitProcess", &request, None).await;
            answer.map(|answer| WaitProcessExtResponse {
                status: answer.status,
                stdout_bytes: u64::MAX,
                stderr_bytes: u64::MAX,
                signal: if (129..=192).contains(&answer.status) { (answer.status - 128) as u32 } else { 0 },
                oom_killed: answer.status == 137 && keeper.oom.borrow().contains(&process.key.container_id),
                exited_at_unix_nanos: 0,
            })
        };
    match answer {
        Ok(answer) => {
            let oom = answer.oom_killed && answer.signal == libc::SIGKILL as u32;
            let cause = if oom { "oom" } else { "process" };
            let announced = [answer.stdout_bytes, answer.stderr_bytes];
            let quiet = if announced == [u64::MAX; 2] { UNANNOUNCED_QUIET } else { ANNOUNCED_QUIET };
            let exit =
                Exit { code: answer.status, signal: answer.signal, oom, cause: cause.into(), evidence: String::new() };
            Some(Outcome { exit, announced, quiet })
        }
        Err(refusal) if refusal.code == Code::Unavailable as i32 => {
            // The connection is lost: the end of the sandbox that follows tells why.
            let end = keeper.wait_end().await;
            Some(ended_with(&end))
        }
        Err(_) if process.removed.get() => None,
        Err(refusal) => {
            let evidence = format!("WaitProcess: {}", text::escape(text::cut(&refusal.message, 1024).as_bytes()));
            let exit = Exit { code: 137, signal: 0, oom: false, cause: "agent-lost".into(), evidence };
            Some(Outcome { exit, announced: [u64::MAX; 2], quiet: UNANNOUNCED_QUIET })
        }
    }
}

/// Waits until every announced byte is logged and delivered, except on a stream that brings nothing more or whose client
/// does not read even more than its spool holds. Gives what is missing, for the evidence.
async fn drain(process: &Process, quiet: Duration) -> String {
    let mut last = process.outputs.each_ref().map(|output| (output.delivered.get(), Instant::now()));
    loop {
        let mut waiting = false;
        for (output, (delivered, since)) in process.outputs.iter().zip(&mut last) {
            if *process.held.borrow() || output.delivered.get() != *delivered {
                (*delivered, *since) = (output.delivered.get(), Instant::now());
            }
            if !output.is_settled() && output.is_stalled() {
                process.clients.borrow().iter().for_each(|client| client.spool());
            }
            waiting |= !output.is_settled() && since.elapsed() < quiet;
        }
        if !waiting {
            break;
        }
        tokio::select! {
            () = process.progress.notified() => {}
            () = tokio::time::sleep(TICK) => {}
        }
    }
    let missing = Stream::BOTH.iter().filter(|stream| !process.output(**stream).is_settled()).map(|stream| {
        let output = process.output(*stream);
        let why = if output.is_stalled() { "its client does not read" } else { "the guest sends no more" };
        format!("{}: {} bytes delivered when the exit was recorded, {why}", stream.name(), output.delivered.get())
    });
    missing.collect::<Vec<_>>().join("; ")
}

/// Forgets exited processes that the engine has recorded.
pub fn sweep(keeper: &Keeper) {
    let unacknowledged = keeper.journal.borrow().first_sequence();
    let mut processes = keeper.processes.borrow_mut();
    let told = |process: &Process| process.has_exited() && process.exit_sequence.get() < unacknowledged;
    let mut surplus = processes.values().filter(|process| told(process)).count().saturating_sub(KEEP_MAX);
    processes.retain(|_, process| {
        let age = process.exited_at.get().map_or(Duration::ZERO, |at| at.elapsed());
        let forget = told(process) && (age > KEEP || surplus > 0) && process.clients.borrow().is_empty();
        surplus = surplus.saturating_sub(usize::from(forget));
        !forget
    });
}
