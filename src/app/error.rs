//! Why there is no package to serve.

use std::io;
use std::path::PathBuf;

use super::download::DownloadError;
use super::settings::SettingsError;
use super::store::StoreError;
use crate::fs;

/// `Display` says what happened and what to do, never with a URL's query or a setting's value.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The file of settings is refused.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// A setting's value makes no sense, or not here.
    #[error("{setting}: {problem}")]
    Setting {
        /// Its name.
        setting: String,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// The setting is a reference to a secret that cannot be had.
    #[error("{setting} is a Key Vault reference that leads to nothing: {problem}")]
    Reference {
        /// Its name.
        setting: String,
        /// Which vault, which secret, who asked, and what to do.
        problem: String,
        /// Whether the vault could not be asked.
        is_outage: bool,
    },
    /// A file of the host.
    #[error("cannot {attempt} {}: {source}", .path.display())]
    File {
        /// What was attempted.
        attempt: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// It cannot be downloaded.
    #[error(transparent)]
    Download(#[from] DownloadError),
    /// It is there, and is not served.
    #[error("the package {source_name} is refused: {problem}")]
    Refused {
        /// Without a URL's query.
        source_name: String,
        /// Why.
        problem: String,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl AppError {
    /// Whether another time may do with nothing changed.
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Reference { is_outage, .. } => *is_outage,
            Self::Download(error) => error.is_outage(),
            Self::Settings(_)
            | Self::Setting { .. }
            | Self::File { .. }
            | Self::Refused { .. }
            | Self::Store(_) => false,
        }
    }
}

impl From<fs::Error> for AppError {
    fn from(error: fs::Error) -> Self {
        Self::Store(error.into())
    }
}
