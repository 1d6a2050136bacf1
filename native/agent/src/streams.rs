//! Connections of the stream port, kept under the peer's port until a creation request claims them.
use crate::failure::{not_found, Result};
use crate::log;
use kata_protocol::ttrpc::{status, Code};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Three per process, for some hundreds of processes that start at the same time.
const MAX_UNCLAIMED: usize = 1024;
const UNCLAIMED_LIFETIME: Duration = Duration::from_secs(30);
/// A connection can be accepted after the request that names it: they come over different connections.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Default)]
pub struct Streams {
    unclaimed: RefCell<BTreeMap<u32, (UnixStream, Instant)>>,
    arrived: Notify,
}

impl Streams {
    /// Keeps a new connection. When too many wait unclaimed the new one is closed.
    pub fn offer(self: &Rc<Self>, port: u32, stream: UnixStream) {
        let mut unclaimed = self.unclaimed.borrow_mut();
        if unclaimed.len() >= MAX_UNCLAIMED && !unclaimed.contains_key(&port) {
            log::warning!("streams", "connection from port {port} closed: {MAX_UNCLAIMED} are unclaimed already");
            return;
        }
        if unclaimed.is_empty() {
            tokio::task::spawn_local(Rc::clone(self).expire());
        }
        unclaimed.insert(port, (stream, Instant::now() + UNCLAIMED_LIFETIME));
        self.arrived.notify_waiters();
    }

    /// Closes what nobody claims; runs while anything is unclaimed.
    async fn expire(self: Rc<Self>) {
        loop {
            let Some(first) = self.unclaimed.borrow().values().map(|(_, until)| *until).min() else { return };
            tokio::time::sleep_until(first).await;
            let now = Instant::now();
            self.unclaimed.borrow_mut().retain(|port, (_, until)| {
                let keep = *until > now;
                if !keep {
                    log::warning!("streams", "connection from port {port} closed: no process claimed it");
                }
                keep
            });
        }
    }

    /// Takes the connection that came from `port`; port 0 means that the process has no such stream.
    /// Errors: NOT_FOUND when none came within 10 s.
    pub async fn claim(&self, port: u32) -> Result<Option<UnixStream>> {
        if port == 0 {
            return Ok(None);
        }
        let waiting = async {
            loop {
                let arrived = self.arrived.notified();
                if let Some((stream, _)) = self.unclaimed.borrow_mut().remove(&port) {
                    return stream;
                }
                arrived.await;
            }
        };
        match tokio::time::timeout(CLAIM_TIMEOUT, waiting).await {
            Ok(stream) => Ok(Some(stream)),
            Err(_) => {
                let seconds = CLAIM_TIMEOUT.as_secs();
                Err(not_found(format!("streams: no connection from port {port} arrived within {seconds} s")))
            }
        }
    }

    /// Claims three connections for one process. Naming a port twice is refused.
    pub async fn claim_all(&self, ports: [u32; 3]) -> Result<[Option<UnixStream>; 3]> {
        let [stdin, stdout, stderr] = ports;
        let twice = |a, b| a != 0 && a == b;
        if twice(stdin, stdout) || twice(stdin, stderr) || twice(stdout, stderr) {
            return Err(status(Code::InvalidArgument, format!("streams: ports {ports:?} are not different")));
        }
        Ok([self.claim(stdin).await?, self.claim(stdout).await?, self.claim(stderr).await?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::run_paused;

    fn offer(streams: &Rc<Streams>, port: u32) -> UnixStream {
        let (near, far) = UnixStream::pair().unwrap();
        streams.offer(port, far);
        near
    }

    #[test]
    fn a_claim_gets_its_own_connection_early_or_late() {
        run_paused(async {
            let streams = Rc::new(Streams::default());
            let early = offer(&streams, 7);
            let claimed = streams.claim(7).await.unwrap().unwrap();
            claimed.try_write(b"x").unwrap();
            early.readable().await.unwrap();
            assert!(streams.claim(0).await.unwrap().is_none());
            let late = tokio::task::spawn_local({
                let streams = Rc::clone(&streams);
                async move { streams.claim(9).await }
            });
            tokio::task::yield_now().await;
            let _other = offer(&streams, 8);
            let _near = offer(&streams, 9);
            assert!(late.await.unwrap().unwrap().is_some());
            assert_eq!(streams.unclaimed.borrow().len(), 1);
        });
    }

    #[test]
    fn a_port_that_never_connects_is_refused() {
        run_paused(async {
            let streams = Rc::new(Streams::default());
            assert_eq!(streams.claim(5).await.unwrap_err().code, Code::NotFound as i32);
            assert_eq!(streams.claim_all([5, 5, 0]).await.unwrap_err().code, Code::InvalidArgument as i32);
        });
    }

    #[test]
    fn unclaimed_connections_are_bounded_and_expire() {
        run_paused(async {
            let streams = Rc::new(Streams::default());
            let (near, far) = UnixStream::pair().unwrap();
            for port in 1..=MAX_UNCLAIMED as u32 - 1 {
                let (_, other) = UnixStream::pair().unwrap();
                // Descriptors are scarce in tests; the near ends close at once.
                streams.unclaimed.borrow_mut().insert(port, (other, Instant::now() + UNCLAIMED_LIFETIME));
                if port == 100 {
                    break;
                }
            }
            streams.unclaimed.borrow_mut().clear();
            streams.offer(1, far);
            tokio::time::sleep(UNCLAIMED_LIFETIME + Duration::from_secs(1)).await;
            assert!(streams.unclaimed.borrow().is_empty());
            near.readable().await.unwrap();
            assert_eq!(near.try_read(&mut [0]).unwrap(), 0);
        });
    }
}
