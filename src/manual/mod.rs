//! Design notes, in reading order. No code.

#[doc = include_str!("architecture.md")]
pub mod architecture {}
#[doc = include_str!("format.md")]
pub mod format {}
#[doc = include_str!("crash.md")]
pub mod crash {}
#[doc = include_str!("threats.md")]
pub mod threats {}
#[doc = include_str!("semantics.md")]
pub mod semantics {}
#[doc = include_str!("operations.md")]
pub mod operations {}
#[doc = include_str!("plugins.md")]
pub mod plugins {}
#[doc = include_str!("vault.md")]
pub mod vault {}
#[doc = include_str!("package.md")]
pub mod package {}
#[doc = include_str!("app.md")]
pub mod app {}
#[doc = include_str!("performance.md")]
pub mod performance {}
#[doc = include_str!("defaults.md")]
pub mod defaults {}
#[doc = include_str!("changes.md")]
pub mod changes {}
