//! Envelope encryption: key-encryption keys (KEK) in providers wrap and unwrap the volume key.
pub mod envelope;
