"""What an application does with azure-keyvault-keys, -secrets and azure-identity, and what must come
of it. The vault is at its real name, the metadata service at its real address."""

import os
import pathlib
import subprocess
import time
from datetime import datetime, timedelta, timezone

from azure.core.exceptions import (
    ClientAuthenticationError, HttpResponseError, ResourceExistsError, ResourceNotFoundError)
from azure.core.pipeline.policies import SansIOHTTPPolicy
from azure.core.rest import HttpRequest
from azure.identity import (
    CertificateCredential, ClientSecretCredential, DefaultAzureCredential, ManagedIdentityCredential)
from azure.keyvault.keys import (
    KeyClient, KeyRotationLifetimeAction, KeyRotationPolicy, KeyRotationPolicyAction, JsonWebKey)
from azure.keyvault.keys.crypto import (
    CryptographyClient, EncryptionAlgorithm, KeyWrapAlgorithm, SignatureAlgorithm)
from azure.keyvault.secrets import SecretClient
from cryptography.hazmat.primitives.asymmetric import rsa

URL = os.environ["VAULT_URL"]
SCRATCH = pathlib.Path(os.environ["SCRATCH"])
TENANT, WEB_ID = os.environ["TENANT"], os.environ["WEB_ID"]
PLAIN = b"thirty-two bytes of key material"


