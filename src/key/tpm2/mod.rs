//! `tpm2:pcrs=7,11`: the TPM of this host seals the volume key to the state that its platform
//! configuration registers are in (TPM 2.0 Library, part 1, "Sealed data"). For hosts without a key
//! service: the disk alone, in another host or booted in another way, opens nothing.
//!
//! The KEK is a storage key that the TPM derives from its owner seed each time (NIST P-256). A
//! version of it is a policy: the registers' values at the time of wrapping. Values that have
//! changed since are *denied*, not another key. Only the SHA-256 bank is used.
//!
//! A sealed key is self-describing: [`Sealed`].

mod tpm;

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use parking_lot::Mutex;

use self::tpm::{Failure, Tpm};
use super::{Binding, KekError, KekErrorKind, KekProvider, ProviderOptions, Wrapped};
use crate::crypto::Secret;
use crate::format::config::{Algorithm, KekReference};

/// Registers of a URI that names none: 7 is the state of Secure Boot.
const REGISTERS_DEFAULT: &[u8] = &[7];
/// Registers that a TPM of a PC has.
const REGISTERS: u8 = 24;
/// Says how the TPM is reached, as in "device:/dev/tpmrm0" or "swtpm:host=127.0.0.1,port=2321".
const TCTI_VARIABLE: &str = "ATREST_TPM2_TCTI";
/// The TPM behind the kernel's resource manager, which keeps its users apart.
const TCTI_DEFAULT: &str = "device:/dev/tpmrm0";
/// First byte of a sealed key: the form of what follows.
const FORM: u8 = 1;
/// Bytes of each register's value that a sealed key remembers, to tell which one has changed.
const TRACE_BYTES: usize = 8;
/// Bytes of the digest that is sealed with a secret.
const DIGEST_BYTES: usize = 32;
/// Longest secret: what TPMs seal is at most 128 bytes.
const SECRET_BYTES_MAX: usize = 64;
/// Bytes of the policy's digest in a version's name.
const VERSION_BYTES: usize = 16;

/// One at a time in this process: a TPM without resource manager has room for three objects.
static TURN: Mutex<()> = Mutex::new(());

/// The provider of one TPM and choice of registers.
struct Tpm2Provider {
    uri: String,
    /// Ascending.
    registers: Vec<u8>,
    tcti: String,
}

/// Makes the provider for a `tpm2:` URI; [`super::Registry`] calls it.
///
/// # Errors
/// `Configuration` if it is malformed. The TPM is not asked yet.
pub fn from_uri(uri: &str, options: &ProviderOptions) -> Result<Arc<dyn KekProvider>, KekError> {
    let registers = parse(uri).map_err(|problem| {
        let problem = format!("{problem}; as in tpm2:pcrs=7,11");
        KekError::new(KekErrorKind::Configuration { problem }, uri, "")
    })?;
    let uri = canonical(&registers);
    let named = options.settings(&uri)?.tpm2.tcti.or_else(|| std::env::var(TCTI_VARIABLE).ok());
    let tcti = named.unwrap_or_else(|| TCTI_DEFAULT.to_owned());
    Ok(Arc::new(Tpm2Provider { uri, registers, tcti }))
}

/// A `tpm2:` URI as key slots have it; `None` if it is not such a URI.
pub(super) fn canonical_uri(uri: &str) -> Option<String> {
    parse(uri).ok().map(|registers| canonical(&registers))
}

/// The registers of a URI, ascending.
fn parse(uri: &str) -> Result<Vec<u8>, &'static str> {
    let rest = uri.strip_prefix("tpm2:").ok_or("it does not begin with tpm2:")?;
    if rest.is_empty() {
        return Ok(REGISTERS_DEFAULT.to_vec());
    }
    let list = rest.strip_prefix("pcrs=").ok_or("after tpm2: there is pcrs= or nothing")?;
    let mut registers = Vec::new();
    for text in list.split(',') {
        let number = text.parse().ok().filter(|number: &u8| number.to_string() == text);
        let number = number.filter(|number| *number < REGISTERS);
        registers.push(number.ok_or("registers are numbers from 0 to 23, between commas")?);
    }
    let count = registers.len();
    registers.sort_unstable();
    registers.dedup();
    if registers.len() == count { Ok(registers) } else { Err("a register is there twice") }
}

