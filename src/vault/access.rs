//! Who asks, what they may do, and who is told of it: the guards that every request passes.
//!
//! [`super::Service`] asks them in the order of [`Access`]'s fields. Each is called on a blocking
//! thread and may use the store. The operator, who comes by the socket in the vault's directory,
//! passes all but the audit.

use std::net::IpAddr;
use std::time::Duration;

use super::error::ApiError;
use super::request::{Reply, Request};
use super::route::{Kind, Operation, Permission, Route};

/// The guards of a vault, in the order in which a request meets them.
pub struct Access {
    /// Routes beside Key Vault's: token endpoints, metadata services, administration.
    pub extensions: Vec<Box<dyn Extension>>,
    /// Which addresses may ask at all.
    pub firewall: Box<dyn Firewall>,
    /// How often; asked before a token is looked at, and again once it is known whose it is.
    pub rate_limit: Box<dyn RateLimit>,
    /// Whose token it is.
    pub authenticator: Box<dyn Authenticator>,
    /// What they may do.
    pub policy: Box<dyn Policy>,
    /// The record of what was asked and answered.
    pub audit: Box<dyn Audit>,
}

/// Who a token was issued to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Identifier of the principal, which policies name (claim `oid`).
    pub object_id: String,
    /// Identifier of the application, if it is one (claim `appid`).
    pub application_id: Option<String>,
    /// Its name, for people.
    pub name: String,
}

/// On whose behalf an operation runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Whoever may use the socket in the vault's directory, or its files.
    Operator,
    /// The holder of a token.
    Identity(Identity),
}

/// Why a request is not let through without another token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// Value of the header `WWW-Authenticate`, such as
    /// `Bearer authorization="https://login.example/TENANT", resource="https://vault.azure.net"`.
    pub header: String,
    /// What is wrong, for people: never the token or a part of it.
    pub message: String,
}

/// Tells from a bearer token who asks.
pub trait Authenticator: Send + Sync {
    /// The identity that `token` (the header `Authorization` without the word `Bearer`; `None` if
    /// there is none) was issued to.
    ///
    /// # Errors
    /// The challenge to answer with, status 401.
    fn authenticate(&self, token: Option<&str>, request: &Request) -> Result<Identity, Challenge>;
}

/// What an operation is done to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object<'a> {
    /// Of which kind.
    pub kind: Kind,
    /// Its name; `None` for what concerns all, such as a listing.
    pub name: Option<&'a str>,
    /// Which version, if the request names one.
    pub version: Option<&'a str>,
}

/// What a policy says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Go ahead.
    Allow,
    /// No.
    Deny {
        /// `innererror.code`: `ForbiddenByPolicy`, `ForbiddenByRbac` or `AccessDenied`.
        inner: &'static str,
        /// Who lacks what on which object, for people, and what to grant.
        message: String,
    },
}

/// Access policies and role assignments.
pub trait Policy: Send + Sync {
    /// Whether `identity` has `permission` on `object`.
    fn decide(&self, identity: &Identity, permission: Permission, object: &Object) -> Decision;
}

/// What is recorded of one request, whatever became of it.
#[derive(Clone, Debug)]
pub struct AuditRecord<'a> {
    /// The request. Its body and its header `Authorization` are not for the record.
    pub request: &'a Request,
    /// Who asked, as far as it was found out.
    pub caller: Option<&'a Caller>,
    /// What was asked; `None` if no operation was recognised.
    pub route: Option<&'a Route>,
    /// HTTP status of the reply.
    pub status: u16,
    /// `error.code` and `innererror.code` of the reply, if it is an error.
    pub error: Option<(&'a str, Option<&'a str>)>,
    /// Identifier of the object in the reply (`kid` or secret id), with version, if there is one.
    pub object_id: Option<&'a str>,
    /// How long it took.
    pub duration: Duration,
}

/// Why nothing may happen: what happens could not be recorded.
#[derive(Debug, thiserror::Error)]
#[error("the audit log cannot be written")]
pub struct AuditFailed(#[source] pub std::io::Error);

/// Keeps the record.
pub trait Audit: Send + Sync {
    /// Records a request. Called once for each, before its reply goes out.
    ///
    /// # Errors
    /// [`AuditFailed`]: the reply is then withheld, and the client gets status 500.
    fn record(&self, record: &AuditRecord) -> Result<(), AuditFailed>;
}

/// Bounds how often may be asked.
pub trait RateLimit: Send + Sync {
    /// Counts a request: once with neither identity nor operation, before anything is looked at,
    /// and once with both.
    ///
    /// # Errors
    /// How long to wait before the next attempt: the reply is 429 with `Retry-After`.
    fn admit(
        &self,
        request: &Request,
        asked: Option<(&Identity, Operation)>,
    ) -> Result<(), Duration>;
}

/// Which addresses may ask.
pub trait Firewall: Send + Sync {
    /// Whether requests from `address` are answered; else the reply is 403 `ForbiddenByFirewall`.
    fn admits(&self, address: IpAddr) -> bool;
}

/// Routes that are not Key Vault's.
pub trait Extension: Send + Sync {
    /// The reply, or `None` if the request is not for this extension. It is asked before all
    /// other guards, for requests of every listener, so it guards itself; what it does for
    /// [`super::Peer::Operator`] it must do for no other.
    fn handle(&self, request: &Request) -> Option<Result<Reply, ApiError>>;
}

/// Lets nobody in but the operator: what a vault is before it knows any identity.
pub struct Closed;

impl Authenticator for Closed {
    fn authenticate(
        &self,
        _token: Option<&str>,
        _request: &Request,
    ) -> Result<Identity, Challenge> {
        Err(Challenge {
            header: r#"Bearer resource="https://vault.azure.net""#.to_owned(),
            message: "this vault has no identities; make one: atrest vault identity".to_owned(),
        })
    }
}

impl Policy for Closed {
    fn decide(&self, identity: &Identity, permission: Permission, _object: &Object) -> Decision {
        let message = format!("{} does not have {}", identity.name, permission.name());
        Decision::Deny { inner: "ForbiddenByPolicy", message }
    }
}

/// Writes to the program's log.
pub struct LogAudit;

impl Audit for LogAudit {
    fn record(&self, record: &AuditRecord) -> Result<(), AuditFailed> {
        let operation = record.route.map_or("Unknown", |route| route.operation.name());
        let caller = match record.caller {
            None => "nobody",
            Some(Caller::Operator) => "operator",
            Some(Caller::Identity(identity)) => &identity.object_id,
        };
        let (status, peer) = (record.status, &record.request.peer);
        log::info!("{operation} {status} by {caller} from {peer}, {}", record.request.id);
        Ok(())
    }
}

/// No bound.
pub struct Unlimited;

impl RateLimit for Unlimited {
    fn admit(
        &self,
        _request: &Request,
        _asked: Option<(&Identity, Operation)>,
    ) -> Result<(), Duration> {
        Ok(())
    }
}

impl Firewall for Unlimited {
    fn admits(&self, _address: IpAddr) -> bool {
        true
    }
}

impl Access {
    /// The guards of a vault that nobody but its operator may use.
    pub fn closed() -> Self {
        Self {
            extensions: Vec::new(),
            firewall: Box::new(Unlimited),
            rate_limit: Box::new(Unlimited),
            authenticator: Box::new(Closed),
            policy: Box::new(Closed),
            audit: Box::new(LogAudit),
        }
    }
}
