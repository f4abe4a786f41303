#!/bin/bash
# kube: a pod's traffic through Outrigger, under a real istiod on a real Kubernetes
#
# usage: run.sh [--list] [--keep] [--standin] [CASE…]     (without a case: all of them, in order)
#   --keep     leave the demo's namespaces in the cluster at the end
#   --standin  the cluster injects the real pilot-agent with stock Envoy: what only Outrigger can show is skipped
#
# The cluster, either of:
#   OUTRIGGER_KUBE_TOOLS   a folder with the commands of a one-node cluster (up, k, in, mkimage, load); by default
#                          ../shared/kube beside the checkout, if it is there. `up` is called, images are made from
#                          OUTRIGGER_BIN (target/dist/outrigger, else target/release/outrigger) without a Docker build.
#   KUBECONFIG             any cluster with istiod installed whose proxy image is OUTRIGGER_IMAGE (outrigger/outrigger:dev); kubectl
#                          and istioctl come from PATH. IMAGE_BUILDER (`docker build`) builds, IMAGE_LOADER (for example
#                          `kind load docker-image`) brings an image by name into the cluster.
set -euo pipefail
cd "$(dirname "$0")/../.."
exec python3 -B integration/kube/suite "$@"
