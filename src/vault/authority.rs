//! What a vault knows of its callers, in memory and in its store, and the guards made of it.
//!
//! Everything is read from the store when the vault opens; a change is durable before anybody sees
//! it. So a token that is refused after a change stays refused after a crash.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};

use super::access::{
    Access, Audit, AuditFailed, AuditRecord, Authenticator, Caller, Challenge, Decision,
    Firewall as FirewallGuard, Identity as KnownIdentity, Object, Policy, RateLimit,
};
use super::audit::{AuditLog, Event};
use super::firewall::Firewall;
use super::identity::{Directory, Identity};
use super::policy::Policies;
use super::ratelimit::{Damper, Limits, RateLimiter};
use super::request::{Peer, Request, random_id};
use super::route::{Operation, Permission};
use super::store::{Store, StoreError};
use super::token::{Claims, LIFETIME_DEFAULT, Revocations, SigningKeys, StoredKey, TokenError};

/// The resource that SDKs ask tokens for: the last labels of a vault's own name
/// (`NAME.vault.azure.net`), which they compare.
pub const RESOURCE_DEFAULT: &str = "https://vault.azure.net";
/// Signing keys are replaced after so many seconds: 30 days.
const ROLLOVER_AFTER: u64 = 30 * 24 * 3600;

const SETTINGS: &str = "access/settings";
const POLICIES: &str = "access/policies";
const SIGNING_KEYS: &str = "access/signing-keys";
const REVOCATIONS: &str = "access/revocations";
const IDENTITY_PREFIX: &str = "access/identity/";

/// What the operator sets for all callers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The tenant in paths and tokens: UUID, drawn when the vault is made.
    pub tenant: String,
    /// `https://HOST` of the token endpoint; `None`: as the vault itself was called.
    pub authority: Option<String>,
    /// What tokens may be for; the first one is in challenges.
    pub resources: Vec<String>,
    /// Lifetime of tokens, in seconds.
    pub token_lifetime: u64,
    /// From where may be asked.
    pub firewall: Firewall,
    /// How often.
    pub limits: Limits,
}

impl Settings {
    fn new() -> Self {
        Self {
            tenant: random_id(),
            authority: None,
            resources: vec![RESOURCE_DEFAULT.to_owned()],
            token_lifetime: LIFETIME_DEFAULT,
            firewall: Firewall::default(),
            limits: Limits::default(),
        }
    }

    /// `https://HOST` of the token endpoint, for a request to `base`.
    pub fn authority<'a>(&'a self, base: &'a str) -> &'a str {
        self.authority.as_deref().unwrap_or(base)
    }

    /// Issuer of tokens.
    pub fn issuer(&self, base: &str) -> String {
        format!("{}/{}/v2.0", self.authority(base), self.tenant)
    }
}

/// All that is known of callers.
#[derive(Clone)]
pub struct State {
    /// Settings.
    pub settings: Settings,
    /// Identities.
    pub directory: Directory,
    /// What was granted.
    pub policies: Policies,
    /// Keys that sign tokens.
    pub keys: Arc<SigningKeys>,
    /// Tokens that were revoked one by one.
    pub revocations: Revocations,
}

impl State {
    /// What a token says, and whose it is, if it is good now.
    ///
    /// A vault without a configured authority is its own under each of its names; that the
    /// signature is by one of its keys says that it was the issuer.
    ///
    /// # Errors
    /// A [`TokenError`].
    pub fn verify(&self, token: &str, now: u64) -> Result<(Claims, &Identity), TokenError> {
        let claims = self.keys.verify(token, &self.settings.resources, now)?;
        let issued_here = match &self.settings.authority {
            Some(_) => claims.iss == self.settings.issuer(""),
            None => claims.iss.ends_with(&self.settings.issuer("")),
        };
        if !issued_here || claims.tid != self.settings.tenant {
            return Err(TokenError::Issuer);
        }
        let identity = self.directory.by_object_id(&claims.oid).ok_or(TokenError::Revoked)?;
        let current = identity.enabled && claims.epoch == identity.epoch;
        if !current || self.revocations.contains(&claims) {
            return Err(TokenError::Revoked);
        }
        Ok((claims, identity))
    }

