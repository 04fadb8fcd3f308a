"""A container engine of the test's own, with the world around it.

Three network namespaces, so that nothing here touches the machine's network:

    world -------- host -------- containers
    9.9.9.0/24     dockerd, its bridges and firewall rules,
    origins        a name server on 127.0.0.53, a service on 0.0.0.0:18080

The world and the host write down whoever comes to them. A test of what cannot
be reached reads these lists: that nothing answered proves nothing.
"""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# What tests/deploy/setup puts there.
PARTS = ROOT / "target/deploy"
PATIENCE = 60
WORLD = ["9.9.9.9", "9.9.9.10", "9.9.9.11", "9.9.9.66", "169.254.169.254"]


class Broken(Exception):
    """Something that a test needs is not as it must be."""


def missing() -> str | None:
    """Why no engine can run here, or nothing."""
    if os.geteuid() != 0:
        return "it needs root: network namespaces and dockerd"
    for program in ("dockerd", "ip", "nsenter", "iptables", "nft"):
        if not shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin"):
            return f"{program} is missing: run tests/setup"
    for part in ("base.tar", "docker-compose"):
        if not (PARTS / part).exists():
            return f"target/deploy/{part} is missing: run tests/setup"
    return None


def until(what: str, condition, patience: float = PATIENCE):
    """What `condition` gives as soon as it is true."""
    end = time.monotonic() + patience
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise Broken(f"{what}: not within {patience:.0f} s")
        time.sleep(0.1)


