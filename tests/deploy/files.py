"""Configurations, each checked by the program that reads it, and rules proven in
network namespaces of the test's own."""

import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from chart import TOOLS, documents, validate
from engine import PARTS, ROOT, Broken, git_files, run
from observability import free_port, origin, program, started, until

SYSTEMD = ROOT / "deploy/systemd"
NFT = ROOT / "deploy/nftables"
STACKS = [
    ("compose/sidecar", ["docker-compose.yml"]),
    ("compose/sidecar", ["docker-compose.yml", "docker-compose.unix.yml"]),
    ("compose/sidecar", ["docker-compose.yml", "docker-compose.localhost.yml"]),
    ("compose/sidecar", ["docker-compose.yml", "../observability/sidecar.yml"]),
    ("compose/perimeter", ["docker-compose.yml"]),
    ("compose/observability", ["docker-compose.yml"]),
]


def checks(agentport: Path):
    yield "compose: every stack is valid, and no image is unnamed", stacks
    yield "Dockerfile: hadolint has nothing to say", hadolint
    yield "YAML: yamllint has nothing to say", yamllint
    yield "policies of the stacks: agentport policy check", lambda: shipped(agentport)
    yield "nginx: both stream configurations", nginx
    yield "systemd: units are valid, and tight", units
    yield "nftables: rules load, twice", nftables
    yield "nftables: what an agent may reach, in namespaces", fenced
    yield "sysctl: every key is one of this kernel", sysctl
    yield "Velero: the schedule is valid", lambda: validate(documents((ROOT / "deploy/velero/schedule.yaml").read_text()))
    yield "k6: the script runs against a gateway, and fails where it must", lambda: k6(agentport)


def stacks() -> None:
    plugin = PARTS / "docker-compose"
    if not plugin.exists():
        raise Broken("target/deploy/docker-compose is missing: run tests/setup")
    for directory, files in STACKS:
        chosen = [word for file in files for word in ("-f", file)]
        text = run([str(plugin), *chosen, "config", "--format", "json"], cwd=ROOT / directory)
        for name, service in json.loads(text)["services"].items():
            if not re.search(r":[\w.]*\d", service["image"]):
                raise Broken(f"{directory} {files}: {name} has an image without a version: {service['image']}")
            if not service.get("mem_limit") or "no-new-privileges:true" not in service.get("security_opt", []):
                raise Broken(f"{directory} {files}: {name} is not limited")
            for port in service.get("ports", []):
                if port.get("host_ip") != "127.0.0.1":
                    raise Broken(f"{directory} {files}: {name} publishes {port} to more than this host")


def hadolint() -> None:
    run([str(TOOLS / "venv/bin/hadolint"), str(ROOT / "compose/Dockerfile")])


def yamllint() -> None:
    rules = "{extends: default, rules: {line-length: disable, document-start: disable, braces: {max-spaces-inside: 1}, " \
            "brackets: {max-spaces-inside: 1}, comments: {min-spaces-from-content: 1}, truthy: {check-keys: false}}}"
    mine = [p for p in git_files() if p.endswith((".yml", ".yaml")) and p.startswith(("compose/", "deploy/", "tests/deploy/"))
            and "/templates/" not in p and p not in ("deploy/manifests/agentport.yaml", "tests/deploy/quoted.yml")]
    run([str(TOOLS / "venv/bin/yamllint"), "--strict", "-d", rules, *mine], cwd=ROOT)


def shipped(agentport: Path) -> None:
    for stack in ("sidecar", "perimeter"):
        out = run([str(agentport), "policy", "check", str(ROOT / f"compose/{stack}/policies")])
        if "warning" in out:
            raise Broken(out)


def nginx() -> None:
    binary = program("nginx")
    with tempfile.TemporaryDirectory() as home:
        text = (ROOT / "compose/perimeter/nginx.conf").read_text().replace("/tmp/nginx.pid", f"{home}/pid")
        (Path(home) / "perimeter.conf").write_text(text)
        (Path(home) / "host.conf").write_text(
            f"include /etc/nginx/modules-enabled/*.conf;\npid {home}/pid;\nevents {{}}\n"
            f"stream {{ include {ROOT}/deploy/nginx/agentport-stream.conf; }}\n")
        for config in ("perimeter.conf", "host.conf"):
            run([binary, "-t", "-q", "-e", f"{home}/error.log", "-c", f"{home}/{config}"])


def units() -> None:
    binary = program("systemd-analyze")
    with tempfile.TemporaryDirectory() as home:
        # Where the programs are not installed, the units are checked with others.
        for unit in SYSTEMD.iterdir():
            text = re.sub(r"/usr/bin/(agentport|openclaw)\b", "/bin/true", unit.read_text())
            (Path(home) / unit.name).write_text(text)
        for unit in sorted(Path(home).iterdir()):
            done = subprocess.run([binary, "verify", "--man=no", str(unit)], text=True, capture_output=True,
                                  env={**os.environ, "SYSTEMD_UNIT_PATH": f"{home}:"})
            said = [line for line in (done.stdout + done.stderr).splitlines() if home in line or unit.name in line]
            if done.returncode or said:
                raise Broken(f"{unit.name}: {done.returncode} {done.stdout}{done.stderr}")
    for name, most in (("agentport.service", 1.5), ("openclaw.service", 3.0)):
        out = run([binary, "security", "--offline=true", "--no-pager", str(SYSTEMD / name)])
        level = float(re.search(r"Overall exposure level for \S+: ([\d.]+)", out)[1])
        if level > most:
            raise Broken(f"{name} has the exposure level {level}, more than {most}")