fn canonical(registers: &[u8]) -> String {
    format!("tpm2:pcrs={}", list(registers))
}

fn list(registers: &[u8]) -> String {
    registers.iter().map(u8::to_string).collect::<Vec<_>>().join(",")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        _ = write!(text, "{byte:02x}");
        text
    })
}

/// What is stored of a secret that a TPM sealed. Integers are big-endian, as in TPMs.
///
/// ```text
/// offset size field
///      0    1 form, 1
///      1    3 registers: bit n of this integer is register n
///      4   8r the first 8 bytes of each register's value, ascending: only to say what has changed
///      …    2 length p, then p bytes: TPMT_PUBLIC; its policy is the registers' values
///      …    2 length s, then s bytes: what is in TPM2B_PRIVATE
/// ```
///
/// Sealed is the secret, then SHA-256 of the first two fields, the traces and the associated data
/// of the [`Binding`]: what is outside the TPM's own integrity cannot be changed unnoticed, either.
#[derive(Debug, PartialEq, Eq)]
struct Sealed<'a> {
    registers: Vec<u8>,
    traces: &'a [u8],
    public: &'a [u8],
    private: &'a [u8],
}

fn head(registers: &[u8], traces: &[u8]) -> Vec<u8> {
    let mask = registers.iter().fold(0_u32, |mask, register| mask | 1 << register);
    let mut head = mask.to_be_bytes().to_vec();
    head[0] = FORM;
    head.extend_from_slice(traces);
    head
}

impl<'a> Sealed<'a> {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = head(&self.registers, self.traces);
        for part in [self.public, self.private] {
            let length = u16::try_from(part.len()).expect("parts of TPM objects are short");
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(part);
        }
        bytes
    }

    /// `None` if it is not what [`Sealed::encode`] writes.
    fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (&[FORM, a, b, c], rest) = bytes.split_first_chunk::<4>()? else { return None };
        let mask = u32::from_be_bytes([0, a, b, c]);
        let registers: Vec<u8> = (0..REGISTERS).filter(|n| mask >> n & 1 == 1).collect();
        let (traces, rest) = rest.split_at_checked(registers.len() * TRACE_BYTES)?;
        let (public, rest) = part(rest)?;
        let (private, rest) = part(rest)?;
        let is_whole = rest.is_empty() && !registers.is_empty();
        is_whole.then_some(Self { registers, traces, public, private })
    }

    fn digest(&self, binding: &Binding) -> [u8; DIGEST_BYTES] {
        digest_of(&head(&self.registers, self.traces), binding)
    }

    /// The registers whose values are others than when it was sealed.
    fn changed(&self, now: &[u8]) -> Vec<u8> {
        let pairs = self.traces.chunks(TRACE_BYTES).zip(now.chunks(TRACE_BYTES));
        let changed = self.registers.iter().zip(pairs).filter(|(_, (then, now))| then != now);
        changed.map(|(register, _)| *register).collect()
    }
}

fn part(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<2>()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))
}

