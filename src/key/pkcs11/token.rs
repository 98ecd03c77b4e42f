//! A session on the one token that a URI means, logged in.

use std::path::PathBuf;

use cryptoki::context::Pkcs11;
use cryptoki::error::{Error, RvError};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::{Slot, TokenInfo};
use zeroize::Zeroizing;

use super::error::Failure;
use super::module::{self, Module};
use super::uri::Uri;
use crate::crypto::Secret;
use crate::key::{KekErrorKind, file};

/// Names the file with the PIN when no URI of the operator does.
pub(super) const PIN_VARIABLE: &str = "ATREST_PKCS11_PIN_FILE";
/// Name of the systemd credential with the PIN (`LoadCredential=`, systemd.exec(5)).
const CREDENTIAL: &str = "atrest.pkcs11-pin";
/// Longest PIN that is read, in bytes.
const PIN_BYTES_MAX: usize = 256;

/// Where the PIN comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PinSource {
    /// The first line of a file.
    File(PathBuf),
    /// The terminal.
    Terminal,
    /// Nowhere.
    None,
}

impl PinSource {
    /// The file that the operator named, else the credential of the service manager, else the
    /// terminal.
    pub(super) fn find(named: Option<PathBuf>, interactive: bool) -> Self {
        let named = named.or_else(|| std::env::var_os(PIN_VARIABLE).map(PathBuf::from));
        let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
        let credential = credentials.map(|directory| directory.join(CREDENTIAL));
        match named.or(credential.filter(|path| path.exists())) {
            Some(path) => Self::File(path),
            None if interactive => Self::Terminal,
            None => Self::None,
        }
    }
}

/// A session with a token.
pub(super) struct Connection {
    pub(super) session: Session,
    pub(super) pkcs11: Pkcs11,
    pub(super) slot: Slot,
    /// The process whose session it is.
    pub(super) process: u32,
}

/// Opens a session with the token that `uri` means, and logs in if the token wants that.
/// `typed` keeps a PIN that was typed, since nobody is there to type it again later.
///
/// # Errors
/// `Unreachable` if the token is not there, `Configuration` if several are meant, else what the
/// token says.
pub(super) fn connect(
    module: &Module,
    uri: &Uri,
    pin: &PinSource,
    typed: &mut Option<Secret>,
) -> Result<Connection, Failure> {
    let pkcs11 = module.ready()?.clone();
    let (slot, token) = find_token(&pkcs11, uri)?;
    let session = pkcs11.open_ro_session(slot)?;
    if token.login_required() {
        log_in(module, &session, &token, pin, typed)?;
    }
    Ok(Connection { session, pkcs11, slot, process: std::process::id() })
}

/// The one token that the path of `uri` fits.
fn find_token(pkcs11: &Pkcs11, uri: &Uri) -> Result<(Slot, TokenInfo), Failure> {
    let (mut fitting, mut others) = (Vec::new(), Vec::new());
    for slot in pkcs11.get_slots_with_token()? {
        // A token that went away just now is not there.
        let Ok(token) = pkcs11.get_token_info(slot) else { continue };
        if !token.token_initialized() {
            continue;
        }
        let label = format!("{:?}", token.label());
        match fits(pkcs11, slot, &token, uri) {
            true => fitting.push((slot, token)),
            false => others.push(label),
        }
    }
    match fitting.len() {
        1 => Ok(fitting.remove(0)),
        0 => {
            let others = match others.is_empty() {
                true => "there is no token at all".to_owned(),
                false => format!("there are {}", others.join(", ")),
            };
            let reason = format!("the token is not there; {others}");
            Err(KekErrorKind::Unreachable { reason }.into())
        }
        count => Err(Failure::configuration(format!(
            "{count} tokens fit; add serial= of one of them: {}",
            fitting.iter().map(|(_, token)| token.serial_number()).collect::<Vec<_>>().join(", ")
        ))),
    }
}

fn fits(pkcs11: &Pkcs11, slot: Slot, token: &TokenInfo, uri: &Uri) -> bool {
    let library = pkcs11.get_library_info().ok();
    let info = pkcs11.get_slot_info(slot).ok();
    uri.of_token().all(|(name, wanted)| match name {
        "token" => token.label() == wanted,
        "manufacturer" => token.manufacturer_id() == wanted,
        "serial" => token.serial_number() == wanted,
        "model" => token.model() == wanted,
        "slot-id" => slot.id().to_string() == wanted,
        "slot-manufacturer" => info.as_ref().is_some_and(|i| i.manufacturer_id() == wanted),
        "slot-description" => info.as_ref().is_some_and(|i| i.slot_description() == wanted),
        "library-manufacturer" => library.as_ref().is_some_and(|l| l.manufacturer_id() == wanted),
        "library-description" => {
            library.as_ref().is_some_and(|l| l.library_description() == wanted)
        }
        "library-version" => {
            library.as_ref().is_some_and(|l| l.library_version().to_string() == wanted)
        }
        _ => false,
    })
}

