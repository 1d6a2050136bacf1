//! Events of the sandbox: so far, containers of which the kernel's OOM killer ended a process.
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use tokio::io::unix::AsyncFd;
use tokio::io::Interest;
use tokio::sync::Notify;

/// A host that does not ask loses the oldest; the number of each event tells it.
const MAX_EVENTS: usize = 256;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OomEvent {
    pub sequence: u64,
    pub container_id: String,
}

#[derive(Default)]
pub struct Events {
    events: RefCell<VecDeque<OomEvent>>,
    last_sequence: Cell<u64>,
    /// Last event that GetOOMEvent gave to a caller: upstream's hosts get each event once.
    delivered: Cell<u64>,
    grown: Notify,
}

impl Events {
    pub fn push_oom(&self, container_id: &str) {
        let sequence = self.last_sequence.get() + 1;
        self.last_sequence.set(sequence);
        let mut events = self.events.borrow_mut();
        if events.len() >= MAX_EVENTS {
            events.pop_front();
        }
        events.push_back(OomEvent { sequence, container_id: container_id.to_owned() });
        self.grown.notify_waiters();
    }

    /// The first event after `sequence`; waits for one.
    pub async fn after(&self, sequence: u64) -> OomEvent {
        loop {
            let grown = self.grown.notified();
            let found = self.events.borrow().iter().find(|event| event.sequence > sequence).cloned();
            if let Some(event) = found {
                return event;
            }
            grown.await;
        }
    }

    /// The first event that no caller of this function got yet; waits for one.
    pub async fn next_undelivered(&self) -> OomEvent {
        loop {
            let event = self.after(self.delivered.get()).await;
            // Another caller may have taken it while this one was woken.
            if event.sequence > self.delivered.get() {
                self.delivered.set(event.sequence);
                return event;
            }
        }
    }
}

/// A kernfs file whose changes are announced (cgroup.events, memory.events).
pub struct WatchedFile(AsyncFd<OwnedFd>);

impl WatchedFile {
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let watched = Self(crate::poll::watch(file.into(), Interest::PRIORITY)?);
        // The kernel announces changes since the last read of this descriptor.
        watched.read()?;
        Ok(watched)
    }

    /// Its content, from the start. Errors: ENODEV when its cgroup is gone.
    pub fn read(&self) -> io::Result<String> {
        let mut buffer = [0; 4096];
        let count = rustix::io::pread(self.0.get_ref(), &mut buffer[..], 0)?;
        Ok(String::from_utf8_lossy(&buffer[..count]).into_owned())
    }

    /// Waits for a change since the last read.
    pub async fn changed(&self) -> io::Result<()> {
        self.0.ready(Interest::PRIORITY).await?.clear_ready();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::run;
    use std::rc::Rc;

    #[test]
    fn events_are_numbered_acknowledged_by_asking_and_bounded() {
        run(async {
            let events = Rc::new(Events::default());
            let waiting = tokio::task::spawn_local({
                let events = Rc::clone(&events);
                async move { events.after(0).await }
            });
            tokio::task::yield_now().await;
            events.push_oom("a");
            assert_eq!(waiting.await.unwrap(), OomEvent { sequence: 1, container_id: "a".into() });
            assert_eq!(events.after(0).await.sequence, 1);
            assert_eq!(events.next_undelivered().await.sequence, 1);
            for _ in 0..MAX_EVENTS {
                events.push_oom("b");
            }
            assert_eq!(events.after(0).await.sequence, 2);
            assert_eq!(events.next_undelivered().await.sequence, 2);
        });
    }
}
