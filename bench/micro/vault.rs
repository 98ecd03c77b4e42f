//! What `atrest vault` makes of a processor: RSA unwraps a second, beside aws-lc alone, and how
//! long they take at half of that.
//!
//! `cargo bench --bench vault`. Three rows for each key size: the library in a loop on one thread;
//! the operation without a network (route, guards, lookup, JSON); over http on loopback, with as
//! many connections as processors, client and server sharing them. Then 10 seconds of requests at
//! half of that last rate, begun on schedule whether or not earlier ones have ended, and their
//! latencies from when they should have begun.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use atrest::key::pin::PinStore;
use atrest::key::{ProviderOptions, provider_from_uri};
use atrest::vault::access::{
    Access, Audit, AuditFailed, AuditRecord, Authenticator, Challenge, Decision, Identity, Object,
    Policy,
};
use atrest::vault::route::Permission;
use atrest::vault::server::{Listen, Server, Stop};
use atrest::vault::{Request, Service, Settings, Vault};
use aws_lc_rs::rsa::{
    KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, OaepPublicEncryptingKey,
    PrivateDecryptingKey,
};
use serde_json::{Value, json};

const SPAN: Duration = Duration::from_secs(5);
const PLAIN: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";

/// Lets everybody in: what is measured is the rest.
struct Open;

impl Authenticator for Open {
    fn authenticate(&self, _: Option<&str>, _: &Request) -> Result<Identity, Challenge> {
        let id = || "11111111-1111-1111-1111-111111111111".to_owned();
        Ok(Identity { object_id: id(), application_id: None, name: "bench".into() })
    }
}

impl Policy for Open {
    fn decide(&self, _: &Identity, _: Permission, _: &Object) -> Decision {
        Decision::Allow
    }
}

impl Audit for Open {
    fn record(&self, _: &AuditRecord) -> Result<(), AuditFailed> {
        Ok(())
    }
}

fn main() {
    let place = tempfile::tempdir().expect("a directory");
    let options = ProviderOptions {
        key_store: Some(place.path().join("keys")),
        create_local_key: true,
        ..ProviderOptions::default()
    };
    let provider = provider_from_uri("local:bench", &options).expect("allowed");
    let pins = || PinStore::new(place.path().join("pins"));
    let directory = place.path().join("vault");
    Vault::create(&directory, &*provider, &Settings::default(), pins()).expect("made");
    let vault = Vault::open(&directory, &options, pins(), "bench", false).expect("opened");
    let access = Access {
        authenticator: Box::new(Open),
        policy: Box::new(Open),
        audit: Box::new(Open),
        ..Access::closed()
    };
    let service = Arc::new(Service::new(vault.store.clone(), access));
    let any = "127.0.0.1:0".parse().expect("an address");
    let server =
        Server::bind(service.clone(), vec![Listen::Plain(any)], &directory).expect("bound");
    let address = server.addresses()[0];
    let stop = Stop::new();
    let told = stop.clone();
    let thread = std::thread::spawn(move || server.run(&told));
    for (bits, size) in
        [(2048, KeySize::Rsa2048), (3072, KeySize::Rsa3072), (4096, KeySize::Rsa4096)]
    {
        measure(bits, size, &service, address);
    }
    stop.stop();
    thread.join().expect("it ends");
}

fn measure(bits: u32, size: KeySize, service: &Service, address: SocketAddr) {
    let library = library(size);
    let (target, body) = prepare(bits, service);
    let direct = rate(1, &|| {
        let request = Request::of_operator(hyper::Method::POST, &target, Some(body.as_bytes()));
        assert_eq!(service.handle(&request).status, 200);
    });
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let http = over_http(cpus, address, &target, &body);
    println!(
        "RSA-{bits}: library {library:.0}/s, operation {direct:.0}/s on one thread; over http \
         {http:.0}/s on {cpus} processors, {:.0}/s each",
        http / cpus as f64
    );
    let mut latencies = at_rate(http / 2.0, address, &target, &body);
    latencies.sort_unstable();
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize];
    println!(
        "RSA-{bits} at {:.0}/s: median {:?}, 99 % {:?}, largest {:?}",
        http / 2.0,
        at(0.5),
        at(0.99),
        at(1.0)
    );
}