/// Logs in, once: a token is locked after few wrong PINs, so one that was refused is never tried
/// again, and the last try is left to people.
fn log_in(
    module: &Module,
    session: &Session,
    token: &TokenInfo,
    source: &PinSource,
    typed: &mut Option<Secret>,
) -> Result<(), Failure> {
    let name = format!("{} ({})", token.label(), token.serial_number());
    let refuse = |reason: String| Err(KekErrorKind::AuthenticationFailed { reason }.into());
    if token.user_pin_locked() {
        return refuse(format!(
            "the PIN of the token {name} is locked; the security officer can set a new one"
        ));
    }
    if !token.user_pin_initialized() {
        return refuse(format!("the token {name} has no user PIN yet"));
    }
    if token.protected_authentication_path() {
        return match session.login(UserType::User, None) {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(()),
            Err(error) => Err(error.into()),
        };
    }
    if is_logged_in(session) {
        return Ok(());
    }
    if token.user_pin_final_try() {
        return refuse(format!(
            "one more wrong PIN would lock the token {name}: it is not tried; log in by other \
             means first, for instance: pkcs11-tool --module {} --login --test",
            module.path().display()
        ));
    }
    if token.user_pin_count_low() {
        log::warn!("the token {name} was given a wrong PIN before");
    }
    let pin = match typed.take() {
        Some(pin) => pin,
        None => read_pin(source, &name)?,
    };
    if module.has_refused(&name, &pin) {
        return refuse(format!(
            "the token {name} has refused this PIN; it is not tried again, since that would lock \
             the token"
        ));
    }
    let raw = cryptoki::types::RawAuthPin::new(Box::new(pin.expose().to_vec()));
    match session.login_with_raw(UserType::User, &raw) {
        Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {
            if *source == PinSource::Terminal {
                *typed = Some(pin);
            }
            Ok(())
        }
        Err(Error::Pkcs11(
            code @ (RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange),
            _,
        )) => {
            module.remember_refused(&name, pin);
            log::warn!("the token {name} refused the PIN ({code:?})");
            refuse(format!("the token {name} refused the PIN; it was tried once"))
        }
        Err(error) => Err(error.into()),
    }
}

/// Logins are the process's, not the session's: another session may have done it.
fn is_logged_in(session: &Session) -> bool {
    use cryptoki::session::SessionState::{RoUser, RwUser};
    session.get_session_info().is_ok_and(|info| matches!(info.session_state(), RoUser | RwUser))
}

fn read_pin(source: &PinSource, token: &str) -> Result<Secret, Failure> {
    let pin = match source {
        PinSource::File(path) => file::read_line(path, ("read the PIN from", "PIN"), PIN_BYTES_MAX)
            .map_err(|error| Failure::configuration(error.to_string()).caused_by(error))?,
        PinSource::Terminal => {
            let typed = rpassword::prompt_password(format!("PIN of the token {token}: "));
            let typed = Zeroizing::new(typed.map_err(|error| {
                Failure::configuration(no_pin("cannot ask for the PIN")).caused_by(error)
            })?);
            Secret::from_fn(typed.len(), |bytes| bytes.copy_from_slice(typed.as_bytes()))
        }
        PinSource::None => return Err(Failure::configuration(no_pin("no PIN"))),
    };
    match pin.len() {
        0 => Err(Failure::configuration("the PIN is empty".to_owned())),
        _ => Ok(pin),
    }
}

fn no_pin(fact: &str) -> String {
    format!(
        "{fact}: put it into a file that others cannot read, and name that with the key, as in \
         'pkcs11:…?pin-source=/PATH', in {PIN_VARIABLE}, or as the credential {CREDENTIAL}"
    )
}

/// The library for `uri`, by what the operator said.
///
/// # Errors
/// `Configuration`.
pub(super) fn module_for(path: &Result<PathBuf, String>) -> Result<&'static Module, Failure> {
    match path {
        Ok(path) => module::load(path),
        Err(problem) => Err(Failure::configuration(problem.clone())),
    }
}
