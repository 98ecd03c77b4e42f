//! What every provider promises, tried on a peer.
//!
//! Each promise is a function of the peer; what a peer cannot be made to do is in its [`Row`], with
//! the reason. Errors are printed as a user, a log and a debugger would see them, so that the
//! process above can search them for secrets.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Instant;

use atrest::crypto::{Cipher, Secret};
use atrest::format::VolumeId;
use atrest::format::config::{Config, KekReference};
use atrest::key::{
    Binding, KekError, KekErrorKind, KekProvider, KeyError, ProviderOptions, VolumeKeys, Wrapped,
    provider_from_uri,
};

use crate::peer::{ACTS, Act, Peer, Quirk, Row};

/// What is wrapped: known, so that it can be searched for.
pub const SECRET: [u8; 32] = *b"this is the wrapped volume key 1";
const SECOND_SECRET: [u8; 32] = *b"this is the wrapped volume key 2";
pub const BINDING: Binding = Binding { volume_id: VolumeId([0x11; 16]) };
const OTHER_BINDING: Binding = Binding { volume_id: VolumeId([0x22; 16]) };
/// Longer blobs are changed in so many places, evenly spread; each costs a request.
const CHANGES_MAX: usize = 64;
/// Opens of one volume.
const OPENS: usize = 100;

/// Tries everything, and returns what must not have been shown.
pub fn try_all(peer: &dyn Peer) -> Vec<Vec<u8>> {
    let row = peer.row();
    row_is_explicit(row);
    let step = |name: &str, run: &dyn Fn(&dyn Peer)| {
        let begun = Instant::now();
        run(peer);
        eprintln!("{}: {name}: {} ms", row.name, begun.elapsed().as_millis());
    };
    step("round trip", &round_trip);
    step("another key", &another_key);
    step("changed blobs", &changed_blobs);
    step("another volume", &another_volume);
    step("malformed slots", &malformed_slots);
    step("many at once", &many_at_once);
    step("rotation", &rotation);
    step("disabled", &disabled);
    step("revoked", &revoked);
    step("mounted", &crate::mounted::try_all);
    if peer.network().is_some() {
        step("network", &crate::network::try_all);
    }
    step("deleted", &deleted);
    let mut secrets = peer.secrets();
    secrets.extend([SECRET.to_vec(), SECOND_SECRET.to_vec()]);
    secrets
}

/// A row that does not offer everything says why; what can be taken away can be given back.
fn row_is_explicit(row: &Row) {
    let all = ACTS.iter().all(|act| row.offers(*act));
    assert!(all == row.not_offered.is_empty(), "{row:?}");
    assert_eq!(row.offers(Act::Disable), row.offers(Act::Enable), "{row:?}");
    assert_eq!(row.offers(Act::Revoke), row.offers(Act::Restore), "{row:?}");
}

pub fn secret() -> Secret {
    Secret::new(Box::new(SECRET))
}

/// A provider of its own, as a process of its own would have.
pub fn fresh(peer: &dyn Peer) -> Arc<dyn KekProvider> {
    shown(provider_from_uri(&peer.uri(), &peer.options())).expect("the key is authorised")
}

pub fn wrap(provider: &dyn KekProvider) -> (KekReference, Vec<u8>) {
    let Wrapped { kek, mut blobs } =
        shown(provider.wrap(&BINDING, &[&secret()])).expect("the key wraps");
    assert_eq!(blobs.len(), 1);
    (kek, blobs.remove(0))
}

/// Prints an error in every way there is.
pub fn shown<T>(result: Result<T, KekError>) -> Result<T, KekError> {
    if let Err(error) = &result {
        eprintln!("refused: {error}\n{error:?}\n{:?}", error.kind());
        let mut cause = error.source();
        while let Some(error) = cause {
            eprintln!("because: {error}\n{error:?}");
            cause = error.source();
        }
        assert!(!error.to_string().is_empty() && !error.provider().is_empty());
    }
    result
}

fn assert_same(unwrapped: Result<Secret, KekError>) {
    assert!(shown(unwrapped).expect("it unwraps").is_same(&secret()));
}

/// That it failed, and how.
pub fn failure<T>(result: Result<T, KekError>, expected: impl Fn(&KekErrorKind) -> bool) {
    match shown(result) {
        Ok(_) => panic!("it succeeded"),
        Err(error) => assert!(expected(error.kind()), "not the kind of error: {error:?}"),
    }
}

