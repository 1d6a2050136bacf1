//! Frames: u32 BE length, u32 BE stream id, u8 type, u8 flags, then the message.
use std::io;
use tokio::io::AsyncReadExt;
use tokio::net::unix::OwnedReadHalf;

/// Longest message of a frame, in bytes (the protocol's own limit).
pub const MAX_MESSAGE_BYTES: usize = 4 << 20;
pub(super) const TYPE_REQUEST: u8 = 1;
pub(super) const TYPE_RESPONSE: u8 = 2;
const HEADER_BYTES: usize = 10;
/// `Response.payload` of ttrpc.proto.
const PAYLOAD_FIELD: u32 = 2;
/// Memory is taken as bytes arrive, not as the header promises.
const READ_STEP_BYTES: usize = 64 << 10;
const FIRST_READ_BYTES: usize = 2 << 10;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub stream_id: u32,
    pub kind: u8,
    pub body: Body,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Body {
    Message(Vec<u8>),
    /// The message was over the limit and has been skipped; its length in bytes.
    TooLong(u32),
}

struct Header {
    length: u32,
    stream_id: u32,
    kind: u8,
}

/// Builds a whole frame, so that one write sends it.
pub(super) fn encode(stream_id: u32, kind: u8, message: &impl prost::Message) -> Vec<u8> {
    let length = message.encoded_len();
    let mut bytes = Vec::with_capacity(HEADER_BYTES + length);
    bytes.extend_from_slice(&(length as u32).to_be_bytes());
    bytes.extend_from_slice(&stream_id.to_be_bytes());
    bytes.extend_from_slice(&[kind, 0]);
    message.encode_raw(&mut bytes);
    bytes
}

/// What goes before `payload` in the frame of an answer without status: a long payload is then sent from where it is.
pub(super) fn answer_head(stream_id: u32, payload: &[u8]) -> Vec<u8> {
    let mut field = Vec::with_capacity(HEADER_BYTES);
    if !payload.is_empty() {
        prost::encoding::encode_key(PAYLOAD_FIELD, prost::encoding::WireType::LengthDelimited, &mut field);
        prost::encoding::encode_varint(payload.len() as u64, &mut field);
    }
    let length = field.len() + payload.len();
    let mut head = Vec::with_capacity(HEADER_BYTES + field.len());
    head.extend_from_slice(&(length as u32).to_be_bytes());
    head.extend_from_slice(&stream_id.to_be_bytes());
    head.extend_from_slice(&[TYPE_RESPONSE, 0]);
    head.extend_from_slice(&field);
    head
}

/// Takes frames off a socket. `next` may be dropped at any await without losing a byte.
pub(super) struct FrameReader {
    socket: OwnedReadHalf,
    buffer: Vec<u8>,
    /// Bytes of an over-long message still to be thrown away, and its header.
    skipping: Option<(Header, u32)>,
}

impl FrameReader {
    pub fn new(socket: OwnedReadHalf) -> Self {
        Self { socket, buffer: Vec::new(), skipping: None }
    }

    /// The next frame; `None` when the peer closed between two frames.
    /// Errors: the socket's, `UnexpectedEof` inside a frame, `InvalidData` for a type that is neither request nor response.
    pub async fn next(&mut self) -> io::Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.take_frame()? {
                return Ok(Some(frame));
            }
            let wanted = self.wanted_bytes();
            self.buffer.reserve(wanted);
            if self.socket.read_buf(&mut self.buffer).await? == 0 {
                let clean = self.buffer.is_empty() && self.skipping.is_none();
                return if clean { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
    }

    fn wanted_bytes(&self) -> usize {
        if self.skipping.is_some() {
            return READ_STEP_BYTES;
        }
        match parse_header(&self.buffer) {
            None => FIRST_READ_BYTES,
            Some(header) => (HEADER_BYTES + header.length as usize - self.buffer.len()).clamp(1, READ_STEP_BYTES),
        }
    }

    fn take_frame(&mut self) -> io::Result<Option<Frame>> {
        if let Some((header, left)) = self.skipping.take() {
            let here = self.buffer.len().min(left as usize);
            self.buffer.drain(..here);
            let left = left - here as u32;
            if left > 0 {
                self.skipping = Some((header, left));
                return Ok(None);
            }
            let body = Body::TooLong(header.length);
            return Ok(Some(Frame { stream_id: header.stream_id, kind: header.kind, body }));
        }
        let Some(header) = parse_header(&self.buffer) else { return Ok(None) };
        if header.kind != TYPE_REQUEST && header.kind != TYPE_RESPONSE {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("ttrpc frame of type {}", header.kind)));
        }
        if header.length as usize > MAX_MESSAGE_BYTES {
            self.buffer.drain(..HEADER_BYTES);
            let length = header.length;
            self.skipping = Some((header, length));
            return self.take_frame();
        }
        let total = HEADER_BYTES + header.length as usize;
        if self.buffer.len() < total {
            return Ok(None);
        }
        let rest = self.buffer.split_off(total);
        let mut message = std::mem::replace(&mut self.buffer, rest);
        message.drain(..HEADER_BYTES);
        Ok(Some(Frame { stream_id: header.stream_id, kind: header.kind, body: Body::Message(message) }))
    }
}

fn parse_header(bytes: &[u8]) -> Option<Header> {
    let header = bytes.get(..HEADER_BYTES)?;
    Some(Header {
        length: u32::from_be_bytes(header[..4].try_into().ok()?),
        stream_id: u32::from_be_bytes(header[4..8].try_into().ok()?),
        kind: header[8],
    })
}
