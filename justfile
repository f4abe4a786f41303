# What is done often; `just` lists it. Everything that has to hold before a change is taken: `.ci/run`.

default:
    @just --list

# Formats the workspace.
fmt:
    cargo fmt --all

# Formatting, clippy and rustdoc, warnings as errors.
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# All tests; minutes, no network.
test *ARGS:
    cargo test --workspace {{ARGS}}

# Tests of one crate, narrowed by a name: `just test-crate outrigger router::`.
test-crate CRATE *FILTER:
    cargo test -p {{CRATE}} {{FILTER}}

# Microbenchmarks of the hot pieces.
bench *ARGS:
    cargo bench -p outrigger-benches {{ARGS}}

# One fuzz target (needs a nightly toolchain and cargo-fuzz): `just fuzz h1_request -max_total_time=60`.
fuzz TARGET *ARGS:
    cd fuzz && cargo +nightly fuzz run {{TARGET}} -- {{ARGS}}

# The differential suite against Envoy's recordings: `just diff --filter http1/ -v`.
diff *ARGS:
    integration/run diff {{ARGS}}

# Licences, sources, bans, advisories.
deny:
    cargo deny check

# Outrigger and those of Envoy, haproxy and nginx that are installed, side by side: CPU per request and more.
compare *ARGS:
    cargo build --profile dist -p outrigger --bin outrigger
    cargo run --release -p outrigger-benches --bin compare -- {{ARGS}}

# The image that istiod injects.
image TAG="outrigger/outrigger:dev":
    docker build -t {{TAG}} .
