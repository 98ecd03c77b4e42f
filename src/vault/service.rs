//! What becomes of a request: every guard in its order, the operation, the audit.

use std::sync::Arc;
use std::time::Instant;

use super::access::{Access, AuditRecord, Caller, Decision, Object};
use super::error::ApiError;
use super::keys::Keys;
use super::request::{Peer, Reply, Request};
use super::route::{Kind, Route};
use super::store::Store;

/// A vault that answers requests.
pub struct Service {
    store: Arc<Store>,
    keys: Keys,
    access: Access,
}

/// What is found out about a request on its way, for the audit.
#[derive(Default)]
struct Trace {
    caller: Option<Caller>,
    route: Option<Route>,
}

impl Service {
    /// Serves what is in `store` to whom `access` lets in.
    pub fn new(store: Arc<Store>, access: Access) -> Self {
        Self { keys: Keys::new(store.clone()), store, access }
    }

    /// Answers a request. Blocks: for the disk, and for the length of a private-key operation.
    pub fn handle(&self, request: &Request) -> Reply {
        let started = Instant::now();
        let mut trace = Trace::default();
        // Token endpoints, metadata services and the operator's commands audit themselves.
        let extended = self.access.extensions.iter().find_map(|route| route.handle(request));
        if let Some(outcome) = extended {
            return outcome.unwrap_or_else(|error| error.reply());
        }
        let outcome = self.answer(request, &mut trace);
        self.conclude(request, &trace, started, outcome)
    }

    /// Refuses a request whose body could not be had; `request` has none. Blocks for the audit.
    pub fn refuse(&self, request: &Request, error: ApiError) -> Reply {
        self.conclude(request, &Trace::default(), Instant::now(), Err(error))
    }

    /// The reply, once what became of the request is on record.
    fn conclude(
        &self,
        request: &Request,
        trace: &Trace,
        started: Instant,
        outcome: Result<Reply, ApiError>,
    ) -> Reply {
        let error = outcome.as_ref().err().cloned();
        let reply = outcome.unwrap_or_else(|error| error.reply());
        let object_id = object_id(&reply);
        let record = AuditRecord {
            request,
            caller: trace.caller.as_ref(),
            route: trace.route.as_ref(),
            status: reply.status,
            error: error.as_ref().map(|error| (error.code, error.inner)),
            object_id: object_id.as_deref(),
            duration: started.elapsed(),
        };
        match self.access.audit.record(&record) {
            Ok(()) => reply,
            Err(error) => {
                log::error!("{error}: {:?}", std::error::Error::source(&error));
                ApiError::internal().reply()
            }
        }
    }

    /// Does what is due at `now`, in seconds since 1970: purging and rotation. Called once a minute
    /// while the vault is served.
    pub fn maintain(&self, now: i64) {
        self.keys.maintain(now);
    }

    fn answer(&self, request: &Request, trace: &mut Trace) -> Result<Reply, ApiError> {
        let address = match request.peer {
            Peer::Network(address) => address.ip(),
            Peer::Metadata(_) => {
                return Err(ApiError::new(404, "NotFound", "this is no vault"));
            }
            Peer::Operator => {
                trace.caller = Some(Caller::Operator);
                let route = trace.route.insert(Route::of(request)?);
                return self.perform(request, route);
            }
        };
        if !self.access.firewall.admits(address) {
            let message = format!("the firewall of this vault does not let {address} in");
            return Err(ApiError::forbidden("ForbiddenByFirewall", message));
        }
        self.access.rate_limit.admit(request, None).map_err(ApiError::throttled)?;
        let known = self.access.authenticator.authenticate(request.bearer(), request);
        let identity = known.map_err(|challenge| ApiError {
            challenge: Some(challenge.header),
            ..ApiError::new(401, "Unauthorized", challenge.message)
        })?;
        trace.caller = Some(Caller::Identity(identity.clone()));
        let route = trace.route.insert(Route::of(request)?);
        let asked = Some((&identity, route.operation));
        self.access.rate_limit.admit(request, asked).map_err(ApiError::throttled)?;
        let object = Object {
            kind: route.operation.kind(),
            name: (!route.name.is_empty()).then_some(route.name.as_str()),
            version: route.version.as_deref(),
        };
        match self.access.policy.decide(&identity, route.operation.permission(), &object) {
            Decision::Allow => self.perform(request, route),
            Decision::Deny { inner, message } => Err(ApiError::forbidden(inner, message)),
        }
    }

    fn perform(&self, request: &Request, route: &Route) -> Result<Reply, ApiError> {
        match route.operation.kind() {
            Kind::Key => self.keys.perform(request, route),
            Kind::Secret => super::secrets::perform(&self.store, request, route),
        }
    }
}

/// `kid`, `key.kid` or `id` of a reply, for the audit.
fn object_id(reply: &Reply) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Named {
        kid: Option<String>,
        id: Option<String>,
        key: Option<Key>,
    }
    #[derive(serde::Deserialize)]
    struct Key {
        kid: Option<String>,
    }
    let named: Named = serde_json::from_slice(&reply.body).ok()?;
    named.kid.or(named.id).or(named.key.and_then(|key| key.kid))
}
