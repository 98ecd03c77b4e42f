//! From what a token answers to what it means for a key.

use cryptoki::context::Function;
use cryptoki::error::{Error, RvError};

use crate::key::{KekError, KekErrorKind};

type Source = Box<dyn std::error::Error + Send + Sync>;

/// What went wrong, before it is known of which key.
#[derive(Debug)]
pub(super) enum Failure {
    /// The library said so.
    Token(Error),
    /// This is known.
    Known(KekErrorKind, Option<Source>),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Token(error)
    }
}

impl From<KekErrorKind> for Failure {
    fn from(kind: KekErrorKind) -> Self {
        Self::Known(kind, None)
    }
}

impl Failure {
    /// Something for the operator to do.
    pub(super) fn configuration(problem: String) -> Self {
        KekErrorKind::Configuration { problem }.into()
    }

    /// The same, with its cause.
    pub(super) fn caused_by(self, source: impl Into<Source>) -> Self {
        match self {
            Self::Known(kind, _) => Self::Known(kind, Some(source.into())),
            token => token,
        }
    }

    /// What the library said, if it did.
    pub(super) fn code(&self) -> Option<RvError> {
        match self {
            Self::Token(Error::Pkcs11(code, _)) => Some(*code),
            _ => None,
        }
    }

    /// Whether a new session, on the token as it is now, could do better: the token was pulled and
    /// put back, its service was restarted, or somebody closed the session.
    pub(super) fn is_stale(&self) -> bool {
        self.code().is_some_and(|code| {
            matches!(
                code,
                RvError::SessionHandleInvalid
                    | RvError::SessionClosed
                    | RvError::DeviceRemoved
                    | RvError::DeviceError
                    | RvError::TokenNotPresent
                    | RvError::TokenNotRecognized
                    | RvError::SlotIdInvalid
                    | RvError::UserNotLoggedIn
                    | RvError::CryptokiNotInitialized
                    | RvError::OperationActive
                    | RvError::KeyHandleInvalid
                    | RvError::ObjectHandleInvalid
                    | RvError::UnwrappingKeyHandleInvalid
                    | RvError::WrappingKeyHandleInvalid
            )
        })
    }

    /// The error about `key` of the provider `uri`.
    pub(super) fn about(self, uri: &str, key: &str) -> KekError {
        match self {
            Self::Known(kind, None) => KekError::new(kind, uri, key),
            Self::Known(kind, Some(source)) => KekError::new(kind, uri, key).caused_by(source),
            Self::Token(error) => KekError::new(kind_of(&error), uri, key).caused_by(error),
        }
    }
}

/// What the answer `error` means. The library's own words are the cause, not repeated here.
fn kind_of(error: &Error) -> KekErrorKind {
    let unreachable = |reason: &str| KekErrorKind::Unreachable { reason: reason.to_owned() };
    let Error::Pkcs11(code, function) = error else {
        return unreachable("the PKCS #11 module answers with what cannot be understood");
    };
    let bad = |reason: String| KekErrorKind::BadRequest { reason };
    let login = |reason: &str| KekErrorKind::AuthenticationFailed { reason: reason.to_owned() };
    match code {
        RvError::KeyFunctionNotPermitted
        | RvError::FunctionRejected
        | RvError::ActionProhibited => KekErrorKind::Denied {
            reason: "the token does not allow this use of the key; it needs CKA_DECRYPT and \
                         CKA_ENCRYPT, or CKA_UNWRAP and CKA_WRAP"
                .to_owned(),
        },
        RvError::UserNotLoggedIn => login("the token wants a login"),
        RvError::PinExpired => login("the PIN has expired; set a new one"),
        RvError::PinLocked => login("the PIN is locked; the security officer can set a new one"),
        RvError::UserPinNotInitialized => {
            login("the token has no user PIN yet; the security officer can set one")
        }
        RvError::UserAnotherAlreadyLoggedIn | RvError::UserTooManyTypes => {
            login("this process is logged in as another user")
        }
        RvError::TokenNotPresent | RvError::DeviceRemoved | RvError::TokenNotRecognized => {
            unreachable("the token is not there; put it in, or start its service")
        }
        RvError::SessionCount => unreachable("the token has no session left; close others"),
        RvError::DeviceMemory | RvError::HostMemory => {
            unreachable("the token or its module is out of memory")
        }
        RvError::MechanismInvalid | RvError::MechanismParamInvalid => {
            bad(format!("the token does not know the mechanism ({function})"))
        }
        RvError::KeyTypeInconsistent | RvError::KeySizeRange => {
            bad(format!("the key is not of the kind that is needed ({function})"))
        }
        _ => match function {
            Function::Initialize => unreachable("the PKCS #11 module cannot be initialised"),
            _ => unreachable("the token failed"),
        },
    }
}

/// Whether `code`, said of a decryption or an unwrapping, is about what was to be decrypted:
/// another key wrapped it, or it was changed.
pub(super) fn is_about_data(code: RvError) -> bool {
    matches!(
        code,
        RvError::EncryptedDataInvalid
            | RvError::EncryptedDataLenRange
            | RvError::DataInvalid
            | RvError::DataLenRange
            | RvError::SignatureInvalid
            | RvError::WrappedKeyInvalid
            | RvError::WrappedKeyLenRange
    )
}

/// Whether `code`, said of a decryption, may be about what was to be decrypted, or about anything:
/// SoftHSM says CKR_GENERAL_ERROR of a wrong tag, others CKR_FUNCTION_FAILED or, of a wrong
/// padding, CKR_ARGUMENTS_BAD.
pub(super) fn may_be_about_data(code: RvError) -> bool {
    matches!(
        code,
        RvError::GeneralError
            | RvError::FunctionFailed
            | RvError::ArgumentsBad
            | RvError::DeviceError
    )
}

/// Whether `code` says that the token cannot do what was asked, as opposed to failing at it. NSS
/// says CKR_BUFFER_TOO_SMALL, because the length that it asks for AES-GCM is without the tag.
pub(super) fn is_unsupported(code: RvError) -> bool {
    matches!(
        code,
        RvError::MechanismInvalid
            | RvError::MechanismParamInvalid
            | RvError::ArgumentsBad
            | RvError::FunctionNotSupported
            | RvError::BufferTooSmall
    )
}