/// The library's own unwraps a second, on one thread.
fn library(size: KeySize) -> f64 {
    let key = PrivateDecryptingKey::generate(size).expect("a key");
    let public = OaepPublicEncryptingKey::new(key.public_key()).expect("RSA");
    let private = OaepPrivateDecryptingKey::new(key).expect("RSA");
    let mut sealed = vec![0; public.ciphertext_size()];
    public.encrypt(&OAEP_SHA256_MGF1SHA256, &[7; 32], &mut sealed, None).expect("it fits");
    let mut plain = vec![0; private.min_output_size()];
    let begun = Instant::now();
    let mut count = 0;
    while begun.elapsed() < SPAN {
        private.decrypt(&OAEP_SHA256_MGF1SHA256, &sealed, &mut plain, None).expect("just sealed");
        count += 1;
    }
    f64::from(count) / begun.elapsed().as_secs_f64()
}

/// Makes a key and wraps with it: target and body of a request that unwraps.
fn prepare(bits: u32, service: &Service) -> (String, String) {
    let ask = |path: &str, body: Value| -> Value {
        let target = format!("{path}?api-version=7.4");
        let body = body.to_string();
        let request = Request::of_operator(hyper::Method::POST, &target, Some(body.as_bytes()));
        serde_json::from_slice(&service.handle(&request).body).expect("JSON")
    };
    ask(&format!("/keys/rsa-{bits}/create"), json!({ "kty": "RSA", "key_size": bits }));
    let plain = json!({ "alg": "RSA-OAEP-256", "value": PLAIN });
    let wrapped = ask(&format!("/keys/rsa-{bits}/wrapkey"), plain);
    let kid = wrapped["kid"].as_str().expect("a kid").strip_prefix("https://localhost");
    let target = format!("{}/unwrapkey?api-version=7.4", kid.expect("this vault's"));
    (target, json!({ "alg": "RSA-OAEP-256", "value": wrapped["value"] }).to_string())
}

fn rate(threads: usize, run: &(dyn Fn() + Sync)) -> f64 {
    let count = AtomicU64::new(0);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while begun.elapsed() < SPAN {
                    run();
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    count.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64()
}

struct Client(TcpStream);

impl Client {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("it listens");
        stream.set_nodelay(true).expect("TCP");
        Self(stream)
    }

    fn post(&mut self, target: &str, body: &str) {
        let request = format!(
            "POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.0.write_all(request.as_bytes()).expect("it reads");
        let mut reply = [0; 4096];
        let mut length = 0;
        // Replies are small, and end with the body's brace.
        while length == 0 || reply[length - 1] != b'}' {
            length += self.0.read(&mut reply[length..]).expect("it answers");
        }
        assert!(reply.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&reply));
    }
}

fn over_http(connections: usize, address: SocketAddr, target: &str, body: &str) -> f64 {
    let count = AtomicU64::new(0);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..connections * 2 {
            scope.spawn(|| {
                let mut client = Client::connect(address);
                while begun.elapsed() < SPAN {
                    client.post(target, body);
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    count.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64()
}

/// Latencies of requests that begin at `rate` a second for ten seconds, over 16 connections.
fn at_rate(rate: f64, address: SocketAddr, target: &str, body: &str) -> Vec<Duration> {
    let total = (rate * 10.0) as u64;
    let next = AtomicU64::new(0);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..16)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = Client::connect(address);
                    let mut latencies = Vec::new();
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= total {
                            return latencies;
                        }
                        let due = begun + Duration::from_secs_f64(number as f64 / rate);
                        std::thread::sleep(due.saturating_duration_since(Instant::now()));
                        client.post(target, body);
                        latencies.push(due.elapsed());
                    }
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    })
}
