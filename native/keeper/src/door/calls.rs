//! The calls of containerd that wait for an engine's answer. They belong to their callers: a caller that goes takes its
//! call along. An engine that goes leaves them to the next one, which gets every open call again.
use kata_protocol::envelope::Status;
use kata_protocol::keeper::{AnswerCallRequest, DoorCall, NextCallsResponse};
use kata_protocol::ttrpc::{status, Code, MAX_MESSAGE_BYTES};
use prost::Message;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::time::{timeout, timeout_at, Instant};

pub type Answer = Result<Vec<u8>, Status>;

/// Calls that may wait in one sandbox, and the sum of their payloads.
pub const MAX_CALLS: usize = 4096;
pub const MAX_BYTES: usize = 8 * MAX_MESSAGE_BYTES;
/// A payload's bound: around it the engine is told service, method and operation.
const MAX_PAYLOAD_BYTES: usize = MAX_MESSAGE_BYTES - 1024;
/// What one answer to the engine holds.
const MAX_ANSWER_BYTES: usize = MAX_MESSAGE_BYTES - 64;
const MAX_DROPPED: usize = 1024;
/// How long a call waits for an engine to take it.
const TAKE_BOUND: Duration = Duration::from_secs(60);
/// Calls that by their nature take as long as a container runs.
const UNBOUNDED: [&str; 2] = ["Wait", "WaitSandbox"];

#[derive(Default)]
struct State {
    last: u64,
    open: BTreeMap<u64, Open>,
    bytes: usize,
    engines: BTreeMap<u64, Engine>,
    last_engine: u64,
}

struct Open {
    call: DoorCall,
    /// How many engine connections hold the call.
    held: watch::Sender<usize>,
    answer: oneshot::Sender<Answer>,
}

/// What one engine connection has still to be told, and what it was told.
struct Engine {
    fresh: BTreeSet<u64>,
    given: BTreeSet<u64>,
    dropped: BTreeSet<u64>,
}

pub struct Calls {
    state: RefCell<State>,
    /// Changes when there is something to tell an engine.
    news: watch::Sender<()>,
    bound: Duration,
}

/// An engine connection's place; the calls that it holds are free for the next one when it is dropped.
pub struct Seat {
    calls: Rc<Calls>,
    engine: u64,
}

/// A call's caller. Dropped before the answer, it takes the call back.
pub struct Caller {
    calls: Rc<Calls>,
    operation: u64,
    bounded: bool,
    held: watch::Receiver<usize>,
    answer: oneshot::Receiver<Answer>,
}

impl Calls {
    pub fn new() -> Rc<Self> {
        Self::with_bound(TAKE_BOUND)
    }

    fn with_bound(bound: Duration) -> Rc<Self> {
        Rc::new(Calls { state: RefCell::default(), news: watch::Sender::new(()), bound })
    }

    /// Takes a call in. RESOURCE_EXHAUSTED over a bound.
    pub fn open(self: &Rc<Self>, service: String, method: String, payload: Vec<u8>) -> Result<Caller, Status> {
        let mut state = self.state.borrow_mut();
        if payload.len() > MAX_PAYLOAD_BYTES {
            let text = format!("{method}: a request of {} bytes, at most {MAX_PAYLOAD_BYTES} are taken", payload.len());
            return Err(status(Code::ResourceExhausted, text));
        }
        if state.open.len() >= MAX_CALLS || state.bytes + payload.len() > MAX_BYTES {
            let text = format!("{method}: {} calls with {} bytes wait in this sandbox", state.open.len(), state.bytes);
            return Err(status(Code::ResourceExhausted, text));
        }
        state.last += 1;
        let operation = state.last;
        let bounded = !UNBOUNDED.contains(&method.as_str());
        state.bytes += payload.len();
        let (sender, answer) = oneshot::channel();
        let (held, holders) = watch::channel(0);
        let call = DoorCall { operation, service, method, payload, again: false };
        state.open.insert(operation, Open { call, held, answer: sender });
        for engine in state.engines.values_mut() {
            engine.fresh.insert(operation);
        }
        drop(state);
        self.news.send_replace(());
        Ok(Caller { calls: Rc::clone(self), operation, bounded, held: holders, answer })
    }