class Engine:
    """dockerd with compose, and the contacts of world and host."""

    def __init__(self, agentport: Path, openclaw: Path):
        self.home = Path(tempfile.mkdtemp(prefix="agentport-deploy-"))
        self.name = f"apd{os.getpid()}"
        self.agentport = agentport
        self.children: list[subprocess.Popen] = []
        self.socket = f"unix://{self.home}/engine.sock"
        config = self.home / "docker/cli-plugins"
        config.mkdir(parents=True)
        (config / "docker-compose").symlink_to(PARTS / "docker-compose")
        self.environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.home),
            "DOCKER_HOST": self.socket,
            "DOCKER_CONFIG": str(self.home / "docker"),
            "DOCKER_BUILDKIT": "1",
            "BUILDKIT_PROGRESS": "plain",
        }
        try:
            self._networks()
            self._outside()
            self._start()
            self._images(agentport, openclaw)
        except BaseException:
            self.close()
            raise

    def _networks(self) -> None:
        host, world = f"{self.name}h", f"{self.name}w"
        for line in (
            f"netns add {host}",
            f"netns add {world}",
            f"-n {host} link set lo up",
            f"-n {world} link set lo up",
            f"-n {host} link add up0 type veth peer name down0 netns {world}",
            f"-n {host} address add 192.168.77.1/24 dev up0",
            f"-n {host} address add fd77::1/64 dev up0 nodad",
            f"-n {world} address add 192.168.77.2/24 dev down0",
            f"-n {world} address add fd77::2/64 dev down0 nodad",
            f"-n {host} link set up0 up",
            f"-n {world} link set down0 up",
            *(f"-n {world} address add {address}/32 dev lo" for address in WORLD),
            f"-n {world} address add 2001:4860:4860::8888/128 dev lo nodad",
            f"-n {host} route add default via 192.168.77.2",
            f"-n {host} -6 route add default via fd77::2",
            f"-n {world} -6 route add default via fd77::1",
        ):
            run(["ip", *line.split()])

    def _outside(self) -> None:
        self.certificate = self.home / "origin.pem"
        run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
             "-subj", "/CN=origin", "-addext", "subjectAltName=DNS:api.openai.com,DNS:api.github.com",
             "-keyout", str(self.home / "origin.key"), "-out", str(self.certificate)])
        script = str(HERE / "outside.py")
        self.world_log, self.host_log = self.home / "world.log", self.home / "host.log"
        self.child("w", ["/usr/bin/python3", script, str(self.world_log), "world", str(self.certificate), str(self.home / "origin.key")])
        self.child("h", ["/usr/bin/python3", script, str(self.host_log), "host"])
        for log in (self.world_log, self.host_log):
            until(f"{log.name} has begun", lambda log=log: log.exists() and "ready" in log.read_text())

    def _start(self) -> None:
        resolv = self.home / "resolv.conf"
        resolv.write_text("nameserver 127.0.0.53\n")
        # Not `ip netns exec`, which hides the mounts of the control groups.
        self.child("h", [
            "unshare", "--mount", "--", "/bin/sh", "-ec",
            'mount --bind "$0" /etc/resolv.conf; exec "$@"', str(resolv),
            "dockerd", "--data-root", f"{self.home}/data", "--exec-root", f"{self.home}/exec",
            "--pidfile", f"{self.home}/engine.pid", "-H", self.socket,
        ], log=self.home / "engine.log")
        until("dockerd answers", lambda: self.try_docker("version").returncode == 0)

    def _images(self, agentport: Path, openclaw: Path) -> None:
        """Builds all targets of compose/Dockerfile out of built programs."""
        self.docker("import", str(PARTS / "base.tar"), "local/base:1")
        context = self.home / "context"
        for path in git_files():
            if path.startswith(("compose/", "deploy/nftables/")) or path in ("LICENSE", ".dockerignore"):
                copy = context / path
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / path, copy)
        (context / "target/image").mkdir(parents=True)
        for program in (agentport, openclaw):
            run(["strip", "-s", "-o", str(context / "target/image" / program.name), str(program)])
        for target, tag in (("agentport", "agentport/agentport:0.1.0"), ("openclaw", "openclaw/openclaw:0.1.0"), ("fence", "agentport/fence:0.1.0")):
            self.docker("build", "-q", "-f", str(context / "compose/Dockerfile"), "--target", target, "-t", tag,
                        "--build-arg", "BINARIES=prebuilt", "--build-arg", "RUNTIME_BASE=local/base:1", str(context))

    def child(self, where: str, command: list[str], log: Path | None = None) -> subprocess.Popen:
        """A program in a namespace (`h`, `w`), ended with the engine."""
        out = open(log, "ab") if log else subprocess.DEVNULL
        started = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{self.name}{where}", *command],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, env={**self.environment, "PYTHONDONTWRITEBYTECODE": "1"},
        )
        self.children.append(started)
        return started

    def on_host(self, *command: str) -> str:
        return run(["nsenter", f"--net=/run/netns/{self.name}h", *command])

    def try_docker(self, *arguments: str, **more) -> subprocess.CompletedProcess:
        return subprocess.run(["/usr/bin/docker", *arguments], text=True, stdin=subprocess.DEVNULL if "input" not in more else None,
                              capture_output=True, env=self.environment, timeout=300, **more)

    def docker(self, *arguments: str, **more) -> str:
        done = self.try_docker(*arguments, **more)
        if done.returncode:
            raise Broken(f"docker {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def contacts(self, after: "Mark | None" = None) -> list[dict]:
        """Who came to the world and to the host, since the mark."""
        world, host = (self._lines(log) for log in (self.world_log, self.host_log))
        return world[after.world if after else 0 :] + host[after.host if after else 0 :]

    def mark(self) -> "Mark":
        return Mark(len(self._lines(self.world_log)), len(self._lines(self.host_log)))

    @staticmethod
    def _lines(log: Path) -> list[dict]:
        return [json.loads(line) for line in log.read_text().splitlines() if '"ready"' not in line]

    def close(self) -> None:
        """Ends what was started, by its pid, and takes the namespaces away."""
        if (self.home / "engine.pid").exists():
            containers = self.try_docker("ps", "-aq").stdout.split()
            if containers:
                self.try_docker("rm", "-f", *containers)
        for child in reversed(self.children):
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(30)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        for where in "hw":
            subprocess.run(["ip", "netns", "delete", f"{self.name}{where}"], capture_output=True)
        for line in Path("/proc/mounts").read_text().splitlines():
            if line.split()[1].startswith(str(self.home)):
                subprocess.run(["umount", "-l", line.split()[1]], capture_output=True)
        shutil.rmtree(self.home, ignore_errors=True)


class Mark:
    """A place in the lists of contacts."""

    def __init__(self, world: int, host: int):
        self.world, self.host = world, host


class Stack:
    """One compose project, in a copy of its directory."""

    def __init__(self, engine: Engine, source: str, files: list[str] | None = None, environment: dict[str, str] | None = None):
        self.engine = engine
        # Beside what it refers to with `..`.
        self.tree = Path(tempfile.mkdtemp(dir=engine.home))
        for part in ("compose", "deploy"):
            shutil.copytree(ROOT / part, self.tree / part, ignore=shutil.ignore_patterns("secrets", ".env"))
        self.directory = self.tree / source
        self.files = [word for file in files or [] for word in ("-f", file)]
        self.environment = environment or {}

    def try_compose(self, *arguments: str, **more) -> subprocess.CompletedProcess:
        more.setdefault("stdin", subprocess.DEVNULL) if "input" not in more else None
        return subprocess.run(["/usr/bin/docker", "compose", *self.files, *arguments], cwd=self.directory, text=True, capture_output=True,
                              env={**self.engine.environment, **self.environment}, timeout=300, **more)

    def compose(self, *arguments: str, **more) -> str:
        done = self.try_compose(*arguments, **more)
        if done.returncode:
            logs = self.try_compose("logs", "--no-color", "--tail", "30").stdout
            raise Broken(f"docker compose {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}\n{logs}")
        return done.stdout

    def container(self, service: str) -> dict:
        """What the engine says of a service's container."""
        return json.loads(self.engine.docker("inspect", self.compose("ps", "-aq", service).split()[0]))[0]

    def down(self) -> None:
        self.try_compose("down", "--volumes", "--timeout", "5")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.down()
        shutil.rmtree(self.tree, ignore_errors=True)


def run(command: list[str], **more) -> str:
    done = subprocess.run(command, text=True, capture_output=True, **more)
    if done.returncode:
        raise Broken(f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def git_files() -> list[str]:
    """What is in the repository, and what is new and not ignored."""
    return sorted(set(run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT).split("\n")[:-1]))
