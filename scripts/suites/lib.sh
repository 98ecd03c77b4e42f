# Shared by the suites. A suite is called as `suites/NAME DIRECTORY`: it works in DIRECTORY and
# exits 0 when all is well, 77 when it cannot run here (it says why), anything else for a defect.
#
# From the environment:
#   SUITE_SIZE     ci (default) or full
#   SUITE_VOLUME   the directory that scripts/volume made, whose mnt/ is DIRECTORY; without it,
#                  what needs a remount or the backing directory is left out, and said
#   SUITE_KIND     the kind of volume: suites that make their own volumes make this kind
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

SUITES=$ROOT/scripts/suites
SIZE=${SUITE_SIZE:-ci}
KIND=${SUITE_KIND:-atrest}
MOUNT=$(realpath "${1:?usage: ${0##*/} DIRECTORY}")
[[ -d $MOUNT ]] || die "not a directory: $MOUNT"
export PATH=$PATH:$HOME/.cargo/bin:/usr/sbin:/sbin

defect() {
  printf 'DEFECT: %s\n' "$*" >&2
  exit 1
}
skip() {
  printf 'skipped: %s\n' "$*"
  exit 77
}
# The first value for a short run, the second for a full one.
sized() { if [[ $SIZE == full ]]; then echo "$2"; else echo "$1"; fi; }
volume() { "$ROOT/scripts/volume" "$@"; }

remount() {
  if [[ -n ${SUITE_VOLUME:-} ]]; then
    (cd / && volume remount "$SUITE_VOLUME") || defect "remount failed"
  else
    say "not remounted: SUITE_VOLUME is not set"
  fi
}

# For suites that kill the daemon, as a crash of it would: what was in its memory only is gone.
require_killable() {
  [[ -n ${SUITE_VOLUME:-} ]] || skip "no daemon is known: SUITE_VOLUME is not set"
  [[ $KIND == atrest* ]] || skip "what a killed daemon leaves is asked of atrest only"
}
kill_daemon() {
  local pid
  pid=$(volume pid "$SUITE_VOLUME")
  kill -9 "$pid"
  wait_gone "$pid" 30 || defect "the killed daemon does not end"
}
# Mounts again after kill_daemon; the dead mount goes even if somebody still has files open there.
mount_again() {
  (cd / && { umount -l "$MOUNT" 2>/dev/null || fusermount3 -uz "$MOUNT"; }) || defect "the dead mount stays"
  (cd / && volume mount "$SUITE_VOLUME") || defect "the mount after the daemon was killed failed"
}
