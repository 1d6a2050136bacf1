//! The guest's vsock, whichever host side it has (Firecracker's "hybrid" unix sockets, or the kernel's vhost-vsock(7)),
//! behind `connect(port)` and the listener for the agent's ready message.
use crate::config::VsockMode;
use crate::sys;
use std::fs::{self, DirBuilder};
use std::future::Future;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Mutex;

/// `_IOW(VHOST_VIRTIO, 0x60, __u64)` of linux/vhost.h.
const VHOST_VSOCK_SET_GUEST_CID: u64 = 0x4008_af60;
const VHOST_VSOCK_DEVICE: &str = "/dev/vhost-vsock";
const CID_ATTEMPTS: usize = 64;
/// Also the number of a port: those below are other services'.
const MIN_CID: u32 = 1 << 16;

pub enum GuestVsock {
    Hybrid {
        socket: PathBuf,
        /// Host-side ports that the device has given to connections. Held while one is made, so that they are counted in
        /// the device's order.
        given: Mutex<u32>,
    },
    Kernel {
        cid: u32,
        device: OwnedFd,
    },
}

pub enum GuestListener {
    Hybrid(UnixListener),
    Kernel { socket: AsyncFd<OwnedFd>, cid: u32 },
}

impl GuestVsock {
    /// Prepares the host side: a 0700 directory for hybrid sockets, or a CID on /dev/vhost-vsock. The listener is for the guest's
    /// ready message; on the kernel side its port has the CID's number, which no other guest of the host has.
    pub fn open(mode: &VsockMode) -> io::Result<(Self, GuestListener)> {
        match mode {
            VsockMode::Auto { socket, ready_port } => Self::open(&VsockMode::Kernel)
                .or_else(|_| Self::open(&VsockMode::Hybrid { socket: socket.clone(), ready_port: *ready_port })),
            VsockMode::Hybrid { socket, ready_port } => {
                if let Some(dir) = socket.parent() {
                    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
                }
                let mut path = socket.as_os_str().to_owned();
                path.push(format!("_{ready_port}"));
                let _ = fs::remove_file(&path);
                let listener = UnixListener::bind(PathBuf::from(path))?;
                Ok((
                    GuestVsock::Hybrid { socket: socket.clone(), given: Mutex::new(0) },
                    GuestListener::Hybrid(listener),
                ))
            }
            VsockMode::Kernel => {
                let opened = fs::OpenOptions::new().read(true).write(true).open(VHOST_VSOCK_DEVICE);
                let device = OwnedFd::from(
                    opened.map_err(|error| io::Error::new(error.kind(), format!("{VHOST_VSOCK_DEVICE}: {error}")))?,
                );
                let (cid, socket) = choose_cid(random_cid, |cid| {
                    // Before the guest runs the device's CID may change: a port that a stranger has costs another try, too.
                    set_guest_cid(&device, cid)?;
                    listen_kernel(cid)
                })?;
                Ok((GuestVsock::Kernel { cid, device }, GuestListener::Kernel { socket: sys::watch(socket)?, cid }))
            }
        }
    }

    /// The kernel's device with the guest's CID set, for the VMM to inherit.
    pub fn device(&self) -> Option<&OwnedFd> {
        match self {
            GuestVsock::Hybrid { .. } => None,
            GuestVsock::Kernel { device, .. } => Some(device),
        }
    }

    /// The guest's CID on the kernel side, 0 on the hybrid side.
    pub fn cid(&self) -> u32 {
        match self {
            GuestVsock::Hybrid { .. } => 0,
            GuestVsock::Kernel { cid, .. } => *cid,
        }
    }

    /// Connects to the guest's `port` and gives the host-side port, which the guest sees as the peer's.
    /// Errors: `ConnectionRefused` when nobody listens there.
    pub async fn connect(&self, port: u32) -> io::Result<(UnixStream, u32)> {
        match self {
            GuestVsock::Hybrid { socket, given } => {
                let mut given = given.lock().await;
                let mut stream = UnixStream::connect(socket).await?;
                stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
                let counted = *given;
                *given += 1;
                let answered = read_hybrid_answer(&mut stream).await?;
                // Firecracker's protocol answers with the host-side port. vhost-device-vsock 0.3 repeats the guest's; it
                // numbers the host's sides from 0 in the order of the requests, refused ones too.
                Ok((stream, if answered == port { counted } else { answered }))
            }
            GuestVsock::Kernel { cid, .. } => connect_kernel(*cid, port).await,
        }
    }
}

impl GuestListener {
    pub async fn accept(&self) -> io::Result<UnixStream> {
        match self {
            GuestListener::Hybrid(listener) => listener.accept().await.map(|(stream, _)| stream),
            GuestListener::Kernel { socket, cid } => {
                let accept = || socket.async_io(tokio::io::Interest::READABLE, accept_kernel);
                UnixStream::from_std(accept_own(*cid, accept).await?.into())
            }
        }
    }
}