    /// A place for an engine connection, to which every open call is news.
    pub fn seat(self: &Rc<Self>) -> Seat {
        let mut state = self.state.borrow_mut();
        state.last_engine += 1;
        let engine = state.last_engine;
        let fresh = state.open.keys().copied().collect();
        state.engines.insert(engine, Engine { fresh, given: BTreeSet::new(), dropped: BTreeSet::new() });
        Seat { calls: Rc::clone(self), engine }
    }

    /// Ends a call with the engine's answer. An unknown one has been answered, or its caller went.
    pub fn answer(&self, request: AnswerCallRequest) {
        let Some(open) = self.remove(request.operation) else { return };
        let answer = match request.code {
            0 => Ok(request.payload),
            code => Err(Status { code: code as i32, message: request.message, details: Vec::new() }),
        };
        let _ = open.answer.send(answer);
    }

    fn remove(&self, operation: u64) -> Option<Open> {
        let mut state = self.state.borrow_mut();
        let open = state.open.remove(&operation)?;
        state.bytes -= open.call.payload.len();
        for engine in state.engines.values_mut() {
            engine.fresh.remove(&operation);
            engine.given.remove(&operation);
        }
        Some(open)
    }

    /// Takes a call back whose caller went, and tells the engines that hold it.
    fn withdraw(&self, operation: u64) {
        let mut state = self.state.borrow_mut();
        if !state.open.contains_key(&operation) {
            return;
        }
        for engine in state.engines.values_mut().filter(|engine| engine.given.contains(&operation)) {
            engine.dropped.insert(operation);
        }
        drop(state);
        self.remove(operation);
        self.news.send_replace(());
    }
}

impl Seat {
    /// See `NextCalls` in proto/keeper.proto.
    pub async fn next(&self, wait: Duration) -> NextCallsResponse {
        let deadline = Instant::now() + wait;
        let mut news = self.calls.news.subscribe();
        loop {
            let answer = self.take();
            if !answer.calls.is_empty() || !answer.dropped.is_empty() {
                return answer;
            }
            if !matches!(timeout_at(deadline, news.changed()).await, Ok(Ok(()))) {
                return answer;
            }
        }
    }

    /// What this connection was not told yet, as much as fits one answer.
    fn take(&self) -> NextCallsResponse {
        let mut answer = NextCallsResponse::default();
        let mut state = self.calls.state.borrow_mut();
        let State { open, engines, .. } = &mut *state;
        let Some(engine) = engines.get_mut(&self.engine) else { return answer };
        while answer.dropped.len() < MAX_DROPPED {
            let Some(operation) = engine.dropped.pop_first() else { break };
            answer.dropped.push(operation);
        }
        let mut room = MAX_ANSWER_BYTES - answer.encoded_len();
        while let Some(operation) = engine.fresh.first().copied() {
            let Some(open) = open.get_mut(&operation) else {
                engine.fresh.pop_first();
                continue;
            };
            // The field's key and length take 6 bytes at most, "again" 2.
            let size = open.call.encoded_len() + 8;
            if size > room && !(answer.calls.is_empty() && answer.dropped.is_empty()) {
                break;
            }
            room = room.saturating_sub(size);
            engine.fresh.pop_first();
            engine.given.insert(operation);
            answer.calls.push(open.call.clone());
            open.call.again = true;
            open.held.send_modify(|held| *held += 1);
        }
        answer
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = self.calls.state.borrow_mut();
        let State { open, engines, .. } = &mut *state;
        let Some(engine) = engines.remove(&self.engine) else { return };
        for operation in engine.given {
            if let Some(open) = open.get(&operation) {
                open.held.send_modify(|held| *held -= 1);
            }
        }
    }
}

