"""The perimeter, started for real: either gateway is killed under load."""

import json
import re
import subprocess
import time
from pathlib import Path

from engine import Broken, Engine, Stack, until
from sidecar import expect

NAME = "perimeter: shared keys, revocations and limits, and either gateway may be killed, and Redis"
# What the tests add to the stack's policy: so few requests that they can be
# counted, and nothing that a minute refills.
COUNTED = 40
RULES = [
    {"name": "counted", "action": "allow", "agents": ["counted-*"], "hosts": ["api.github.com"], "ports": [443],
     "limits": {"requests": f"{COUNTED}/d"}},
    {"name": "strict", "action": "allow", "agents": ["strict-*"], "hosts": ["api.github.com"], "ports": [443],
     "limits": {"requests": "1000/d", "when_away": "deny"}},
]
# In an agent's container: so many requests to the origin, each by a connection of
# its own, four at a time. What became of them: the statuses, and how often.
ASKS = r"""
import collections, http.client, json, ssl, sys
from concurrent.futures import ThreadPoolExecutor
token, count, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
trusting = ssl._create_unverified_context()
def ask(_):
    c = http.client.HTTPConnection("gateway", 8080, timeout=30)
    try:
        c.set_tunnel("api.github.com", 443, {"Proxy-Authorization": "Bearer " + token})
        c.connect()
        c.sock = trusting.wrap_socket(c.sock, server_hostname="api.github.com")
        c.request("GET", path)
        return c.getresponse().status
    except OSError as error:
        return str(error)
    finally:
        c.close()
with ThreadPoolExecutor(4) as pool:
    print(json.dumps(collections.Counter(str(x) for x in pool.map(ask, range(count)))))
"""
QUICK = str(Path(__file__).parent / "quick-perimeter.yml")
GATEWAYS = ("gateway-a", "gateway-b")
# In the agent's container: a request every few milliseconds, each by a new
# connection, until the file is there. One line for each: when it began and
# ended, and what it got.
LOAD = r"""
import http.client, os, sys, time
token = sys.argv[1]
while not os.path.exists("/tmp/stop"):
    began = time.time()
    try:
        c = http.client.HTTPConnection("gateway", 8080, timeout=20)
        c.set_tunnel("api.openai.com", 443, {"Proxy-Authorization": "Bearer " + token})
        c.connect()
        got = "ok"
        c.close()
    except Exception as error:
        got = repr(error)
    print(began, time.time(), got, flush=True)
    time.sleep(0.01)
"""


def checks(engine: Engine):
    yield NAME, lambda: perimeter(engine)


def perimeter(engine: Engine) -> None:
    for tag in ("nginx:1.28", "redis:7.2"):
        engine.docker("tag", "local/base:1", tag)
    with Stack(engine, "compose/perimeter", ["docker-compose.yml", QUICK], environment={"AGENTPORT_NOFILE": "4096"}) as stack:
        secrets = stack.directory / "secrets"
        secrets.mkdir(mode=0o700)
        (secrets / "redis_password").write_text("cd" * 32 + "\n")
        policy = stack.directory / "policies/policy.json"
        document = json.loads(policy.read_text())
        policy.write_text(json.dumps({**document, "rules": [*RULES, *document["rules"]]}))
        stack.compose("run", "--rm", "admin", "keys", "generate", "--folder", "/var/lib/agentport/keys")
        stack.compose("up", "-d", "--wait", "--no-build")
        token = a_token(stack, "bot-01")
        health = engine.on_host("curl", "-s", "-m", "5", "http://127.0.0.1:8080/health")
        expect("status", json.loads(health)["status"], "up")
        for gateway in GATEWAYS:
            figures = metrics(engine, stack, gateway)
            expect(f"{gateway}: Redis", re.search(r"^agentport_redis_connected(?:{[^}]*})? (\d)", figures, re.M)[1], "1")
        for line in ("inner", "agents"):
            expect(f"{line} is internal", json.loads(engine.docker("network", "inspect", f"agentport_{line}"))[0]["Internal"], True)
        limited(engine, stack)
        agent = engine.docker("run", "-d", "--rm", "--network", "agentport_agents", "--dns", "127.0.0.1", "--entrypoint", "python3",
                              "--cap-drop", "ALL", "openclaw/openclaw:0.1.0", "-c", LOAD, token).strip()
        try:
            address = json.loads(engine.docker("inspect", agent))[0]["NetworkSettings"]["Networks"]["agentport_agents"]["IPAddress"]
            under_load(engine, stack, agent)
            # The balancer passes on whose connection it is.
            records = stack.compose("logs", "--no-color", "--no-log-prefix", "gateway-a", "gateway-b")
            if f'"client":"{address}:' not in records or '"client":"10.213.240.10:' in records:
                raise Broken(f"the records do not name the agent's address {address}: {records[-2000:]}")
        finally:
            engine.try_docker("rm", "-f", agent)
        revoked(engine, stack, token)