    /// A token for `identity`. `proof`: how it has proved itself, `appidacr`.
    pub fn issue(
        &self,
        identity: &Identity,
        audience: &str,
        proof: &str,
        base: &str,
        now: u64,
    ) -> (String, Claims) {
        let settings = &self.settings;
        let claims = Claims {
            iss: settings.issuer(base),
            aud: audience.to_owned(),
            sub: identity.object_id.clone(),
            oid: identity.object_id.clone(),
            appid: identity.client_id.clone(),
            appidacr: proof.to_owned(),
            tid: settings.tenant.clone(),
            idtyp: "app".to_owned(),
            ver: "1.0".to_owned(),
            iat: now,
            nbf: now,
            exp: now + settings.token_lifetime,
            jti: random_id(),
            epoch: identity.epoch,
        };
        (self.keys.sign(&claims), claims)
    }
}

/// The authority of one vault: shared by all its guards.
pub struct Authority {
    store: Arc<Store>,
    /// The vault's name, for messages.
    name: String,
    /// Taken for the length of a change; before `state`.
    changing: Mutex<()>,
    state: RwLock<Arc<State>>,
    limiter: Mutex<RateLimiter>,
    /// Failures at token endpoints.
    pub(super) damper: Mutex<Damper>,
    audit: AuditLog,
    started: Instant,
}

impl Authority {
    /// Reads what the store has, and makes what it lacks: tenant and signing key.
    ///
    /// # Errors
    /// The store's.
    pub fn open(store: Arc<Store>, name: &str, audit: AuditLog) -> Result<Self, StoreError> {
        let now = unix_now();
        let state = load(&store, now)?;
        let limiter = RateLimiter::new(state.settings.limits, Duration::ZERO);
        Ok(Self {
            store,
            name: name.to_owned(),
            changing: Mutex::new(()),
            state: RwLock::new(Arc::new(state)),
            limiter: Mutex::new(limiter),
            damper: Mutex::new(Damper::new()),
            audit,
            started: Instant::now(),
        })
    }

    /// What is known now; it does not change under who holds it.
    pub fn state(&self) -> Arc<State> {
        self.state.read().clone()
    }

    /// The vault's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Time for rate limits, which no clock setting changes.
    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Records an event.
    ///
    /// # Errors
    /// [`AuditFailed`]: the reply is to be withheld.
    pub(super) fn record(&self, event: &Event<'_>) -> Result<(), AuditFailed> {
        self.audit.record(event).map_err(AuditFailed)
    }

    /// Counts a request against the vault, as [`RateLimit::admit`] does.
    ///
    /// # Errors
    /// How long to wait.
    pub(super) fn take_from_vault(&self) -> Result<(), Duration> {
        self.limiter.lock().take_from_vault(self.elapsed())
    }

