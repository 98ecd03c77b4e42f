//! The commands of a TPM that sealing needs, over the TCG's software stack.
//!
//! What crosses the bus in the clear is not the secret: the session that carries it is salted with
//! the storage key and encrypts it (TPM 2.0 Library, part 1, "Session-based encryption").

use std::str::FromStr;

use tss_esapi::abstraction::pcr;
use tss_esapi::attributes::{ObjectAttributesBuilder, SessionAttributesBuilder};
use tss_esapi::constants::SessionType;
use tss_esapi::constants::response_code::Tss2ResponseCodeKind as Code;
use tss_esapi::handles::{KeyHandle, ObjectHandle, SessionHandle};
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::interface_types::session_handles::{AuthSession, PolicySession};
use tss_esapi::structures::{
    Digest, EccPoint, KeyedHashScheme, PcrSelectionList, PcrSelectionListBuilder, PcrSlot, Private,
    Public, PublicBuilder, PublicEccParametersBuilder, PublicKeyedHashParameters, SensitiveData,
    SymmetricDefinition, SymmetricDefinitionObject,
};
use tss_esapi::tcti_ldr::TctiNameConf;
use tss_esapi::traits::{Marshall, UnMarshall};
use tss_esapi::{Context, Error};
use zeroize::Zeroizing;

use crate::crypto::Secret;
use crate::key::{KekError, KekErrorKind};

/// Bytes of a register's value and of a policy.
const DIGEST_BYTES: usize = 32;

/// What went wrong, before it is known of which key.
#[derive(Debug)]
pub(super) enum Failure {
    /// The TPM or the software before it said so.
    Tpm(Error),
    /// This is known.
    Known(KekErrorKind),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Tpm(error)
    }
}

impl From<KekErrorKind> for Failure {
    fn from(kind: KekErrorKind) -> Self {
        Self::Known(kind)
    }
}

impl Failure {
    fn code(&self) -> Option<Code> {
        match self {
            Self::Tpm(Error::Tss2Error(code)) => code.kind(),
            _ => None,
        }
    }

    /// Whether the TPM calls the policy not fulfilled.
    pub(super) fn is_policy(&self) -> bool {
        matches!(self.code(), Some(Code::PolicyFail | Code::PcrChanged))
    }

    /// The error about `key` of the provider `uri`.
    pub(super) fn about(self, uri: &str, key: &str) -> KekError {
        let code = self.code();
        let error = match self {
            Self::Known(kind) => return KekError::new(kind, uri, key),
            Self::Tpm(error) => error,
        };
        let unreachable = |reason: &str| KekErrorKind::Unreachable { reason: reason.to_owned() };
        let kind = match code {
            Some(Code::Integrity) => KekErrorKind::Integrity,
            Some(Code::PolicyFail | Code::PcrChanged) => {
                KekErrorKind::Denied { reason: "the TPM's policy is not fulfilled".to_owned() }
            }
            Some(Code::Lockout) => KekErrorKind::Throttled { retry_after: None },
            Some(Code::BadAuth | Code::AuthFail) => KekErrorKind::AuthenticationFailed {
                reason: "the owner hierarchy of the TPM has a password, which is not supported; \
                         clear it: tpm2_changeauth -c owner -p PASSWORD"
                    .to_owned(),
            },
            Some(Code::Hierarchy | Code::Disabled) => KekErrorKind::Denied {
                reason: "the owner hierarchy of the TPM is switched off".to_owned(),
            },
            Some(Code::ObjectMemory | Code::SessionMemory | Code::Memory) => unreachable(
                "the TPM has no room left; use /dev/tpmrm0, or free it: tpm2_flushcontext -t",
            ),
            Some(Code::ObjectHandles | Code::SessionHandles | Code::ContextGap) => unreachable(
                "the TPM has no handle left; close what uses it, or free it: tpm2_flushcontext -l",
            ),
            Some(Code::Initialize) => unreachable("the TPM was not started by the firmware"),
            Some(Code::Retry | Code::Yielded | Code::Testing | Code::NvRate) => {
                unreachable("the TPM is busy; try again")
            }
            _ => unreachable("the TPM failed"),
        };
        KekError::new(kind, uri, key).caused_by(error)
    }
}

/// A connection to a TPM. What it loads is flushed when it is dropped: without a resource manager,
/// a TPM has room for three objects.
pub(super) struct Tpm {
    context: Context,
    open: Vec<ObjectHandle>,
    parent: Option<KeyHandle>,
}

