//! Calls to the agent that are made once. An engine that dies between a call and its answer has a successor that cannot know
//! how far it came: under the same operation id it asks again, and gets the first call's answer.
use kata_protocol::envelope::{Request, Status};
use kata_protocol::ttrpc::{status, Code};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::rc::Rc;
use tokio::sync::watch;

/// Key of the operation's id in a request's metadata.
const METADATA: &str = "kata-operation";
/// Operations that are remembered; the oldest are forgotten first.
const MAX_KEPT: usize = 256;
/// Bound of an id, of a request, and of the answer (the guest's) that is kept.
const MAX_BYTES: usize = 4096;

type Answer = Result<Vec<u8>, Status>;

struct Operation {
    id: String,
    request: Request,
    answer: watch::Sender<Option<Answer>>,
}

#[derive(Default)]
pub struct Operations {
    known: RefCell<VecDeque<Rc<Operation>>>,
}

/// The operation that a request belongs to.
pub fn id_of(request: &Request) -> Option<String> {
    request.metadata.iter().find(|pair| pair.key == METADATA).map(|pair| pair.value.clone())
}

impl Operations {
    /// Makes the call, or gives what it was or will be answered when the operation is known. Not to be dropped half way.
    pub async fn once<F: Future<Output = Answer>>(
        &self,
        id: String,
        request: &Request,
        call: impl FnOnce() -> Result<F, Status>,
    ) -> Answer {
        let known = self.known.borrow().iter().find(|operation| operation.id == id).cloned();
        if let Some(known) = known {
            let same = (&known.request.service, &known.request.method, &known.request.payload)
                == (&request.service, &request.method, &request.payload);
            if !same {
                return Err(status(Code::InvalidArgument, format!("operation {id:?} was another call")));
            }
            let mut answer = known.answer.subscribe();
            let answer = answer.wait_for(Option::is_some).await.ok().and_then(|answer| answer.clone());
            return answer.unwrap_or_else(|| Err(status(Code::Internal, "the operation was dropped")));
        }
        if id.len() > MAX_BYTES || request.payload.len() > MAX_BYTES {
            return Err(status(Code::InvalidArgument, format!("a call made once has {MAX_BYTES} bytes at most")));
        }
        // What never began may be tried again.
        let call = call()?;
        let operation = Rc::new(Operation { id, request: request.clone(), answer: watch::Sender::new(None) });
        self.remember(Rc::clone(&operation))?;
        let answer = match call.await {
            Ok(payload) if payload.len() > MAX_BYTES => {
                Err(status(Code::ResourceExhausted, format!("the answer of {} bytes is not kept", payload.len())))
            }
            Err(refusal) => Err(Status { details: Vec::new(), ..refusal }),
            answer => answer,
        };
        operation.answer.send_replace(Some(answer.clone()));
        answer
    }

    fn remember(&self, operation: Rc<Operation>) -> Result<(), Status> {
        let mut known = self.known.borrow_mut();
        if known.len() >= MAX_KEPT {
            let Some(oldest) = known.iter().position(|operation| operation.answer.borrow().is_some()) else {
                return Err(status(Code::ResourceExhausted, format!("{MAX_KEPT} operations are in progress")));
            };
            known.remove(oldest);
        }
        known.push_back(operation);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kata_protocol::envelope::KeyValue;
    use std::cell::Cell;

    fn request(payload: &[u8]) -> Request {
        let metadata = vec![KeyValue { key: METADATA.into(), value: "op".into() }];
        Request { method: "SignalProcess".into(), payload: payload.into(), metadata, ..Default::default() }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_known_operation_is_answered_and_not_made_again() {
        let operations = Operations::default();
        let made = Cell::new(0);
        let call = || {
            made.set(made.get() + 1);
            Ok(async {
                tokio::task::yield_now().await;
                Err(status(Code::NotFound, "no such process"))
            })
        };
        let first = request(b"x");
        let id = id_of(&first).unwrap();
        let (one, two) = tokio::join!(
            operations.once(id.clone(), &first, call),
            operations.once(id.clone(), &first, || -> Result<std::future::Ready<Answer>, Status> { unreachable!() })
        );
        assert_eq!((made.get(), one.clone()), (1, two));
        assert_eq!(one.unwrap_err().code, Code::NotFound as i32);
        let other = operations.once(id, &request(b"y"), call).await;
        assert_eq!(other.unwrap_err().code, Code::InvalidArgument as i32);
        assert_eq!(id_of(&Request::default()), None);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_did_not_begin_is_forgotten_and_what_is_remembered_is_bounded() {
        let operations = Operations::default();
        let refused = || -> Result<std::future::Ready<Answer>, Status> { Err(status(Code::Unavailable, "no agent")) };
        assert!(operations.once("a".into(), &request(b""), refused).await.is_err());
        let answered = |payload: Vec<u8>| move || Ok(std::future::ready(Ok(payload)));
        assert_eq!(operations.once("a".into(), &request(b""), answered(vec![1])).await, Ok(vec![1]));
        let long = operations.once("long".into(), &request(b""), answered(vec![0; MAX_BYTES + 1])).await;
        assert_eq!(long.unwrap_err().code, Code::ResourceExhausted as i32);
        for number in 0..2 * MAX_KEPT {
            operations.once(number.to_string(), &request(b""), answered(vec![])).await.unwrap();
        }
        assert_eq!(operations.known.borrow().len(), MAX_KEPT);
        assert_eq!(operations.once("a".into(), &request(b""), answered(vec![2])).await, Ok(vec![2]));
        let too_long = operations.once("b".into(), &request(&[0; MAX_BYTES + 1]), answered(vec![])).await;
        assert_eq!(too_long.unwrap_err().code, Code::InvalidArgument as i32);
    }
}
