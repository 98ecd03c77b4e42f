//! Metrics of a mount in the text format of Prometheus, made when somebody asks for them.

mod server;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeGaugeValue, EncodeMetric, NoLabelSet, prometheus_text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::control::{VolumeControl, VolumeNumbers};
use super::lease::{Driver, STATES};
use crate::audit::Audit;
use crate::fuse::{Meter, Operation, meter};
use crate::volume::CacheCounts;

pub use server::Endpoint;
pub(super) use server::Server;

/// Uses of a key service.
#[derive(Clone)]
pub struct ProviderMeter {
    seconds: Histogram,
    failures: Family<[(&'static str, &'static str); 1], Counter>,
}

/// What is asked when metrics are.
pub struct Source {
    volume: Arc<dyn VolumeControl>,
    lease: Arc<Driver>,
    audit: Arc<Audit>,
    meter: Arc<Meter>,
    started: SystemTime,
}

/// A metric with one value for each value of a label.
type Labelled<'a, V> = (&'static str, &'a [(&'a str, V)]);

impl Default for ProviderMeter {
    fn default() -> Self {
        // 1 ms to 16 s: a provider has 20.
        let seconds = Histogram::new(exponential_buckets(0.001, 2.0, 15));
        Self { seconds, failures: Family::default() }
    }
}

impl fmt::Debug for ProviderMeter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProviderMeter")
    }
}

impl ProviderMeter {
    /// Counts that the volume key was asked for; `class` is what went wrong, if something did.
    pub fn asked(&self, took: Duration, class: Option<&'static str>) {
        self.seconds.observe(took.as_secs_f64());
        if let Some(class) = class {
            self.failures.get_or_create(&[("class", class)]).inc();
        }
    }
}

impl Source {
    /// Begins to count operations.
    pub(super) fn new(
        volume: Arc<dyn VolumeControl>,
        lease: Arc<Driver>,
        audit: Arc<Audit>,
    ) -> Arc<Self> {
        let (meter, started) = (meter(), SystemTime::now());
        Arc::new(Self { volume, lease, audit, meter, started })
    }

    /// Everything, as text.
    fn text(self: &Arc<Self>) -> String {
        let mut registry = Registry::with_prefix("atrest");
        registry.register_collector(Box::new(Scrape(self.clone())));
        let mut text = String::with_capacity(64 << 10);
        prometheus_text::encode(&mut text, &registry).expect("strings take everything");
        text
    }
}

/// One answer.
struct Scrape(Arc<Source>);

impl fmt::Debug for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scrape")
    }
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Out(encoder);
        self.operations(&mut out)?;
        self.lease(&mut out)?;
        self.audit(&mut out)?;
        match self.0.volume.numbers().volume {
            Some(numbers) => volume(&mut out, &numbers),
            None => Ok(()),
        }
    }
}

impl Scrape {
    fn operations(&self, out: &mut Out<'_>) -> fmt::Result {
        let counts = self.0.meter.counts();
        out.gauge("start_time_seconds", "When the mount began.", since_1970(self.0.started))?;
        let help = "Time that requests of the kernel took in the daemon, without waiting for a \
                    worker thread.";
        let mut metric =
            out.0.encode_descriptor("operation_seconds", help, None, MetricType::Histogram)?;
        for (operation, count) in Operation::ALL.iter().zip(&counts.operations) {
            let bounds = Meter::bounds().chain([f64::INFINITY]);
            let buckets: Vec<(f64, u64)> = bounds.zip(count.buckets).collect();
            let (sum, all) = (count.time.as_secs_f64(), count.buckets.iter().sum());
            let labels = [("operation", operation.name())];
            let mut metric = metric.encode_family(&labels)?;
            metric.encode_histogram::<NoLabelSet>(sum, all, &buckets, None)?;
        }
        let failed = Operation::ALL.iter().zip(&counts.operations);
        let failed: Vec<_> = failed.map(|(what, count)| (what.name(), count.failed)).collect();
        out.counters(
            "operation_failures",
            "Requests that were answered with an errno, ordinary ones included.",
            ("operation", &failed),
        )?;
        out.counter("read_bytes", "Bytes that READ gave.", counts.bytes_read)?;
        out.counter("written_bytes", "Bytes that WRITE took.", counts.bytes_written)
    }