impl Drop for Tpm {
    fn drop(&mut self) {
        self.context.clear_sessions();
        for handle in self.open.drain(..).rev() {
            if let Err(error) = self.context.flush_context(handle) {
                log::warn!("an object stays in the TPM: {error}");
            }
        }
    }
}

impl Tpm {
    /// Connects.
    ///
    /// # Errors
    /// `Configuration` if `tcti` is malformed; else what the TPM says.
    pub(super) fn open(tcti: &str) -> Result<Self, Failure> {
        let parsed = TctiNameConf::from_str(tcti).map_err(|_| {
            let problem = format!("{tcti:?} does not say how to reach a TPM");
            KekErrorKind::Configuration { problem }
        })?;
        let context = Context::new(parsed)?;
        Ok(Self { context, open: Vec::new(), parent: None })
    }

    /// The storage key, derived anew: the same each time, until the TPM is cleared.
    fn parent(&mut self) -> Result<KeyHandle, Failure> {
        if let Some(parent) = self.parent {
            return Ok(parent);
        }
        let template = storage_key()?;
        let made = self.context.execute_with_nullauth_session(|context| {
            context.create_primary(Hierarchy::Owner, template, None, None, None, None)
        })?;
        self.open.push(made.key_handle.into());
        self.parent = Some(made.key_handle);
        Ok(made.key_handle)
    }

    /// The storage key's name, a hash of all that it is: another TPM's has another.
    pub(super) fn parent_name(&mut self) -> Result<Vec<u8>, Failure> {
        let parent = self.parent()?;
        Ok(self.context.tr_get_name(parent.into())?.value().to_vec())
    }

    /// The values of registers, in the order given.
    pub(super) fn registers(&mut self, registers: &[u8]) -> Result<Vec<Vec<u8>>, Failure> {
        let read = pcr::read_all(&mut self.context, selection(registers)?)?;
        let bank = read.pcr_bank(HashingAlgorithm::Sha256);
        let values: Option<Vec<Vec<u8>>> = registers
            .iter()
            .map(|register| Some(bank?.get_digest(slot(*register).ok()?)?.value().to_vec()))
            .collect();
        let values = values.filter(|all| all.iter().all(|value| value.len() == DIGEST_BYTES));
        values.ok_or_else(|| {
            let problem = "the TPM keeps no SHA-256 values of these registers; allocate the bank \
                           (tpm2_pcrallocate), or take others"
                .to_owned();
            KekErrorKind::Configuration { problem }.into()
        })
    }

    /// The digest of the policy that registers have the values of now.
    pub(super) fn policy(&mut self, registers: &[u8]) -> Result<Vec<u8>, Failure> {
        let session = self.start(None, SessionType::Trial)?;
        let session = self.require(session, registers)?;
        Ok(self.context.policy_get_digest(session)?.value().to_vec())
    }

    /// Seals `payload` to `policy`; returns the public and the private part.
    pub(super) fn seal(
        &mut self,
        payload: &Secret,
        policy: &[u8],
    ) -> Result<(Vec<u8>, Vec<u8>), Failure> {
        let parent = self.parent()?;
        let template = sealed_object(Digest::try_from(policy.to_vec())?)?;
        let data = SensitiveData::try_from(payload.expose().to_vec())?;
        let session = self.start(Some(parent), SessionType::Hmac)?;
        let made = self.context.execute_with_session(Some(session), |context| {
            context.create(parent, template, None, Some(data), None, None)
        })?;
        self.flush_session(session)?;
        Ok((made.out_public.marshall()?, made.out_private.value().to_vec()))
    }

    /// Loads what [`Tpm::seal`] returned.
    ///
    /// # Errors
    /// `Integrity` if it is not what this TPM sealed.
    pub(super) fn load(&mut self, public: &[u8], private: &[u8]) -> Result<KeyHandle, Failure> {
        let parent = self.parent()?;
        let integrity = |_: Error| Failure::from(KekErrorKind::Integrity);
        let template = Public::unmarshall(public).map_err(integrity)?;
        // One encoding for each object: nothing may hide behind it.
        if template.marshall()? != public {
            return Err(KekErrorKind::Integrity.into());
        }
        let private = Private::try_from(private.to_vec()).map_err(integrity)?;
        let loaded = self
            .context
            .execute_with_nullauth_session(|context| context.load(parent, private, template));
        let loaded = loaded.map_err(|error| match Failure::from(error) {
            // What is no object of this TPM has many names; none is about the TPM's state.
            failure if failure.code().is_some_and(is_about_object) => {
                KekErrorKind::Integrity.into()
            }
            failure => failure,
        })?;
        self.open.push(loaded.into());
        Ok(loaded)
    }