def under_load(engine: Engine, stack: Stack, agent: str) -> None:
    """Kills one, brings it back, kills the other; then stops one gently."""
    def lines() -> list[tuple[float, float, str]]:
        return [(float(b), float(e), got) for b, e, got in (x.split(" ", 2) for x in engine.docker("logs", agent).splitlines())]

    until("the load runs", lambda: len(lines()) > 20)
    for gateway, signal in (("gateway-a", "KILL"), ("gateway-b", "KILL"), ("gateway-a", "TERM")):
        # Both are in use before, and the other carries on after.
        before = {g: requests(engine, stack, g) for g in GATEWAYS}
        until("both serve", lambda: all(requests(engine, stack, g) > before[g] for g in before))
        seen = len(lines())
        described = stack.container(gateway)["Id"]
        began = time.time()
        if signal == "KILL":
            engine.docker("kill", "-s", signal, described)
        else:
            engine.docker("stop", "-t", "30", described)
        struck = time.time()
        until("the other carries on", lambda: len([x for x in lines() if x[0] > struck and x[2] == "ok"]) > 50)
        # What was under way when it was struck may have ended with it.
        under_way = [x for x in lines()[seen:] if x[0] <= struck and x[1] >= began] if signal == "KILL" else []
        failed = [x for x in lines()[seen:] if x[2] != "ok" and x not in under_way]
        if failed:
            raise Broken(f"{signal} to {gateway}: requests failed that were not in flight: {failed[:5]} of {len(lines())}")
        # What failed with it belongs to this round.
        if len([x for x in under_way if x[2] != "ok"]) > 4:
            raise Broken(f"{signal} to {gateway}: more failed than one agent has in flight: {under_way}")
        stack.compose("up", "-d", "--wait", "--no-build")
    engine.docker("exec", agent, "touch", "/tmp/stop")


