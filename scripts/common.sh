# Shared by the scripts: messages, packages, building, scratch directories and their clean-up.
# Source it after `set -euo pipefail`.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
ATREST=${ATREST_BIN:-$ROOT/target/release/atrest}
TOOLS=$ROOT/target/tools
export ROOT ATREST TOOLS

# A script never ends without saying where.
set -o errtrace
trap 'printf "error: %s:%d: this failed: %s\n" "${BASH_SOURCE[0]##*/}" "$LINENO" "$BASH_COMMAND" >&2' ERR

say() { printf '%s\n' "$*"; }
step() { printf '\n== %s\n' "$*"; }
warn() { printf 'warning: %s\n' "$*" >&2; }
die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}
is_root() { [[ $EUID -eq 0 ]]; }
have() { command -v "$1" >/dev/null 2>&1; }

# Command that must exist -> Debian package that has it.
declare -A PACKAGES=(
  [fusermount3]=fuse3 [sqlite3]=sqlite3 [git]=git [rsync]=rsync [fio]=fio [getfattr]=attr
  [getfacl]=acl [gocryptfs]=gocryptfs [strace]=strace [ps]=procps [mkfs.ext4]=e2fsprogs
  [mkfs.xfs]=xfsprogs [python3]=python3 [cc]=build-essential [tar]=tar [xz]=xz-utils
  [losetup]=mount [findmnt]=util-linux [xxd]=xxd [cmake]=cmake
  [stress-ng]=stress-ng [pg_ctlcluster]=postgresql [ip]=iproute2 [curl]=curl [openssl]=openssl
  [npm]=npm [nginx]=nginx [chromium]=chromium [python3-venv]=python3-venv [systemd-creds]=systemd
  [softhsm2-util]=softhsm2 [pkcs11-tool]=opensc [certutil]=libnss3-tools [swtpm]=swtpm
  [unzip]=unzip [zip]=zip [minisign]=minisign [tpm2_pcrread]=tpm2-tools [pkg-config]=pkg-config
)
# The same for what only bench/run --install asks for.
declare -A PACKAGES_BENCH=([securefs]=securefs [encfs]=encfs [cryfs]=cryfs [xfs_io]=xfsprogs [gnuplot]=gnuplot-nox)
# Library, as pkg-config knows it, that all features need to build -> Debian package that has it.
declare -A LIBRARIES=([tss2-esys]=libtss2-dev)