class Namespaces:
    """agent - gateway - world, of which only the gateway reaches the world."""

    def __init__(self):
        if os.geteuid() != 0:
            raise Broken("network namespaces need root")
        self.prefix = f"apf{os.getpid()}"

    def __enter__(self):
        names = {who: f"{self.prefix}{who}" for who in "agw"}
        for line in (
            *(f"netns add {name}" for name in names.values()),
            *(f"-n {name} link set lo up" for name in names.values()),
            f"-n {names['a']} link add toward type veth peer name agents0 netns {names['g']}",
            f"-n {names['g']} link add world0 type veth peer name gateway0 netns {names['w']}",
            f"-n {names['a']} address add 10.66.0.2/24 dev toward",
            f"-n {names['g']} address add 10.66.0.1/24 dev agents0",
            f"-n {names['g']} address add 9.9.9.1/24 dev world0",
            f"-n {names['w']} address add 9.9.9.9/24 dev gateway0",
            f"-n {names['a']} link set toward up",
            f"-n {names['g']} link set agents0 up",
            f"-n {names['g']} link set world0 up",
            f"-n {names['w']} link set gateway0 up",
            f"-n {names['a']} route add default via 10.66.0.1",
            f"-n {names['w']} route add 10.66.0.0/24 via 9.9.9.1",
        ):
            try:
                run(["ip", *line.split()])
            except Broken:
                self.__exit__()
                raise
        run(self.inside("g", "sysctl", "-qw", "net.ipv4.ip_forward=1"))
        return self

    def __exit__(self, *_):
        for who in "agw":
            subprocess.run(["ip", "netns", "delete", f"{self.prefix}{who}"], capture_output=True)

    def inside(self, who: str, *command: str) -> list[str]:
        return ["ip", "netns", "exec", f"{self.prefix}{who}", *command]

    def listens(self, who: str, port: int, log: Path):
        server = "import socket,sys\ns=socket.create_server(('0.0.0.0',int(sys.argv[1])))\nu=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\n" \
                 "u.bind(('0.0.0.0',int(sys.argv[1])))\nimport threading\n" \
                 "def d():\n  while True:\n    m,a=u.recvfrom(99); u.sendto(b'udp',a)\nthreading.Thread(target=d,daemon=True).start()\n" \
                 "print('ready',flush=True)\nwhile True:\n  c,_=s.accept(); c.sendall(b'tcp'); c.close()\n"
        return started(self.inside(who, "/usr/bin/python3", "-c", server, str(port)), log)

    def reaches(self, who: str, kind: str, host: str, port: int, user: int | None = None) -> bool:
        client = "import socket,sys,os\nu=int(sys.argv[4])\nif u>=0:\n  os.setgid(u); os.setuid(u)\n" \
                 "s=socket.socket(socket.AF_INET, socket.SOCK_STREAM if sys.argv[1]=='tcp' else socket.SOCK_DGRAM)\ns.settimeout(1)\n" \
                 "s.connect((sys.argv[2],int(sys.argv[3])))\nif sys.argv[1]=='udp': s.send(b'x')\nsys.exit(0 if s.recv(9) else 1)\n"
        done = subprocess.run(self.inside(who, "/usr/bin/python3", "-c", client, kind, host, str(port), str(-1 if user is None else user)),
                              capture_output=True)
        return done.returncode == 0

    def table(self, who: str, cases) -> None:
        """Each: kind, host, port, user, whether it is reached."""
        wrong = [case for case in cases if self.reaches(who, *case[:4]) != case[4]]
        if wrong:
            raise Broken(f"not as it must be (kind, host, port, user, wanted): {wrong}")


def nftables() -> None:
    with Namespaces() as namespaces:
        for rules in sorted(NFT.glob("*.nft")):
            for _ in range(2):
                run(namespaces.inside("g", program("nft"), "-f", str(rules)))
            count = run(namespaces.inside("g", program("nft"), "list", "ruleset")).count("chain output")
            if rules.name == "shared-namespace.nft" and count != 1:
                raise Broken(f"loaded twice, {rules.name} has its chains {count} times")
            run(namespaces.inside("g", program("nft"), "flush", "ruleset"))


