//! `aws:` on ministack, which keeps the states of keys, and on moto, which rotates and knows who
//! may do what.

use std::path::{Path, PathBuf};

use atrest::key::ProviderOptions;
use serde_json::{Value, json};

use super::server::{
    IMPATIENT, PATIENT, ca_line, host_and_port, options, providers_file, python, variable,
};
use super::{output, server};
use crate::alone::Prepared;
use crate::peer::{Act, NetworkPeer, Peer, Quirk, Row};

pub const MINISTACK: Row = Row {
    name: "ministack",
    offers: &[Act::Disable, Act::Enable, Act::Delete, Act::Recover],
    not_offered: "it does not know RotateKeyOnDemand, and checks neither signatures nor rights",
    binds: true,
    at_once: 100,
    mounts: 20,
    daemons_at_once: 100,
    quirks: &[Quirk::TakesAnyKey],
    authenticates: false,
};
pub const MOTO: Row = Row {
    name: "moto-iam",
    offers: &[Act::Rotate, Act::Revoke, Act::Restore],
    not_offered: "it takes disabled and deleted keys",
    binds: true,
    at_once: 100,
    mounts: 20,
    daemons_at_once: 100,
    quirks: &[Quirk::DeniesChanged],
    authenticates: true,
};
/// Of nobody.
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
/// The policy of whoever mounts, before and after it is revoked.
const MAY: &[&str] = &["kms:DescribeKey", "kms:Encrypt", "kms:Decrypt"];
const MAY_NOT: &[&str] = &["kms:DescribeKey"];
/// Calls a function of a service as its administrator, and prints its answer.
const CALL: &str = "
import boto3, json, os, sys
address, authority, service, name, arguments = sys.argv[1:]
client = boto3.client(service, endpoint_url=address, verify=authority, region_name='us-east-1',
                      aws_access_key_id=os.environ['ADMINISTRATOR_ID'],
                      aws_secret_access_key=os.environ['ADMINISTRATOR_SECRET'])
print(json.dumps(getattr(client, name)(**json.loads(arguments)), default=str))
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
    let secrets = ["MOTO_IAM_SECRET", "MOTO_IAM_LIMITED_SECRET"];
    let mut prepared = server::prepare(scratch, row.name, &secrets);
    let mut name = |name: &str, known: &str, otherwise: &str| {
        let known = prepared.environment.iter().find(|(variable, _)| variable == known);
        let value = known.map_or_else(|| otherwise.into(), |(_, value)| value.clone());
        prepared.environment.push((name.to_owned(), value));
    };
    // Ministack takes anybody for anybody.
    name("AWS_ACCESS_KEY_ID", "MOTO_IAM_LIMITED_ID", "AKIAIOSFODNN7EXAMPLE");
    name("AWS_SECRET_ACCESS_KEY", "MOTO_IAM_LIMITED_SECRET", SECRET);
    name("ADMINISTRATOR_ID", "MOTO_IAM_KEY_ID", "any");
    name("ADMINISTRATOR_SECRET", "MOTO_IAM_SECRET", "any");
    prepared.secrets.push(SECRET.into());
    prepared
}

/// Makes the two keys, and lets who mounts use them.
pub fn peer(scratch: &Path, row: &'static Row) -> Aws {
    let prefix = row.name.to_uppercase().replace('-', "_");
    let mut peer = Aws {
        row,
        scratch: scratch.to_owned(),
        origin: variable(&format!("{prefix}_ADDR")),
        ca_file: variable(&format!("{prefix}_CACERT")).into(),
        keys: Default::default(),
    };
    peer.keys = [(); 2].map(|()| {
        let made = peer.call("kms", "create_key", &json!({ "Description": "volumes" }));
        made["KeyMetadata"]["Arn"].as_str().expect("an ARN").to_owned()
    });
    if row.offers(Act::Restore) {
        peer.act(Act::Restore);
    }
    peer
}

impl Aws {
    fn call(&self, service: &str, name: &str, arguments: &Value) -> Value {
        let python = python();
        let ca_file = self.ca_file.to_str().expect("ASCII");
        let arguments = arguments.to_string();
        let all = ["-c", CALL, &self.origin, ca_file, service, name, &arguments];
        serde_json::from_str(&output(python.to_str().expect("ASCII"), &all)).expect("JSON")
    }

    /// Lets the user who mounts do that, and nothing else.
    fn allow(&self, actions: &[&str]) {
        let statement = json!([{ "Effect": "Allow", "Action": actions, "Resource": "*" }]);
        let document = json!({ "Version": "2012-10-17", "Statement": statement }).to_string();
        let policy =
            json!({ "UserName": "limited", "PolicyName": "all", "PolicyDocument": document });
        self.call("iam", "put_user_policy", &policy);
    }

    fn of_key(&self, name: &str) {
        self.call("kms", name, &json!({ "KeyId": self.keys[0] }));
    }

    /// The lines of `providers.toml`.
    fn lines(&self, origin: &str, more: &str) -> String {
        format!("endpoint = \"{origin}\"\n{more}")
    }

    fn options_with(&self, origin: &str, lines: &str) -> ProviderOptions {
        options(&self.scratch, "aws:", &self.lines(origin, lines))
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

    fn providers_file(&self) -> Option<PathBuf> {
        let lines = self.lines(&self.origin, &(ca_line(&self.ca_file) + PATIENT));
        Some(providers_file(&self.scratch, "aws:", &lines))
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
            Act::Revoke => self.allow(MAY_NOT),
            Act::Restore => self.allow(MAY),
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
