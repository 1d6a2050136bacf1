//! Extended attributes by path (xattr(7)); the last component is followed.
use super::{c_string, check};
use std::ffi::{CStr, CString};

/// The kernel's limit for a list of names and for a value.
const LIMIT_BYTES: usize = 65_536;

/// Names of the attributes; none where the file system has no attributes.
pub fn list_xattrs(path: &str) -> Result<Vec<CString>, i32> {
    let path = c_string(path)?;
    // Most files have none, so the length is asked first.
    // SAFETY: path outlives the call; no buffer is given.
    let length = check(unsafe { libc::listxattr(path.as_ptr(), std::ptr::null_mut(), 0) } as libc::c_long);
    match length {
        Ok(0) | Err(libc::EOPNOTSUPP) => return Ok(Vec::new()),
        length => length?,
    };
    let mut buffer = vec![0_u8; LIMIT_BYTES];
    // SAFETY: the buffer is as long as said; path outlives the call.
    let length = check(unsafe { libc::listxattr(path.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) } as _)?;
    buffer.truncate(length as usize);
    Ok(buffer
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .filter_map(|name| CString::new(name).ok())
        .collect())
}

pub fn get_xattr(path: &str, name: &CStr) -> Result<Vec<u8>, i32> {
    let path = c_string(path)?;
    let mut value = vec![0_u8; LIMIT_BYTES];
    // SAFETY: the buffer is as long as said; both strings outlive the call.
    let length =
        check(unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) }
            as libc::c_long)?;
    value.truncate(length as usize);
    Ok(value)
}

pub fn set_xattr(path: &str, name: &CStr, value: &[u8]) -> Result<(), i32> {
    let path = c_string(path)?;
    // SAFETY: the value is as long as said; both strings outlive the call.
    check(libc::c_long::from(unsafe {
        libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0)
    }))
    .map(drop)
}