    /// Changes what is known: `edit` works on a copy, which becomes durable, then visible. When it
    /// refuses, nothing has changed.
    ///
    /// # Errors
    /// Those of `edit`, and the store's.
    pub fn change<T, E: From<StoreError>>(
        &self,
        edit: impl FnOnce(&mut State) -> Result<T, E>,
    ) -> Result<T, E> {
        let _changing = self.changing.lock();
        let before = self.state();
        let mut after = State::clone(&before);
        let result = edit(&mut after)?;
        self.store.change(|transaction| -> Result<(), StoreError> {
            if after.settings != before.settings {
                transaction.put_json(SETTINGS, &after.settings);
            }
            if after.policies != before.policies {
                transaction.put_json(POLICIES, &after.policies);
            }
            if !Arc::ptr_eq(&after.keys, &before.keys) {
                transaction.put_json(SIGNING_KEYS, &after.keys.to_stored());
            }
            if after.revocations != before.revocations {
                transaction.put_json(REVOCATIONS, &after.revocations);
            }
            let key = |identity: &Identity| format!("{IDENTITY_PREFIX}{}", identity.object_id);
            for identity in after.directory.iter() {
                let old = before.directory.by_object_id(&identity.object_id);
                if old.is_none_or(|old| json(old) != json(identity)) {
                    transaction.put_json(&key(identity), identity);
                }
            }
            for identity in before.directory.iter() {
                if after.directory.by_object_id(&identity.object_id).is_none() {
                    transaction.remove(&key(identity));
                }
            }
            Ok(())
        })?;
        if after.settings.limits != before.settings.limits {
            self.limiter.lock().set_limits(after.settings.limits);
        }
        *self.state.write() = Arc::new(after);
        Ok(result)
    }

    /// Replaces the signing key if it is old. Called when a token is issued; a store that cannot
    /// be written leaves the old key, which is as good.
    pub(super) fn roll_over_if_due(&self) {
        let now = unix_now();
        if self.state().keys.age(now) < ROLLOVER_AFTER {
            return;
        }
        let result = self.change(|state| -> Result<(), StoreError> {
            if state.keys.age(now) >= ROLLOVER_AFTER {
                roll_over(state, now)?;
            }
            Ok(())
        });
        if let Err(error) = result {
            log::error!("the key that signs tokens could not be replaced: {error}");
        }
    }
}

/// A new signing key; the old one verifies until its tokens have expired.
///
/// # Errors
/// `Malformed` if the keys in memory are none, which they are.
pub(super) fn roll_over(state: &mut State, now: u64) -> Result<(), StoreError> {
    let copy = SigningKeys::from_stored(&state.keys.to_stored());
    let mut keys = copy.map_err(|_| StoreError::Malformed(SIGNING_KEYS.to_owned()))?;
    keys.roll_over(now);
    state.keys = Arc::new(keys);
    Ok(())
}

/// For comparing what is stored.
fn json(identity: &Identity) -> Vec<u8> {
    serde_json::to_vec(identity).expect("identities are plain data")
}

fn load(store: &Store, now: u64) -> Result<State, StoreError> {
    let settings = match store.get_json::<Settings>(SETTINGS)? {
        Some(settings) => settings,
        None => store.change(|transaction| -> Result<_, StoreError> {
            let settings = Settings::new();
            transaction.put_json(SETTINGS, &settings);
            Ok(settings)
        })?,
    };
    let keys = match store.get_json::<Vec<StoredKey>>(SIGNING_KEYS)? {
        Some(stored) => SigningKeys::from_stored(&stored)
            .map_err(|_| StoreError::Malformed(SIGNING_KEYS.to_owned()))?,
        None => store.change(|transaction| -> Result<_, StoreError> {
            let keys = SigningKeys::generate(now);
            transaction.put_json(SIGNING_KEYS, &keys.to_stored());
            Ok(keys)
        })?,
    };
    let mut identities: Vec<Identity> = Vec::new();
    for key in store.keys(IDENTITY_PREFIX, None, usize::MAX) {
        identities.extend(store.get_json::<Identity>(&key)?);
    }
    Ok(State {
        settings,
        directory: Directory::from(identities),
        policies: store.get_json(POLICIES)?.unwrap_or_default(),
        keys: Arc::new(keys),
        revocations: store.get_json(REVOCATIONS)?.unwrap_or_default(),
    })
}

/// Seconds since 1970.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// The guards that [`super::access::Access`] wants, of one authority.
#[derive(Clone)]
pub struct Guard(pub Arc<Authority>);