def fenced() -> None:
    with Namespaces() as space, tempfile.TemporaryDirectory() as home:
        logs = [Path(home) / f"{n}.log" for n in range(4)]
        with space.listens("w", 80, logs[0]), space.listens("g", 8080, logs[1]), space.listens("g", 9090, logs[2]), space.listens("w", 53, logs[3]):
            until("all listen", lambda: all("ready" in log.read_text() for log in logs))
            everything = [("tcp", "9.9.9.9", 80), ("udp", "9.9.9.9", 53), ("tcp", "9.9.9.9", 53), ("tcp", "10.66.0.1", 9090), ("udp", "10.66.0.1", 9090),
                          ("tcp", "9.9.9.1", 9090)]
            # Without rules all of it is open: the test can see.
            space.table("a", [(*way, None, True) for way in (*everything, ("tcp", "10.66.0.1", 8080))])
            run(space.inside("g", program("nft"), "-f", str(NFT / "gateway-host.nft")))
            space.table("a", [(*way, None, False) for way in everything] + [("tcp", "10.66.0.1", 8080, None, True)])
            # The gateway itself still gets out.
            space.table("g", [("tcp", "9.9.9.9", 80, None, True)])
            run(space.inside("g", program("nft"), "flush", "ruleset"))
            # The host of the Compose sidecar: nothing from the agents' bridge.
            rules = (NFT / "sidecar-host.nft").read_text().replace('"agentnet0"', '"agents0"')
            run(space.inside("g", program("nft"), "-f", "-"), input=rules)
            space.table("a", [(*way, None, False) for way in (*everything, ("tcp", "10.66.0.1", 8080))])
            run(space.inside("g", program("nft"), "flush", "ruleset"))
            # One namespace for both: by user.
            run(space.inside("g", program("nft"), "-f", str(NFT / "shared-namespace.nft")))
            gateway, agent = 65532, 65533
            space.table("g", [
                ("tcp", "9.9.9.9", 80, gateway, True), ("udp", "9.9.9.9", 53, gateway, True),
                ("tcp", "9.9.9.9", 80, agent, False), ("udp", "9.9.9.9", 53, agent, False), ("tcp", "9.9.9.9", 53, agent, False),
                ("tcp", "127.0.0.1", 8080, agent, True), ("tcp", "127.0.0.1", 9090, agent, False), ("tcp", "127.0.0.1", 9090, gateway, True),
            ])
            # From outside: the gateway's port, and not the admin's.
            space.table("a", [("tcp", "10.66.0.1", 8080, None, True), ("tcp", "10.66.0.1", 9090, None, False)])


def sysctl() -> None:
    for line in (ROOT / "deploy/sysctl/90-agentport.conf").read_text().splitlines():
        if line and not line.startswith("#"):
            key = line.split("=")[0].strip()
            if not Path("/proc/sys", *key.split(".")).exists():
                raise Broken(f"{key} is no key of this kernel")


def k6(agentport: Path) -> None:
    binary = TOOLS / "venv/bin/k6"
    if not binary.exists():
        raise Broken("target/deploy/venv/bin/k6 is missing: run tests/setup")
    home = Path(tempfile.mkdtemp(prefix="agentport-k6-"))
    port, target = free_port(), free_port()
    # k6 passes the proxy by for loopback names, and the gateway resolves this one.
    (home / "policy.yaml").write_text("version: 1\nrules:\n  - {name: load, action: allow, agents: [load], hosts: [localhost.localdomain, localhost], "
                                      "addresses: [127.0.0.0/8], ports: any}\n")
    environment = {"AGENTPORT_JWKS_SECRET": "ab" * 32, "PATH": "/usr/bin:/bin", "AGENTPORT_LISTEN_EGRESS": f"127.0.0.1:{port}",
                   "AGENTPORT_LISTEN_ADMIN": "off", "AGENTPORT_POLICY": str(home / "policy.yaml")}
    try:
        name = hosts_name()
        (home / "policy.yaml").write_text((home / "policy.yaml").read_text().replace("localhost.localdomain", name))
        address = run(["getent", "ahostsv4", name]).split()[0]
        (home / "policy.yaml").write_text((home / "policy.yaml").read_text().replace("127.0.0.0/8", f"127.0.0.0/8, {address}/32"))
        with origin(target, address), started([str(agentport), "serve"], home / "log", environment):
            until("the gateway listens", lambda: "serving" in (home / "log").read_text())
            token = run([str(agentport), "issue-token", "--agent-id=load"], env=environment).strip()
            base = {"PATH": "/usr/bin:/bin", "HOME": str(home), "K6_NO_USAGE_REPORT": "true", "HTTP_PROXY": f"http://load:{token}@127.0.0.1:{port}"}
            command = [str(binary), "run", "--quiet", "--vus", "2", "--duration", "2s", str(ROOT / "deploy/k6/egress.js")]
            for allowed, wanted in ((f"http://{name}:{target}/", True), ("http://refused.example/", False)):
                done = subprocess.run(command, text=True, capture_output=True, env={**base, "ALLOWED": allowed})
                if (done.returncode == 0) != wanted:
                    raise Broken(f"k6 with ALLOWED={allowed}: {done.returncode}\n{done.stdout}{done.stderr}\n{(home / 'log').read_text()[-2000:]}")
    finally:
        shutil.rmtree(home, ignore_errors=True)


def hosts_name() -> str:
    """This machine's own name, which is no loopback name to k6."""
    return run(["hostname"]).strip()
