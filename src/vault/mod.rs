//! `atrest vault`: a key vault of the customer's own, speaking the REST protocol of Key Vault.
//!
//! ```text
//! server  listeners, TLS, limits of size and time        -> Request
//! service what becomes of a request: firewall, token, route, rate, policy, operation, audit
//! access  the traits of those guards, and who asks       <- identity, policy, audit, ...
//! keys, secrets   the operations: Request -> Reply
//! store   everything that is kept: sealed, chained, one atomic and durable change at a time
//! ```
//!
//! # Guards
//! Who may do what is not decided here but by implementations of the traits in [`access`], which
//! `cli::vault` puts together for a vault ([`access::Access`]) from what its store holds. They are
//! plain blocking code and keep their own entries in the [`Store`], under a prefix of their own
//! (`identity/`, `policy/`, ...); a decision that depends on an entry is made in one
//! [`Store::change`]. A route that Key Vault does not have (a token endpoint, a metadata
//! service, an operator's command) is an [`access::Extension`]; who asks is in [`Request::peer`]:
//! the network, a metadata listener ([`server::Listen::Metadata`]), or the operator.
//!
//! Requests are handled by plain blocking code on threads of their own; only `server` is
//! asynchronous. An operator's commands are the same requests, by a socket in the vault's directory
//! while it is served, and by [`Service::handle`] in the command's own process while it is not.

pub mod access;
pub mod admin;
pub mod audit;
pub mod authority;
pub mod directory;
pub mod encoding;
pub mod error;
pub mod firewall;
pub mod identity;
pub mod keys;
pub mod login;
pub mod objects;
pub mod policy;
pub mod ratelimit;
pub mod request;
pub mod route;
pub mod secrets;
pub mod server;
pub mod service;
pub mod store;
pub mod token;

pub use directory::{Settings, Vault, VaultError};
pub use error::ApiError;
pub use request::{Peer, Reply, Request};
pub use route::{Operation, Route};
pub use service::Service;
pub use store::Store;
