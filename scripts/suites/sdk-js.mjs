// What an application does with @azure/keyvault-keys, -secrets and @azure/identity, and what must come
// of it. The vault is at its real name, the metadata service at its real address.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import https from "node:https";
import {
  ClientCertificateCredential, ClientSecretCredential, DefaultAzureCredential, ManagedIdentityCredential,
} from "@azure/identity";
import { CryptographyClient, KeyClient } from "@azure/keyvault-keys";
import { SecretClient } from "@azure/keyvault-secrets";

const { VAULT_URL, SCRATCH, TENANT, WEB_ID, ATREST, VAULT_DIR } = process.env;
const PLAIN = Buffer.from("thirty-two bytes of key material");
const START = Date.now();
const step = (name) => console.log(`${((Date.now() - START) / 1000).toFixed(1).padStart(6)} s  ${name}`);
const secretOf = (name) => readFileSync(`${SCRATCH}/${name}.secret`, "utf8");
const operator = (noun, verb, ...rest) => execFileSync(ATREST, ["vault", noun, verb, VAULT_DIR, ...rest]);

// The promise fails with the SDK's own error, status and codes.
async function refused(promise, status, code) {
  const error = await promise.then(() => assert.fail(`not refused with ${status} ${code}`), (error) => error);
  if (error instanceof assert.AssertionError) throw error;
  assert.equal(error.statusCode, status, String(error));
  const body = error.details?.error ?? JSON.parse(error.response?.bodyAsText || "{}").error ?? {};
  // The SDK renames some fields.
  const inner = body.innererror ?? body.innerError;
  if (code) assert.ok([error.code, body.code, inner?.code].includes(code), JSON.stringify(body));
  return error;
}

async function collect(iterator) {
  const found = [];
  for await (const one of iterator) found.push(one);
  return found;
}

async function keyOperations(client, credential) {
  step("keys: create, read, update, versions");
  const key = await client.createRsaKey("app", { keySize: 2048, tags: { for: "test" } });
  assert.equal(key.keyType, "RSA");
  assert.deepEqual(key.properties.tags, { for: "test" });
  assert.ok(key.id.startsWith(`${VAULT_URL}/keys/app/`));
  const second = await client.createRsaKey("app", { keySize: 3072 });
  assert.equal((await client.getKey("app")).id, second.id);
  assert.equal((await client.getKey("app", { version: key.properties.version })).id, key.id);
  const versions = await collect(client.listPropertiesOfKeyVersions("app"));
  assert.deepEqual(new Set(versions.map((one) => one.version)),
    new Set([key.properties.version, second.properties.version]));
  const changed = await client.updateKeyProperties("app", key.properties.version, { tags: { a: "b" } });
  assert.deepEqual(changed.properties.tags, { a: "b" });
  await refused(client.getKey("missing"), 404, "KeyNotFound");

  step("keys: use");
  const use = new CryptographyClient(second, credential);
  for (const algorithm of ["RSA-OAEP-256", "RSA-OAEP"]) {
    const wrapped = await use.wrapKey(algorithm, PLAIN);
    assert.deepEqual(Buffer.from((await use.unwrapKey(algorithm, wrapped.result)).result), PLAIN);
  }
  const sealed = await use.encrypt({ algorithm: "RSA-OAEP-256", plaintext: PLAIN });
  const opened = await use.decrypt({ algorithm: "RSA-OAEP-256", ciphertext: sealed.result });
  assert.deepEqual(Buffer.from(opened.result), PLAIN);
  const digest = createHash("sha256").update(PLAIN).digest();
  for (const algorithm of ["RS256", "PS256"]) {
    const signed = await use.sign(algorithm, digest);
    assert.ok((await use.verify(algorithm, digest, signed.result)).result);
    assert.ok(!(await use.verify(algorithm, digest.reverse(), signed.result)).result);
    digest.reverse();
  }
  const octets = await client.createOctKey("aes", { keySize: 256, hsm: true });
  assert.equal(octets.keyType, "oct-HSM");
  const symmetric = new CryptographyClient(octets, credential);
  const wrapped = await symmetric.wrapKey("A256KW", PLAIN);
  assert.deepEqual(Buffer.from((await symmetric.unwrapKey("A256KW", wrapped.result)).result), PLAIN);

  step("keys: rotation");
  await client.updateKeyRotationPolicy("app", {
    expiresIn: "P90D", lifetimeActions: [{ action: "Rotate", timeAfterCreate: "P60D" }],
  });
  assert.equal((await client.getKeyRotationPolicy("app")).expiresIn, "P90D");
  const rotated = await client.rotateKey("app");
  assert.notEqual(rotated.id, second.id);
  assert.equal((await client.getKey("app")).id, rotated.id);

  step("keys: delete, recover, purge, backup, restore");
  const volumes = await client.createRsaKey("volumes", { keySize: 2048 });
  const kept = await new CryptographyClient(volumes, credential).wrapKey("RSA-OAEP-256", PLAIN);
  const deleted = await (await client.beginDeleteKey("volumes")).pollUntilDone();
  assert.equal(deleted.properties.recoveryId, `${VAULT_URL}/deletedkeys/volumes`);
  await refused(client.getKey("volumes"), 404, "KeyNotFound");
  await refused(client.createRsaKey("volumes"), 409, "ObjectIsDeletedButRecoverable");
  assert.ok((await collect(client.listDeletedKeys())).some((one) => one.name === "volumes"));
  await (await client.beginRecoverDeletedKey("volumes")).pollUntilDone();
  const again = new CryptographyClient(volumes.id, credential);
  assert.deepEqual(Buffer.from((await again.unwrapKey("RSA-OAEP-256", kept.result)).result), PLAIN);
  const backup = await client.backupKey("app");
  await refused(client.restoreKeyBackup(backup), 409);
  await (await client.beginDeleteKey("app")).pollUntilDone();
  await client.purgeDeletedKey("app");
  assert.equal((await client.restoreKeyBackup(backup)).id, rotated.id);

  step("keys: paging");
  for (let n = 0; n < 30; n += 1) await client.createOctKey(`page-${n}`, { keySize: 256, hsm: true });
  const pages = [];
  for await (const page of client.listPropertiesOfKeys().byPage()) pages.push(page.length);
  assert.ok(pages.length > 1 && Math.max(...pages) <= 25, pages);
  assert.equal((await collect(client.listPropertiesOfKeys())).length, 33);
}