    /// Unseals what was loaded, if the registers are as the policy wants them.
    pub(super) fn unseal(
        &mut self,
        object: KeyHandle,
        registers: &[u8],
    ) -> Result<Secret, Failure> {
        let parent = self.parent()?;
        let session = self.start(Some(parent), SessionType::Policy)?;
        self.require(session, registers)?;
        let data = self
            .context
            .execute_with_session(Some(session), |context| context.unseal(object.into()))?;
        self.forget(session);
        let bytes = Zeroizing::new(data.value().to_vec());
        Ok(Secret::from_fn(bytes.len(), |target| target.copy_from_slice(&bytes)))
    }

    /// Starts a session; `salt`: encrypting the first parameter of commands or replies under a
    /// secret that only the holder of that key learns.
    fn start(
        &mut self,
        salt: Option<KeyHandle>,
        kind: SessionType,
    ) -> Result<AuthSession, Failure> {
        let (cipher, hash) = (SymmetricDefinition::AES_128_CFB, HashingAlgorithm::Sha256);
        let session = self.context.start_auth_session(salt, None, None, kind, cipher, hash)?;
        let Some(session) = session else {
            let reason = "the TPM started no session".to_owned();
            return Err(KekErrorKind::Unreachable { reason }.into());
        };
        self.open.push(SessionHandle::from(session).into());
        if salt.is_some() {
            // Of Create, what is sealed is the first parameter; of Unseal, the first of the reply.
            let (attributes, mask) = SessionAttributesBuilder::new()
                .with_decrypt(kind == SessionType::Hmac)
                .with_encrypt(true)
                .with_continue_session(kind == SessionType::Hmac)
                .build();
            self.context.tr_sess_set_attributes(session, attributes, mask)?;
        }
        Ok(session)
    }

    /// Adds to a policy session that registers have the values of now.
    fn require(
        &mut self,
        session: AuthSession,
        registers: &[u8],
    ) -> Result<PolicySession, Failure> {
        let session = PolicySession::try_from(session)?;
        self.context.policy_pcr(session, Digest::default(), selection(registers)?)?;
        Ok(session)
    }

    fn flush_session(&mut self, session: AuthSession) -> Result<(), Failure> {
        let handle = self.forget(session);
        Ok(self.context.flush_context(handle)?)
    }

    /// A session that is gone need not be flushed.
    fn forget(&mut self, session: AuthSession) -> ObjectHandle {
        let handle = ObjectHandle::from(SessionHandle::from(session));
        self.open.retain(|open| *open != handle);
        handle
    }
}

fn is_about_object(code: Code) -> bool {
    matches!(
        code,
        Code::Integrity
            | Code::Size
            | Code::Insufficient
            | Code::Value
            | Code::Type
            | Code::Hash
            | Code::Scheme
            | Code::Attributes
            | Code::Symmetric
            | Code::Selector
            | Code::ReservedBits
            | Code::Sensitive
            | Code::Key
            | Code::Binding
    )
}

fn slot(register: u8) -> Result<PcrSlot, Error> {
    PcrSlot::try_from(1_u32 << register)
}

fn selection(registers: &[u8]) -> Result<PcrSelectionList, Error> {
    let slots = registers.iter().map(|register| slot(*register)).collect::<Result<Vec<_>, _>>()?;
    PcrSelectionListBuilder::new().with_selection(HashingAlgorithm::Sha256, &slots).build()
}

/// A storage key for P-256 and AES-128 (TCG EK Credential Profile's and Provisioning Guidance's
/// "SRK" template): it decrypts what is below it, and nothing else.
fn storage_key() -> Result<Public, Error> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        .with_no_da(true)
        .with_decrypt(true)
        .with_restricted(true)
        .build()?;
    let parameters = PublicEccParametersBuilder::new_restricted_decryption_key(
        SymmetricDefinitionObject::AES_128_CFB,
        EccCurve::NistP256,
    );
    PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::Ecc)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes)
        .with_ecc_parameters(parameters.build()?)
        .with_ecc_unique_identifier(EccPoint::default())
        .build()
}

/// Data that only its policy opens: neither a password nor the owner does, and failing costs no
/// tries of the TPM's protection against guessing.
fn sealed_object(policy: Digest) -> Result<Public, Error> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_no_da(true)
        .with_admin_with_policy(true)
        .with_user_with_auth(false)
        .build()?;
    PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::KeyedHash)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes)
        .with_auth_policy(policy)
        .with_keyed_hash_parameters(PublicKeyedHashParameters::new(KeyedHashScheme::Null))
        .with_keyed_hash_unique_identifier(Digest::default())
        .build()
}
