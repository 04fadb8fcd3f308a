"""The sidecar, started for real and attacked from inside the agent."""

import json
import re
import subprocess
from pathlib import Path

import chart
from engine import Broken, Engine, Stack

BASE = "docker-compose.yml"
# Overlays that open what the stacks close, and one that waits less.
HOLES = Path(__file__).parent / "holes"
QUICK = str(Path(__file__).parent / "quick.yml")
ATTACK = (Path(__file__).parent / "attack.py").read_text()
# No more descriptors than a machine of the build gives.
ENVIRONMENT = {"AGENTPORT_NOFILE": "4096"}
WORLD_TCP = [("9.9.9.10", 443), ("9.9.9.66", 80), ("169.254.169.254", 80), ("9.9.9.9", 53), ("2001:4860:4860::8888", 80)]


def checks(engine: Engine):
    """Name and check of each case; each makes its stack and takes it away."""
    yield "image: the gateway's has no shell, its own user, labels and a health check", lambda: image(engine)
    yield "sidecar: its commands, its limits, and no way out", lambda: sidecar(engine)
    yield "sidecar by Unix socket: no network at all, and the gateway all the same", lambda: by_socket(engine)
    yield "sidecar on localhost: only the gateway's user leaves the shared namespace", lambda: by_localhost(engine)
    yield "sidecar with a hole in it: the probe finds it from inside the agent", lambda: leaky(engine)
    yield "the Compose file of the guide runs unchanged", lambda: quoted(engine)


def image(engine: Engine) -> None:
    described = json.loads(engine.docker("image", "inspect", "agentport/agentport:0.1.0"))[0]
    config = described["Config"]
    expect("user", config["User"], "65532:65532")
    expect("health check", config["Healthcheck"]["Test"], ["CMD", "/usr/bin/agentport", "health"])
    expect("title", config["Labels"]["org.opencontainers.image.title"], "AgentPort")
    # What is shipped stays below 40 MB; a debug build is twice as large.
    most = 80_000_000 if engine.agentport.parent.name == "debug" else 40_000_000
    if described["Size"] > most:
        raise Broken(f"the image has {described['Size']} bytes, more than {most}")
    listed = engine.docker("create", "agentport/agentport:0.1.0").strip()
    exported = engine.try_docker("export", listed, "-o", str(engine.home / "gateway.tar"))
    engine.docker("rm", listed)
    if exported.returncode:
        raise Broken(exported.stderr)
    import tarfile

    with tarfile.open(engine.home / "gateway.tar") as tar:
        programs = [m.name for m in tar if m.isfile() and m.mode & 0o111 and not m.name.startswith(("lib", "usr/lib")) and m.size]
    expect("programs in the image", programs, ["usr/bin/agentport"])


def sidecar(engine: Engine) -> None:
    with begun(engine) as stack:
        health = json.loads(in_agent(stack, "curl -s http://gateway:8080/health"))
        expect("status", health["status"], "up")
        network = json.loads(engine.docker("network", "inspect", "sidecar-deploy_agentnet"))[0]
        expect("internal", network["Internal"], True)
        expect("members", sorted(c["Name"] for c in network["Containers"].values()),
               ["sidecar-deploy-agent-1", "sidecar-deploy-gateway-1"])
        confined(stack)
        published = engine.on_host("curl", "-s", "-m", "5", "http://127.0.0.1:8080/health")
        expect("published on loopback", json.loads(published)["status"], "up")
        with_the_gateway(engine, stack, "http://x:$(cat /run/secrets/agent_token)@gateway:8080")
        helm_test(stack)
        a_skill(engine, stack)
        renewal(stack)
        subnet = network["IPAM"]["Config"][0]
        bridge = subnet.get("Gateway") or subnet["Subnet"].split("/")[0].rsplit(".", 1)[0] + ".1"
        ways = attack_ways(stack, [(bridge.split("/")[0], 18080), ("192.168.77.1", 18080), ("192.168.77.1", 2375)])
        # The attack finds what this engine leaves open: it can see.
        if int(engine.docker("version", "-f", "{{.Server.Version}}").split(".")[0]) < 27:
            seen = attack(engine, stack, ways)[1]
            if not [c for c in seen if c["what"].startswith("host")]:
                raise Broken("this engine's bridge leads to the host, and the attack did not find it")
        rules = str(stack.tree / "deploy/nftables/sidecar-host.nft")
        engine.on_host("nft", "-f", rules)
        try:
            contained(engine, stack, ways)
            # The gateway's other address too, on the network that leads out.
            egress = stack.container("gateway")["NetworkSettings"]["Networks"]["sidecar-deploy_egress"]["IPAddress"]
            probed(engine, stack, "http://gateway:8080", f"--agent=192.168.77.1:18080,{egress}:8080")
            expect("still up", json.loads(in_agent(stack, "curl -s http://gateway:8080/health"))["status"], "up")
            # Opened on purpose, the same attack must find it.
            engine.docker("network", "connect", "sidecar-deploy_egress", stack.container("agent")["Id"])
            results, seen = attack(engine, stack, ways)
            if not results["tcp 9.9.9.66 80"]["open"] or not seen:
                raise Broken(f"the network was opened on purpose, and the attack did not find it: {results}")
            finds(probe(stack, "http://gateway:8080"), "tcp", "metadata", "dns-udp", "dns-tcp", "doh", "quic")
        finally:
            engine.on_host("nft", "delete", "table", "inet", "agentport_sidecar")
        stops(stack)