/// All guests of the host reach a listener of the kernel's: the connection of any other than `own_cid` is closed unheard.
async fn accept_own<F: Future<Output = io::Result<(OwnedFd, u32)>>>(
    own_cid: u32,
    mut accept: impl FnMut() -> F,
) -> io::Result<OwnedFd> {
    loop {
        let (fd, peer_cid) = accept().await?;
        if peer_cid == own_cid {
            return Ok(fd);
        }
    }
}

/// Reads `OK <port>\n` byte by byte: what follows belongs to the guest's stream.
async fn read_hybrid_answer(stream: &mut UnixStream) -> io::Result<u32> {
    let mut line = Vec::with_capacity(16);
    loop {
        let mut byte = [0];
        if stream.read(&mut byte).await? == 0 {
            return Err(io::Error::new(io::ErrorKind::ConnectionRefused, "nobody listens on the guest's port"));
        }
        match byte[0] {
            b'\n' => break,
            byte if line.len() < 16 => line.push(byte),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
    let port = std::str::from_utf8(&line).ok().and_then(|line| line.strip_prefix("OK ")?.trim().parse().ok());
    port.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the vsock device did not answer OK and a port"))
}

fn random_cid() -> io::Result<u32> {
    sys::random_bytes().map(u32::from_ne_bytes)
}

/// Tries random CIDs until `take` takes one; EADDRINUSE asks for another. The all-ones value is reserved (vsock(7)).
fn choose_cid<T>(
    mut random: impl FnMut() -> io::Result<u32>,
    mut take: impl FnMut(u32) -> io::Result<T>,
) -> io::Result<(u32, T)> {
    for _ in 0..CID_ATTEMPTS {
        let cid = random()? & 0x7fff_ffff;
        if cid < MIN_CID {
            continue;
        }
        match take(cid) {
            Ok(taken) => return Ok((cid, taken)),
            Err(error) if error.raw_os_error() == Some(libc::EADDRINUSE) => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EADDRINUSE))
}

fn vsock_address(cid: u32, port: u32) -> libc::sockaddr_vm {
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = cid;
    address.svm_port = port;
    address
}

fn vsock_socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    let fd = sys::check(unsafe { libc::socket(libc::AF_VSOCK, kind, 0) } as libc::c_long)?;
    // SAFETY: the kernel just returned this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn set_guest_cid(device: &OwnedFd, cid: u32) -> io::Result<()> {
    let cid = u64::from(cid);
    let result = unsafe { libc::ioctl(device.as_raw_fd(), VHOST_VSOCK_SET_GUEST_CID as _, &raw const cid) };
    sys::check(result as libc::c_long).map(drop)
}

fn listen_kernel(port: u32) -> io::Result<OwnedFd> {
    let socket = vsock_socket()?;
    let address = vsock_address(libc::VMADDR_CID_ANY, port);
    let length = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
    sys::check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) } as libc::c_long)?;
    sys::check(unsafe { libc::listen(socket.as_raw_fd(), 16) } as libc::c_long)?;
    Ok(socket)
}

fn accept_kernel(socket: &OwnedFd) -> io::Result<(OwnedFd, u32)> {
    let mut address = vsock_address(0, 0);
    let mut length = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    let fd = unsafe { libc::accept4(socket.as_raw_fd(), (&raw mut address).cast(), &mut length, flags) };
    let fd = sys::check(fd as libc::c_long)?;
    // SAFETY: the kernel just returned this descriptor.
    Ok((unsafe { OwnedFd::from_raw_fd(fd as i32) }, address.svm_cid))
}

