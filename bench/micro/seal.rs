//! What one core does: pages sealed and opened per second, and what keys cost.
//!
//! `cargo bench --bench seal [-- --json]`. Pages are 4 KiB, spread over 1 MiB, which fits the
//! second-level cache as requests of the kernel do. Each number is the best of five runs of a
//! tenth of a second: the machine's other work only ever slows a run down.

use std::hint::black_box;
use std::time::{Duration, Instant};

use atrest::crypto::{Cipher, Nonce, NonceSequence, PageKey, Secret, kdf, random, wrap};

const PAGE_BYTES: usize = 4096;
const PAGES: usize = 256;
/// Format, volume, inode, page index and cipher: as long as what binds a page to its place.
const AAD: [u8; 36] = [7; 36];

struct Measurement {
    name: String,
    unit: &'static str,
    value: f64,
}

fn main() {
    let mut measurements = Vec::new();
    for cipher in [Cipher::Aes256Gcm, Cipher::Aes256Xts] {
        let key = random::secret(cipher.key_bytes());
        for (backend, new) in [
            ("aws", PageKey::new as fn(Cipher, &Secret) -> PageKey),
            ("portable", PageKey::new_portable),
        ] {
            let name = format!("{}.{backend}", cipher.name());
            measurements.extend(pages(&name, &new(cipher, &key)));
            measurements.push(Measurement {
                name: format!("{name}.key_setup_and_page"),
                unit: "ns",
                value: first_page(|| new(cipher, &key)),
            });
        }
    }
    measurements.extend(keys());
    if std::env::args().any(|argument| argument == "--json") {
        let entries = measurements
            .iter()
            .map(|m| serde_json::json!({ "name": m.name, "unit": m.unit, "value": m.value }));
        println!("{}", serde_json::Value::Array(entries.collect()));
        return;
    }
    for Measurement { name, unit, value } in measurements {
        println!("{name:<44} {value:>9.2} {unit}");
    }
}

/// Seconds per call of `operation`, at best.
fn time(mut operation: impl FnMut()) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let (start, mut calls) = (Instant::now(), 0u32);
        while start.elapsed() < Duration::from_millis(100) {
            (0..16).for_each(|_| operation());
            calls += 16;
        }
        best = best.min(start.elapsed().as_secs_f64() / f64::from(calls));
    }
    best
}

fn pages(name: &str, key: &PageKey) -> [Measurement; 2] {
    let mut plaintext = vec![0; PAGES * PAGE_BYTES];
    random::fill(&mut plaintext);
    let mut sealed = vec![0; PAGES * PAGE_BYTES];
    let nonces = NonceSequence::new();
    let first = nonces.next_run(PAGES as u32);
    let tags: Vec<_> = (plaintext.chunks(PAGE_BYTES).zip(sealed.chunks_mut(PAGE_BYTES)))
        .enumerate()
        .map(|(at, (page, sealed))| key.seal(first.offset(at as u16), &AAD, page, sealed))
        .collect();
    let page = |at: usize| at * PAGE_BYTES..(at + 1) * PAGE_BYTES;
    let mut at = 0;
    let open = time(|| {
        at = (at + 1) % PAGES;
        let nonce = first.offset(at as u16);
        key.open(nonce, &AAD, tags[at], &sealed[page(at)], &mut plaintext[page(at)])
            .expect("sealed above");
    });
    let seal = time(|| {
        at = (at + 1) % PAGES;
        let nonce = nonces.next_run(1);
        black_box(key.seal(nonce, &AAD, &plaintext[page(at)], &mut sealed[page(at)]));
    });
    let rate = |operation: &str, seconds: f64| Measurement {
        name: format!("{name}.{operation}"),
        unit: "GB/s",
        value: PAGE_BYTES as f64 / seconds / 1e9,
    };
    [rate("seal", seal), rate("open", open)]
}

/// Nanoseconds to set a key up, seal 16 bytes with it and drop it: XTS sets up when first used.
fn first_page(new: impl Fn() -> PageKey) -> f64 {
    let mut sealed = [0; 16];
    1e9 * time(|| {
        black_box(new().seal(Nonce([0; 12]), &AAD, &[0; 16], &mut sealed));
    })
}

fn keys() -> Vec<Measurement> {
    let (key, dek) = (random::secret(32), random::secret(32));
    let wrapped = wrap::wrap(&key, &dek);
    let nonces = NonceSequence::new();
    let context = [7; 36];
    let ns = |name: &str, seconds: f64| Measurement {
        name: name.to_owned(),
        unit: "ns",
        value: 1e9 * seconds,
    };
    vec![
        ns("random.secret_32", time(|| drop(black_box(random::secret(32))))),
        ns("random.secret_64", time(|| drop(black_box(random::secret(64))))),
        ns(
            "random.nonce",
            time(|| {
                black_box(nonces.next_run(1));
            }),
        ),
        ns("kdf.derive_32", time(|| drop(black_box(kdf::derive(&key, "label v1", &context, 32))))),
        ns("wrap.wrap_32", time(|| drop(black_box(wrap::wrap(&key, &dek))))),
        ns("wrap.unwrap_32", time(|| drop(black_box(wrap::unwrap(&key, &wrapped))))),
        ns(
            "dek.draw_derive_wrap",
            time(|| {
                let dek = random::secret(32);
                let wrapping_key = kdf::derive(&key, "atrest dek wrap v1", &context, 32);
                black_box(wrap::wrap(&wrapping_key, &dek));
            }),
        ),
        ns(
            "dek.derive_unwrap",
            time(|| {
                let wrapping_key = kdf::derive(&key, "atrest dek wrap v1", &context, 32);
                drop(black_box(wrap::unwrap(&wrapping_key, &wrapped)));
            }),
        ),
    ]
}
