//! Sealing that does not seal, for a test that must find plaintext when it is there, and for
//! `bench/run`, which shows what sealing contents costs.
//!
//! Only in builds with the feature `insecure-unsealed`, and there only for what the environment
//! variable `ATREST_UNSEALED` names: `content` or `metadata`. Such a build cannot open what another
//! has sealed.

use super::page::{Tag, Tampered};
use std::sync::LazyLock;

/// Whether metadata (`true`) or contents are left unsealed, if either.
static UNSEALED: LazyLock<Option<bool>> =
    LazyLock::new(|| match std::env::var("ATREST_UNSEALED").as_deref() {
        Ok("metadata") => Some(true),
        Ok("content") => Some(false),
        _ => None,
    });

/// Whether this build was told to leave what `aad` belongs to unsealed. The associated data of
/// metadata starts with text, that of contents with the format version.
fn applies(aad: &[u8]) -> bool {
    let is_metadata = aad.get(..6).is_some_and(|start| start.eq_ignore_ascii_case(b"atrest"));
    *UNSEALED == Some(is_metadata)
}

/// Copies instead of sealing.
pub(super) fn seal(aad: &[u8], plaintext: &[u8], sealed: &mut [u8]) -> Option<Tag> {
    applies(aad).then(|| {
        sealed.copy_from_slice(plaintext);
        Tag([0; 16])
    })
}

/// Copies instead of opening.
pub(super) fn open(
    aad: &[u8],
    sealed: &[u8],
    plaintext: &mut [u8],
) -> Option<Result<(), Tampered>> {
    applies(aad).then(|| {
        plaintext.copy_from_slice(sealed);
        Ok(())
    })
}
