//! What an application does with azure_security_keyvault_keys, _secrets and azure_identity, and
//! what must come of it. The vault is at its real name, the metadata service at its real address.
//! The suite `sdk-rust` runs it.

use std::collections::{BTreeSet, HashMap};
use std::process::Command;
use std::sync::Arc;

use azure_core::credentials::{Secret, TokenCredential};
use azure_core::error::ErrorKind;
use azure_core::http::{RequestContent, StatusCode};
use azure_core::{Error, Result};
use azure_identity::{
    ClientSecretCredential, ManagedIdentityCredential, ManagedIdentityCredentialOptions,
    UserAssignedId,
};
use azure_security_keyvault_keys::models::*;
use azure_security_keyvault_keys::{KeyClient, ResourceExt as _, ResourceId};
use azure_security_keyvault_secrets::SecretClient;
use azure_security_keyvault_secrets::models::{
    RestoreSecretParameters, SecretAttributes, SecretClientGetSecretOptions, SetSecretParameters,
    UpdateSecretPropertiesParameters,
};
use futures::TryStreamExt as _;

const PLAIN: &[u8; 32] = b"thirty-two bytes of key material";

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"))
}

fn step(name: &str) {
    println!("{name}");
}

/// A command of the vault's operator.
fn operator(noun: &str, verb: &str, arguments: &[&str]) -> String {
    let output = Command::new(variable("ATREST"))
        .args(["vault", noun, verb, &variable("VAULT_DIR")])
        .args(arguments)
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{noun} {verb}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

fn keys(credential: &Arc<impl TokenCredential + 'static>) -> KeyClient {
    KeyClient::new(&variable("VAULT_URL"), credential.clone(), None).expect("a URL")
}

fn secrets(credential: &Arc<impl TokenCredential + 'static>) -> SecretClient {
    SecretClient::new(&variable("VAULT_URL"), credential.clone(), None).expect("a URL")
}

/// The call fails with the SDK's own error, this status and these codes.
fn refused<T>(result: Result<T>, expected: u16, code: &str) {
    let error: Error = result.err().unwrap_or_else(|| panic!("not refused with {expected} {code}"));
    let ErrorKind::HttpResponse { status, raw_response, .. } = error.kind() else {
        panic!("no reply of the vault: {error:?}");
    };
    let body = raw_response.as_ref().map(|raw| String::from_utf8_lossy(raw.body()).into_owned());
    let body = body.unwrap_or_default();
    assert_eq!(*status, StatusCode::from(expected), "{body}");
    assert!(body.contains(&format!("\"{code}\"")), "{code} is not said: {body}");
}

fn id_of(key: &Key) -> ResourceId {
    key.resource_id().expect("a versioned identifier")
}

fn version_of(key: &Key) -> String {
    id_of(key).version.expect("identifiers have versions")
}

fn rsa(size: i32) -> RequestContent<CreateKeyParameters> {
    let kty = Some(KeyType::Rsa);
    let made = CreateKeyParameters { kty, key_size: Some(size), ..Default::default() };
    made.try_into().expect("JSON")
}

fn operation(
    algorithm: EncryptionAlgorithm,
    value: &[u8],
) -> RequestContent<KeyOperationParameters> {
    let (algorithm, value) = (Some(algorithm), Some(value.to_vec()));
    let asked = KeyOperationParameters { algorithm, value, ..Default::default() };
    asked.try_into().expect("JSON")
}

async fn life_of_keys(client: &KeyClient) -> Result<()> {
    step("keys: create, read, update, versions");
    let tags = HashMap::from([("for".to_owned(), "test".to_owned())]);
    let body = CreateKeyParameters {
        kty: Some(KeyType::Rsa),
        key_size: Some(2048),
        tags: Some(tags.clone()),
        ..Default::default()
    };
    let first = client.create_key("app", body.try_into()?, None).await?.into_model()?;
    assert_eq!((id_of(&first).name.as_str(), version_of(&first).len()), ("app", 32));
    assert_eq!(first.tags, Some(tags));
    let level = first.attributes.as_ref().and_then(|found| found.recovery_level.clone());
    assert_eq!(level, Some(DeletionRecoveryLevel::CustomizedRecoverablePurgeable));
    let second = client.create_key("app", rsa(3072), None).await?.into_model()?;
    let current = client.get_key("app", None).await?.into_model()?;
    assert_eq!(id_of(&current), id_of(&second));
    let of_version = |version: String| KeyClientGetKeyOptions {
        key_version: Some(version),
        ..Default::default()
    };
    let old = client.get_key("app", Some(of_version(version_of(&first)))).await?.into_model()?;
    assert_eq!(id_of(&old), id_of(&first));
    let versions: Vec<_> = client.list_key_properties_versions("app", None)?.try_collect().await?;
    assert_eq!(versions.len(), 2);
    let change = UpdateKeyPropertiesParameters {
        key_ops: Some(vec![KeyOperation::WrapKey, KeyOperation::UnwrapKey]),
        ..Default::default()
    };
    let changed =
        client.update_key_properties("app", change.try_into()?, None).await?.into_model()?;
    let operations = changed.key.and_then(|key| key.key_ops).unwrap_or_default();
    assert_eq!(operations, ["wrapKey", "unwrapKey"]);
    refused(client.get_key("missing", None).await, 404, "KeyNotFound");

    Ok(())
}

async fn rotation_of_keys(client: &KeyClient) -> Result<()> {
    step("keys: rotation");
    let before = client.get_key("app", None).await?.into_model()?;
    let policy = KeyRotationPolicy {
        attributes: Some(KeyRotationPolicyAttributes {
            expiry_time: Some("P90D".to_owned()),
            ..Default::default()
        }),
        lifetime_actions: Some(vec![LifetimeAction {
            action: Some(LifetimeActionType { type_prop: Some(KeyRotationPolicyAction::Rotate) }),
            trigger: Some(LifetimeActionTrigger {
                time_after_create: Some("P60D".to_owned()),
                ..Default::default()
            }),
        }]),
        ..Default::default()
    };
    client.update_key_rotation_policy("app", policy.try_into()?, None).await?;
    let policy = client.get_key_rotation_policy("app", None).await?.into_model()?;
    assert_eq!(policy.attributes.and_then(|found| found.expiry_time).as_deref(), Some("P90D"));
    let rotated = client.rotate_key("app", None).await?.into_model()?;
    assert_ne!(id_of(&rotated), id_of(&before));
    assert!(rotated.attributes.is_some_and(|found| found.expires.is_some()), "by the policy");
    Ok(())
}

async fn deletion_of_keys(client: &KeyClient) -> Result<()> {
    step("keys: backup, delete, recover, purge, restore");
    let backup = client.backup_key("app", None).await?.into_model()?.value.expect("a blob");
    let restore = || RestoreKeyParameters { key_backup: Some(backup.clone()) };
    refused(client.restore_key(restore().try_into()?, None).await, 409, "Conflict");
    let deleted = client.delete_key("app", None).await?.into_model()?;
    assert!(deleted.scheduled_purge_date.is_some());
    refused(client.get_key("app", None).await, 404, "KeyNotFound");
    let again = client.create_key("app", rsa(2048), None).await;
    refused(again, 409, "ObjectIsDeletedButRecoverable");
    client.get_deleted_key("app", None).await?;
    let names: Vec<_> = client.list_deleted_key_properties(None)?.try_collect().await?;
    assert_eq!(names.len(), 1);
    let recovered = client.recover_deleted_key("app", None).await?.into_model()?;
    assert!(recovered.key.is_some());
    client.delete_key("app", None).await?;
    client.purge_deleted_key("app", None).await?;
    refused(client.get_deleted_key("app", None).await, 404, "KeyNotFound");
    client.restore_key(restore().try_into()?, None).await?;
    let versions: Vec<_> = client.list_key_properties_versions("app", None)?.try_collect().await?;
    assert_eq!(versions.len(), 3, "all of them came back");
    Ok(())
}

async fn use_of_keys(client: &KeyClient) -> Result<()> {
    step("keys: use");
    for size in [2048, 4096] {
        let name = format!("rsa-{size}");
        let key = client.create_key(&name, rsa(size), None).await?.into_model()?;
        let version = version_of(&key);
        for algorithm in [EncryptionAlgorithm::RsaOaep256, EncryptionAlgorithm::RsaOaep] {
            let ask = |value: &[u8]| operation(algorithm.clone(), value);
            // The SDK leaves the version out, as an empty segment of the path.
            let wrapped = client.wrap_key(&name, ask(PLAIN), None).await?.into_model()?;
            assert_eq!(wrapped.resource_id()?.version.as_ref(), Some(&version));
            let blob = wrapped.result.expect("a wrapped key");
            let plain = client.unwrap_key(&name, &version, ask(&blob), None).await?.into_model()?;
            assert_eq!(plain.result.as_deref(), Some(&PLAIN[..]));
            let mut bent = blob.clone();
            bent[5] ^= 1;
            let result = client.unwrap_key(&name, &version, ask(&bent), None).await;
            refused(result, 400, "BadParameter");
            let sealed = client.encrypt(&name, ask(PLAIN), None).await?.into_model()?.result;
            let sealed = sealed.expect("a ciphertext");
            let plain = client.decrypt(&name, &version, ask(&sealed), None).await?.into_model()?;
            assert_eq!(plain.result.as_deref(), Some(&PLAIN[..]));
        }
        for algorithm in [SignatureAlgorithm::Rs256, SignatureAlgorithm::Ps256] {
            // PLAIN is as long as a SHA-256.
            let (algorithm, digest) = (Some(algorithm), Some(PLAIN.to_vec()));
            let sign = SignParameters { algorithm: algorithm.clone(), value: digest.clone() };
            let signed = client.sign(&name, sign.try_into()?, None).await?.into_model()?;
            let verify = VerifyParameters { algorithm, digest, signature: signed.result };
            let mut other = verify.clone();
            other.digest = Some(vec![7; 32]);
            for (asked, expected) in [(verify, true), (other, false)] {
                let result = client.verify(&name, &version, asked.try_into()?, None).await?;
                assert_eq!(result.into_model()?.value, Some(expected));
            }
        }
    }

    step("keys: AES in hardware's terms");
    let kty = Some(KeyType::OctHsm);
    let made = CreateKeyParameters { kty, key_size: Some(256), ..Default::default() };
    let key = client.create_key("aes", made.try_into()?, None).await?.into_model()?;
    let ask = |value: &[u8]| operation(EncryptionAlgorithm::A256Kw, value);
    let blob = client.wrap_key("aes", ask(PLAIN), None).await?.into_model()?.result.expect("40");
    assert_eq!(blob.len(), PLAIN.len() + 8);
    let plain =
        client.unwrap_key("aes", &version_of(&key), ask(&blob), None).await?.into_model()?;
    assert_eq!(plain.result.as_deref(), Some(&PLAIN[..]));

    step("keys: disabled, limited");
    let enabled = |enabled| {
        let key_attributes = Some(KeyAttributes { enabled: Some(enabled), ..Default::default() });
        let change = UpdateKeyPropertiesParameters { key_attributes, ..Default::default() };
        RequestContent::try_from(change).expect("JSON")
    };
    client.update_key_properties("aes", enabled(false), None).await?;
    let result = client.unwrap_key("aes", &version_of(&key), ask(&blob), None).await;
    refused(result, 403, "KeyDisabled");
    client.update_key_properties("aes", enabled(true), None).await?;
    let key_ops = Some(vec![KeyOperation::WrapKey]);
    let change = UpdateKeyPropertiesParameters { key_ops, ..Default::default() };
    client.update_key_properties("aes", change.try_into()?, None).await?;
    let result = client.unwrap_key("aes", &version_of(&key), ask(&blob), None).await;
    refused(result, 403, "KeyOperationForbidden");
    Ok(())
}

async fn paging(client: &KeyClient) -> Result<()> {
    step("keys: paging");
    for number in 0..30 {
        let kty = Some(KeyType::OctHsm);
        let made = CreateKeyParameters { kty, key_size: Some(256), ..Default::default() };
        client.create_key(&format!("page-{number}"), made.try_into()?, None).await?;
    }
    let mut pages = client.list_key_properties(None)?.into_pages();
    let mut sizes = Vec::new();
    while let Some(page) = pages.try_next().await? {
        sizes.push(page.into_model()?.value.len());
    }
    assert!(sizes.len() > 1 && sizes.iter().all(|size| *size <= 25), "{sizes:?}");
    let items: Vec<KeyProperties> = client.list_key_properties(None)?.try_collect().await?;
    let names: BTreeSet<_> = items.iter().filter_map(|item| item.kid.clone()).collect();
    assert!(names.len() == items.len() && names.len() >= 33, "{names:?}");
    let options = KeyClientListKeyPropertiesOptions { maxresults: Some(7), ..Default::default() };
    let mut pages = client.list_key_properties(Some(options))?.into_pages();
    let first = pages.try_next().await?.expect("there is one").into_model()?;
    assert_eq!(first.value.len(), 7);
    Ok(())
}

async fn life_of_secrets(client: &SecretClient) -> Result<()> {
    step("secrets");
    let value = |text: &str| SetSecretParameters { value: Some(text.into()), ..Default::default() };
    let first = client.set_secret("db", value("first").try_into()?, None).await?.into_model()?;
    client.set_secret("db", value("zweites \u{20ac}").try_into()?, None).await?;
    let current = client.get_secret("db", None).await?.into_model()?;
    assert_eq!(current.value.as_deref(), Some("zweites \u{20ac}"));
    let version = first.id.as_ref().and_then(|id| id.rsplit('/').next()).map(str::to_owned);
    let options = SecretClientGetSecretOptions { secret_version: version, ..Default::default() };
    let old = client.get_secret("db", Some(options)).await?.into_model()?;
    assert_eq!(old.value.as_deref(), Some("first"));
    let versions: Vec<_> =
        client.list_secret_properties_versions("db", None)?.try_collect().await?;
    assert_eq!(versions.len(), 2);
    let enabled = |enabled| {
        let attributes = SecretAttributes { enabled: Some(enabled), ..Default::default() };
        let secret_attributes = Some(attributes);
        UpdateSecretPropertiesParameters { secret_attributes, ..Default::default() }
    };
    client.update_secret_properties("db", enabled(false).try_into()?, None).await?;
    refused(client.get_secret("db", None).await, 403, "SecretDisabled");
    client.update_secret_properties("db", enabled(true).try_into()?, None).await?;
    refused(client.get_secret("missing", None).await, 404, "SecretNotFound");
    let backup = client.backup_secret("db", None).await?.into_model()?.value;
    client.delete_secret("db", None).await?;
    let again = client.set_secret("db", value("x").try_into()?, None).await;
    refused(again, 409, "ObjectIsDeletedButRecoverable");
    client.recover_deleted_secret("db", None).await?;
    client.delete_secret("db", None).await?;
    client.purge_deleted_secret("db", None).await?;
    let restore = RestoreSecretParameters { secret_backup: backup };
    client.restore_secret(restore.try_into()?, None).await?;
    let current = client.get_secret("db", None).await?.into_model()?;
    assert_eq!(current.value.as_deref(), Some("zweites \u{20ac}"));
    Ok(())
}

fn with_secret(secret: &str) -> Arc<ClientSecretCredential> {
    let (tenant, client) = (variable("TENANT"), variable("WEB_ID"));
    let secret = Secret::new(secret.to_owned());
    ClientSecretCredential::new(&tenant, client, secret, None).expect("it is complete")
}

async fn identities(host: &KeyClient) -> Result<()> {
    step("identities: client secret, and what it may not do");
    let key = host.create_key("volumes", rsa(2048), None).await?.into_model()?;
    let file = |name: &str| std::fs::read_to_string(format!("{}/{name}", variable("SCRATCH")));
    let secret = file("web.secret").expect("readable");
    let web = with_secret(&secret);
    let client = keys(&web);
    assert_eq!(id_of(&client.get_key("volumes", None).await?.into_model()?), id_of(&key));
    let ask = |value: &[u8]| operation(EncryptionAlgorithm::RsaOaep256, value);
    let blob = client.wrap_key("volumes", ask(PLAIN), None).await?.into_model()?.result;
    let blob = blob.expect("a wrapped key");
    let plain = client.unwrap_key("volumes", &version_of(&key), ask(&blob), None).await?;
    assert_eq!(plain.into_model()?.result.as_deref(), Some(&PLAIN[..]));
    refused(client.get_key("app", None).await, 403, "ForbiddenByRbac");
    refused(client.create_key("volumes", rsa(2048), None).await, 403, "ForbiddenByRbac");
    refused(secrets(&web).get_secret("db", None).await, 403, "ForbiddenByRbac");
    let wrong = keys(&with_secret("guess")).get_key("volumes", None).await;
    let error = wrong.err().expect("a wrong secret got a token");
    assert!(matches!(error.kind(), ErrorKind::Credential), "{error:?}");

    step("identities: revoked, kept out by the firewall");
    operator("identity", "revoke", &["web"]);
    refused(client.get_key("volumes", None).await, 401, "Unauthorized");
    let client = keys(&with_secret(&secret));
    client.get_key("volumes", None).await?;
    operator("firewall", "enable", &[]);
    refused(client.get_key("volumes", None).await, 403, "ForbiddenByFirewall");
    operator("firewall", "disable", &[]);

    step("identities: by client id");
    let shown = operator("identity", "show", &["host"]);
    let (_, rest) = shown.split_once("\"client_id\": \"").expect("it has one");
    let user_assigned_id = Some(UserAssignedId::ClientId(rest[..36].to_owned()));
    let options = ManagedIdentityCredentialOptions { user_assigned_id, ..Default::default() };
    let managed = ManagedIdentityCredential::new(Some(options))?;
    keys(&managed).get_key("volumes", None).await?;
    Ok(())
}

/// Who this process is depends on its environment, so this runs in one of its own.
async fn app_service() -> Result<()> {
    step("identities: App Service");
    let host = ManagedIdentityCredential::new(None)?;
    keys(&host).get_key("volumes", None).await?;
    Ok(())
}

/// The first request of a client is throttled. What the SDK then repeats for a request with a body
/// is an empty one (a defect of its own), so this is one without.
async fn throttled(credential: &Arc<impl TokenCredential + 'static>) -> Result<()> {
    step("429 on the very first request");
    operator("limits", "set", &["--vault", "1:1"]);
    keys(credential).get_key("volumes", None).await?;
    keys(credential).get_key("volumes", None).await?;
    operator("limits", "set", &["--vault", "400:4000"]);
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    if std::env::var_os("IDENTITY_ENDPOINT").is_some() {
        return app_service().await;
    }
    step("identities: IMDS");
    let host = ManagedIdentityCredential::new(None)?;
    let client = keys(&host);
    life_of_keys(&client).await?;
    rotation_of_keys(&client).await?;
    deletion_of_keys(&client).await?;
    use_of_keys(&client).await?;
    paging(&client).await?;
    life_of_secrets(&secrets(&host)).await?;
    identities(&client).await?;
    throttled(&host).await?;
    step("done");
    Ok(())
}
