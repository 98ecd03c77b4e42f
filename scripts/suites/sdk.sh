# Shared by the suites that put official SDKs in front of `atrest vault serve`: sourced after lib.sh.
#
# The SDKs are not told that this is not Azure. In a network namespace of its own the host's names and
# addresses are Azure's: *.vault.azure.net leads here with a certificate of a CA that the test made,
# 169.254.169.254 is the metadata service, and every check of the SDKs is on.

VAULT_HOST=contoso.vault.azure.net

# Runs this suite again in a namespace of its own, where there is no way out to the network.
enter_namespace() {
  [[ -z ${SDK_NAMESPACE:-} ]] || return 0
  is_root || skip "needs root for a network namespace"
  install_missing ip openssl curl
  "$1"
  export SDK_NAMESPACE=1
  exec unshare --net --mount "$0" "$MOUNT"
}

# The SDK for Python, as the lock says.
VENV=$TOOLS/sdk-python
install_python_sdk() {
  local lock=$SUITES/sdk-python.lock
  cmp -s "$lock" "$VENV/installed" && return
  rm -rf "$VENV"
  python3 -m venv "$VENV" || die "python3 -m venv failed: install the package python3-venv"
  "$VENV/bin/pip" install --quiet --require-hashes --only-binary :all: -r "$lock" ||
    die "the SDK could not be installed"
  cp "$lock" "$VENV/installed"
}

# install_modules NAME DIRECTORY: what NAME.lock.json says, from npm, with the interpreter that it
# wants: Debian's is older.
install_modules() {
  local lock=$SUITES/$1.lock.json
  cmp -s "$lock" "$2/installed" && return
  have npm || install_missing npm
  have npm || die "npm is missing"
  rm -rf "$2" && mkdir -p "$2"
  cp "$SUITES/$1.package.json" "$2/package.json"
  cp "$lock" "$2/package-lock.json"
  (cd "$2" && npm ci --no-audit --no-fund --loglevel=error) || die "$1 could not be installed from npm"
  cp "$lock" "$2/installed"
}

# A CA and a certificate for the names; loopback, the metadata address, /etc/hosts.
make_network() {
  ip link set lo up
  ip addr add 169.254.169.254/32 dev lo
  { cat /etc/hosts && echo "127.0.0.1 $VAULT_HOST login.test login.microsoftonline.com"; } >"$SCRATCH/hosts"
  mount --bind "$SCRATCH/hosts" /etc/hosts
  (
    cd "$SCRATCH"
    openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 \
      -subj "/CN=atrest test CA" -addext "basicConstraints=critical,CA:TRUE" \
      -addext "keyUsage=critical,keyCertSign,cRLSign"
    openssl req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj "/CN=$VAULT_HOST"
    openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out server.pem \
      -extfile <(printf '%s\n' "subjectAltName=DNS:*.vault.azure.net,DNS:login.test,DNS:login.microsoftonline.com" \
        "basicConstraints=CA:FALSE" "keyUsage=digitalSignature,keyEncipherment" \
        "extendedKeyUsage=serverAuth" "authorityKeyIdentifier=keyid")
    # For a client that signs assertions with a key of its own.
    openssl req -x509 -newkey rsa:2048 -nodes -keyout client.key -out client.crt -days 2 -subj "/CN=client"
    cat client.key client.crt >client.pem
  ) >"$SCRATCH/openssl.log" 2>&1 || { cat "$SCRATCH/openssl.log"; die "openssl failed"; }
  export SSL_CERT_FILE=$SCRATCH/ca.pem REQUESTS_CA_BUNDLE=$SCRATCH/ca.pem NODE_EXTRA_CA_CERTS=$SCRATCH/ca.pem
  unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY all_proxy
}

# An operator's command: vault NOUN VERB ARGUMENT...
operator() { "$ATREST" vault "$1" "$2" "$VAULT_DIR" "${@:3}"; }
json() { python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }

# A vault from which keys can be purged, served at its name, and who may ask it.
start_vault() {
  export VAULT_DIR=$SCRATCH/contoso ATREST_STATE=$SCRATCH/state
  export VAULT_URL=https://$VAULT_HOST
  "$ATREST" vault init "$VAULT_DIR" --kek local: --key-store "$SCRATCH/keys" --retention-days 7 \
    --no-purge-protection
  "$ATREST" vault serve "$VAULT_DIR" --key-store "$SCRATCH/keys" --listen 127.0.0.1:443 \
    --tls-cert "$SCRATCH/server.pem" --tls-key "$SCRATCH/server.key" --imds 169.254.169.254:80 \
    --log "$SCRATCH/vault.log" &
  VAULT_PID=$!
  # After a failure it is still there.
  trap 'status=$?; kill "$VAULT_PID" 2>/dev/null || true; on_exit "$status"' EXIT
  local tries=100
  until [[ -S $VAULT_DIR/admin.sock ]]; do
    kill -0 "$VAULT_PID" && ((tries-- > 0)) || { cat "$SCRATCH/vault.log"; die "the vault does not start"; }
    sleep 0.1
  done
  operator settings set --authority https://login.test >/dev/null
  TENANT=$(operator settings show | json tenant)
  # A managed identity that may do everything, by its address and by a secret of the host.
  operator identity create host --managed >/dev/null
  operator identity bind host --host here --address 169.254.169.254 >/dev/null
  operator identity bind host --host app --secret-file "$SCRATCH/host.secret" >/dev/null
  operator policy assign host "Key Vault Administrator" >/dev/null
  # A service principal that may use one key and not look at it, and one whose secret is its own.
  WEB_ID=$(operator identity create web | json client_id)
  operator identity secret web --secret-file "$SCRATCH/web.secret" >/dev/null
  operator identity certificate web --pem "$SCRATCH/client.crt" >/dev/null
  operator policy assign web "Key Vault Crypto Service Encryption User" --scope /keys/volumes >/dev/null
  export TENANT WEB_ID SCRATCH VAULT_HOST
}

# Ends it as a service manager would; nothing it said was a panic.
stop_vault() {
  kill -TERM "$VAULT_PID"
  wait "$VAULT_PID" || defect "the vault ended with $?"
  ! grep -n 'panicked' "$SCRATCH/vault.log" || defect "the vault panicked"
}

# What was asked is on record, in Key Vault's words, and nothing secret is.
check_audit() {
  python3 - "$VAULT_DIR/audit/audit.jsonl" "$SCRATCH/web.secret" "$SCRATCH/host.secret" <<'END' || defect "the audit log"
import json, pathlib, sys
text = pathlib.Path(sys.argv[1]).read_text()
lines = [json.loads(line) for line in text.splitlines()]
names = {line["operationName"] for line in lines}
for name in ["KeyCreate", "KeyWrap", "KeyUnwrap", "KeySign", "SecretSet", "SecretGet", "KeyPurge",
             "VaultManagedIdentityToken", "VaultTokenIssue", "VaultPolicyUpdate"]:
    assert name in names, f"{name} is not on record: {sorted(names)}"
unwrap = next(line for line in lines if line["operationName"] == "KeyUnwrap" and line["resultType"] == "Success")
assert unwrap["identity"]["claim"]["appid"] and unwrap["callerIpAddress"] == "127.0.0.1", unwrap
assert "/keys/" in unwrap["properties"]["id"] and unwrap["properties"]["httpStatusCode"] == 200, unwrap
assert any(line["properties"].get("httpStatusCode") == 429 for line in lines), "no 429 is on record"
for secret in sys.argv[2:]:
    assert pathlib.Path(secret).read_text() not in text, "a secret is in the audit log"
assert "eyJ" not in text, "a token is in the audit log"
print(f"{len(lines)} requests on record, {len(names)} kinds")
END
}
