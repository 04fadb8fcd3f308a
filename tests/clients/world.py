"""Everything around a client: certificates, names, origins, the gateway, and
what they saw. Judges nothing.
"""

import json
import os
import secrets
import selectors
import shutil
import ssl
import subprocess
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from names import Names

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
PROGRAMS = HERE / "programs"
PYTHON = ROOT / "target/venv/bin/python"
NODE = ROOT / "target/node/node_modules/.bin/node"
GO = ROOT / "target/venv/bin/go"
AGENT = "bot-01"
PATIENCE = 60


class Broken(Exception):
    """Something around the clients does not work. Its text says what to do."""


def find(program: str, package: str) -> str:
    """The program's path, or what to install."""
    path = shutil.which(program)
    if path is None:
        raise Broken(f"{program} is missing: run tests/setup, or apt-get install {package}")
    return path


@dataclass
class Outcome:
    """What a client did."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


class World:
    """Loopback with origins on it and a gateway before them, and nothing else.

    `origin.test` is allowed; so is every name under `unproven.test`, which is
    for clients without a credential and leads to the origins that nobody may
    reach; names under `refused.test` lead there too, and no rule knows them;
    those under `told.test` are refused inside the tunnel.
    `loopback.test` is allowed by name and refused by its address.
    """

    def __init__(self, agentport: Path):
        self.agentport = str(agentport)
        self.folder = Path(tempfile.mkdtemp(prefix="agentport-clients-"))
        self.home = self.folder / "home"
        self.home.mkdir()
        self.processes: list[subprocess.Popen] = []
        # What the records must tell of at the end.
        self.refused_hosts: set[str] = set()
        # How many have come to the closed origins.
        self.contacts = 0
        # What a client may inherit: nothing of the one who runs the tests.
        self.bare = {"PATH": os.environ["PATH"], "HOME": str(self.home), "LANG": "C.UTF-8"}
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def _build(self) -> None:
        self.ca = self._certificates()
        self.context = ssl.create_default_context(cafile=self.ca)
        self.context.check_hostname = False
        (self.folder / "files").mkdir()
        self.names = Names()
        self.ports = self._origins()
        self.refusal_ca = self._refusal_ca()
        self.secret = secrets.token_hex(32)
        self.gateway, self.admin = self._gateway()
        self.token = self.issue()
        self.token_file = self.folder / "token"
        self.token_file.write_text(self.token + "\n")

    def close(self) -> None:
        """Ends what was started, by its id, and clears up."""
        for process in reversed(self.processes):
            stop(process)
        shutil.rmtree(self.folder, ignore_errors=True)

    # -- the parts

    def _certificates(self) -> Path:
        openssl = find("openssl", "openssl")
        folder = self.folder
        (folder / "leaf.cnf").write_text(
            "subjectAltName = DNS:origin.test, DNS:loopback.test, DNS:*.refused.test, DNS:*.unproven.test\n"
            "basicConstraints = critical, CA:FALSE\nkeyUsage = critical, digitalSignature\n"
            "extendedKeyUsage = serverAuth\nauthorityKeyIdentifier = keyid\n")
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        for command in (
            ["req", "-x509", *key, "-keyout", "ca-key.pem", "-out", "ca.pem", "-days", "2",
             "-subj", "/CN=Test CA of the client tests", "-addext", "keyUsage = critical, keyCertSign"],
            ["req", "-new", *key, "-keyout", "key.pem", "-out", "leaf.csr", "-subj", "/CN=origin.test"],
            ["x509", "-req", "-in", "leaf.csr", "-CA", "ca.pem", "-CAkey", "ca-key.pem", "-CAcreateserial",
             "-days", "2", "-extfile", "leaf.cnf", "-out", "cert.pem"],
        ):
            done = subprocess.run([openssl, *command], cwd=folder, capture_output=True, text=True)
            if done.returncode:
                raise Broken(f"openssl {command[0]}: {done.stderr.strip()}")
        return folder / "ca.pem"

    def _refusal_ca(self) -> Path:
        """By the command that users have."""
        folder = self.folder / "refusals"
        command = [self.agentport, "ca", "init", "--domain", "agents.internal", "--folder", str(folder)]
        done = subprocess.run(command, env=self.bare, capture_output=True, text=True)
        if done.returncode:
            raise Broken(f"agentport ca init: {done.stderr.strip()}")
        return folder / "ca.pem"

    def _origins(self) -> dict[str, int]:
        for needed in (NODE, PYTHON):
            if not needed.exists():
                raise Broken(f"{needed.relative_to(ROOT)} is missing: run tests/setup")
        process = self._start([str(NODE), str(HERE / "origin.mjs"), str(self.folder)], "origin.log",
                              self.bare, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        line = read_line(process.stdout)
        if not line:
            raise Broken(f"the origin does not start: {(self.folder / 'origin.log').read_text()}")
        return json.loads(line)

    def _gateway(self) -> tuple[str, str]:
        (self.folder / "policy.json").write_text(json.dumps({"version": 1, "rules": [
            {"name": "origin", "action": "allow", "agents": [AGENT], "hosts": ["origin.test"],
             "addresses": ["127.0.0.0/8"], "ports": [self.ports["plain"], self.ports["tls"]]},
            {"name": "unproven", "action": "allow", "agents": [AGENT], "hosts": ["*.unproven.test"],
             "addresses": ["127.0.0.0/8"], "ports": "any"},
            {"name": "by-name-only", "action": "allow", "agents": [AGENT], "hosts": ["loopback.test"],
             "ports": "any"},
            {"name": "told", "action": "deny", "agents": "any", "hosts": ["*.told.test"], "ports": "any",
             "refusal": "inside"},
        ]}))
        # JSON is YAML.
        self.config = self.folder / "agentport.yaml"
        self.config.write_text(json.dumps({
            "listen": {"egress": ["127.0.0.1:0"], "admin": "127.0.0.1:0"},
            "policy": str(self.folder / "policy.json"),
            "resolver": {"servers": [f"127.0.0.1:{self.names.port}"]},
            "audit": {"path": str(self.folder / "audit.jsonl")},
            "log": {"level": "info", "format": "json"},
            "refusals": {"inside": "rules", "certificate": str(self.refusal_ca),
                         "key": str(self.refusal_ca.with_name("ca.key"))},
            "timeouts": {"drain": "2s"},
        }))
        self._start([self.agentport, "serve", "-c", str(self.config)], "gateway.log", self.secrets())
        found: dict[str, str] = {}
        deadline = time.monotonic() + PATIENCE
        while len(found) < 2:
            text = (self.folder / "gateway.log").read_text()
            for line in text.splitlines():
                said = json.loads(line) if line.startswith("{") else {}
                fields = {**said, **said.get("fields", {})}
                if "listener" in fields.get("message", "") and "address" in fields:
                    found[fields["message"]] = fields["address"]
            if self.processes[-1].poll() is not None or time.monotonic() > deadline:
                raise Broken(f"the gateway does not start: {text}")
            time.sleep(0.02)
        return found["egress listener"], found["admin listener"]

    def _start(self, command: list[str], log: str, env: dict[str, str], **streams) -> subprocess.Popen:
        with (self.folder / log).open("wb") as file:
            streams = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": file, **streams}
            process = subprocess.Popen(command, cwd=ROOT, env=env, start_new_session=True, **streams)
        self.processes.append(process)
        return process

    # -- what the clients are given

    def secrets(self) -> dict[str, str]:
        return {**self.bare, "AGENTPORT_JWKS_SECRET": self.secret}

    def issue(self, *more: str) -> str:
        """What the command of the README prints."""
        done = subprocess.run([self.agentport, "issue-token", f"--agent-id={AGENT}", *more],
                              env=self.secrets(), capture_output=True, text=True)
        if done.returncode or done.stderr or done.stdout.count("\n") != 1:
            raise Broken(f"issue-token does not print one token and nothing else: {done.stdout!r} {done.stderr!r}")
        return done.stdout.strip()

    @property
    def proxy(self) -> str:
        """The form that works in every client."""
        return f"http://{AGENT}:{self.token}@{self.gateway}"

    def environment(self, token: bool = True, ca: Path | None = None) -> dict[str, str]:
        """What `agentport env` says, for clients that read the environment."""
        command = [self.agentport, "env", "--format", "docker", "--url", f"http://{self.gateway}",
                   "--ca", str(ca or self.ca)]
        if token:
            command += ["--token-file", str(self.token_file)]
        done = subprocess.run(command, env=self.bare, capture_output=True, text=True)
        if done.returncode:
            raise Broken(f"agentport env: {done.stderr.strip()}")
        said = dict(line.split("=", 1) for line in done.stdout.splitlines())
        return {**self.bare, **said}

    def url(self, scheme: str, path: str, host: str = "origin.test", pair: str = "open") -> str:
        tls = scheme in ("https", "wss")
        port = self.ports[("closed_" if pair == "closed" else "") + ("tls" if tls else "plain")]
        return f"{scheme}://{host}:{port}{path}"

    def run(self, command: list[str], env: dict[str, str], stdin: bytes = b"") -> Outcome:
        """Runs a client to its end, which must come soon."""
        child = subprocess.Popen(command, cwd=self.home, env=env, start_new_session=True,
                                 stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            out, err = child.communicate(stdin, timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            stop(child)
            out, err = child.communicate()
            err += b"\nthe client did not end"
        return Outcome(child.returncode, out.decode(errors="replace"), err.decode(errors="replace"))

    # -- what was seen

    def until(self, look):
        """What there is to see, when there is something; nothing in the end."""
        deadline = time.monotonic() + PATIENCE
        while not (found := look()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return found

    def seen(self) -> list[dict]:
        """All that came to the origins. What came before this call is in it:
        each listener is asked on a connection that it accepts after them."""
        for name, port in self.ports.items():
            scheme = "https" if name.endswith("tls") else "http"
            opener = urllib.request.build_opener(
                urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=self.context))
            with opener.open(f"{scheme}://127.0.0.1:{port}/-/seen", timeout=PATIENCE) as response:
                seen = json.load(response)
        return seen


def read_line(stream) -> bytes:
    """A line, or nothing when it does not come."""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        return stream.readline() if selector.select(PATIENCE) else b""


def stop(process: subprocess.Popen) -> None:
    """Asks it to end, then makes it."""
    for end in (process.terminate, process.kill):
        if process.poll() is None:
            end()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                continue
    for stream in (process.stdin, process.stdout):
        if stream:
            stream.close()
