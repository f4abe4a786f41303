# Outrigger as istio-proxy's place in the pod: the init container (`istio-iptables …`), the sidecar (`proxy sidecar …`), and
# `pilot-agent` by name. Runs as any user, on a read-only root.
#
#   docker build -t outrigger/outrigger:dev .
#
# Without network: run `cargo vendor --locked` and put what it prints into .cargo/config.toml first; the folder `vendor` is part
# of the context. PROFILE=release builds in a fraction of the time, PROFILE=dist is what the measurements are about.
FROM rust:1-bookworm AS build
ARG PROFILE=dist
WORKDIR /src
COPY . .
RUN cargo build --locked --profile "$PROFILE" -p outrigger --bin outrigger \
 && install -D "target/$PROFILE/outrigger" /out/usr/local/bin/outrigger \
 && ln -s outrigger /out/usr/local/bin/pilot-agent

FROM debian:bookworm-slim
# istio-iptables hands its rules to iptables-restore. A base image that has it needs no package source.
RUN command -v iptables-restore > /dev/null \
 || { apt-get update && apt-get install -y --no-install-recommends iptables && rm -rf /var/lib/apt/lists/*; }
COPY --from=build /out/ /
# istiod's template sets the users (0 for the init container, 1337 for the sidecar). A workload started from this image must not
# run as 1337: what that user sends is taken for the proxy's own and is not captured.
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/outrigger"]
CMD ["--help"]