def limited(engine: Engine, stack: Stack) -> None:
    """A quota is one for both gateways, by what the origin counts; without Redis
    each has its half, and what must be counted is refused."""
    tokens = {agent: a_token(stack, agent) for agent in ("counted-a", "counted-b", "strict-a", "strict-b")}

    def passed(agent: str, count: int) -> dict[str, int]:
        """What the agent got, where the origin saw as many as it got through."""
        mark, path = engine.mark(), f"/{agent}/{time.monotonic_ns()}"
        before = {g: requests(engine, stack, g) for g in GATEWAYS}
        got = json.loads(engine.docker("run", "--rm", "--network", "agentport_agents", "--dns", "127.0.0.1", "--cap-drop", "ALL",
                                       "--entrypoint", "python3", "openclaw/openclaw:0.1.0", "-c", ASKS, tokens[agent], str(count), path))
        seen = [c for c in engine.contacts(mark) if c["what"] == "https" and c["text"].endswith(path)]
        expect(f"{agent}: what the origin counted of {got}", len(seen), got.get("200", 0))
        expect(f"{agent}: answered", sum(got.values()), count)
        # Both had a part in it, or one alone would have been counted.
        expect(f"{agent}: by both gateways", [g for g in GATEWAYS if requests(engine, stack, g) > before[g]], list(GATEWAYS))
        return got

    def connected(is_it: str) -> bool:
        return all(re.search(r"^agentport_redis_connected(?:{[^}]*})? (\d)", metrics(engine, stack, g), re.M)[1] == is_it for g in GATEWAYS)

    def all_of(agent: str, first: int = COUNTED - 6) -> int:
        """What passes until both gateways have nothing left for the agent."""
        count = 0
        for at in range(10):
            # Few once it is nearly used up: refusals that repeat are answered
            # more and more slowly.
            got = passed(agent, first if at == 0 else 6)
            expect("other answers", {what for what in got if what != "200" and "429" not in what}, set())
            if "200" not in got:
                return count
            count += got["200"]
        raise Broken(f"{agent} had {count} of a quota of {COUNTED}, and there is no end to it")

    # A batch is a tenth of the burst, divided: each may be ahead by one.
    together = all_of("counted-a")
    if not COUNTED - 4 <= together <= COUNTED + 4:
        raise Broken(f"{together} passed of a quota of {COUNTED} for both")
    expect("with Redis", passed("strict-a", 8), {"200": 8})
    engine.docker("kill", stack.container("redis")["Id"])
    until("both notice that Redis is away", lambda: connected("0"))
    halves = all_of("counted-b")
    if not COUNTED - 4 <= halves <= COUNTED:
        raise Broken(f"{halves} passed of two halves of {COUNTED} while Redis is away")
    used = all_of("counted-a", 6)
    if used > 4:
        raise Broken(f"{used} more of a quota that was used up")
    # Another agent: what Redis has leased to a gateway already is counted.
    refused = passed("strict-b", 8)
    if [what for what in refused if "503" not in what]:
        raise Broken(f"what must be counted was not refused while Redis is away: {refused}")
    stack.compose("up", "-d", "--wait", "--no-build", "redis")
    until("both find Redis again", lambda: connected("1"))
    expect("with Redis again", passed("strict-b", 8), {"200": 8})


def revoked(engine: Engine, stack: Stack, token: str) -> None:
    """One command, and both refuse the agent within a second."""
    stack.compose("run", "--rm", "admin", "revoke", "--agent", "bot-01")
    for gateway in ("10.213.240.11", "10.213.240.12"):
        until("the token is refused", lambda gateway=gateway: refused(engine, gateway, token), 10)


def refused(engine: Engine, gateway: str, token: str) -> bool:
    done = subprocess.run(["nsenter", f"--net=/run/netns/{engine.name}h", "curl", "-ks", "-m", "10", "-o", "/dev/null", "-w", "%{http_connect}",
                           "-x", f"http://x:{token}@{gateway}:8080", "https://api.openai.com/"], text=True, capture_output=True)
    return done.stdout == "403"


def metrics(engine: Engine, stack: Stack, gateway: str) -> str:
    """The admin listener is on the container's loopback: asked from within it."""
    pid = stack.container(gateway)["State"]["Pid"]
    return subprocess.run(["nsenter", "-n", "-t", str(pid), "curl", "-s", "-m", "5", "http://127.0.0.1:9090/metrics"], text=True, capture_output=True).stdout


def requests(engine: Engine, stack: Stack, gateway: str) -> int:
    return sum(int(x) for x in re.findall(r"^agentport_requests_total{[^}]*} (\d+)", metrics(engine, stack, gateway), re.M))


def a_token(stack: Stack, agent: str) -> str:
    out = stack.compose("run", "--rm", "admin", "issue-token", f"--agent-id={agent}", "--ttl", "1h")
    if not re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+\r?\n", out):
        raise Broken(f"issue-token printed more than a token: {out!r}")
    return out.strip()