def by_socket(engine: Engine) -> None:
    with begun(engine, "docker-compose.unix.yml", QUICK) as stack:
        described = stack.container("agent")
        expect("network", described["HostConfig"]["NetworkMode"], "none")
        confined(stack)
        a_skill(engine, stack)
        contained(engine, stack, attack_ways(stack, [("172.17.0.1", 18080), ("192.168.77.1", 18080)], admin=False))
        # There is no network to see a host on, and no port of the gateway's.
        probed(engine, stack, "unix:/run/agentport/egress.sock", "--agent=192.168.77.1:18080", without={"host", "gateway-ports"})
        stops(stack)


def by_localhost(engine: Engine) -> None:
    with begun(engine, "docker-compose.localhost.yml", QUICK) as stack:
        expect("status", json.loads(in_agent(stack, "curl -s http://localhost:8080/health"))["status"], "up")
        confined(stack)
        with_the_gateway(engine, stack, "http://x:$(cat /run/secrets/agent_token)@127.0.0.1:8080")
        a_skill(engine, stack)
        ways = attack_ways(stack, [("192.168.77.1", 18080), ("127.0.0.1", 9090)], admin=False)
        contained(engine, stack, ways)
        # The fence rejects, so that the agent hears of it at once.
        probed(engine, stack, "http://127.0.0.1:8080", "--agent=192.168.77.1:18080", "--refused-is-contained")
        # The rules are there before the agent again, whatever restarts.
        engine.docker("restart", "-t", "5", stack.container("agent")["Id"])
        contained(engine, stack, ways)
        engine.docker("exec", stack.container("fence")["Id"], "nft", "delete", "table", "inet", "agentport_fence")
        results, _ = attack(engine, stack, ways)
        if not results["tcp 9.9.9.66 80"]["open"]:
            raise Broken("without the rules the namespace is open, and the attack did not find it")
        finds(probe(stack, "http://127.0.0.1:8080"), "tcp", "metadata", "dns-udp", "dns-tcp", "doh", "quic", "resolver", "gateway-ports")


def leaky(engine: Engine) -> None:
    """Stacks with one line wrong each. The probe says which way that opened,
    and ends with the code that fails a pipeline."""
    # Internal, and yet names leave it: Docker's resolver asks the host's.
    with begun(engine, QUICK, str(HOLES / "names.yml")) as stack:
        found = probe(stack, "http://gateway:8080")
        if int(engine.docker("version", "-f", "{{.Server.Version}}").split(".")[0]) < 27:
            finds(found, "resolver")
            other = {f["way"] for f in found["findings"] if f["verdict"] == "fail"} - {"resolver", "host"}
            expect("other ways out", other, set())
    # Not internal: everything is open, and the gateway is a courtesy.
    with begun(engine, QUICK, str(HOLES / "not-internal.yml")) as stack:
        finds(probe(stack, "http://gateway:8080"), "tcp", "metadata", "dns-udp", "dns-tcp", "doh", "quic", "icmp")
    # The socket's agent, with a network all the same.
    with begun(engine, "docker-compose.unix.yml", QUICK, str(HOLES / "socket-and-network.yml")) as stack:
        finds(probe(stack, "unix:/run/agentport/egress.sock"), "tcp", "metadata", "dns-udp", "dns-tcp", "doh", "quic", "icmp")


