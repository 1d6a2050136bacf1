//! Connections of the host to the guest's localhost (docs/ARCHITECTURE.md, "Port-forward"): three bytes ask for a port, one byte
//! answers, then bytes flow both ways, each until its own end.
use crate::log;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;
use tokio::io::{copy_bidirectional_with_sizes, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

pub const MAX_CONNECTIONS: usize = 256;
/// Each way of each connection.
const BUFFER_BYTES: usize = 16 * 1024;
const REQUEST_BOUND: Duration = Duration::from_secs(10);
const CONNECT_BOUND: Duration = Duration::from_secs(10);

pub async fn serve(mut host: UnixStream) {
    let mut request = [0; 3];
    if !matches!(timeout(REQUEST_BOUND, host.read_exact(&mut request)).await, Ok(Ok(_))) {
        return log::warning!("dial", "connection closed: it named no port");
    }
    let [family, port @ ..] = request;
    let connected = connect(family, u16::from_be_bytes(port)).await;
    // One byte is enough for every errno of Linux that connect(2) gives.
    let answer = connected.as_ref().map_or_else(|error| error.raw_os_error().unwrap_or(libc::EIO) as u8, |_| 0);
    if let (Ok(()), Ok(mut stream)) = (host.write_all(&[answer]).await, connected) {
        // Either side's failure ends both; nobody is left to be told.
        let _ = copy_bidirectional_with_sizes(&mut host, &mut stream, BUFFER_BYTES, BUFFER_BYTES).await;
    }
}

/// A program that listens on one family only is found at the other, too. Errors: those of the family that was asked for.
async fn connect(family: u8, port: u16) -> io::Result<TcpStream> {
    let (v4, v6) = (IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST));
    let (asked, other) = match family {
        4 => (v4, v6),
        6 => (v6, v4),
        _ => return Err(io::Error::from_raw_os_error(libc::EINVAL)),
    };
    let connecting = async {
        match TcpStream::connect((asked, port)).await {
            Err(error) => TcpStream::connect((other, port)).await.map_err(|_| error),
            connected => connected,
        }
    };
    let connected = timeout(CONNECT_BOUND, connecting).await;
    let stream = connected.unwrap_or_else(|_| Err(io::Error::from_raw_os_error(libc::ETIMEDOUT)))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
