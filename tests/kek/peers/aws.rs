//! `aws:` on ministack, which keeps the states of keys, and on moto, which rotates.

use std::path::{Path, PathBuf};

use atrest::key::ProviderOptions;
use serde_json::{Value, json};

use super::server::{IMPATIENT, ca_line, host_and_port, options, python, variable};
use super::{output, server};
use crate::alone::Prepared;
use crate::peer::{Act, NetworkPeer, Peer, Quirk, Row};

pub const MINISTACK: Row = Row {
    name: "ministack",
    offers: &[Act::Disable, Act::Enable, Act::Delete, Act::Recover],
    not_offered: "it does not know RotateKeyOnDemand, and checks no signatures",
    binds: true,
    at_once: 100,
    quirks: &[Quirk::TakesAnyKey],
    authenticates: false,
};
pub const MOTO: Row = Row {
    name: "moto",
    offers: &[],
    not_offered: "it takes disabled and deleted keys and every signature, and names no key \
                  material, so that versions look alike",
    binds: true,
    at_once: 100,
    quirks: &[Quirk::DeniesChanged],
    authenticates: true,
};
/// Of nobody: the peers take any.
const KEY_ID: &str = "AKIAIOSFODNN7EXAMPLE";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
/// Calls a function of KMS and prints its answer.
const CALL: &str = "
import boto3, json, sys
address, authority, name, arguments = sys.argv[1:]
kms = boto3.client('kms', endpoint_url=address, verify=authority, region_name='us-east-1',
                   aws_access_key_id='any', aws_secret_access_key='any')
print(json.dumps(getattr(kms, name)(**json.loads(arguments)), default=str))
";

pub struct Aws {
    row: &'static Row,
    scratch: PathBuf,
    origin: String,
    ca_file: PathBuf,
    /// ARNs.
    keys: [String; 2],
}

pub fn prepare(scratch: &Path, row: &Row) -> Prepared {
    let mut prepared = server::prepare(scratch, row.name, &[]);
    for (name, value) in [("AWS_ACCESS_KEY_ID", KEY_ID), ("AWS_SECRET_ACCESS_KEY", SECRET)] {
        prepared.environment.push((name.to_owned(), value.into()));
    }
    prepared.secrets.push(SECRET.into());
    prepared
}

/// Makes the two keys.
pub fn peer(scratch: &Path, row: &'static Row) -> Aws {
    let prefix = row.name.to_uppercase();
    let mut peer = Aws {
        row,
        scratch: scratch.to_owned(),
        origin: variable(&format!("{prefix}_ADDR")),
        ca_file: variable(&format!("{prefix}_CACERT")).into(),
        keys: Default::default(),
    };
    peer.keys = [(); 2].map(|()| {
        let made = peer.call("create_key", &json!({ "Description": "volumes" }));
        made["KeyMetadata"]["Arn"].as_str().expect("an ARN").to_owned()
    });
    peer
}

impl Aws {
    fn call(&self, name: &str, arguments: &Value) -> Value {
        let python = python();
        let ca_file = self.ca_file.to_str().expect("ASCII");
        let arguments = arguments.to_string();
        let all = ["-c", CALL, &self.origin, ca_file, name, &arguments];
        serde_json::from_str(&output(python.to_str().expect("ASCII"), &all)).expect("JSON")
    }

    fn of_key(&self, name: &str) {
        self.call(name, &json!({ "KeyId": self.keys[0] }));
    }

    fn options_with(&self, origin: &str, lines: &str) -> ProviderOptions {
        let lines = format!("endpoint = \"{origin}\"\n{lines}");
        options(&self.scratch, "aws:", &lines)
    }
}

impl Peer for Aws {
    fn row(&self) -> &'static Row {
        self.row
    }

    fn uri(&self) -> String {
        format!("aws:{}", self.keys[0])
    }

    fn other_uri(&self) -> String {
        format!("aws:{}", self.keys[1])
    }

    fn options(&self) -> ProviderOptions {
        self.options_with(&self.origin, &ca_line(&self.ca_file))
    }

    fn act(&self, act: Act) {
        match act {
            Act::Rotate => self.of_key("rotate_key_on_demand"),
            Act::Disable => self.of_key("disable_key"),
            Act::Enable => self.of_key("enable_key"),
            Act::Delete => self.of_key("schedule_key_deletion"),
            Act::Recover => {
                self.of_key("cancel_key_deletion");
                self.of_key("enable_key");
            }
            Act::Revoke | Act::Restore => unreachable!("the row does not offer it"),
        }
    }

    fn network(&self) -> Option<&dyn NetworkPeer> {
        Some(self)
    }
}

impl NetworkPeer for Aws {
    fn address(&self) -> String {
        host_and_port(&self.origin)
    }

    fn ca_file(&self) -> PathBuf {
        self.ca_file.clone()
    }

    fn uri_at(&self, _: &str) -> String {
        self.uri()
    }

    fn options_at(&self, origin: &str, ca_file: &Path) -> ProviderOptions {
        self.options_with(origin, &(ca_line(ca_file) + IMPATIENT))
    }

    fn lies(&self) -> Vec<(String, String)> {
        vec![(self.keys[0].clone(), self.keys[1].clone())]
    }
}
