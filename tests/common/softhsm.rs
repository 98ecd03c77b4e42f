//! Keys on a token of SoftHSM that no command-line tool makes: with dates, or with fewer rights.

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;

/// Where Debian has the library.
pub const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";

/// Runs `work` on the only token, logged in. The library is the process's: the provider may have
/// initialised it before, and may be logged in.
pub fn with_session(pin: &str, work: impl FnOnce(&Session)) {
    let pkcs11 = Pkcs11::new(MODULE).expect("the package softhsm2 is needed");
    _ = pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK));
    let slot = pkcs11.get_slots_with_initialized_token().expect("there are")[0];
    let session = pkcs11.open_rw_session(slot).expect("a session");
    match session.login(UserType::User, Some(&AuthPin::new(pin.into()))) {
        Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {}
        Err(error) => panic!("{error}"),
    }
    work(&session);
}

/// Makes an AES key that may do what `uses` says, from a day on if it says one.
pub fn make_aes(pin: &str, label: &str, id: u8, uses: &[Attribute]) {
    let mut template = vec![
        Attribute::Token(true),
        Attribute::Sensitive(true),
        Attribute::ValueLen(32.into()),
        Attribute::Label(label.as_bytes().to_vec()),
        Attribute::Id(vec![id]),
    ];
    // SoftHSM allows what is not forbidden, and does not find the dates of private keys again.
    let is_dated = |given: &Attribute| {
        matches!(given.attribute_type(), AttributeType::StartDate | AttributeType::EndDate)
    };
    let defaults = [
        Attribute::Private(!uses.iter().any(is_dated)),
        Attribute::Encrypt(false),
        Attribute::Decrypt(false),
        Attribute::Wrap(false),
        Attribute::Unwrap(false),
    ];
    let is_given = |kind| uses.iter().any(|given: &Attribute| given.attribute_type() == kind);
    template.extend(defaults.into_iter().filter(|one| !is_given(one.attribute_type())));
    template.extend_from_slice(uses);
    with_session(pin, |session| {
        session.generate_key(&Mechanism::AesKeyGen, &template).expect("it is made");
    });
}
