//! Operations.

use super::error::ApiError;
use super::request::{Reply, Request};
use super::route::Route;
use super::store::Store;

/// Performs an operation.
///
/// # Errors
/// [`ApiError`]
pub fn perform(_store: &Store, _request: &Request, _route: &Route) -> Result<Reply, ApiError> {
    Err(ApiError::new(501, "NotImplemented", "not yet"))
}