# Installs the packages of those given commands and libraries (default: all) that are missing.
# What cannot be installed is said, and left to whoever needs it to fail or be skipped.
install_missing() {
  local name names=("$@") missing=() packages=()
  (($#)) || names=("${!PACKAGES[@]}" "${!LIBRARIES[@]}")
  for name in "${names[@]}"; do
    if [[ -n ${LIBRARIES[$name]:-} ]]; then
      pkg-config --exists "$name" 2>/dev/null && continue
    elif [[ $name == python3-venv ]]; then
      # A module, not a command.
      python3 -c 'import ensurepip' 2>/dev/null && continue
    elif PATH=$PATH:/usr/sbin:/sbin have "$name"; then
      continue
    fi
    missing+=("$name")
    packages+=("${PACKAGES[$name]:-${LIBRARIES[$name]:-${PACKAGES_BENCH[$name]:-}}}")
  done
  ((${#missing[@]})) || return 0
  if is_root && have apt-get; then
    say "installing: ${packages[*]}"
    local log without_cluster=/etc/postgresql-common/createcluster.d/atrest.conf
    log=$(mktemp)
    # The tests make their own databases: installing PostgreSQL must not start a server.
    mkdir -p "${without_cluster%/*}"
    echo 'create_main_cluster = false' >"$without_cluster"
    if ! { apt-get update && DEBIAN_FRONTEND=noninteractive \
      apt-get install -y --no-install-recommends "${packages[@]}"; } >"$log" 2>&1 </dev/null; then
      tail -n 20 "$log" >&2
      rm -f "$log" "$without_cluster"
      die "apt-get could not install ${packages[*]}"
    fi
    rm -f "$log" "$without_cluster"
  else
    warn "missing: ${missing[*]} (Debian packages: ${packages[*]}); install them, or run as root"
  fi
}

# Without cargo nothing can be built; a tool chain is not something to install behind one's back.
require_rust() {
  export PATH=$PATH:$HOME/.cargo/bin:/usr/sbin:/sbin
  have cargo && return
  die "cargo is missing: install Rust $(rust_version) or newer (https://rustup.rs), then run again"
}
rust_version() { sed -n 's/^rust-version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml"; }

require_fuse() {
  [[ -c /dev/fuse ]] || die "/dev/fuse is missing: load the fuse module, or give the container access to it"
  have fusermount3 || die "fusermount3 is missing: install the package fuse3"
}

# Builds the release binary; with arguments, those of cargo build instead of --bin atrest.
build() {
  require_rust
  (cd "$ROOT" && cargo build --release --locked "${@:---bins}") </dev/null ||
    die "the build failed (see above)"
}

# Makes a directory that is unmounted, emptied and removed at exit, whatever happens.
# Sets SCRATCH. A daemon or a mount that the clean-up had to end counts as a failure.
scratch() {
  SCRATCH=$(mktemp -d "${TMPDIR:-/tmp}/atrest-$1.XXXXXX")
  chmod 755 "$SCRATCH"
  export SCRATCH
  trap 'on_exit $?' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
}

on_exit() {
  local status=$1
  trap - EXIT INT TERM HUP
  # Leftovers after a failure are a consequence; after a success they are the failure.
  if ! clean_below "$SCRATCH" && [[ $status -eq 0 ]]; then
    status=1
  fi
  exit "$status"
}

# Unmounts, detaches and ends everything that lives below a directory, then removes it.
# Fails if there was anything to end.
clean_below() {
  local directory=$1 found=0 target device pid
  while read -r target; do
    [[ -n $target ]] || continue
    found=1
    warn "left mounted: $target"
    umount "$target" 2>/dev/null || fusermount3 -u "$target" 2>/dev/null ||
      umount -l "$target" 2>/dev/null || fusermount3 -uz "$target" 2>/dev/null || true
  done < <(mounts_below "$directory")
  for pid in $(daemons_below "$directory"); do
    # An unmounted daemon may still be writing; it gets a while to finish by itself.
    if ! wait_gone "$pid" 30; then
      found=1
      warn "left running: $pid $(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null || true)"
      kill "$pid" 2>/dev/null || true
      wait_gone "$pid" 5 || kill -9 "$pid" 2>/dev/null || true
    fi
  done
  while read -r device; do
    [[ -n $device ]] || continue
    found=1
    warn "left attached: $device"
    losetup -d "$device" 2>/dev/null || true
  done < <(losetup -n -O NAME,BACK-FILE 2>/dev/null | awk -v d="$directory/" 'index($2, d) == 1 { print $1 }')
  rm -rf --one-file-system "$directory" || found=1
  return "$found"
}

# Mount points below a directory, deepest and newest first.
mounts_below() {
  awk -v d="$1/" 'index($5, d) == 1 { below[++n] = $5 }
    END { while (n) print below[n--] }' /proc/self/mountinfo
}

# Processes that serve a mount below a directory: their command line names it.
daemons_below() {
  local entry pid
  for entry in /proc/[0-9]*/cmdline; do
    pid=${entry#/proc/}
    pid=${pid%/cmdline}
    [[ $pid != "$$" && $pid != "$BASHPID" ]] || continue
    if tr '\0' '\n' 2>/dev/null <"$entry" | awk -v d="$1/" '
      NR == 1 { n = split($0, part, "/"); known = part[n] ~ /^(atrest|gocryptfs|passthrough|securefs|encfs|cryfs)$/ }
      known && index($0, d) == 1 { found = 1 }
      END { exit !found }'; then
      echo "$pid"
    fi
  done
}

# Waits until a process has ended, at most so many seconds.
wait_gone() {
  local pid=$1 tenths=$(($2 * 10))
  while [[ -d /proc/$pid ]] && ! grep -q '^State:.Z' "/proc/$pid/status" 2>/dev/null; do
    ((tenths-- > 0)) || return 1
    sleep 0.1
  done
}

# Installs a program of crates.io into target/tools, once.
cargo_tool() {
  local name=$1 version=$2
  if [[ ! -x $TOOLS/bin/$name ]] || ! "$TOOLS/bin/$name" --version | grep -qF "$version"; then
    require_rust
    cargo install "$name" --version "$version" --locked --root "$TOOLS" --quiet </dev/null >&2 ||
      die "cargo install $name $version failed"
  fi
}
