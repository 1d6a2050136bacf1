//! Frames of the data socket (docs/ARCHITECTURE.md, "Data socket"): one byte type, u32 big-endian length, payload.
use crate::json::Writer;
use std::cell::Cell;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt};

pub const MAX_PAYLOAD_BYTES: usize = 65_536;
pub const HEADER_BYTES: usize = 5;
const TOKEN_LINE_BYTES: usize = 64;

pub const STDOUT: u8 = 0x11;
pub const STDERR: u8 = 0x12;

#[derive(Debug, PartialEq, Eq)]
pub enum ClientFrame {
    Stdin(Vec<u8>),
    StdinEnd,
    Resize { rows: u16, columns: u16 },
    Signal(u32),
    Detach,
}

pub fn header(kind: u8, length: usize) -> [u8; HEADER_BYTES] {
    let length = (length as u32).to_be_bytes();
    [kind, length[0], length[1], length[2], length[3]]
}

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    [&header(kind, payload.len()), payload].concat()
}

/// First frame of the keeper: how many bytes of stdin it takes now.
pub fn ready(credit: u32) -> Vec<u8> {
    frame(0x10, &credit.to_be_bytes())
}

pub fn credit(more: u32) -> Vec<u8> {
    frame(0x15, &more.to_be_bytes())
}

/// The last frame of a client whose process ended. `cause` and `evidence` as in the journal.
pub fn exit(code: i32, signal: u32, oom: bool, cause: &str, evidence: &str) -> Vec<u8> {
    let text = Writer::object()
        .raw("code", code)
        .raw("signal", signal)
        .raw("oom", oom)
        .string("cause", cause)
        .string("evidence", evidence);
    frame(0x13, text.end().as_bytes())
}

/// The last frame of a client that is turned away; `code` is one of the engine's error codes.
pub fn error(code: &str, message: &str) -> Vec<u8> {
    frame(0x14, Writer::object().string("code", code).string("message", message).end().as_bytes())
}

fn malformed<T>(problem: String) -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::InvalidData, problem))
}

/// Reads `KATA1 <token>\n` and gives the token. Errors: `InvalidData` for anything else.
pub async fn read_token(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<String> {
    let mut line = Vec::with_capacity(TOKEN_LINE_BYTES);
    // Byte by byte: what follows the line is frames, and a client may send them at once.
    loop {
        match reader.read_u8().await? {
            b'\n' => break,
            byte if line.len() < TOKEN_LINE_BYTES => line.push(byte),
            _ => return malformed("the first line is too long".to_owned()),
        }
    }
    match std::str::from_utf8(&line).ok().and_then(|line| line.strip_prefix("KATA1 ")) {
        Some(token) => Ok(token.to_owned()),
        None => malformed("the first line is not KATA1 and a token".to_owned()),
    }
}

/// Reads one frame; `None` when the client closed between two. Errors: `InvalidData` for a frame that breaks the table,
/// `stdin_credit` being the bytes of stdin it may still send (more may be granted while this waits for a frame).
pub async fn read_client(
    reader: &mut (impl AsyncRead + Unpin),
    stdin_credit: &Cell<usize>,
) -> io::Result<Option<ClientFrame>> {
    let mut header = [0; HEADER_BYTES];
    if reader.read(&mut header[..1]).await? == 0 {
        return Ok(None);
    }
    reader.read_exact(&mut header[1..]).await?;
    let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
    let expected = match header[0] {
        0x00 if length > MAX_PAYLOAD_BYTES => return malformed(format!("stdin frame of {length} bytes")),
        0x00 if length > stdin_credit.get() => {
            return malformed(format!("{length} bytes of stdin, {} granted", stdin_credit.get()));
        }
        0x00 => length,
        0x01 | 0x04 => 0,
        0x02 | 0x03 => 4,
        kind => return malformed(format!("frame of type {kind:#04x}")),
    };
    if length != expected {
        return malformed(format!("frame of type {:#04x} and {length} bytes", header[0]));
    }
    if header[0] == 0x00 {
        let mut payload = vec![0; length];
        reader.read_exact(&mut payload).await?;
        return Ok(Some(ClientFrame::Stdin(payload)));
    }
    let mut payload = [0; 4];
    reader.read_exact(&mut payload[..length]).await?;
    Ok(Some(match header[0] {
        0x01 => ClientFrame::StdinEnd,
        0x02 => ClientFrame::Resize {
            rows: u16::from_be_bytes([payload[0], payload[1]]),
            columns: u16::from_be_bytes([payload[2], payload[3]]),
        },
        0x03 => ClientFrame::Signal(u32::from_be_bytes(payload)),
        _ => ClientFrame::Detach,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<T>(future: impl std::future::Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    fn parse(mut bytes: &[u8], credit: usize) -> io::Result<Option<ClientFrame>> {
        run(read_client(&mut bytes, &Cell::new(credit)))
    }

    #[test]
    fn reads_every_client_frame() {
        assert_eq!(parse(&[0, 0, 0, 0, 2, b'h', b'i'], 2).unwrap(), Some(ClientFrame::Stdin(b"hi".to_vec())));
        assert_eq!(parse(&[1, 0, 0, 0, 0], 0).unwrap(), Some(ClientFrame::StdinEnd));
        let resize = ClientFrame::Resize { rows: 24, columns: 80 };
        assert_eq!(parse(&[2, 0, 0, 0, 4, 0, 24, 0, 80], 0).unwrap(), Some(resize));
        assert_eq!(parse(&[3, 0, 0, 0, 4, 0, 0, 0, 15], 0).unwrap(), Some(ClientFrame::Signal(15)));
        assert_eq!(parse(&[4, 0, 0, 0, 0], 0).unwrap(), Some(ClientFrame::Detach));
        assert_eq!(parse(&[], 0).unwrap(), None);
    }

    #[test]
    fn refuses_malformed_frames() {
        let cases: [&[u8]; 8] = [
            &[0, 0, 0, 0, 3, 1, 2, 3],
            &[0, 255, 255, 255, 255],
            &[1, 0, 0, 0, 1, 0],
            &[2, 0, 0, 0, 3, 0, 0, 0],
            &[3, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0],
            &[9, 0, 0, 0, 0],
            &[0x11, 0, 0, 0, 0],
            &[0, 0, 0],
        ];
        for case in cases {
            assert!(parse(case, 2).is_err(), "{case:?}");
        }
    }

    #[test]
    fn reads_the_token_and_nothing_more() {
        let mut input: &[u8] = b"KATA1 abc\n\x04\0\0\0\0";
        assert_eq!(run(read_token(&mut input)).unwrap(), "abc");
        assert_eq!(input.len(), 5);
        for mut bad in [b"KATA2 abc\n".as_slice(), b"abc\n", b"\xff\n", &[b'a'; 100], b"KATA1 abc"] {
            assert!(run(read_token(&mut bad)).is_err());
        }
    }

    #[test]
    fn writes_the_exit_frame() {
        let bytes = exit(137, 9, true, "oom", "");
        let text = br#"{"code":137,"signal":9,"oom":true,"cause":"oom","evidence":""}"#;
        assert_eq!(bytes[..5], header(0x13, text.len()));
        assert_eq!(&bytes[5..], text);
    }
}
