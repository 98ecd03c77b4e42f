//! What every provider in a network promises when the network, TLS or the service does wrong.

use std::sync::Arc;
use std::time::{Duration, Instant};

use atrest::format::config::KekReference;
use atrest::key::{KekError, KekErrorKind, KekProvider, provider_from_uri};

use crate::certificates::Shown;
use crate::contract::{BINDING, failure, fresh, secret, shown, wrap};
use crate::peer::{NetworkPeer, Peer};
use crate::proxy::{Fault, Proxy, closed_address};

/// A mount must not hang for longer, whatever the service does: the time-outs of
/// [`NetworkPeer::options_at`], and room for a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A provider behind the proxy, and what it can unwrap.
struct Road<'a> {
    network: &'a dyn NetworkPeer,
    proxy: Proxy,
    kek: KekReference,
    blob: Vec<u8>,
    _scratch: tempfile::TempDir,
}

/// Tries all faults.
pub fn try_all(peer: &dyn Peer) {
    let network = peer.network().expect("it is in a network");
    let scratch = tempfile::tempdir().expect("a directory");
    let proxy = Proxy::start(&network.address(), &network.ca_file(), scratch.path());
    let (kek, blob) = wrap(&*fresh(peer));
    let mut road = Road { network, proxy, kek, blob, _scratch: scratch };
    // A reference may name the way: wrap anew by this one.
    let (kek, blob) = wrap(&*road.provider());
    (road.kek, road.blob) = (kek, blob);
    road.expect_success("nothing wrong");
    road.network_faults();
    road.tls_faults();
    road.http_faults();
    road.busy();
    road.mid_life();
    road.expect_success("after all");
}

impl Road<'_> {
    fn provider_at(&self, origin: &str) -> Result<Arc<dyn KekProvider>, KekError> {
        let options = self.network.options_at(origin, self.proxy.ca_file());
        provider_from_uri(&self.network.uri_at(origin), &options)
    }

    fn provider(&self) -> Arc<dyn KekProvider> {
        shown(self.provider_at(&self.proxy.origin())).expect("the key is authorised")
    }

    fn unwrap(&self, provider: &dyn KekProvider) -> Result<(), KekError> {
        self.unwrap_at(&self.proxy.origin(), provider)
    }

    /// With a reference that names the way by `origin`, if it names one.
    fn unwrap_at(&self, origin: &str, provider: &dyn KekProvider) -> Result<(), KekError> {
        let mut kek = self.kek.clone();
        kek.key_id = kek.key_id.replace(&self.proxy.origin(), origin);
        let begun = Instant::now();
        let result = provider.unwrap(&BINDING, &kek, &self.blob);
        assert!(begun.elapsed() < PATIENCE, "it took {:?}", begun.elapsed());
        result.map(|key| assert!(key.is_same(&secret())))
    }

    fn expect_success(&self, what: &str) {
        self.proxy.set(Fault::None);
        let result = shown(self.unwrap(&*self.provider()));
        assert!(result.is_ok(), "{what}: {result:?}");
    }

    /// With this fault, an outage; not a denial, and never a key.
    fn expect_outage(&self, fault: Fault) {
        eprintln!("fault: {fault:?}");
        self.proxy.set(fault);
        failure(self.unwrap(&*self.provider()), |kind| {
            matches!(kind, KekErrorKind::Unreachable { .. })
        });
    }

    /// Refused, and a black hole.
    fn network_faults(&self) {
        let origin = format!("https://localhost:{}", closed_address().port());
        let provider = self.provider_at(&origin).expect("the key is authorised");
        let is_outage = |kind: &KekErrorKind| matches!(kind, KekErrorKind::Unreachable { .. });
        failure(self.unwrap_at(&origin, &*provider), is_outage);
        let unknown = "https://does-not-exist.invalid:8200";
        let provider = self.provider_at(unknown).expect("the key is authorised");
        failure(self.unwrap_at(unknown, &*provider), is_outage);
        self.expect_outage(Fault::Blackhole);
        self.expect_outage(Fault::HalfReply);
        self.expect_outage(Fault::SlowReply);
    }

    /// Whoever cannot prove to be the service gets neither credentials nor requests.
    fn tls_faults(&self) {
        self.expect_outage(Fault::TlsGarbage);
        for shown in [
            Shown::Expired,
            Shown::Future,
            Shown::SelfSigned,
            Shown::OtherAuthority,
            Shown::OtherHost,
        ] {
            self.expect_outage(Fault::Certificate(shown));
            assert_eq!(self.proxy.requests(), 0, "{shown:?}: a request was sent");
        }
    }

    /// Answers that are none.
    fn http_faults(&self) {
        for fault in [
            Fault::Redirect,
            Fault::Oversized,
            Fault::EndlessHead,
            Fault::CalledHtml,
            Fault::Portal,
            Fault::OtherJson,
        ] {
            eprintln!("fault: {fault:?}");
            self.proxy.set(fault.clone());
            match shown(self.unwrap(&*self.provider())) {
                Ok(()) => panic!("{fault:?}: a key came out"),
                Err(error) => assert!(!error.is_definitive(), "{fault:?}: {error:?}"),
            }
        }
        assert_eq!(self.proxy.trapped(), 0, "a redirect was followed");
        for (true_text, lie) in self.network.lies() {
            eprintln!("lie: {lie}");
            self.proxy.set(Fault::Replaced(true_text, lie));
            let result = shown(self.unwrap(&*self.provider()));
            assert!(result.is_err_and(|error| !error.is_definitive()), "the lie was believed");
        }
    }

    /// Throttled on the very first request, and for good; errors of the service.
    fn busy(&self) {
        self.proxy.set(Fault::Status(429, 1));
        let result = shown(self.unwrap(&*self.provider()));
        assert!(result.is_ok(), "throttled once: {result:?}");
        assert!(self.proxy.requests() >= 2);
        self.proxy.set(Fault::Status(429, usize::MAX));
        failure(self.unwrap(&*self.provider()), |kind| {
            matches!(kind, KekErrorKind::Throttled { .. })
        });
        self.proxy.set(Fault::Status(503, 1));
        let result = shown(self.unwrap(&*self.provider()));
        assert!(result.is_ok(), "away for a moment: {result:?}");
        for status in [500, 502, 503, 504] {
            self.expect_outage(Fault::Status(status, usize::MAX));
        }
    }

    /// A provider that has worked meets an outage, and works again afterwards, as a lease needs.
    fn mid_life(&self) {
        self.proxy.set(Fault::None);
        let provider = self.provider();
        shown(self.unwrap(&*provider)).expect("nothing is wrong");
        for fault in [Fault::HalfReply, Fault::Portal, Fault::Status(503, usize::MAX)] {
            self.proxy.set(fault);
            let result = shown(self.unwrap(&*provider));
            assert!(result.is_err_and(|error| !error.is_definitive()));
        }
        self.proxy.set(Fault::None);
        shown(self.unwrap(&*provider)).expect("nothing is wrong any more");
    }
}