impl Caller {
    /// Waits for the answer. `None`: no engine held the call for its bound.
    pub async fn answer(mut self) -> Option<Answer> {
        let mut held = self.held.clone();
        let (bounded, bound) = (self.bounded, self.calls.bound);
        let untaken = async move {
            loop {
                // The sender lives as long as the call is open.
                let _ = held.wait_for(|held| *held == 0).await;
                if timeout(bound, held.wait_for(|held| *held > 0)).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            biased;
            answer = &mut self.answer => answer.ok(),
            () = untaken, if bounded => None,
        }
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.calls.withdraw(self.operation);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;

    const NOW: Duration = Duration::ZERO;

    fn run(work: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work);
    }

    fn open(calls: &Rc<Calls>, method: &str, bytes: usize) -> Caller {
        calls.open("s".into(), method.into(), vec![7; bytes]).map_err(|status| status.message).unwrap()
    }

    fn operations(answer: &NextCallsResponse) -> Vec<u64> {
        answer.calls.iter().map(|call| call.operation).collect()
    }

    fn answered(operation: u64, code: u32) -> AnswerCallRequest {
        AnswerCallRequest { operation, payload: vec![1], code, message: "no".into() }
    }

    #[test]
    fn gives_each_call_once_to_a_connection_and_again_to_the_next() {
        run(async {
            let calls = Calls::new();
            let seat = calls.seat();
            assert_eq!(seat.next(NOW).await, NextCallsResponse::default());
            let (first, second) = (open(&calls, "Create", 3), open(&calls, "Wait", 0));
            let given = seat.next(NOW).await;
            assert_eq!(operations(&given), [1, 2]);
            assert!(!given.calls[0].again && given.calls[0].payload == [7; 3]);
            assert!(operations(&seat.next(NOW).await).is_empty());
            drop(seat);
            let next = calls.seat();
            let given = next.next(NOW).await;
            assert!(operations(&given) == [1, 2] && given.calls.iter().all(|call| call.again));
            calls.answer(answered(1, 0));
            calls.answer(answered(2, 5));
            calls.answer(answered(2, 0));
            assert_eq!(first.answer().await, Some(Ok(vec![1])));
            let refused = second.answer().await.unwrap().unwrap_err();
            assert_eq!((refused.code, refused.message.as_str()), (5, "no"));
            assert_eq!(next.next(NOW).await, NextCallsResponse::default());
        });
    }

    #[test]
    fn a_poll_ends_when_a_call_comes() {
        run(async {
            let calls = Calls::new();
            let seat = calls.seat();
            let (given, _caller) = tokio::join!(seat.next(Duration::from_secs(60)), async { open(&calls, "Kill", 0) });
            assert_eq!(operations(&given), [1]);
        });
    }

    #[test]
    fn tells_a_dropped_call_only_to_whom_it_was_given() {
        run(async {
            let calls = Calls::new();
            let (first, second) = (calls.seat(), calls.seat());
            let (given, unseen) = (open(&calls, "Create", 1), open(&calls, "State", 1));
            assert_eq!(operations(&first.next(NOW).await), [1, 2]);
            drop(given);
            drop(unseen);
            assert_eq!(first.next(NOW).await.dropped, [1, 2]);
            assert_eq!(second.next(NOW).await, NextCallsResponse::default());
            assert_eq!(calls.state.borrow().bytes, 0);
        });
    }

    #[test]
    fn gives_up_what_no_engine_takes_but_for_waits() {
        run(async {
            let calls = Calls::with_bound(Duration::from_millis(20));
            assert_eq!(open(&calls, "Create", 0).answer().await, None);
            let seat = calls.seat();
            let taken = open(&calls, "Create", 0);
            seat.next(NOW).await;
            let mut answer = Box::pin(taken.answer());
            assert!(timeout(Duration::from_millis(100), &mut answer).await.is_err());
            drop(seat);
            assert_eq!(answer.await, None);
            let wait = open(&calls, "Wait", 0);
            assert!(timeout(Duration::from_millis(100), wait.answer()).await.is_err());
        });
    }

    #[test]
    fn holds_its_bounds() {
        run(async {
            let calls = Calls::new();
            let refused =
                |bytes: usize| calls.open("s".into(), "m".into(), vec![0; bytes]).err().map(|status| status.code);
            let exhausted = Some(Code::ResourceExhausted as i32);
            assert_eq!(refused(MAX_PAYLOAD_BYTES + 1), exhausted);
            let large: Vec<Caller> = (0..8).map(|_| open(&calls, "m", MAX_PAYLOAD_BYTES)).collect();
            assert_eq!(refused(MAX_PAYLOAD_BYTES), exhausted);
            let seat = calls.seat();
            for operation in 1..=8 {
                let answer = seat.next(NOW).await;
                assert_eq!(operations(&answer), [operation]);
                assert!(answer.encoded_len() <= MAX_ANSWER_BYTES);
            }
            drop(large);
            let many: Vec<Caller> = (0..MAX_CALLS).map(|_| open(&calls, "m", 0)).collect();
            assert_eq!(refused(0), exhausted);
            assert_eq!(seat.next(NOW).await.dropped.len(), 8);
            drop(many);
            assert_eq!(refused(0), None);
        });
    }
}