impl Guard {
    /// All of them.
    pub fn access(self) -> Access {
        Access {
            extensions: vec![Box::new(self.clone())],
            firewall: Box::new(self.clone()),
            rate_limit: Box::new(self.clone()),
            authenticator: Box::new(self.clone()),
            policy: Box::new(self.clone()),
            audit: Box::new(self),
        }
    }
}

impl Authenticator for Guard {
    fn authenticate(
        &self,
        token: Option<&str>,
        request: &Request,
    ) -> Result<KnownIdentity, Challenge> {
        let state = self.0.state();
        let settings = &state.settings;
        let challenge = |message: String, reason: &str| {
            let base = request.base_url();
            let authority = settings.authority(&base);
            let header = format!(
                r#"Bearer authorization="{authority}/{}", resource="{}"{reason}"#,
                settings.tenant,
                settings.resources.first().map_or(RESOURCE_DEFAULT, String::as_str),
            );
            Challenge { header, message }
        };
        let Some(token) = token else {
            let message = "AKV10000: the request has no bearer token".to_owned();
            return Err(challenge(message, ""));
        };
        match state.verify(token, unix_now()) {
            Ok((_, identity)) => Ok(KnownIdentity {
                object_id: identity.object_id.clone(),
                application_id: Some(identity.client_id.clone()),
                name: identity.name.clone(),
            }),
            Err(error) => {
                let message = format!("AKV10022: {error}; ask the token endpoint for another");
                Err(challenge(message, r#", error="invalid_token""#))
            }
        }
    }
}

impl Policy for Guard {
    fn decide(
        &self,
        identity: &KnownIdentity,
        permission: Permission,
        object: &Object,
    ) -> Decision {
        match self.0.state().policies.check(&identity.object_id, permission, object) {
            Ok(()) => Decision::Allow,
            Err(denial) => {
                let appid = identity.application_id.as_deref().unwrap_or("");
                let caller =
                    format!("name={};appid={appid};oid={}", identity.name, identity.object_id);
                let message = denial.message(&caller, self.0.name());
                Decision::Deny { inner: denial.inner_code(), message }
            }
        }
    }
}

impl RateLimit for Guard {
    fn admit(
        &self,
        _request: &Request,
        asked: Option<(&KnownIdentity, Operation)>,
    ) -> Result<(), Duration> {
        match asked {
            None => self.0.take_from_vault(),
            Some((identity, _)) => {
                let now = self.0.elapsed();
                self.0.limiter.lock().take_from_identity(&identity.object_id, now)
            }
        }
    }
}

impl FirewallGuard for Guard {
    fn admits(&self, address: IpAddr) -> bool {
        self.0.state.read().settings.firewall.permits(address)
    }
}

impl Audit for Guard {
    fn record(&self, record: &AuditRecord) -> Result<(), AuditFailed> {
        let request = record.request;
        let (application_id, object_id, caller) = match record.caller {
            None => (None, None, None),
            Some(Caller::Operator) => (None, None, Some("operator")),
            Some(Caller::Identity(identity)) => {
                (identity.application_id.as_deref(), Some(&*identity.object_id), None)
            }
        };
        self.0.record(&Event {
            operation: record.route.map_or("Unknown", |route| route.operation.name()),
            status: record.status,
            error: record.error,
            duration: record.duration,
            application_id,
            object_id,
            caller,
            id: record.object_id,
            ..event_of(request, &request.base_url())
        })
    }
}

/// What an event says of its request.
pub(super) fn event_of<'a>(request: &'a Request, base: &'a str) -> Event<'a> {
    let address = match request.peer {
        Peer::Network(address) | Peer::Metadata(address) => Some(address.ip()),
        Peer::Operator => None,
    };
    Event {
        api_version: request.parameter("api-version"),
        address,
        correlation_id: request.header("x-ms-client-request-id").unwrap_or(&request.id),
        method: request.method.as_str(),
        path: &request.path,
        base,
        client: request.header("user-agent"),
        ..Event::default()
    }
}
