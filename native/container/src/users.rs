//! Users of a container, from its own /etc/passwd and /etc/group.
use crate::error::Result;
use kata_protocol::grpc;
use std::os::fd::BorrowedFd;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub additional_gids: Vec<u32>,
    /// Home directory, when the user is listed.
    pub home: Option<String>,
}

/// Finds Docker's `user[:group]` in the file system below `root`.
pub fn find_user(_root: BorrowedFd<'_>, _user: &grpc::StringUser) -> Result<Identity> {
    todo!()
}
