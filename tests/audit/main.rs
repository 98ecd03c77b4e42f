//! The audit log: what was done to it is found, whatever happens to its file it goes on, and a
//! mount puts on record what it must; and the metrics of a mount, as a strict parser reads them.

mod files;
mod metrics;
mod mounted_log;
mod syslog;
mod tampering;
mod world;

#[path = "../common/mod.rs"]
#[allow(dead_code)]
mod common;
#[path = "../mount/mounted.rs"]
#[allow(dead_code)]
mod mounted;
