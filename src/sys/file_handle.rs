//! Opening an inode of a FUSE mount by its number, for the daemon that serves it.
#![expect(unsafe_code, reason = "open_by_handle_at(2) has no safe wrapper")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _};

/// `FILEID_INO64_GEN` of include/linux/exportfs.h: what `fuse_encode_fh` (fs/fuse/inode.c) makes.
const FUSE_HANDLE_TYPE: libc::c_int = 0x81;
/// Node number, upper and lower half, and generation.
const FUSE_HANDLE_WORDS: usize = 3;

/// `struct file_handle` of `open_by_handle_at(2)` with room for a FUSE handle.
#[repr(C)]
struct FuseHandle {
    handle_bytes: libc::c_uint,
    handle_type: libc::c_int,
    words: [u32; FUSE_HANDLE_WORDS],
}

/// Opens inode `ino` (generation 0) of the FUSE filesystem that `mount` lies on, for reading.
///
/// # Errors
/// EPERM without CAP_DAC_READ_SEARCH; ESTALE if the kernel has no such inode in memory.
pub fn open_inode(mount: BorrowedFd, ino: u64) -> io::Result<File> {
    let mut handle = FuseHandle {
        handle_bytes: (FUSE_HANDLE_WORDS * size_of::<u32>()) as libc::c_uint,
        handle_type: FUSE_HANDLE_TYPE,
        words: [(ino >> 32) as u32, ino as u32, 0],
    };
    // SAFETY: `handle` starts with the fields of `struct file_handle`, is followed by
    // `handle_bytes` bytes, and outlives the call; `mount` is an open descriptor.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            mount.as_raw_fd(),
            &raw mut handle,
            libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = libc::c_int::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the call has just returned this descriptor, and nobody else owns it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Writes dirty pages of a range back and waits: `sync_file_range(2)`. `bytes` 0 means to the end.
/// No FSYNC request is sent; the pages stay in the page cache.
///
/// # Errors
/// EIO and ENOSPC as write-back met them.
pub fn write_back(file: &File, offset: u64, bytes: u64) -> io::Result<()> {
    let offset = i64::try_from(offset).map_err(io::Error::other)?;
    let bytes = i64::try_from(bytes).map_err(io::Error::other)?;
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE
        | libc::SYNC_FILE_RANGE_WRITE
        | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: no memory is passed; the descriptor is open.
    let result = unsafe { libc::sync_file_range(file.as_fd().as_raw_fd(), offset, bytes, flags) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