/// What is wrapped unwraps, here and in another process, and the reference says what it should.
fn round_trip(peer: &dyn Peer) {
    let provider = fresh(peer);
    let second = Secret::new(Box::new(SECOND_SECRET));
    let wrapped = shown(provider.wrap(&BINDING, &[&secret(), &second])).expect("the key wraps");
    let Wrapped { kek, blobs } = wrapped;
    assert_eq!(blobs.len(), 2);
    assert!(provider.algorithms().contains(&kek.algorithm), "{kek:?}");
    for text in [&kek.key_id, &kek.key_version] {
        assert!(!text.is_empty() && text.len() <= 512, "{kek:?}");
        assert!(text.bytes().all(|byte| byte.is_ascii_graphic()), "{kek:?}");
    }
    for blob in &blobs {
        assert!((1..=1024).contains(&blob.len()), "{} bytes", blob.len());
        for plain in [&SECRET, &SECOND_SECRET] {
            assert!(!blob.windows(32).any(|window| window == plain), "it is not wrapped at all");
        }
    }
    let other = fresh(peer);
    assert_eq!(other.uri(), provider.uri());
    assert_same(other.unwrap(&BINDING, &kek, &blobs[0]));
    let unwrapped = shown(other.unwrap(&BINDING, &kek, &blobs[1])).expect("it unwraps");
    assert!(unwrapped.is_same(&second), "the order is kept");
    let newest = shown(provider.latest_version()).expect("it is known");
    assert!(newest.is_none_or(|version| version == kek.key_version));
    shown(provider.health()).expect("the condition of a key that works can be had");
}

/// A key that did not wrap does not unwrap.
fn another_key(peer: &dyn Peer) {
    if peer.row().quirks.contains(&Quirk::TakesAnyKey) {
        return;
    }
    let (kek, blob) = wrap(&*fresh(peer));
    let other = provider_from_uri(&peer.other_uri(), &peer.options());
    let other = shown(other).expect("the other key is authorised");
    let (other_kek, _) = wrap(&*other);
    failure(other.unwrap(&BINDING, &other_kek, &blob), is_no_outage);
    // Nor does a slot of one key open by a provider of the other.
    if other_kek.key_id != kek.key_id {
        failure(other.unwrap(&BINDING, &kek, &blob), is_no_outage);
    }
}

/// Something about the key or the blob, rather than about the way to it.
fn is_no_outage(kind: &KekErrorKind) -> bool {
    match kind {
        KekErrorKind::Integrity
        | KekErrorKind::BadRequest { .. }
        | KekErrorKind::Gone { .. }
        | KekErrorKind::Denied { .. }
        | KekErrorKind::Configuration { .. } => true,
        KekErrorKind::Disabled
        | KekErrorKind::Throttled { .. }
        | KekErrorKind::Unreachable { .. }
        | KekErrorKind::AuthenticationFailed { .. } => false,
    }
}

/// A blob of which a byte is changed, added or missing does not unwrap to anything that was
/// wrapped, and says that the blob is at fault, not the key or the network.
fn changed_blobs(peer: &dyn Peer) {
    let provider = fresh(peer);
    let (kek, blob) = wrap(&*provider);
    let step = blob.len().div_ceil(CHANGES_MAX).max(1);
    let last = blob.len() - 1;
    let places = (0..blob.len()).step_by(step).chain([last]);
    let mut changed: Vec<Vec<u8>> = places
        .map(|at| {
            let mut changed = blob.clone();
            changed[at] ^= 0x04;
            changed
        })
        .collect();
    changed.push(blob[..last].to_vec());
    changed.push(blob[1..].to_vec());
    changed.push([&blob[..], b"\0"].concat());
    changed.push(Vec::new());
    changed.push(vec![b'x'; 1024]);
    for changed in changed {
        let result = shown(provider.unwrap(&BINDING, &kek, &changed));
        match result {
            // The bytes may have said nothing; if they did, the volume's MACs notice.
            Ok(_) if !peer.row().authenticates => {}
            Ok(_) => panic!("a changed blob unwraps: {changed:?}"),
            Err(error) => {
                assert!(is_no_outage(error.kind()), "{changed:?}: {error:?}");
                let denies = peer.row().quirks.contains(&Quirk::DeniesChanged);
                assert!(denies || !error.is_definitive(), "a changed blob is no denial: {error:?}");
            }
        }
    }
    assert_same(provider.unwrap(&BINDING, &kek, &blob));
}