def quoted(engine: Engine) -> None:
    """The file and the commands of the guide, with our images under its names."""
    engine.docker("tag", "agentport/agentport:0.1.0", "agentport/agentport:2.1.0-os")
    engine.docker("tag", "openclaw/openclaw:0.1.0", "openclaw/openclaw:2026.4.27")
    with Stack(engine, "compose/sidecar") as stack:
        stack.directory = stack.tree / "sidecar-deploy"
        stack.directory.mkdir()
        (stack.directory / "docker-compose.yml").write_text((Path(__file__).parent / "quoted.yml").read_text())
        for source, name in (("policies/policy.json", "policy.json"), ("manifest.json", "manifest.json")):
            (stack.directory / name).write_text((stack.tree / "compose/sidecar" / source).read_text())
        stack.environment = {"JWT_SECRET": "5e" * 32, "AGENTPORT_TOKEN": ""}
        stack.environment["AGENTPORT_TOKEN"] = a_token(stack)
        stack.compose("up", "-d")
        answer = stack.compose("exec", "-T", "agent", "curl", "-s", "--retry", "20", "--retry-connrefused", "--retry-delay", "1", "http://gateway:8080/health")
        expect("status", json.loads(answer)["status"], "up")
        engine.docker("network", "inspect", "sidecar-deploy_agentnet")


def begun(engine: Engine, *more: str, secrets: dict[str, str] | None = None) -> Stack:
    """The stack of the given files, up and healthy, with secrets."""
    stack = Stack(engine, "compose/sidecar", [BASE, *more], ENVIRONMENT)
    folder = stack.directory / "secrets"
    folder.mkdir(mode=0o700)
    for name, text in {"jwt_secret": "ab" * 32, **(secrets or {})}.items():
        (folder / name).write_text(text + "\n")
    try:
        token = a_token(stack)
        (folder / "agent_token").write_text(token + "\n")
        stack.compose("up", "-d", "--wait", "--no-build")
    except BaseException:
        stack.down()
        raise
    return stack


def a_token(stack: Stack) -> str:
    out = stack.compose("run", "--rm", "gateway", "issue-token", "--agent-id=bot-01")
    if not re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+\r?\n", out):
        raise Broken(f"issue-token printed more than a token: {out!r}")
    return out.strip()


def confined(stack: Stack) -> None:
    """What the engine says that each container may."""
    for service in ("gateway", "agent"):
        host = stack.container(service)["HostConfig"]
        expect(f"{service}: read-only", host["ReadonlyRootfs"], True)
        expect(f"{service}: capabilities", host["CapDrop"], ["ALL"])
        expect(f"{service}: added capabilities", host["CapAdd"], None)
        expect(f"{service}: security", host["SecurityOpt"], ["no-new-privileges:true"])
        expect(f"{service}: restart", host["RestartPolicy"]["Name"], "unless-stopped")
        described = stack.container(service)
        if any("TOKEN=" in e or "SECRET=" in e for e in described["Config"]["Env"]):
            raise Broken(f"{service}: a secret stands in its environment: {described['Config']['Env']}")
    gateway = stack.container("gateway")["HostConfig"]
    expect("memory", gateway["Memory"], 256 * 1024 * 1024)
    expect("CPU", gateway["NanoCpus"], 500_000_000)
    ports = stack.container("agent")["NetworkSettings"]["Ports"] or {}
    if any(ports.values()):
        raise Broken(f"the agent publishes ports: {ports}")


