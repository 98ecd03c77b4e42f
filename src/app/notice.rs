//! What wwwroot shows when there is no package: one file that says why.

use crate::sys::inflate::crc32;

/// The name that Azure gives it.
pub const NAME: &str = "FAILED TO INITIALIZE RUN FROM PACKAGE.txt";

/// A package with nothing in it but a file of this name, with `text`: a ZIP with one stored member
/// (APPNOTE.TXT 6.3.10, sections 4.3.7, 4.3.12 and 4.3.16).
pub fn package(text: &str) -> Vec<u8> {
    let (name, content) = (NAME.as_bytes(), text.as_bytes());
    let length = u32::try_from(content.len()).unwrap_or_default();
    // Version needed, flags, method, time and date (1980-01-01), CRC-32, both sizes, length of the
    // name, no extra field: the same in both headers.
    let mut common = Vec::new();
    common.extend(20_u16.to_le_bytes());
    common.extend([0; 4]);
    common.extend([0, 0, 0x21, 0]);
    common.extend(crc32(0, content).to_le_bytes());
    common.extend(length.to_le_bytes());
    common.extend(length.to_le_bytes());
    common.extend((NAME.len() as u16).to_le_bytes());
    common.extend([0; 2]);

    let mut zip = b"PK\x03\x04".to_vec();
    zip.extend(&common);
    zip.extend(name);
    zip.extend(content);
    let directory = zip.len() as u32;
    zip.extend(b"PK\x01\x02");
    // Made on Unix, so that the mode counts.
    zip.extend([20, 3]);
    zip.extend(&common);
    // No comment, disk 0, no internal attributes; mode; the local header's place.
    zip.extend([0; 6]);
    zip.extend((0o100_444_u32 << 16).to_le_bytes());
    zip.extend([0; 4]);
    zip.extend(name);
    let directory_length = zip.len() as u32 - directory;
    zip.extend(b"PK\x05\x06");
    zip.extend([0; 4]);
    zip.extend([1, 0, 1, 0]);
    zip.extend(directory_length.to_le_bytes());
    zip.extend(directory.to_le_bytes());
    zip.extend([0; 2]);
    zip
}