/// Where the algorithm takes associated data, a blob of another volume does not unwrap.
fn another_volume(peer: &dyn Peer) {
    let provider = fresh(peer);
    let (kek, blob) = wrap(&*provider);
    let result = provider.unwrap(&OTHER_BINDING, &kek, &blob);
    match peer.row().binds {
        true => failure(result, |kind| {
            matches!(kind, KekErrorKind::Integrity | KekErrorKind::BadRequest { .. })
        }),
        false => assert_same(result),
    }
}

/// What somebody wrote into `atrest.json` is refused in words, whatever it is.
fn malformed_slots(peer: &dyn Peer) {
    let provider = fresh(peer);
    let (kek, blob) = wrap(&*provider);
    let long = "9".repeat(512);
    for text in [
        "0",
        "-1",
        "99999999999999999999",
        "../../secrets/x",
        "a/b",
        "?x=y",
        "#",
        "%2e%2e",
        "\\",
        "https://evil.example/keys/k/v",
        "x;y",
        "'\"",
        "latest",
        &long,
    ] {
        for (key_id, key_version) in
            [(kek.key_id.as_str(), text), (text, kek.key_version.as_str()), (text, text)]
        {
            let (key_id, key_version) = (key_id.to_owned(), key_version.to_owned());
            let strange = KekReference { key_id, key_version, ..kek.clone() };
            // A name that means nothing to a provider may be ignored by it; the MAC protects it.
            if let Ok(key) = shown(provider.unwrap(&BINDING, &strange, &blob)) {
                assert!(key.is_same(&secret()));
            }
        }
    }
    let uri = peer.uri();
    for more in ["/", "/..", "/a/b/c/d", "?", "?x", "#", "%00", "\n", " ", "\u{e9}", &long] {
        let strange = format!("{uri}{more}");
        let options = peer.options();
        let authorization = options.authorization.clone().allow(&strange);
        let options = ProviderOptions { authorization, ..options };
        let made = provider_from_uri(&strange, &options);
        if let Ok(provider) = shown(made) {
            // Anything but the same secret by another name, or a panic.
            let _ = shown(provider.unwrap(&BINDING, &kek, &blob));
        }
    }
}

/// A volume whose slot 1 is the peer's key.
fn volume(peer: &dyn Peer) -> (Config, VolumeKeys) {
    let provider = fresh(peer);
    let created = VolumeKeys::create(BINDING.volume_id, Cipher::Aes256Gcm, &*provider);
    created.unwrap_or_else(|error| panic!("{error:?}"))
}

/// One volume is opened by a hundred hosts at once.
fn many_at_once(peer: &dyn Peer) {
    let (config, keys) = volume(peer);
    let options = peer.options();
    let gate = Gate::new(peer.row().at_once);
    std::thread::scope(|scope| {
        let open = || {
            let _turn = gate.enter();
            VolumeKeys::open(config.bytes(), &options)
        };
        let threads: Vec<_> = (0..OPENS).map(|_| scope.spawn(open)).collect();
        for thread in threads {
            let opened = thread.join().expect("no thread panics");
            let opened = opened.unwrap_or_else(|error| panic!("{error:?}"));
            assert_eq!((opened.slot, opened.keys.pin()), (1, keys.pin()));
        }
    });
}

/// Lets so many in at a time.
pub struct Gate(parking_lot::Mutex<usize>, parking_lot::Condvar);

impl Gate {
    /// For so many.
    pub fn new(places: usize) -> Self {
        Self(parking_lot::Mutex::new(places), parking_lot::Condvar::new())
    }

    /// Waits for a place.
    pub fn enter(&self) -> Turn<'_> {
        let mut free = self.0.lock();
        self.1.wait_while(&mut free, |free| *free == 0);
        *free -= 1;
        Turn(self)
    }
}

/// A place, until it is dropped.
pub struct Turn<'a>(&'a Gate);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.0.0.lock() += 1;
        self.0.1.notify_one();
    }
}

