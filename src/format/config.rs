//! `atrest.json`.