async fn connect_kernel(cid: u32, port: u32) -> io::Result<(UnixStream, u32)> {
    let socket = vsock_socket()?;
    let address = vsock_address(cid, port);
    let mut length = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
    let result = unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) };
    match sys::check(result as libc::c_long) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
        _ => {}
    }
    // std's UnixStream reads, writes and shuts down any stream socket.
    let stream = UnixStream::from_std(socket.into())?;
    stream.writable().await?;
    if let Some(error) = stream.take_error()? {
        return Err(error);
    }
    let mut local = vsock_address(0, 0);
    sys::check(unsafe { libc::getsockname(stream.as_raw_fd(), (&raw mut local).cast(), &mut length) } as libc::c_long)?;
    Ok((stream, local.svm_port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TempDir;
    use std::collections::VecDeque;
    use std::future::ready;
    use std::io::{Read, Write};

    fn run<T>(future: impl std::future::Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap().block_on(future)
    }

    fn hybrid(socket: &std::path::Path) -> VsockMode {
        VsockMode::Hybrid { socket: socket.to_owned(), ready_port: 1030 }
    }

    #[test]
    fn chooses_another_cid_when_one_is_taken() {
        let mut candidates = [1u32, 1030, 70_000, 0x8000_0000 + 70_001, 70_002].into_iter();
        let mut tried = Vec::new();
        let cid = choose_cid(
            || Ok(candidates.next().unwrap()),
            |cid| {
                tried.push(cid);
                if cid == 70_000 {
                    Err(io::Error::from_raw_os_error(libc::EADDRINUSE))
                } else {
                    Ok("taken")
                }
            },
        );
        assert_eq!((cid.unwrap(), tried), ((70_001, "taken"), vec![70_000, 70_001]));
        let mut attempts = 0;
        let full = choose_cid::<()>(random_cid, |_| {
            attempts += 1;
            Err(io::Error::from_raw_os_error(libc::EADDRINUSE))
        });
        assert!(full.is_err() && attempts <= CID_ATTEMPTS);
        let denied = choose_cid::<()>(random_cid, |_| Err(io::Error::from_raw_os_error(libc::EACCES)));
        assert_eq!(denied.unwrap_err().raw_os_error(), Some(libc::EACCES));
    }

    #[test]
    fn hears_the_own_guest_only() {
        let mut guests = Vec::new();
        let mut waiting = VecDeque::new();
        for cid in [70_001, libc::VMADDR_CID_LOCAL, libc::VMADDR_CID_HOST, 70_000, 70_002] {
            let (guest, accepted) = std::os::unix::net::UnixStream::pair().unwrap();
            guests.push(guest);
            waiting.push_back((OwnedFd::from(accepted), cid));
        }
        let mut heard = fs::File::from(run(accept_own(70_000, || ready(Ok(waiting.pop_front().unwrap())))).unwrap());
        guests[3].write_all(b"own").unwrap();
        guests[3].shutdown(std::net::Shutdown::Write).unwrap();
        let mut text = String::new();
        heard.read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), waiting.len()), ("own", 1));
        for stranger in &mut guests[..3] {
            assert_eq!(stranger.read(&mut [0]).unwrap(), 0);
        }
    }

    #[test]
    fn connects_through_a_hybrid_socket_and_loses_no_byte() {
        let dir = TempDir::new();
        let socket = dir.path().join("v.sock");
        run(async {
            let listener = UnixListener::bind(&socket).unwrap();
            let (vsock, _) = GuestVsock::open(&hybrid(&socket)).unwrap();
            let device = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut line = [0; 13];
                stream.read_exact(&mut line).await.unwrap();
                assert_eq!(&line, b"CONNECT 1027\n");
                stream.write_all(b"OK 1073741824\nhello").await.unwrap();
            };
            let (connected, ()) = tokio::join!(vsock.connect(1027), device);
            let (mut stream, port) = connected.unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).await.unwrap();
            assert_eq!((port, text.as_str()), (1_073_741_824, "hello"));
            let refuse = async { drop(listener.accept().await.unwrap()) };
            let (refused, ()) = tokio::join!(vsock.connect(9), refuse);
            assert!(refused.is_err());
        });
    }

    #[test]
    fn counts_the_ports_of_a_device_that_does_not_tell_them() {
        let dir = TempDir::new();
        let socket = dir.path().join("v.sock");
        run(async {
            let listener = UnixListener::bind(&socket).unwrap();
            let (vsock, _) = GuestVsock::open(&hybrid(&socket)).unwrap();
            let device = async {
                for refused in [false, true, false] {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    let mut line = [0; 13];
                    stream.read_exact(&mut line).await.unwrap();
                    if !refused {
                        stream.write_all(b"OK 1027\n").await.unwrap();
                    }
                }
            };
            let connect = async {
                let mut ports = Vec::new();
                for _ in 0..3 {
                    ports.push(vsock.connect(1027).await.ok().map(|(_, port)| port));
                }
                ports
            };
            assert_eq!(tokio::join!(connect, device).0, [Some(0), None, Some(2)]);
        });
    }

    #[test]
    fn listens_beside_the_hybrid_socket() {
        let dir = TempDir::new();
        let socket = dir.path().join("v/v.sock");
        run(async {
            let (_, listener) = GuestVsock::open(&hybrid(&socket)).unwrap();
            let guest = UnixStream::connect(dir.path().join("v/v.sock_1030"));
            let (accepted, connected) = tokio::join!(listener.accept(), guest);
            assert!(accepted.is_ok() && connected.is_ok());
        });
    }

    /// Where the kernel has AF_VSOCK, with or without guests.
    #[test]
    fn a_port_of_the_kernel_belongs_to_one_listener() {
        let cid = random_cid().unwrap() & 0x7fff_ffff | MIN_CID;
        let first = match listen_kernel(cid) {
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => return,
            first => first.unwrap(),
        };
        assert_eq!(listen_kernel(cid).unwrap_err().raw_os_error(), Some(libc::EADDRINUSE));
        let mut candidates = [cid, cid ^ 1].into_iter();
        let (chosen, _listener) = choose_cid(|| Ok(candidates.next().unwrap()), listen_kernel).unwrap();
        assert_eq!(chosen, cid ^ 1);
        drop(first);
        listen_kernel(cid).unwrap();
    }

    #[test]
    fn a_missing_device_is_named() {
        if !std::path::Path::new(VHOST_VSOCK_DEVICE).exists() {
            let error = GuestVsock::open(&VsockMode::Kernel).err().unwrap();
            assert!(
                error.kind() == io::ErrorKind::NotFound && error.to_string().contains(VHOST_VSOCK_DEVICE),
                "{error}"
            );
        }
    }
}
