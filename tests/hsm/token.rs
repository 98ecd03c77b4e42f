//! Tokens of SoftHSM and NSS, and a module in front of them that fails on demand.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use atrest::format::VolumeId;
use atrest::key::{
    Authorization, Binding, KekError, KekProvider, ProviderOptions, provider_from_uri,
};
use cryptoki::object::Attribute;

use crate::programs::{configure_softhsm, output, write_private};
use crate::softhsm;

pub const PIN: &str = "271828-secret";
pub const BINDING: Binding = Binding { volume_id: VolumeId([7; 16]) };
pub const OTHER: Binding = Binding { volume_id: VolumeId([8; 16]) };

/// What a case knows of its token.
pub struct Token {
    pub scratch: PathBuf,
    pub module: PathBuf,
}

/// Makes a token of SoftHSM called `kek`.
pub fn softhsm(scratch: &Path) -> (Vec<(&'static str, OsString)>, ()) {
    let configuration = configure_softhsm(scratch, PIN);
    let environment = vec![("SOFTHSM2_CONF", configuration)];
    make_token(&environment, "kek");
    (environment, ())
}

/// As [`softhsm`], with the module in front of it.
pub fn shimmed(scratch: &Path) -> (Vec<(&'static str, OsString)>, ()) {
    let (mut environment, ()) = softhsm(scratch);
    build_shim(scratch);
    environment.push(("SHIM_MODULE", softhsm::MODULE.into()));
    environment.push(("SHIM_LOG", scratch.join("calls").into()));
    environment.push(("SHIM_ORDERS", scratch.join("orders").into()));
    (environment, ())
}

/// Makes a token of NSS, `NSS Certificate DB`, behind the module that passes it its parameters.
pub fn nss(scratch: &Path) -> (Vec<(&'static str, OsString)>, ()) {
    let module = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64"]
        .map(|directory| Path::new(directory).join("libsoftokn3.so"));
    let module = module.iter().find(|path| path.exists()).expect("the package libnss3 is needed");
    let database = format!("sql:{}", scratch.display());
    let pin = write_private(&scratch.join("pin"), PIN);
    output("certutil", &["-N", "-d", &database, "-f", pin.to_str().expect("ASCII")]);
    build_shim(scratch);
    let environment = vec![
        ("SHIM_MODULE", module.into()),
        ("SHIM_PARAMETERS", format!("configDir='{database}'").into()),
        ("SHIM_ORDERS", scratch.join("orders").into()),
    ];
    (environment, ())
}

fn build_shim(scratch: &Path) {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/hsm/shim.c");
    let target = scratch.join("shim.so");
    let target = target.to_str().expect("ASCII");
    output("cc", &["-shared", "-fPIC", "-O1", "-w", "-o", target, source, "-ldl"]);
}

fn make_token(environment: &[(&'static str, OsString)], label: &str) {
    let made = std::process::Command::new("softhsm2-util")
        .args(["--init-token", "--free", "--label", label, "--so-pin", "31415926", "--pin", PIN])
        .envs(environment.iter().cloned())
        .output()
        .expect("the package softhsm2 is needed");
    assert!(made.status.success(), "{made:?}");
}

impl Token {
    /// The token of this case's process, behind `shim.so` if there is one.
    pub fn new(scratch: &Path) -> Self {
        let shim = scratch.join("shim.so");
        let module = if shim.exists() { shim } else { softhsm::MODULE.into() };
        Self { scratch: scratch.to_owned(), module }
    }

    /// Makes another token.
    pub fn another(&self, label: &str) {
        make_token(&[], label);
    }

    /// Makes a key with pkcs11-tool.
    pub fn make(&self, key_type: &str, label: &str, id: &str, more: &[&str]) {
        let what = if key_type.starts_with("AES") { "--keygen" } else { "--keypairgen" };
        self.tool(&[&[what, "--key-type", key_type, "--label", label, "--id", id], more].concat());
    }

    /// Makes an AES key of SoftHSM that may do what `uses` says, from a day on if it says one.
    pub fn make_aes(&self, label: &str, id: u8, uses: &[Attribute]) {
        softhsm::make_aes(PIN, label, id, uses);
    }

    /// Runs pkcs11-tool, logged in, on SoftHSM or NSS directly.
    pub fn tool(&self, arguments: &[&str]) -> String {
        let module = if self.is_nss() { self.module.clone() } else { softhsm::MODULE.into() };
        let label =
            if module == self.module && self.is_nss() { "NSS Certificate DB" } else { "kek" };
        let module = module.to_str().expect("ASCII");
        let login = ["--module", module, "--token-label", label, "--login", "--pin", PIN];
        output("pkcs11-tool", &[&login, arguments].concat())
    }

    fn is_nss(&self) -> bool {
        std::env::var_os("SHIM_PARAMETERS").is_some()
    }

    /// The operator's URI for `path`.
    pub fn uri(&self, path: &str) -> String {
        let (module, pin) = (self.module.display(), self.scratch.join("pin"));
        format!("pkcs11:{path}?module-path={module}&pin-source={}", pin.display())
    }

    /// The provider of `uri`, which the operator typed.
    pub fn provider_of(&self, uri: &str) -> Result<Arc<dyn KekProvider>, KekError> {
        let options = ProviderOptions {
            authorization: Authorization::default().allow(uri),
            ..ProviderOptions::default()
        };
        provider_from_uri(uri, &options)
    }

    /// The provider of the key labelled `label`, anew.
    pub fn provider(&self, label: &str) -> Arc<dyn KekProvider> {
        let token = if self.is_nss() { "NSS%20Certificate%20DB" } else { "kek" };
        self.provider_of(&self.uri(&format!("token={token};object={label}"))).expect("a URI")
    }

    /// What the module in front is to do.
    pub fn order(&self, lines: &str) {
        std::fs::write(self.scratch.join("orders"), lines).expect("writable");
    }

    /// How often `name` was called through the module in front.
    pub fn calls(&self, name: &str) -> usize {
        let calls = std::fs::read_to_string(self.scratch.join("calls")).unwrap_or_default();
        calls.lines().filter(|line| *line == name).count()
    }
}
