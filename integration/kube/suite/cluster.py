"""The cluster as the cases see it: kubectl, istioctl, commands inside pods, images, the demo's life."""

import json
import os
import shlex
import subprocess
import time
from pathlib import Path

from check import Failed, eventually

ROOT = Path(__file__).resolve().parents[3]
MANIFESTS = ROOT / "integration/kube/manifests"
NAMESPACES = ["demo", "legacy", "observability"]


class Cluster:
    def __init__(self, standin=False):
        self.standin = standin
        self.image = os.environ.get("OUTRIGGER_IMAGE", "outrigger/outrigger:dev")
        self.tools_image = os.environ.get("OUTRIGGER_TOOLS_IMAGE", "outrigger/kube-tools:dev")
        tools = Path(os.environ.get("OUTRIGGER_KUBE_TOOLS") or ROOT.parent / "shared/kube")
        self.node = tools if (tools / "up").exists() and "KUBECONFIG" not in os.environ else None
        self.kubectl = [str(self.node / "k")] if self.node else ["kubectl"]
        self.istioctl_command = [str(self.node / "in"), "istioctl"] if self.node else ["istioctl"]

    # --- commands

    def run(self, command, stdin=None, ok=True, timeout=180):
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout)
        if ok and done.returncode:
            raise Failed(f"{shlex.join(map(str, command))[:200]}: exit {done.returncode}: {(done.stderr or done.stdout)[-800:]}")
        return done.stdout if ok else done

    def k(self, *arguments, **options):
        return self.run([*self.kubectl, *arguments], **options)

    def istioctl(self, *arguments, **options):
        return self.run([*self.istioctl_command, *arguments], **options)

    def exec(self, pod, container, *command, namespace="demo", **options):
        return self.k("-n", namespace, "exec", pod, "-c", container, "--", *command, **options)

    def apply(self, *names, **variables):
        """Applies manifests of the suite by name, ${VARIABLES} filled in."""
        for name in names:
            self.apply_text(self.text(name, **variables))

    def text(self, name, **variables):
        text = (MANIFESTS / f"{name}.yaml").read_text()
        for key, value in {"WORKLOAD_IMAGE": self.image, "TOOLS_IMAGE": self.tools_image, "SECRET_TTL": "24h", "STABLE": 90, "CANARY": 10, **variables}.items():
            text = text.replace("${" + key + "}", str(value))
        return text

    def apply_text(self, text):
        self.k("apply", "-f", "-", stdin=text)

    def delete(self, name):
        self.k("delete", "--ignore-not-found", "--wait=false", "-f", "-", stdin=self.text(name))

    # --- pods

    def pods(self, selector, namespace="demo"):
        """Running pods that are not on their way out, newest last."""
        items = json.loads(self.k("-n", namespace, "get", "pods", "-l", selector, "-o", "json"))["items"]
        live = [i for i in items if "deletionTimestamp" not in i["metadata"] and i["status"].get("phase") == "Running"]
        return sorted(live, key=lambda i: i["metadata"]["creationTimestamp"])

    def pod(self, selector, namespace="demo"):
        pods = self.pods(selector, namespace)
        if not pods:
            raise Failed(f"no running pod {selector} in {namespace}")
        return pods[-1]["metadata"]["name"]

    @property
    def frontend(self):
        return self.pod("app=frontend")

    def roll_out(self, *names, namespace="demo"):
        for name in names:
            self.k("-n", namespace, "rollout", "status", f"deploy/{name}", "--timeout=120s")
        # Pods of the previous set are gone, so that nothing counts or answers twice.
        eventually(
            lambda: "deletionTimestamp" not in self.k("-n", namespace, "get", "pods", "-o", "json"), "old pods end", 90
        )

    # --- the proxy's own pages

    def request(self, pod, path, method="GET", port=15000, namespace="demo", **options):
        """An HTTP request from inside the pod, by pilot-agent, past the capture."""
        return self.exec(pod, "istio-proxy", "pilot-agent", "request", f"--debug-port={port}", method, path, namespace=namespace, **options)

    def stats(self, pod, pattern, namespace="demo"):
        """{name: value} of the proxy's counters and gauges that match."""
        text = self.request(pod, f"stats?filter={pattern}", namespace=namespace)
        pairs = (line.rsplit(": ", 1) for line in text.splitlines() if ": " in line)
        return {name: int(value) for name, value in pairs if value.isdigit()}

    def cluster_stat(self, pod, upstream, name):
        """One stat of an upstream cluster. istiod's alternative stat names end in a semicolon."""
        found = {k: v for k, v in self.stats(pod, name).items() if k in (f"cluster.{upstream};.{name}", f"cluster.{upstream}.{name}")}
        if not found:
            raise Failed(f"{pod} has no stat {name} for {upstream}")
        return sum(found.values())

    def post(self, pod, path):
        """A POST to the application itself, from inside its pod."""
        return self.exec(pod, "tools", "curl", "-sSf", "-m", "10", "-X", "POST", f"http://127.0.0.1:9898/{path}")

    def faults(self, pod, **faults):
        """Makes a podinfo fail (`fail`, `of`, `status`, `delay_ms`), or behave again without arguments."""
        self.post(pod, "faults?" + ("&".join(f"{k}={v}" for k, v in faults.items()) if faults else "fail=0"))

    # --- traffic

    def load(self, url="http://podinfo:9898/", **options):
        """Closed-loop load from the frontend's container, and its report."""
        query = "&".join([f"url={url}", *(f"{k}={v}" for k, v in options.items())])
        out = self.exec(self.frontend, "tools", "curl", "-sS", "-m", "900", f"http://127.0.0.1:9898/load?{query}", timeout=960)
        report = json.loads(out)
        if "error" in report:
            raise Failed(report["error"])
        return report

    def load_in_background(self, **options):
        """Starts load; the returned function waits for it and gives the report."""
        query = "&".join([f"url={options.pop('url', 'http://podinfo:9898/')}", *(f"{k}={v}" for k, v in options.items())])
        command = [*self.kubectl, "-n", "demo", "exec", self.frontend, "-c", "tools", "--", "curl", "-sS", f"http://127.0.0.1:9898/load?{query}"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

        def wait(timeout=960):
            out, error = process.communicate(timeout=timeout)
            if process.returncode:
                raise Failed(f"load: exit {process.returncode}: {error[-400:]}")
            return json.loads(out)

        return wait

    def curl(self, *arguments, **options):
        return self.exec(self.frontend, "tools", "curl", "-sS", "-m", "15", *arguments, **options)

    # --- the demo's life

    def set_up(self):
        begin = time.monotonic()
        if self.node:
            self.run([str(self.node / "up"), *(["--standin"] if self.standin else ["--proxy-image", self.image])], timeout=1800)
        self.load_images()
        self.mesh_config("extensionProviders:", "extensionProviders:\n- name: otel\n  opentelemetry:\n    service: otel.observability.svc.cluster.local\n    port: 4317\n")
        self.k("delete", "namespace", "--ignore-not-found", *NAMESPACES, timeout=300)
        self.apply("observability", "mesh", "routing", "virtualservice", "legacy")
        self.roll_out("frontend", "podinfo-stable", "podinfo-canary")
        self.roll_out("otel", namespace="observability")
        self.settle()
        print(f"set up in {time.monotonic() - begin:.0f} s", flush=True)

    def settle(self):
        """Waits until the frontend's proxy sends requests to both versions: endpoints and routes have arrived."""
        plain = lambda: "stable" in self.load(requests=20, connections=2)["versions"]
        canary = lambda: set(self.load(requests=5, header="x-canary:true")["versions"]) == {"canary"}
        eventually(plain, "the frontend reaches the stable version", 60)
        eventually(canary, "the frontend reaches the canary", 60)

    def tear_down(self):
        self.k("delete", "namespace", "--ignore-not-found", "--wait=false", *NAMESPACES)

    def mesh_config(self, key, text):
        """Adds a top-level piece to istiod's MeshConfig unless it is there."""
        mesh = json.loads(self.k("-n", "istio-system", "get", "configmap", "istio", "-o", "json"))["data"]["mesh"]
        if key not in mesh:
            patch = json.dumps({"data": {"mesh": mesh.rstrip("\n") + "\n" + text}})
            self.k("-n", "istio-system", "patch", "configmap", "istio", "--type=merge", "-p", patch)

    def load_images(self):
        import images

        images.provide(self)