async function keyStates(client, credential) {
  step("keys: disabled, expired, limited");
  const key = await client.createRsaKey("state", { keySize: 2048 });
  const use = new CryptographyClient(key.id, credential);
  const wrapped = await use.wrapKey("RSA-OAEP-256", PLAIN);
  const unwrap = () => new CryptographyClient(key.id, credential).unwrapKey("RSA-OAEP-256", wrapped.result);
  const update = (changes) => client.updateKeyProperties("state", key.properties.version, changes);
  await update({ enabled: false });
  await refused(unwrap(), 403, "KeyDisabled");
  await update({ enabled: true });
  const past = new Date(Date.now() - 86_400_000);
  await update({ notBefore: new Date(past - 86_400_000), expiresOn: past });
  // A client that looks at the key first refuses by itself; this one has looked before.
  await assert.rejects(unwrap(), /expired/);
  assert.deepEqual(Buffer.from((await use.unwrapKey("RSA-OAEP-256", wrapped.result)).result), PLAIN);
  await refused(use.sign("RS256", createHash("sha256").digest()), 403);
  await update({ expiresOn: new Date(Date.now() + 86_400_000), keyOps: ["wrapKey"] });
  await refused(use.unwrapKey("RSA-OAEP-256", wrapped.result), 403, "KeyOperationForbidden");
}

async function secretOperations(credential) {
  step("secrets");
  const client = new SecretClient(VAULT_URL, credential);
  const first = await client.setSecret("db", "first", { contentType: "text/plain" });
  const second = await client.setSecret("db", "zweites \u20ac");
  assert.equal((await client.getSecret("db")).value, "zweites \u20ac");
  assert.equal((await client.getSecret("db", { version: first.properties.version })).value, "first");
  assert.equal((await collect(client.listPropertiesOfSecretVersions("db"))).length, 2);
  await client.updateSecretProperties("db", second.properties.version, { enabled: false });
  await refused(client.getSecret("db"), 403, "SecretDisabled");
  await client.updateSecretProperties("db", second.properties.version, { enabled: true });
  await refused(client.getSecret("missing"), 404, "SecretNotFound");
  const backup = await client.backupSecret("db");
  await (await client.beginDeleteSecret("db")).pollUntilDone();
  await refused(client.setSecret("db", "x"), 409, "ObjectIsDeletedButRecoverable");
  await (await client.beginRecoverDeletedSecret("db")).pollUntilDone();
  assert.equal((await client.getSecret("db")).value, "zweites \u20ac");
  await (await client.beginDeleteSecret("db")).pollUntilDone();
  await client.purgeDeletedSecret("db");
  await client.restoreSecretBackup(backup);
  for (let n = 0; n < 30; n += 1) await client.setSecret(`page-${n}`, "x");
  const pages = [];
  for await (const page of client.listPropertiesOfSecrets().byPage()) pages.push(page.length);
  assert.ok(pages.length > 1 && Math.max(...pages) <= 25, pages);
  assert.equal((await collect(client.listPropertiesOfSecrets())).length, 31);
}

