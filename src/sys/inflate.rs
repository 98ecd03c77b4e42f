//! Raw deflate (RFC 1951) that can be left and entered between any two blocks, and CRC-32.

use std::mem;

use libz_rs_sys::{
    Z_BLOCK, Z_BUF_ERROR, Z_NO_FLUSH, Z_OK, Z_STREAM_END, inflate, inflateEnd,
    inflateGetDictionary, inflateInit2_, inflatePrime, inflateReset, inflateSetDictionary,
    z_stream, zlibVersion,
};

/// How far back a match may reach, in bytes (RFC 1951, section 2).
pub const WINDOW_BYTES: usize = 32 << 10;
/// No header, no trailer, and the largest window (zlib.h, `inflateInit2`).
const RAW: i32 = -15;

/// The stream is not valid deflate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is not valid deflate")]
pub struct Corrupt;

/// Where a step of [`Inflater::step`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// Wherever input or output ended.
    Anywhere,
    /// Between two blocks, of which the second is still to come.
    Boundary {
        /// Bits of the bytes consumed that belong to what follows.
        unused_bits: u8,
    },
    /// After the last block.
    End,
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Bytes of the input that were taken.
    pub consumed: usize,
    /// Bytes of the output that were filled.
    pub produced: usize,
    /// Where it ended.
    pub at: At,
}

/// The state of decompressing one stream.
pub struct Inflater {
    stream: Box<z_stream>,
}

// SAFETY: the stream and what it points to are owned by this value alone, and belong to no thread.
unsafe impl Send for Inflater {}

impl Default for Inflater {
    fn default() -> Self {
        Self::new()
    }
}

impl Inflater {
    /// At the beginning of a stream.
    ///
    /// # Panics
    /// If the system has no memory left, as allocation does.
    pub fn new() -> Self {
        let mut stream = Box::new(z_stream::default());
        let length = i32::try_from(mem::size_of::<z_stream>()).expect("it is small");
        // SAFETY: the stream is valid, with the default allocator, and of the length that is given;
        // the version is the library's own.
        let code = unsafe { inflateInit2_(&mut *stream, RAW, zlibVersion(), length) };
        assert_eq!(code, Z_OK, "only memory can lack");
        Self { stream }
    }

    /// Goes to the beginning of another stream, or to a boundary of it: `window` is what was
    /// produced before, up to [`WINDOW_BYTES`]; the `bits` low bits of `value` come before the
    /// input.
    pub fn restart(&mut self, bits: u8, value: u8, window: &[u8]) {
        assert!(bits < 8 && window.len() <= WINDOW_BYTES);
        // SAFETY: the stream was initialised.
        let code = unsafe { inflateReset(&mut *self.stream) };
        assert_eq!(code, Z_OK, "an initialised stream can be reset");
        if bits > 0 {
            // SAFETY: as above.
            let code =
                unsafe { inflatePrime(&mut *self.stream, i32::from(bits), i32::from(value)) };
            assert_eq!(code, Z_OK, "a fresh stream takes up to 16 bits");
        }
        if !window.is_empty() {
            let length = u32::try_from(window.len()).expect("it is bounded");
            // SAFETY: as above, and the window is readable for its length.
            let code = unsafe { inflateSetDictionary(&mut *self.stream, window.as_ptr(), length) };
            assert_eq!(code, Z_OK, "a raw stream takes a window at any time");
        }
    }

    /// Decompresses until input or output ends, or, if `to_boundary`, the next boundary is reached.
    ///
    /// # Errors
    /// [`Corrupt`].
    pub fn step(
        &mut self,
        input: &[u8],
        output: &mut [u8],
        to_boundary: bool,
    ) -> Result<Step, Corrupt> {
        let (given, room) = (bounded(input.len()), bounded(output.len()));
        self.stream.next_in = input.as_ptr();
        self.stream.avail_in = given;
        self.stream.next_out = output.as_mut_ptr();
        self.stream.avail_out = room;
        let flush = if to_boundary { Z_BLOCK } else { Z_NO_FLUSH };
        // SAFETY: the stream was initialised, and its pointers are valid for the lengths beside
        // them, which are those of the slices or less.
        let code = unsafe { inflate(&mut *self.stream, flush) };
        let consumed = (given - self.stream.avail_in) as usize;
        let produced = (room - self.stream.avail_out) as usize;
        let kind = self.stream.data_type;
        let at = match code {
            Z_STREAM_END => At::End,
            // Bit 7: just after a block; bit 6: it was the last one; the rest: unused bits.
            Z_OK if to_boundary && kind & 0b1100_0000 == 0b1000_0000 => {
                At::Boundary { unused_bits: (kind & 0b11_1111) as u8 }
            }
            Z_OK | Z_BUF_ERROR => At::Anywhere,
            _ => return Err(Corrupt),
        };
        Ok(Step { consumed, produced, at })
    }

    /// What was produced last, up to [`WINDOW_BYTES`].
    pub fn window(&self) -> Vec<u8> {
        let mut window = vec![0; WINDOW_BYTES];
        let mut length = 0;
        let stream: *const z_stream = &*self.stream;
        // SAFETY: the stream was initialised, and the window has room for the largest dictionary.
        let code = unsafe { inflateGetDictionary(stream, window.as_mut_ptr(), &mut length) };
        assert_eq!(code, Z_OK, "an initialised stream has a window");
        window.truncate(length as usize);
        window
    }
}

impl Drop for Inflater {
    fn drop(&mut self) {
        // SAFETY: the stream was initialised, and is not used afterwards.
        let _ = unsafe { inflateEnd(&mut *self.stream) };
    }
}

/// CRC-32 of `bytes` after those whose CRC-32 is `before` (0: none).
pub fn crc32(before: u32, bytes: &[u8]) -> u32 {
    // SAFETY: the bytes are readable for their length.
    unsafe { libz_rs_sys::crc32_z(before.into(), bytes.as_ptr(), bytes.len()) as u32 }
}

/// CRC-32 of two runs of bytes, from that of each; the second has `length` bytes.
pub fn crc32_combine(first: u32, second: u32, length: u64) -> u32 {
    let length = i64::try_from(length).expect("no file is that large");
    libz_rs_sys::crc32_combine64(first.into(), second.into(), length) as u32
}

fn bounded(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