fn digest_of(head: &[u8], binding: &Binding) -> [u8; DIGEST_BYTES] {
    let covered = [head, binding.associated_data().as_bytes()].concat();
    digest(&SHA256, &covered).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

impl Tpm2Provider {
    fn with<T>(
        &self,
        key: &str,
        work: impl FnOnce(&mut Tpm) -> Result<T, Failure>,
    ) -> Result<T, KekError> {
        let _turn = TURN.lock();
        let mut tpm = Tpm::open(&self.tcti).map_err(|failure| self.unreachable(failure))?;
        work(&mut tpm).map_err(|failure| failure.about(&self.uri, key))
    }

    /// No TPM, or none that may be used.
    fn unreachable(&self, failure: Failure) -> KekError {
        let device = self.tcti.strip_prefix("device:").map(Path::new);
        let problem = match device.map(|path| std::fs::File::options().write(true).open(path)) {
            Some(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => {
                format!("this host has no TPM at {}", self.tcti)
            }
            Some(Err(error)) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                format!("{} may not be used by this user; its group is usually tss", self.tcti)
            }
            _ => return failure.about(&self.uri, ""),
        };
        let problem = format!("{problem}; {TCTI_VARIABLE} can name another");
        KekError::new(KekErrorKind::Configuration { problem }, &self.uri, "")
    }

    fn seal(
        &self,
        tpm: &mut Tpm,
        binding: &Binding,
        secrets: &[&Secret],
    ) -> Result<Wrapped, Failure> {
        let key_id = hex(&tpm.parent_name()?);
        let policy = tpm.policy(&self.registers)?;
        let traces = traces(&tpm.registers(&self.registers)?);
        let digest = digest_of(&head(&self.registers, &traces), binding);
        let mut blobs = Vec::new();
        for secret in secrets {
            if secret.len() > SECRET_BYTES_MAX {
                let reason = format!("a TPM seals {SECRET_BYTES_MAX} bytes at most");
                return Err(KekErrorKind::BadRequest { reason }.into());
            }
            let payload = Secret::from_fn(secret.len() + DIGEST_BYTES, |bytes| {
                let (first, last) = bytes.split_at_mut(secret.len());
                first.copy_from_slice(secret.expose());
                last.copy_from_slice(&digest);
            });
            let (public, private) = tpm.seal(&payload, &policy)?;
            let registers = self.registers.clone();
            let sealed = Sealed { registers, traces: &traces, public: &public, private: &private };
            blobs.push(sealed.encode());
        }
        let (algorithm, key_version) = (Algorithm::Tpm2Seal, hex(&policy[..VERSION_BYTES]));
        let kek = KekReference { key_id, key_version, algorithm, parameters: None };
        Ok(Wrapped { kek, blobs })
    }

    fn unseal(
        &self,
        tpm: &mut Tpm,
        binding: &Binding,
        kek: &KekReference,
        sealed: &Sealed,
    ) -> Result<Secret, Failure> {
        // Another TPM, or this one after its owner was cleared, has another storage key.
        if hex(&tpm.parent_name()?) != kek.key_id {
            return Err(KekErrorKind::Integrity.into());
        }
        let object = tpm.load(sealed.public, sealed.private)?;
        let policy = tpm.policy(&self.registers)?;
        if hex(&policy[..VERSION_BYTES]) != kek.key_version {
            let now = traces(&tpm.registers(&self.registers)?);
            return Err(self.denied(&sealed.changed(&now)));
        }
        let payload = match tpm.unseal(object, &self.registers) {
            Err(failure) if failure.is_policy() => return Err(self.denied(&[])),
            result => result?,
        };
        let Some(length) = payload.len().checked_sub(DIGEST_BYTES) else {
            return Err(KekErrorKind::Integrity.into());
        };
        let (secret, digest) = payload.expose().split_at(length);
        if digest != sealed.digest(binding) || secret.is_empty() {
            return Err(KekErrorKind::Integrity.into());
        }
        Ok(Secret::from_fn(length, |bytes| bytes.copy_from_slice(secret)))
    }

    /// The registers are not as they were.
    fn denied(&self, changed: &[u8]) -> Failure {
        let which = match changed {
            [] => String::new(),
            changed => format!(" (register {} has changed)", list(changed)),
        };
        let reason = format!(
            "it is sealed to the state of PCR {} (SHA-256), and this host is in another{which}: \
             firmware, Secure Boot or what was started is not as it was. If that is intended, open \
             the volume with another slot, and seal it anew: \
             atrest key rotate VOLUME --slot NUMBER",
            list(&self.registers)
        );
        KekErrorKind::Denied { reason }.into()
    }
}

fn traces(values: &[Vec<u8>]) -> Vec<u8> {
    values.iter().flat_map(|value| &value[..TRACE_BYTES]).copied().collect()
}

impl KekProvider for Tpm2Provider {
    fn uri(&self) -> &str {
        &self.uri
    }

    fn algorithms(&self) -> &[Algorithm] {
        &[Algorithm::Tpm2Seal]
    }

    fn wrap(&self, binding: &Binding, secrets: &[&Secret]) -> Result<Wrapped, KekError> {
        self.with("", |tpm| self.seal(tpm, binding, secrets))
    }

    fn unwrap(
        &self,
        binding: &Binding,
        kek: &KekReference,
        wrapped: &[u8],
    ) -> Result<Secret, KekError> {
        // The first bytes of a key's name are its hash's number and 20 bytes of the hash.
        let about = format!("{:.44}…/{}", kek.key_id, kek.key_version);
        let sealed = Sealed::decode(wrapped).filter(|sealed| sealed.registers == self.registers);
        let Some(sealed) = sealed.filter(|_| kek.algorithm == Algorithm::Tpm2Seal) else {
            return Err(KekError::new(KekErrorKind::Integrity, &self.uri, &about));
        };
        self.with(&about, |tpm| self.unseal(tpm, binding, kek, &sealed))
    }

    /// The policy that the registers' values of now make.
    fn latest_version(&self) -> Result<Option<String>, KekError> {
        self.with("", |tpm| Ok(Some(hex(&tpm.policy(&self.registers)?[..VERSION_BYTES]))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Registers have one spelling; what is no register is refused.
    #[test]
    fn uris() {
        let same = |uri: &str| parse(uri).map(|registers| canonical(&registers));
        assert_eq!(same("tpm2:"), Ok("tpm2:pcrs=7".to_owned()));
        assert_eq!(same("tpm2:pcrs=11,7,0,23"), Ok("tpm2:pcrs=0,7,11,23".to_owned()));
        for bad in [
            "tpm:",
            "tpm2:7",
            "tpm2:pcrs=",
            "tpm2:pcrs=24",
            "tpm2:pcrs=7,",
            "tpm2:pcrs=07",
            "tpm2:pcrs=7,7",
            "tpm2:pcrs=+7",
            "tpm2:pcrs=7;x=1",
            "tpm2:pcrs=-1",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    /// What was encoded is decoded; cut off anywhere, longer, or of another form, it is not.
    #[test]
    fn sealed_form() {
        let traces = [9; 2 * TRACE_BYTES];
        let sealed =
            Sealed { registers: vec![0, 23], traces: &traces, public: b"pub", private: b"secret" };
        let bytes = sealed.encode();
        assert_eq!(bytes[..4], [1, 0x80, 0, 1]);
        assert_eq!(Sealed::decode(&bytes), Some(sealed));
        for length in 0..bytes.len() {
            assert_eq!(Sealed::decode(&bytes[..length]), None, "{length}");
        }
        assert_eq!(Sealed::decode(&[&bytes[..], &[0]].concat()), None);
        let other = [&[2][..], &bytes[1..]].concat();
        assert_eq!(Sealed::decode(&other), None);
        assert_eq!(Sealed::decode(&[1, 0, 0, 0, 0, 0, 0, 0]), None, "no register");
        let sealed = Sealed::decode(&bytes).expect("as above");
        assert!(sealed.changed(&[9; 16]).is_empty());
        assert_eq!(sealed.changed(&[&[9; 8][..], &[8; 8]].concat()), [23]);
    }
}
