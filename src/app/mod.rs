//! `atrest app`: the host of an app that runs from a package, as Azure's web hosts do it.
//!
//! This module knows app settings, Key Vault references, where packages come from and which are
//! kept, what is served and what runs. It does not know how a volume is opened, nor what is typed
//! and printed.

mod child;
mod control;
mod download;
mod environment;
mod error;
mod fetch;
mod files;
mod host;
mod notice;
mod reference;
mod seeks;
mod settings;
mod sniff;
mod store;
mod wanted;

pub use control::HostControl;
pub use download::{BYTES_MAX, DownloadError, Rules, TIME_MAX};
pub use error::AppError;
pub use fetch::{OnProgress, Policy, Vouch};
pub use files::Files;
pub use host::{Ask, Config, Host};
pub use reference::Vaults;
pub use seeks::{keep_seek_points, use_seek_points};
pub use settings::SettingsError;
pub use store::{KEPT, Store, StoreError, Stored};