    fn lease(&self, out: &mut Out<'_>) -> fmt::Result {
        let (state, since, last_good) = self.0.lease.numbers();
        let states = STATES.map(|name| (name, u64::from(name == state)));
        out.gauges("lease_state", "1 for the state that the lease is in.", ("state", &states))?;
        let help = "For how long the lease has been in its state.";
        out.gauge("lease_state_age_seconds", help, since.as_secs_f64())?;
        let help = "Time since the key was last granted.";
        out.gauge("lease_last_good_age_seconds", help, last_good.as_secs_f64())?;
        let numbers = self.0.volume.numbers();
        let help = "For how long this mount has known the volume key to be wrapped under the \
                    version of its key that wraps it now.";
        out.gauge("key_age_seconds", help, numbers.key_age.as_secs_f64())?;
        let help = "Time that it took to have the volume key unwrapped, or refused.";
        let metric =
            out.0.encode_descriptor("provider_seconds", help, None, MetricType::Histogram)?;
        numbers.provider.seconds.encode(metric)?;
        let help = "Attempts to have the volume key unwrapped that failed, by class of the error.";
        let failures = &numbers.provider.failures;
        let metric =
            out.0.encode_descriptor("provider_failures", help, None, MetricType::Counter)?;
        failures.encode(metric)
    }

    fn audit(&self, out: &mut Out<'_>) -> fmt::Result {
        let health = self.0.audit.health();
        let help = "1 while the audit log cannot be written, or since somebody changed it.";
        out.gauge("audit_alarm", help, u64::from(health.problem.is_some()))?;
        out.counter("audit_records", "Audit records that were written.", health.records)?;
        out.counter("audit_records_lost", "Audit records that could not be.", health.lost)
    }
}

fn volume(out: &mut Out<'_>, numbers: &VolumeNumbers) -> fmt::Result {
    out.gauge("used_bytes", "Space in use.", numbers.used_bytes)?;
    out.gauge("free_bytes", "Space that is free.", numbers.free_bytes)?;
    out.gauge("inodes", "Files, directories and so on.", numbers.inodes)?;
    let failures = [
        ("node_healed", numbers.nodes_healed),
        ("node_lost", numbers.nodes_lost),
        ("page_lost", numbers.pages_lost),
    ];
    let help = "What did not authenticate: metadata that its second copy healed, metadata, pages.";
    out.counters("authentication_failures", help, ("what", &failures))?;
    let help = "Changes that belonged into damaged metadata and are lost.";
    out.counter("changes_lost", help, numbers.changes_lost)?;
    let caches = [("node", numbers.node_cache), ("data_key", numbers.key_cache)];
    let each = |of: fn(&CacheCounts) -> u64| caches.map(|(name, counts)| (name, of(&counts)));
    let entries = each(|counts| counts.entries);
    out.gauges("cache_entries", "What the caches hold.", ("cache", &entries))?;
    let help = "How often what was asked for was in the cache.";
    out.counters("cache_hits", help, ("cache", &each(|counts| counts.hits)))?;
    let help = "How often it was not.";
    out.counters("cache_misses", help, ("cache", &each(|counts| counts.misses)))?;
    let backlog = &numbers.backlog;
    let help = "Records that are not durable by an epoch yet.";
    out.gauge("backlog_records", help, backlog.records)?;
    let help = "Memory of those records.";
    out.gauge("backlog_record_bytes", help, backlog.record_bytes)?;
    let help = "Pages of the open epoch, on their way to the disk.";
    out.gauge("backlog_data_bytes", help, backlog.data_bytes)?;
    let help = "Epochs that are sealed and not durable.";
    out.gauge("backlog_epochs", help, backlog.sealed)
}

/// Where metrics are written to.
struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn gauge(&mut self, name: &str, help: &str, value: impl EncodeGaugeValue) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        metric.encode_gauge(&value)
    }

    fn gauges(&mut self, name: &str, help: &str, values: Labelled<'_, u64>) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        let (label, values) = values;
        values
            .iter()
            .try_for_each(|(of, value)| metric.encode_family(&[(label, *of)])?.encode_gauge(value))
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    fn counters(&mut self, name: &str, help: &str, values: Labelled<'_, u64>) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        let (label, values) = values;
        values.iter().try_for_each(|(of, value)| {
            let labels = [(label, *of)];
            let mut metric = metric.encode_family(&labels)?;
            metric.encode_counter::<NoLabelSet, _, u64>(value, None)
        })
    }
}

fn since_1970(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}
