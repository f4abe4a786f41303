"""The two images: Outrigger's own, which is also the workload, and the tools that cases run inside pods."""

import os
import subprocess
import tempfile
from pathlib import Path

from check import Failed

ROOT = Path(__file__).resolve().parents[3]


def provide(cluster):
    if cluster.node:
        from_binaries(cluster)
        return
    builder = os.environ.get("IMAGE_BUILDER", "docker build").split()
    loader = os.environ.get("IMAGE_LOADER", "").split()
    for name, dockerfile in [(cluster.image, "Dockerfile"), (cluster.tools_image, "integration/kube/tools/Dockerfile")]:
        subprocess.run([*builder, "-t", name, "-f", str(ROOT / dockerfile), str(ROOT)], check=True)
        if loader:
            subprocess.run([*loader, name], check=True)


def from_binaries(cluster):
    """Seconds instead of minutes: what cargo built, on the node's own minimal root file system."""
    state = Path(os.environ.get("OUTRIGGER_KUBE") or Path.home() / ".cache/outrigger-kube")
    rootfs = state / "build/rootfs.tar"
    if not rootfs.exists():
        cluster.run([str(cluster.node / "build"), "rootfs"], timeout=600)
    outrigger = binary("OUTRIGGER_BIN", "outrigger")
    tools = binary("OUTRIGGER_TOOLS_BIN", "kube-tools")
    with tempfile.TemporaryDirectory() as folder:
        make(cluster, Path(folder) / "outrigger.tar", cluster.image, rootfs,
             ["--add", f"{outrigger}:/usr/local/bin/outrigger:755", "--link", "/usr/local/bin/pilot-agent:outrigger",
              "--user", "65532:65532", "--entrypoint", '["/usr/local/bin/outrigger"]'])
        added = [f"{tools}:/usr/local/bin/kube-tools:755"]
        for program in ["wrk", "prometheus"]:
            path = Path("/usr/bin") / program
            if not path.exists():
                raise Failed(f"{path}: not installed")
            added.append(f"{path}:{path}:755")
            # Under /usr: a layer with a folder /lib would hide the root file system's link of that name.
            added += [f"{library}:/usr/{library.removeprefix('/usr').lstrip('/')}:755" for library in libraries(path)]
        make(cluster, Path(folder) / "tools.tar", cluster.tools_image, rootfs, [x for a in sorted(set(added)) for x in ("--add", a)])


def make(cluster, tar, name, rootfs, arguments):
    cluster.run([str(cluster.node / "mkimage"), str(tar), name, "--from", str(rootfs), *arguments], timeout=300)
    cluster.run([str(cluster.node / "load"), str(tar)], timeout=300)


def binary(variable, name):
    if variable in os.environ:
        return Path(os.environ[variable]).resolve()
    for profile in ["dist", "release", "debug"]:
        path = ROOT / "target" / profile / name
        if path.exists():
            return path
    raise Failed(f"{name}: build it first (cargo build --release), or set {variable}")


def libraries(program):
    """What the dynamic linker would load, apart from the C library that every root file system has."""
    for line in subprocess.run(["ldd", str(program)], capture_output=True, text=True).stdout.splitlines():
        words = line.split()
        if "=>" in words and words[2].startswith("/") and not words[0].startswith(("libc.", "libm.", "libpthread.", "libdl.", "libgcc_s.")):
            yield words[2]