/// After a rotation the old blob opens, what is new is wrapped under the new version, and the slots
/// of a volume follow.
fn rotation(peer: &dyn Peer) {
    if !peer.row().offers(Act::Rotate) {
        return;
    }
    let provider = fresh(peer);
    let (old_kek, old_blob) = wrap(&*provider);
    let (config, keys) = volume(peer);
    peer.act(Act::Rotate);
    let newest = shown(provider.latest_version()).expect("it is known").expect("it has versions");
    assert_ne!(newest, old_kek.key_version);
    let (new_kek, new_blob) = wrap(&*provider);
    assert_eq!((new_kek.key_version.as_str(), &new_kek.key_id), (&*newest, &old_kek.key_id));
    let other = fresh(peer);
    assert_same(other.unwrap(&BINDING, &old_kek, &old_blob));
    assert_same(other.unwrap(&BINDING, &new_kek, &new_blob));
    let (rotated, _) =
        keys.rotate_slots(&config, &peer.options(), false).expect("the result is in bounds");
    let rotated = rotated.expect("the slot was outdated");
    assert_eq!(rotated.data().slots[0].kek.key_version, newest);
    for config in [&config, &rotated] {
        let opened = VolumeKeys::open(config.bytes(), &peer.options());
        assert_eq!(opened.unwrap_or_else(|error| panic!("{error:?}")).keys.pin(), keys.pin());
    }
}

/// A key that is switched off does not unwrap, says so, and does again when it is on.
fn disabled(peer: &dyn Peer) {
    if !peer.row().offers(Act::Disable) {
        return;
    }
    let provider = fresh(peer);
    let (kek, blob) = wrap(&*provider);
    peer.act(Act::Disable);
    for provider in [provider, fresh(peer)] {
        failure(provider.unwrap(&BINDING, &kek, &blob), |kind| {
            matches!(kind, KekErrorKind::Disabled)
        });
    }
    peer.act(Act::Enable);
    assert_same(fresh(peer).unwrap(&BINDING, &kek, &blob));
}

/// A deleted key does not unwrap, says so, and a volume does not open by a weaker slot instead.
fn deleted(peer: &dyn Peer) {
    if !peer.row().offers(Act::Delete) {
        return;
    }
    let provider = fresh(peer);
    let (kek, blob) = wrap(&*provider);
    let (config, keys) = volume(peer);
    let scratch = tempfile::tempdir().expect("a directory");
    let options = ProviderOptions {
        key_store: Some(scratch.path().join("keys")),
        create_local_key: true,
        ..peer.options()
    };
    let weaker = provider_from_uri("local:weaker", &options).expect("it is allowed");
    let (config, _) = keys.add_slot(&config, &*weaker).expect("there is room");
    peer.act(Act::Delete);
    for provider in [provider, fresh(peer)] {
        failure(provider.unwrap(&BINDING, &kek, &blob), |kind| {
            matches!(kind, KekErrorKind::Gone { .. })
        });
    }
    match VolumeKeys::open(config.bytes(), &options).map(|opened| opened.slot) {
        Err(KeyError::Denied { untried, .. }) => assert_eq!(untried, [2]),
        other => panic!("a deleted key does not end the attempt: {other:?}"),
    }
    let by_second = ProviderOptions { slot: Some(2), ..options };
    assert!(VolumeKeys::open(config.bytes(), &by_second).is_ok(), "the second slot is asked for");
    if peer.row().offers(Act::Recover) {
        peer.act(Act::Recover);
        assert_same(fresh(peer).unwrap(&BINDING, &kek, &blob));
    }
}

/// Once the credential is taken away, neither a provider that had it nor a new one unwraps.
fn revoked(peer: &dyn Peer) {
    if !peer.row().offers(Act::Revoke) {
        return;
    }
    let provider = fresh(peer);
    let (kek, blob) = wrap(&*provider);
    let options = peer.options();
    peer.act(Act::Revoke);
    let again = provider_from_uri(&peer.uri(), &options).expect("the key is authorised");
    for provider in [provider, again] {
        failure(provider.unwrap(&BINDING, &kek, &blob), |kind| {
            let denied = matches!(kind, KekErrorKind::Denied { .. });
            denied || matches!(kind, KekErrorKind::AuthenticationFailed { .. })
        });
    }
    peer.act(Act::Restore);
    assert_same(fresh(peer).unwrap(&BINDING, &kek, &blob));
}
