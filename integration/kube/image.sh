#!/bin/bash
# image: the Dockerfile builds with no network and no registry, from what cargo has in its cache
#
# usage: image.sh [PROFILE]     (release; `dist` is the one that ships and takes minutes)
# Needs OUTRIGGER_KUBE_TOOLS (see run.sh) for its `image` command, buildah on local base images, or IMAGE_BUILDER (`docker build`) with
# the base images at hand.
set -euo pipefail
cd "$(dirname "$0")/../.."
profile=${1:-release}
tools=${OUTRIGGER_KUBE_TOOLS:-$PWD/../shared/kube}
context=$(mktemp -d) log=$(mktemp)
trap 'rm -rf "$context" "$log"' EXIT
git archive HEAD | tar -x -C "$context"
mkdir -p "$context/.cargo"
# From cargo's own cache: what the checkout was built with is enough.
(cd "$context" && cargo vendor --locked --offline --versioned-dirs vendor > .cargo/config.toml 2> "$log") || { cat "$log"; exit 1; }
name=outrigger/outrigger:offline
if [ -x "$tools/image" ]; then
  # buildah without a daemon shares the caller's network: give it one with nothing in it.
  unshare --net "$tools/image" "$context" "$name" --build-arg "PROFILE=$profile" > "$log" 2>&1 || { tail -n 60 "$log"; exit 1; }
else
  ${IMAGE_BUILDER:-docker build} --network=none --build-arg "PROFILE=$profile" -t "$name" "$context" > "$log" 2>&1 || { tail -n 60 "$log"; exit 1; }
fi
echo "PASS image: built without network, profile $profile"