def with_the_gateway(engine: Engine, stack: Stack, proxy: str) -> None:
    """What the policy allows passes, and nothing else reaches the world."""
    allowed = in_agent(stack, f'curl -ksS -m 10 -x "{proxy}" https://api.openai.com/v1/models')
    expect("allowed", allowed.split()[:2], ["outside", "api.openai.com"])
    if "Basic" in allowed or "Bearer" in allowed:
        raise Broken(f"the credential reached the origin: {allowed}")
    mark = engine.mark()
    bare = proxy.replace("x:$(cat /run/secrets/agent_token)@", "")
    for what, url, by, status in (
        ("not in the policy", "https://collector.example/", proxy, "403"),
        ("not on 443", "http://api.openai.com/", proxy, "403"),
        ("a longer name", "https://api.openai.com.collector.example/", proxy, "403"),
        ("the parent's name", "https://openai.com/", proxy, "403"),
        ("metadata", "http://169.254.169.254/", proxy, "403"),
        ("its own admin listener", "http://127.0.0.1:9090/metrics", proxy, "403"),
        ("without a token", "https://api.openai.com/", bare, "407"),
        ("a bad token", "https://api.openai.com/", bare.replace("//", "//x:a.b.c@"), "403"),
    ):
        code = "http_connect" if url.startswith("https") else "http_code"
        got = in_agent(stack, f'curl -ks -m 10 -o /dev/null -w "%{{{code}}}" -x "{by}" {url}; true')
        expect(what, got, status)
    # The tools of this attack resolve nothing, and neither may the gateway.
    came = engine.contacts(mark)
    if came:
        raise Broken(f"a refused request reached somebody: {came}")
    records = stack.compose("logs", "--no-color", "--no-log-prefix", "gateway")
    for wanted in ('"agent_id":"bot-01"', '"reason":"no_rule"', '"token_jti":"', '"jwt_validation_us":'):
        if wanted not in records:
            raise Broken(f"no record holds {wanted}: {records}")


def a_skill(engine: Engine, stack: Stack) -> None:
    """A skill that calls out goes through the gateway, and is recorded there."""
    mark = engine.mark()
    in_agent(stack, "curl -s -m 20 -X POST -H 'content-type: application/json' -d '{\"input\":{}}' "
                    "http://127.0.0.1:7070/v1/skills/github-zen/invoke; true")
    # The origin's certificate is its own, so that the call ends there.
    if not [c for c in engine.contacts(mark) if c["what"].startswith("https") and c["to"].startswith("9.9.9.11")]:
        raise Broken(f"the skill's call did not come out: {stack.compose('logs', '--no-color')}")
    records = stack.compose("logs", "--no-color", "--no-log-prefix", "gateway")
    if '"destination_host":"api.github.com"' not in records:
        raise Broken("the gateway has no record of the skill's call")
    made = in_agent(stack, "curl -s -m 20 -X POST -H 'content-type: application/json' -d '{\"input\":{\"text\":\"one two\"}}' "
                           "http://127.0.0.1:7070/v1/skills/text-statistics/invoke")
    if '"words":2' not in made.replace(" ", ""):
        raise Broken(f"the process skill did not run: {made}")


def helm_test(stack: Stack) -> None:
    """What `helm test` runs in a cluster passes here, and fails elsewhere."""
    pod = next(o for o in chart.documents(chart.helm("template", "agentport", str(chart.CHART))) if o["kind"] == "Pod")
    script = pod["spec"]["containers"][0]["args"][0]
    for gateway, wanted in (("http://gateway:8080", True), ("http://127.0.0.1:7070", False)):
        done = stack.try_compose("exec", "-T", "-e", f"GATEWAY={gateway}", "agent", "sh", "-euc", script)
        if (done.returncode == 0) != wanted:
            raise Broken(f"the script of `helm test` at {gateway} ended with {done.returncode}: {done.stdout}{done.stderr}")


def renewal(stack: Stack) -> None:
    """The script puts another token in the agent's hands, in place."""
    before = in_agent(stack, "cat /run/secrets/agent_token")
    done = subprocess.run([str(stack.directory / "renew-token")], text=True, capture_output=True,
                          env={**stack.engine.environment, **stack.environment})
    after = in_agent(stack, "cat /run/secrets/agent_token")
    if done.returncode or before == after or after.count(".") != 2:
        raise Broken(f"the token is not a new one: {done.stderr}")


def attack_ways(stack: Stack, hosts: list, admin: bool = True) -> dict:
    """Where the attack knocks: the world, the host, and the gateway's insides."""
    gateway = stack.container("gateway")["NetworkSettings"]["Networks"]
    inside = [(n["IPAddress"], 9090) for n in gateway.values() if n["IPAddress"]] if admin else []
    return {
        "tcp": [*WORLD_TCP, *hosts, *inside],
        "udp": [("9.9.9.9", 53), ("9.9.9.10", 443), ("2001:4860:4860::8888", 53)],
        "names": ["9.9.9.9", "127.0.0.11"],
        "ping": ["9.9.9.9"],
    }