def operator(noun, verb, *arguments):
    """A command of the vault's operator."""
    command = [os.environ["ATREST"], "vault", noun, verb, os.environ["VAULT_DIR"], *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def refused(kind, status, inner, call):
    """The call fails with the SDK's own exception, status and inner code."""
    try:
        call()
    except kind as error:
        assert error.status_code == status, f"{error.status_code} instead of {status}: {error}"
        found = ((error.error or {}).innererror or {}).get("code") if error.error else None
        assert inner is None or found == inner, f"{found} instead of {inner}: {error}"
        return error
    raise AssertionError(f"not refused with {status} {inner}")


def step(name):
    print(f"{time.monotonic() - START:6.1f} s  {name}", flush=True)


def keys(credential, **more):
    return KeyClient(URL, credential, **more)


def cryptography(credential, key, **more):
    return CryptographyClient(key, credential, **more)


def key_operations(client, credential):
    step("keys: create, read, update, versions")
    key = client.create_rsa_key("app", size=2048, tags={"for": "test"})
    assert key.name == "app" and key.key_type == "RSA" and key.properties.tags == {"for": "test"}
    assert key.id.startswith(f"{URL}/keys/app/") and len(key.properties.version) == 32
    assert key.properties.recovery_level == "CustomizedRecoverable+Purgeable", key.properties.recovery_level
    assert client.get_key("app").id == client.get_key("app", key.properties.version).id == key.id
    second = client.create_rsa_key("app", size=3072)
    assert second.id != key.id and client.get_key("app").id == second.id
    versions = {found.version for found in client.list_properties_of_key_versions("app")}
    assert versions == {key.properties.version, second.properties.version}
    changed = client.update_key_properties("app", key.properties.version, tags={"a": "b"},
                                           key_operations=["wrapKey", "unwrapKey"])
    assert changed.properties.tags == {"a": "b"} and changed.key_operations == ["wrapKey", "unwrapKey"]
    refused(ResourceNotFoundError, 404, None, lambda: client.get_key("missing"))

    step("keys: use")
    for size in (2048, 4096):
        key = client.create_rsa_key(f"rsa-{size}", size=size)
        use = cryptography(credential, key.id)
        for algorithm in (KeyWrapAlgorithm.rsa_oaep_256, KeyWrapAlgorithm.rsa_oaep):
            wrapped = use.wrap_key(algorithm, PLAIN)
            assert use.unwrap_key(algorithm, wrapped.encrypted_key).key == PLAIN
        sealed = use.encrypt(EncryptionAlgorithm.rsa_oaep_256, PLAIN)
        assert use.decrypt(EncryptionAlgorithm.rsa_oaep_256, sealed.ciphertext).plaintext == PLAIN
        for algorithm in (SignatureAlgorithm.rs256, SignatureAlgorithm.ps256):
            signed = use.sign(algorithm, PLAIN)
            assert use.verify(algorithm, PLAIN, signed.signature).is_valid
            assert not use.verify(algorithm, PLAIN[::-1], signed.signature).is_valid
    # The SDK does public operations itself; the vault does them, too.
    body = {"alg": "RSA-OAEP-256", "value": "AAECAwQFBgc"}
    reply = client.send_request(HttpRequest("POST", f"{key.id}/wrapkey?api-version=2025-07-01", json=body))
    reply.raise_for_status()
    assert reply.json()["kid"] == key.id
    wrapped = use.unwrap_key(KeyWrapAlgorithm.rsa_oaep_256, unpadded(reply.json()["value"]))
    assert wrapped.key == bytes(range(8))
    bent = bytearray(unpadded(reply.json()["value"]))
    bent[5] ^= 1
    refused(HttpResponseError, 400, None, lambda: use.unwrap_key(KeyWrapAlgorithm.rsa_oaep_256, bytes(bent)))

    step("keys: AES in hardware's terms")
    octets = client.create_oct_key("aes", size=256, hardware_protected=True)
    assert octets.key_type == "oct-HSM" and octets.key.k is None
    use = cryptography(credential, octets.id)
    wrapped = use.wrap_key(KeyWrapAlgorithm.aes_256, PLAIN)
    assert len(wrapped.encrypted_key) == len(PLAIN) + 8
    assert use.unwrap_key(KeyWrapAlgorithm.aes_256, wrapped.encrypted_key).key == PLAIN

    step("keys: import")
    own = rsa.generate_private_key(65537, 2048)
    numbers, public = own.private_numbers(), own.public_key().public_numbers()
    data = {name: value.to_bytes((value.bit_length() + 7) // 8, "big") for name, value in dict(
        n=public.n, e=public.e, d=numbers.d, p=numbers.p, q=numbers.q, dp=numbers.dmp1,
        dq=numbers.dmq1, qi=numbers.iqmp).items()}
    imported = client.import_key("own", JsonWebKey(kty="RSA", key_ops=["sign", "verify"], **data))
    assert imported.key.n == data["n"] and imported.key.d is None
    signed = cryptography(credential, imported.id).sign(SignatureAlgorithm.rs256, PLAIN)
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding, utils
    own.public_key().verify(signed.signature, PLAIN, padding.PKCS1v15(), utils.Prehashed(hashes.SHA256()))

    step("keys: rotation")
    policy = KeyRotationPolicy(expires_in="P90D", lifetime_actions=[
        KeyRotationLifetimeAction(KeyRotationPolicyAction.rotate, time_after_create="P60D")])
    set_policy = client.update_key_rotation_policy("app", policy)
    assert set_policy.expires_in == "P90D", set_policy.expires_in
    found = client.get_key_rotation_policy("app").lifetime_actions
    assert any(action.time_after_create == "P60D" for action in found)
    before = client.get_key("app")
    rotated = client.rotate_key("app")
    assert rotated.id != before.id and rotated.key.n != before.key.n
    assert client.get_key("app").id == rotated.id
    assert rotated.properties.expires_on > datetime.now(timezone.utc) + timedelta(days=89)

    step("keys: delete, recover, purge")
    client.create_rsa_key("volumes", size=2048)
    wrapped = cryptography(credential, client.get_key("volumes").id).wrap_key(KeyWrapAlgorithm.rsa_oaep_256, PLAIN)
    deleted = client.begin_delete_key("volumes").result()
    assert deleted.recovery_id == f"{URL}/deletedkeys/volumes" and deleted.scheduled_purge_date
    refused(ResourceNotFoundError, 404, None, lambda: client.get_key("volumes"))
    refused(ResourceNotFoundError, 404, None,
            lambda: cryptography(credential, wrapped.key_id).unwrap_key(wrapped.algorithm, wrapped.encrypted_key))
    refused(ResourceExistsError, 409, "ObjectIsDeletedButRecoverable", lambda: client.create_rsa_key("volumes"))
    assert client.get_deleted_key("volumes").name == "volumes"
    assert "volumes" in {found.name for found in client.list_deleted_keys()}
    assert client.begin_recover_deleted_key("volumes").result().id == wrapped.key_id
    unwrapped = cryptography(credential, wrapped.key_id).unwrap_key(wrapped.algorithm, wrapped.encrypted_key)
    assert unwrapped.key == PLAIN, "recovered, it is the same key"
    client.begin_delete_key("own").wait()
    client.purge_deleted_key("own")
    refused(ResourceNotFoundError, 404, None, lambda: client.get_deleted_key("own"))

    step("keys: backup, restore")
    backup = client.backup_key("app")
    refused(ResourceExistsError, 409, None, lambda: client.restore_key_backup(backup))
    client.begin_delete_key("app").wait()
    client.purge_deleted_key("app")
    assert client.restore_key_backup(backup).id == rotated.id
    refused(HttpResponseError, 400, None, lambda: client.restore_key_backup(backup[:-1]))

    step("keys: paging")
    for n in range(30):
        client.create_rsa_key("rsa-2048", size=2048) if n % 15 == 0 else None
        client.create_oct_key(f"page-{n}", size=256, hardware_protected=True)
    pages = [len(list(page)) for page in client.list_properties_of_keys().by_page()]
    assert len(pages) > 1 and max(pages) <= 25 and sum(pages) >= 33, pages
    names = [found.name for found in client.list_properties_of_keys()]
    assert len(names) == len(set(names)) and {f"page-{n}" for n in range(30)} <= set(names)
    pages = [len(list(page)) for page in client.list_properties_of_keys(max_page_size=7).by_page()]
    assert max(pages) == 7, pages


def unpadded(text):
    import base64
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def key_states(client, credential):
    step("keys: disabled, expired, not yet, limited")
    key = client.create_rsa_key("state", size=2048)
    use = cryptography(credential, key.id)
    wrapped = use.wrap_key(KeyWrapAlgorithm.rsa_oaep_256, PLAIN)
    unwrap = lambda: cryptography(credential, key.id).unwrap_key(wrapped.algorithm, wrapped.encrypted_key)

    def wrap_there():
        body = {"alg": "RSA-OAEP-256", "value": "AAAA"}
        request = HttpRequest("POST", f"{key.id}/wrapkey?api-version=7.4", json=body)
        return client.send_request(request)

    client.update_key_properties("state", enabled=False)
    refused(HttpResponseError, 403, "KeyDisabled", unwrap)
    client.update_key_properties("state", enabled=True)
    assert unwrap().key == PLAIN
    past = datetime.now(timezone.utc) - timedelta(days=1)
    client.update_key_properties("state", not_before=past - timedelta(days=1), expires_on=past)
    assert unwrap().key == PLAIN, "what an expired key has wrapped can be had"
    assert wrap_there().status_code == 403, "an expired key wraps nothing more"
    client.update_key_properties("state", expires_on=past + timedelta(days=365), key_operations=["wrapKey"])
    assert wrap_there().status_code == 200
    refused(HttpResponseError, 403, "KeyOperationForbidden", unwrap)


def secret_operations(credential):
    client = SecretClient(URL, credential)
    step("secrets")
    first = client.set_secret("db", "first", content_type="text/plain", tags={"a": "b"})
    second = client.set_secret("db", "zweites \u20ac")
    assert client.get_secret("db").value == "zweites \u20ac"
    assert client.get_secret("db", first.properties.version).value == "first"
    assert client.get_secret("db", first.properties.version).properties.content_type == "text/plain"
    assert len(list(client.list_properties_of_secret_versions("db"))) == 2
    client.update_secret_properties("db", second.properties.version, enabled=False)
    refused(HttpResponseError, 403, "SecretDisabled", lambda: client.get_secret("db"))
    client.update_secret_properties("db", second.properties.version, enabled=True, tags={"x": "y"})
    assert client.get_secret("db").properties.tags == {"x": "y"}
    refused(ResourceNotFoundError, 404, None, lambda: client.get_secret("missing"))
    backup = client.backup_secret("db")
    client.begin_delete_secret("db").wait()
    refused(ResourceNotFoundError, 404, None, lambda: client.get_secret("db"))
    refused(ResourceExistsError, 409, "ObjectIsDeletedButRecoverable", lambda: client.set_secret("db", "x"))
    assert client.get_deleted_secret("db").name == "db"
    client.begin_recover_deleted_secret("db").wait()
    assert client.get_secret("db").value == "zweites \u20ac"
    client.begin_delete_secret("db").wait()
    client.purge_deleted_secret("db")
    client.restore_secret_backup(backup)
    assert client.get_secret("db").value == "zweites \u20ac"
    for n in range(30):
        client.set_secret(f"page-{n}", "x")
    pages = [len(list(page)) for page in client.list_properties_of_secrets().by_page()]
    assert len(pages) > 1 and max(pages) <= 25 and sum(pages) == 31, pages


class Statuses(SansIOHTTPPolicy):
    """Which statuses the SDK has seen."""

    def __init__(self):
        self.seen = []

    def on_response(self, request, response):
        self.seen.append(response.http_response.status_code)


def identities(key_id):
    wrap = lambda credential: cryptography(credential, key_id).wrap_key(KeyWrapAlgorithm.rsa_oaep_256, PLAIN)
    step("identities: App Service")
    os.environ["IDENTITY_ENDPOINT"] = f"{URL}/msi/token"
    os.environ["IDENTITY_HEADER"] = (SCRATCH / "host.secret").read_text()
    assert keys(ManagedIdentityCredential()).get_key("volumes").id == key_id
    os.environ["IDENTITY_HEADER"] = "guess"
    try:
        keys(ManagedIdentityCredential()).get_key("volumes")
        raise AssertionError("a wrong secret of the host got a token")
    except ClientAuthenticationError:
        pass
    del os.environ["IDENTITY_ENDPOINT"], os.environ["IDENTITY_HEADER"]

    step("identities: client secret, with and without instance discovery")
    secret = (SCRATCH / "web.secret").read_text()
    for more in ({"authority": "login.test", "disable_instance_discovery": True}, {"authority": "login.test"}, {}):
        web = ClientSecretCredential(TENANT, WEB_ID, secret, **more)
        assert keys(web).get_key("volumes").id == key_id, more
        wrapped = wrap(web)
        assert cryptography(web, key_id).unwrap_key(wrapped.algorithm, wrapped.encrypted_key).key == PLAIN
    more = {"authority": "login.test", "disable_instance_discovery": True}
    denied = refused(HttpResponseError, 403, "ForbiddenByRbac", lambda: keys(web).get_key("state"))
    assert "keys/read" in denied.message, denied.message
    refused(HttpResponseError, 403, "ForbiddenByRbac", lambda: keys(web).create_rsa_key("volumes"))
    refused(HttpResponseError, 403, "ForbiddenByRbac", lambda: SecretClient(URL, web).get_secret("db"))
    refused(HttpResponseError, 403, "ForbiddenByRbac", lambda: list(SecretClient(URL, web).list_properties_of_secrets()))
    for bad in (ClientSecretCredential(TENANT, WEB_ID, "guess", **more),
                ClientSecretCredential(TENANT, "00000000-0000-0000-0000-000000000000", secret, **more)):
        try:
            keys(bad).get_key("volumes")
            raise AssertionError("a wrong client got a token")
        except ClientAuthenticationError as error:
            assert "AADSTS7000" in str(error) or "AADSTS700016" in str(error), error

    step("identities: certificate")
    client = CertificateCredential(TENANT, WEB_ID, str(SCRATCH / "client.pem"), **more)
    assert keys(client).get_key("volumes").id == key_id

    step("identities: default chain, access policies, revocation, firewall")
    os.environ.update(AZURE_TENANT_ID=TENANT, AZURE_CLIENT_ID=WEB_ID, AZURE_CLIENT_SECRET=secret)
    assert keys(DefaultAzureCredential(**more)).get_key("volumes").id == key_id
    operator("policy", "model", "access-policy")
    client = keys(web)
    refused(HttpResponseError, 403, "ForbiddenByPolicy", lambda: client.get_key("volumes"))
    operator("policy", "set", "web", "--key-permissions", "get,wrapKey,unwrapKey")
    assert client.get_key("volumes").id == key_id
    operator("policy", "model", "rbac")
    operator("identity", "revoke", "web")
    refused(ClientAuthenticationError, 401, None, lambda: client.get_key("volumes"))
    client = keys(ClientSecretCredential(TENANT, WEB_ID, secret, **more))
    assert client.get_key("volumes").id == key_id, "a new token is good"
    operator("firewall", "enable")
    refused(HttpResponseError, 403, "ForbiddenByFirewall", lambda: client.get_key("volumes"))
    operator("firewall", "allow", "127.0.0.0/8")
    assert client.get_key("volumes").id == key_id
    operator("firewall", "disable")
    operator("identity", "disable", "web")
    refused(ClientAuthenticationError, 401, None, lambda: client.get_key("volumes"))
    operator("identity", "enable", "web")


def throttled(credential, key_id):
    step("429 on the very first request")
    operator("limits", "set", "--vault", "1:1")
    subprocess.run(["curl", "--silent", "--output", "/dev/null", "--cacert", str(SCRATCH / "ca.pem"),
                    f"{URL}/keys?api-version=7.4"], check=True)
    seen = Statuses()
    client = keys(credential, per_retry_policies=[seen])
    assert client.get_key("volumes").id == key_id
    assert seen.seen[0] == 429 and seen.seen[-1] == 200, seen.seen
    operator("limits", "set", "--vault", "400:4000")


START = time.monotonic()
host = ManagedIdentityCredential()
step("identities: IMDS")
client = keys(host)
key_operations(client, host)
key_states(client, host)
secret_operations(host)
volumes = client.get_key("volumes").id
identities(volumes)
throttled(host, volumes)
step("done")
