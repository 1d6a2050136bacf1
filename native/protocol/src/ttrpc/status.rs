//! Status codes of google.rpc.Code and the constructors of a ttrpc status.
use crate::envelope::{Any, Status};
use prost::Message;

/// google.rpc.Code; only the codes that this project sends or decides on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Code {
    Ok = 0,
    Cancelled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
}

/// A status without details. `message` is shown to people.
pub fn status(code: Code, message: impl Into<String>) -> Status {
    Status { code: code as i32, message: message.into(), details: Vec::new() }
}

/// A status with one typed detail. `type_url` is the message's full name.
pub fn status_with_detail(code: Code, message: impl Into<String>, type_url: &str, detail: &impl Message) -> Status {
    let detail = Any { type_url: type_url.to_owned(), value: detail.encode_to_vec() };
    Status { code: code as i32, message: message.into(), details: vec![detail] }
}

/// Decodes a request's payload. Errors: INVALID_ARGUMENT when the bytes are not a `M`.
pub fn decode<M: Message + Default>(payload: &[u8]) -> Result<M, Status> {
    M::decode(payload).map_err(|error| status(Code::InvalidArgument, format!("malformed request: {error}")))
}