def attack(engine: Engine, stack: Stack, ways: dict) -> tuple[dict, list[dict]]:
    """What the agent got, and who saw it."""
    mark = engine.mark()
    out = stack.compose("exec", "-T", "agent", "python3", "-", json.dumps(ways), input=ATTACK)
    return json.loads(out), engine.contacts(mark)


def contained(engine: Engine, stack: Stack, ways: dict) -> None:
    results, seen = attack(engine, stack, ways)
    got = {name: result["got"] for name, result in results.items() if result["open"]}
    if got or seen:
        raise Broken(f"the agent got out: {got}; seen outside: {seen}")


# Where the probe knocks: the world of the test, in place of the Internet.
PROBED = ["--tcp=9.9.9.66:443,9.9.9.9:80,[2001:4860:4860::8888]:80", "--metadata=169.254.169.254:80",
          "--dns=9.9.9.9:53,[2001:4860:4860::8888]:53", "--doh=9.9.9.9:443", "--quic=9.9.9.9:443", "--ping=9.9.9.9",
          "--name=collector.example", "--host-ports=18080,2375", "--allowed=api.openai.com:443"]


def probe(stack: Stack, gateway: str, *more: str) -> dict:
    """`agentport probe` from where the agent is, as its user: as documented, but
    for the targets. Its report, and its exit code as `code`."""
    done = stack.try_compose("exec", "-T", "agent", "/usr/bin/agentport", "probe", "--gateway", gateway,
                             "--token-file", "/run/secrets/agent_token", "--format", "json", *PROBED, *more)
    try:
        return {**json.loads(done.stdout), "code": done.returncode}
    except ValueError:
        raise Broken(f"the probe gave no report: {done.returncode}\n{done.stdout}{done.stderr}") from None


def probed(engine: Engine, stack: Stack, gateway: str, *more: str, without: set[str] = frozenset()) -> None:
    """The probe says that the agent is contained, and world and host saw nobody
    but the gateway, with the one destination that policy allows."""
    mark = engine.mark()
    found = probe(stack, gateway, *more)
    if (found["outcome"], found["code"]) != ("contained", 0):
        raise Broken(f"the probe ended with {found['code']}: {[f for f in found['findings'] if f['verdict'] != 'pass']}")
    # Each was tried, so that it means something; IPv6 there is none here.
    for way in ("control", "tcp", "metadata", "dns-udp", "dns-tcp", "doh", "quic", "resolver", "agents", "host",
                "gateway-allows", "gateway-refuses", "gateway-no-credential", "gateway-metadata", "gateway-own-ports",
                "gateway-ports", "gateway-sni"):
        verdicts = {f["verdict"] for f in found["findings"] if f["way"] == way}
        expect(way, verdicts, {"not_applicable"} if way in without else {"pass"})
    seen = [c for c in engine.contacts(mark) if not (c["what"].startswith("https") and c["to"].startswith("9.9.9.10:"))
            and not (c["what"] in ("udp53", "tcp53") and c["text"] == "api.openai.com")]
    if seen:
        raise Broken(f"the probe was seen outside: {seen}")


def finds(found: dict, *ways: str) -> None:
    """The probe names each of these ways as open."""
    expect("the probe's code", (found["outcome"], found["code"]), ("leak", 1))
    leaks = {f["way"] for f in found["findings"] if f["verdict"] == "fail"}
    missed = set(ways) - leaks
    if missed:
        raise Broken(f"the probe did not find {sorted(missed)}: {json.dumps(found, indent=1)}")


def stops(stack: Stack) -> None:
    """SIGTERM ends both by themselves; 137 would be the engine's patience."""
    for service in ("agent", "gateway"):
        described = stack.container(service)
        stack.engine.docker("stop", "-t", "20", described["Id"])
        code = stack.container(service)["State"]["ExitCode"]
        if code not in (0, 143):
            raise Broken(f"{service} ended with {code}")


def in_agent(stack: Stack, command: str) -> str:
    done = stack.try_compose("exec", "-T", "agent", "sh", "-c", command)
    if done.returncode:
        raise Broken(f"in the agent: {command}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def expect(what: str, got, wanted) -> None:
    if got != wanted:
        raise Broken(f"{what}: got {got!r}, wanted {wanted!r}")