async function identities(keyId) {
  step("identities: App Service");
  process.env.IDENTITY_ENDPOINT = `${VAULT_URL}/msi/token`;
  process.env.IDENTITY_HEADER = secretOf("host");
  const appService = new KeyClient(VAULT_URL, new ManagedIdentityCredential());
  assert.equal((await appService.getKey("volumes")).id, keyId);
  delete process.env.IDENTITY_ENDPOINT;
  delete process.env.IDENTITY_HEADER;

  step("identities: client secret, certificate, default chain");
  const options = { authorityHost: "https://login.test", disableInstanceDiscovery: true };
  const web = new ClientSecretCredential(TENANT, WEB_ID, secretOf("web"), options);
  for (const credential of [web, new ClientSecretCredential(TENANT, WEB_ID, secretOf("web"))]) {
    assert.equal((await new KeyClient(VAULT_URL, credential).getKey("volumes")).id, keyId);
  }
  const client = new KeyClient(VAULT_URL, web);
  const denied = await refused(client.getKey("state"), 403, "ForbiddenByRbac");
  assert.match(denied.message, /keys\/read/);
  await refused(new SecretClient(VAULT_URL, web).getSecret("db"), 403, "ForbiddenByRbac");
  const guess = new ClientSecretCredential(TENANT, WEB_ID, "guess", options);
  await assert.rejects(new KeyClient(VAULT_URL, guess).getKey("volumes"), /AADSTS7000215/);
  const certificate = new ClientCertificateCredential(TENANT, WEB_ID, `${SCRATCH}/client.pem`, options);
  assert.equal((await new KeyClient(VAULT_URL, certificate).getKey("volumes")).id, keyId);
  Object.assign(process.env,
    { AZURE_TENANT_ID: TENANT, AZURE_CLIENT_ID: WEB_ID, AZURE_CLIENT_SECRET: secretOf("web") });
  const chain = new DefaultAzureCredential(options);
  assert.equal((await new KeyClient(VAULT_URL, chain).getKey("volumes")).id, keyId);

  step("identities: policies, firewall");
  operator("policy", "model", "access-policy");
  await refused(client.getKey("volumes"), 403, "ForbiddenByPolicy");
  operator("policy", "set", "web", "--key-permissions", "get");
  assert.equal((await client.getKey("volumes")).id, keyId);
  operator("policy", "model", "rbac");
  operator("firewall", "enable");
  await refused(client.getKey("volumes"), 403, "ForbiddenByFirewall");
  operator("firewall", "disable");
  operator("identity", "disable", "web");
  await refused(client.getKey("volumes"), 401);
  operator("identity", "enable", "web");
}

async function throttled(credential, keyId) {
  step("429 on the very first request");
  operator("limits", "set", "--vault", "1:1");
  const ca = readFileSync(`${SCRATCH}/ca.pem`);
  await new Promise((done, failed) => {
    https.get(`${VAULT_URL}/keys?api-version=7.4`, { ca }, (reply) => reply.resume().on("end", done))
      .on("error", failed);
  });
  const seen = [];
  const policy = {
    name: "statuses",
    async sendRequest(request, next) {
      const reply = await next(request);
      seen.push(reply.status);
      return reply;
    },
  };
  const client = new KeyClient(VAULT_URL, credential, { additionalPolicies: [{ policy, position: "perRetry" }] });
  assert.equal((await client.getKey("volumes")).id, keyId);
  assert.equal(seen[0], 429, String(seen));
  operator("limits", "set", "--vault", "400:4000");
}

step("identities: IMDS");
const host = new ManagedIdentityCredential();
const client = new KeyClient(VAULT_URL, host);
await keyOperations(client, host);
await keyStates(client, host);
await secretOperations(host);
const volumes = (await client.getKey("volumes")).id;
await identities(volumes);
await throttled(host, volumes);
step("done");
