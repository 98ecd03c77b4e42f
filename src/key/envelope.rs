//! stub
use crate::crypto::{Secret, Tampered};
/// stub
pub struct VolumeKeys;
impl VolumeKeys {
    /// stub
    pub fn current_epoch(&self) -> u32 {
        1
    }
    /// stub
    pub fn metadata_key(&self, _: u32) -> Option<&Secret> {
        None
    }
    /// stub
    pub fn wrap_dek(&self, _ino: u64, _chunk: u64, _dek: &Secret) -> (u32, Vec<u8>) {
        todo!()
    }
    /// stub
    pub fn unwrap_dek(
        &self,
        _e: u32,
        _ino: u64,
        _chunk: u64,
        _w: &[u8],
    ) -> Result<Secret, Tampered> {
        todo!()
    }
}
