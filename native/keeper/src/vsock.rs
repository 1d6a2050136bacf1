//! The guest's vsock, whichever host side it has (Firecracker's "hybrid" unix sockets, or the kernel's vhost-vsock(7)),
//! behind `connect(port)` and `listen(port)`.
use crate::config::VsockMode;
use crate::sys;
use std::fs::{self, DirBuilder};
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
const CID_ATTEMPTS: usize = 64;

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
    /// Prepares the host side: a 0700 directory for hybrid sockets, or a CID on /dev/vhost-vsock.
    pub fn open(mode: &VsockMode) -> io::Result<Self> {
        match mode {
            VsockMode::Hybrid(socket) => {
                if let Some(dir) = socket.parent() {
                    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
                }
                Ok(GuestVsock::Hybrid { socket: socket.clone(), given: Mutex::new(0) })
            }
            VsockMode::Kernel => {
                let device = OwnedFd::from(fs::OpenOptions::new().read(true).write(true).open("/dev/vhost-vsock")?);
                let cid = choose_cid(random_cid, |cid| {
                    let cid = u64::from(cid);
                    let result =
                        unsafe { libc::ioctl(device.as_raw_fd(), VHOST_VSOCK_SET_GUEST_CID as _, &raw const cid) };
                    sys::check(result as libc::c_long).map(drop)
                })?;
                Ok(GuestVsock::Kernel { cid, device })
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

    /// Takes connections that the guest opens to the host's `port`.
    pub fn listen(&self, port: u32) -> io::Result<GuestListener> {
        match self {
            GuestVsock::Hybrid { socket, .. } => {
                let mut path = socket.as_os_str().to_owned();
                path.push(format!("_{port}"));
                let _ = fs::remove_file(&path);
                UnixListener::bind(PathBuf::from(path)).map(GuestListener::Hybrid)
            }
            GuestVsock::Kernel { cid, .. } => {
                let socket = vsock_socket()?;
                let address = vsock_address(libc::VMADDR_CID_ANY, port);
                let pointer = (&raw const address).cast();
                let length = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
                sys::check(unsafe { libc::bind(socket.as_raw_fd(), pointer, length) } as libc::c_long)?;
                sys::check(unsafe { libc::listen(socket.as_raw_fd(), 16) } as libc::c_long)?;
                Ok(GuestListener::Kernel { socket: sys::watch(socket)?, cid: *cid })
            }
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
            GuestListener::Kernel { socket, cid } => loop {
                let (fd, peer_cid) = socket.async_io(tokio::io::Interest::READABLE, accept_kernel).await?;
                // All guests of the host reach this listener: only the own one is heard.
                if is_own_guest(peer_cid, *cid) {
                    return UnixStream::from_std(fd.into());
                }
            },
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

/// Tries random CIDs until `set` takes one. 0 to 2 and the all-ones value are reserved (vsock(7)).
fn choose_cid(
    mut random: impl FnMut() -> io::Result<u32>,
    mut set: impl FnMut(u32) -> io::Result<()>,
) -> io::Result<u32> {
    for _ in 0..CID_ATTEMPTS {
        let cid = random()? & 0x7fff_ffff;
        if cid < 3 {
            continue;
        }
        match set(cid) {
            Ok(()) => return Ok(cid),
            Err(error) if error.raw_os_error() == Some(libc::EADDRINUSE) => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EADDRINUSE))
}

fn is_own_guest(peer_cid: u32, own_cid: u32) -> bool {
    peer_cid == own_cid
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

    fn run<T>(future: impl std::future::Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap().block_on(future)
    }

    #[test]
    fn chooses_another_cid_when_one_is_taken() {
        let mut candidates = [1u32, 2, 7, 0x8000_0008, 9].into_iter();
        let mut tried = Vec::new();
        let cid = choose_cid(
            || Ok(candidates.next().unwrap()),
            |cid| {
                tried.push(cid);
                if cid == 7 {
                    Err(io::Error::from_raw_os_error(libc::EADDRINUSE))
                } else {
                    Ok(())
                }
            },
        );
        assert_eq!((cid.unwrap(), tried), (8, vec![7, 8]));
        let mut attempts = 0;
        let full = choose_cid(random_cid, |_| {
            attempts += 1;
            Err(io::Error::from_raw_os_error(libc::EADDRINUSE))
        });
        assert!(full.is_err() && attempts <= CID_ATTEMPTS);
        let denied = choose_cid(random_cid, |_| Err(io::Error::from_raw_os_error(libc::EACCES)));
        assert_eq!(denied.unwrap_err().raw_os_error(), Some(libc::EACCES));
    }

    #[test]
    fn hears_the_own_guest_only() {
        assert!(is_own_guest(42, 42) && !is_own_guest(43, 42) && !is_own_guest(libc::VMADDR_CID_LOCAL, 42));
    }

    #[test]
    fn connects_through_a_hybrid_socket_and_loses_no_byte() {
        let dir = TempDir::new();
        let socket = dir.path().join("v.sock");
        run(async {
            let listener = UnixListener::bind(&socket).unwrap();
            let vsock = GuestVsock::open(&VsockMode::Hybrid(socket.clone())).unwrap();
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
            let vsock = GuestVsock::open(&VsockMode::Hybrid(socket.clone())).unwrap();
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
            let vsock = GuestVsock::open(&VsockMode::Hybrid(socket.clone())).unwrap();
            let listener = vsock.listen(1030).unwrap();
            let guest = UnixStream::connect(dir.path().join("v/v.sock_1030"));
            let (accepted, connected) = tokio::join!(listener.accept(), guest);
            assert!(accepted.is_ok() && connected.is_ok());
        });
    }
}
