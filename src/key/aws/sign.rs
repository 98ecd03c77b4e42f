//! Signature Version 4 of AWS, for requests of one shape: `POST /` with a body, without a query.
//!
//! Source: "AWS Signature Version 4 for API requests" in the IAM User Guide. Why not a library:
//! [`defaults`](crate::manual::defaults).

use std::fmt::Write as _;

use super::credentials::Credentials;
use crate::crypto::{Secret, kdf};

/// What is signed, but for the body.
pub(super) struct Target<'a> {
    /// The `Host` header, as it is sent.
    pub(super) host: &'a str,
    /// As `eu-west-1`.
    pub(super) region: &'a str,
    /// As `kms`.
    pub(super) service: &'a str,
    /// The `X-Amz-Target` header.
    pub(super) operation: &'a str,
    /// The `Content-Type` header.
    pub(super) content_type: &'a str,
    /// The `X-Amz-Date` header: UTC, as `20260131T235959Z`.
    pub(super) date: &'a str,
}

/// The `Authorization` header for a request with `body`. If the credentials have a session token,
/// it is signed, too, and must be sent as `X-Amz-Security-Token`.
pub(super) fn authorization(target: &Target<'_>, credentials: &Credentials, body: &[u8]) -> String {
    let Target { host, region, service, operation, content_type, date } = target;
    // In order of their names.
    let mut headers = vec![
        ("content-type", *content_type),
        ("host", *host),
        ("x-amz-date", *date),
        ("x-amz-target", *operation),
    ];
    if let Some(token) = credentials.session_token() {
        headers.insert(3, ("x-amz-security-token", token));
    }
    let signed = headers.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
    let lines: usize = headers.iter().map(|(name, value)| name.len() + value.len() + 2).sum();
    // With room from the start, the text does not move and leave copies of the token.
    let mut request = zeroize::Zeroizing::new(String::with_capacity(lines + signed.len() + 100));
    request.push_str("POST\n/\n\n");
    for (name, value) in &headers {
        writeln!(request, "{name}:{value}").expect("writing to memory succeeds");
    }
    write!(request, "\n{signed}\n{}", hex(&kdf::digest(body))).expect("writing to memory succeeds");
    let day = &date[..8];
    let scope = format!("{day}/{region}/{service}/aws4_request");
    let digest = hex(&kdf::digest(request.as_bytes()));
    let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{digest}");
    let mut key = credentials.signing_secret();
    for part in [day, region, service, "aws4_request"] {
        key = Secret::new(Box::new(kdf::mac(&key, part.as_bytes())));
    }
    let signature = hex(&kdf::mac(&key, to_sign.as_bytes()));
    let id = credentials.access_key_id();
    format!(
        "AWS4-HMAC-SHA256 Credential={id}/{scope}, SignedHeaders={signed}, Signature={signature}"
    )
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What botocore 1.43 signs for the same requests, with and without a session token.
    #[test]
    fn agrees_with_botocore() {
        let secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
        for (host, body, token, signature) in VECTORS {
            let credentials = Credentials::new("AKIDEXAMPLE", secret, *token, None)
                .expect("they are well formed");
            let target = Target {
                host,
                region: "eu-west-1",
                service: "kms",
                operation: "TrentService.Encrypt",
                content_type: "application/x-amz-json-1.1",
                date: "20260131T235959Z",
            };
            let header = authorization(&target, &credentials, body.as_bytes());
            let more = if token.is_some() { "x-amz-security-token;" } else { "" };
            let expected = format!(
                "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20260131/eu-west-1/kms/aws4_request, \
                 SignedHeaders=content-type;host;x-amz-date;{more}x-amz-target, \
                 Signature={signature}"
            );
            assert_eq!(header, expected);
        }
    }

    const VECTORS: &[(&str, &str, Option<&str>, &str)] = &[
        (
            "kms.eu-west-1.amazonaws.com",
            "{}",
            None,
            "70700c1e7689cf062625dae15d42f3e5b29b5365ec21598f681ea0fd347009ed",
        ),
        (
            "kms.eu-west-1.amazonaws.com",
            "{\"KeyId\":\"k\",\"Plaintext\":\"AQID\"}",
            None,
            "cad002084bb7506219ee5a7e86cd5aa4bb43dd3870799ed025971484dfe864a7",
        ),
        (
            "127.0.0.1:4566",
            "{\"KeyId\":\"k\",\"Plaintext\":\"AQID\"}",
            Some("IQoJb3JpZ2luX2VjE/session+token=="),
            "ebaa7434a30334c4a4ebab09f78380e1355beceef8e100fb22fc16a03645bd5f",
        ),
    ];
}
