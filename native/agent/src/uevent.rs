//! Kernel events about devices (NETLINK_KOBJECT_UEVENT), the wake-up for everything that waits for hardware.
use crate::failure::Result;
use crate::log;
use kata_protocol::ttrpc::{status, Code};
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;
use tokio::io::Interest;
use tokio::sync::Notify;

/// The kernel builds an event in a buffer of this size (UEVENT_BUFFER_SIZE, 2 KiB, plus its header).
const MAX_EVENT_BYTES: usize = 4096;
const KERNEL_GROUP: u32 = 1;
const RECEIVE_BUFFER_BYTES: libc::c_int = 256 << 10;

#[derive(Debug, PartialEq, Eq)]
pub struct Uevent<'a> {
    pub action: &'a str,
    pub subsystem: &'a str,
    /// Below /sys.
    pub device_path: &'a str,
}

/// Parses `add@/devices/…\0ACTION=add\0DEVPATH=…\0SUBSYSTEM=…\0`; `None` for anything else.
pub fn parse(message: &[u8]) -> Option<Uevent<'_>> {
    let mut fields = message.split(|byte| *byte == 0);
    let header = std::str::from_utf8(fields.next()?).ok()?;
    let (_, header_path) = header.split_once('@')?;
    let mut event = Uevent { action: "", subsystem: "", device_path: header_path };
    for field in fields {
        let Some((name, value)) = std::str::from_utf8(field).ok().and_then(|field| field.split_once('=')) else {
            continue;
        };
        match name {
            "ACTION" => event.action = value,
            "SUBSYSTEM" => event.subsystem = value,
            "DEVPATH" => event.device_path = value,
            _ => {}
        }
    }
    let whole = !event.action.is_empty() && !event.subsystem.is_empty() && event.device_path.starts_with('/');
    whole.then_some(event)
}

#[derive(Default)]
pub struct Uevents {
    changed: Notify,
}

impl Uevents {
    /// Receives events for ever. Errors: the socket cannot be opened.
    pub async fn run(&self) -> io::Result<()> {
        let socket = crate::poll::watch(open_socket()?, Interest::READABLE)?;
        loop {
            let mut ready = socket.readable().await?;
            match ready.try_io(|socket| self.receive(socket.as_raw_fd())) {
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    log::warning!("uevent", "the kernel dropped events; looking at devices again");
                    self.changed.notify_waiters();
                }
                Ok(result) => result?,
                Err(_would_block) => {}
            }
        }
    }

    fn receive(&self, socket: libc::c_int) -> io::Result<()> {
        let mut buffer = [0_u8; MAX_EVENT_BYTES];
        // SAFETY: sockaddr_nl is plain data; the kernel writes at most the lengths given.
        let (received, sender) = unsafe {
            let mut sender: libc::sockaddr_nl = mem::zeroed();
            let mut length = mem::size_of::<libc::sockaddr_nl>() as libc::socklen_t;
            let received = libc::recvfrom(
                socket,
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
                (&raw mut sender).cast(),
                &raw mut length,
            );
            (received, sender)
        };
        let Ok(received) = usize::try_from(received) else { return Err(io::Error::last_os_error()) };
        // Only the kernel has port 0; another process could send to the group.
        if sender.nl_pid != 0 {
            return Ok(());
        }
        if let Some(event) = parse(&buffer[..received]) {
            log::debug!("uevent", "{} {} {}", event.action, event.subsystem, event.device_path);
            if event.action != "remove" {
                self.changed.notify_waiters();
            }
        }
        Ok(())
    }

    /// Waits until `look` finds something: it is asked once at the start and after each event, never in between.
    /// Errors: `look`'s; DEADLINE_EXCEEDED after `timeout`, naming `what`.
    pub async fn wait_for<T>(
        &self,
        what: &str,
        timeout: Duration,
        mut look: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let waiting = async {
            loop {
                let changed = self.changed.notified();
                if let Some(found) = look()? {
                    return Ok(found);
                }
                changed.await;
            }
        };
        tokio::time::timeout(timeout, waiting).await.unwrap_or_else(|_| {
            let seconds = timeout.as_secs();
            let text = format!("device: {what} did not appear within {seconds} s (agent.hotplug_timeout)");
            Err(status(Code::DeadlineExceeded, text))
        })
    }
}

fn open_socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: sockaddr_nl is plain data and outlives the calls with the size given; the descriptor is new.
    unsafe {
        let fd = libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_KOBJECT_UEVENT);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = OwnedFd::from_raw_fd(fd);
        let size = RECEIVE_BUFFER_BYTES;
        let length = mem::size_of::<libc::c_int>() as libc::socklen_t;
        // Without the privilege the default size stays; a lost event is noticed either way.
        libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, (&raw const size).cast(), length);
        let mut address: libc::sockaddr_nl = mem::zeroed();
        address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        address.nl_groups = KERNEL_GROUP;
        let length = mem::size_of::<libc::sockaddr_nl>() as libc::socklen_t;
        if libc::bind(fd, (&raw const address).cast(), length) < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(socket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::run_paused;
    use std::cell::Cell;
    use std::rc::Rc;

    #[test]
    fn events_parse_and_junk_does_not() {
        let message = b"add@/devices/pci0000:00/0000:00:02.0/virtio1/block/vda\0ACTION=add\0DEVPATH=/devices/x/block/vda\0SUBSYSTEM=block\0MAJOR=254\0SEQNUM=9\0";
        let expected = Uevent { action: "add", subsystem: "block", device_path: "/devices/x/block/vda" };
        assert_eq!(parse(message), Some(expected));
        let junk: [&[u8]; 7] = [
            b"",
            b"\0\0\0",
            b"libudev\0\xfe\xed\xca\xfe",
            b"add@x\0ACTION=add\0SUBSYSTEM=block\0",
            b"add@/x\0ACTION=add\0",
            b"add@/x\0ACTION=\xff\0SUBSYSTEM=block\0",
            b"@",
        ];
        for message in junk {
            assert_eq!(parse(message), None, "{message:?}");
        }
    }

    #[test]
    fn waiting_looks_at_once_then_after_each_event_only() {
        run_paused(async {
            let events = Rc::new(Uevents::default());
            let looks = Rc::new(Cell::new(0));
            let waiter = tokio::task::spawn_local({
                let (events, looks) = (Rc::clone(&events), Rc::clone(&looks));
                async move {
                    let look = || {
                        looks.set(looks.get() + 1);
                        Ok((looks.get() == 3).then_some("found"))
                    };
                    events.wait_for("disk", Duration::from_secs(3), look).await
                }
            });
            for expected in [1, 2] {
                for _ in 0..5 {
                    tokio::task::yield_now().await;
                }
                assert_eq!(looks.get(), expected);
                events.changed.notify_waiters();
            }
            assert_eq!(waiter.await.unwrap().unwrap(), "found");
            let error = events.wait_for::<()>("disk X", Duration::from_secs(3), || Ok(None)).await.unwrap_err();
            assert_eq!(error.code, Code::DeadlineExceeded as i32);
            assert!(error.message.contains("disk X"));
        });
    }
}
