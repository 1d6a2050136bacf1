//! Refusals: every error of a call is a ttrpc status whose message names what was tried and why it failed.
use kata_protocol::envelope::Status;
use kata_protocol::ttrpc::{status, Code};

pub type Result<T> = std::result::Result<T, Status>;

pub fn invalid(message: impl Into<String>) -> Status {
    status(Code::InvalidArgument, message)
}

pub fn not_found(message: impl Into<String>) -> Status {
    status(Code::NotFound, message)
}

pub fn internal(message: impl Into<String>) -> Status {
    status(Code::Internal, message)
}

/// Adds what was being done to an operating system error.
pub trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: std::fmt::Display> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| internal(format!("{}: {error}", what())))
    }
}
