//! `atrest vault`: what its REST protocol answers, by table; its life on disk; its listeners.

mod cryptography;
mod directory;
mod keys;
mod killed;
mod listeners;
mod rotation;
mod secrets;
mod world;
