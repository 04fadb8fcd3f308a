"""The sidecar with the observability's overlay: metrics of both come to the
monitoring network, and the agent still has no way out."""

import json

from engine import Broken, Engine, until
from sidecar import QUICK, attack_ways, begun, contained, expect

NAME = "observability over the sidecar: metrics and records of both, and no new way out"


def checks(engine: Engine):
    yield NAME, lambda: observed(engine)


def observed(engine: Engine) -> None:
    # As compose/observability makes it.
    engine.docker("network", "create", "--internal", "--subnet", "10.213.241.0/24", "agentport-monitor")
    received = engine.home / "syslog.ndjson"
    sink = "import socket,sys,threading\ns=socket.create_server(('127.0.0.1',5140))\nf=open(sys.argv[1],'ab',0)\n" \
           "def r(c):\n  while True:\n    d=c.recv(65536)\n    if not d: break\n    f.write(d)\n" \
           "f.write(b'ready\\n')\nwhile True: threading.Thread(target=r,args=(s.accept()[0],),daemon=True).start()\n"
    engine.child("h", ["/usr/bin/python3", "-c", sink, str(received)])
    until("the syslog listens", lambda: received.exists() and b"ready" in received.read_bytes())
    try:
        with begun(engine, "../observability/sidecar.yml", QUICK, secrets={"openclaw_api_key": "0123456789abcdef0123"}) as stack:
            token = stack.compose("exec", "-T", "gateway", "/usr/bin/agentport", "issue-token", "--agent-id=prometheus").strip()

            def scrape(url: str, *more: str) -> str:
                # Prometheus' place: a container on the monitoring network.
                return engine.docker("run", "--rm", "--network", "agentport-monitor", "--entrypoint", "curl", "openclaw/openclaw:0.1.0",
                                     "-s", "-m", "10", "-w", "\n%{http_code}", *more, url)

            figures = scrape("http://10.213.241.10:9090/metrics")
            if "agentport_policy_info" not in figures:
                raise Broken(f"no metrics of the gateway: {figures}")
            agents = scrape("http://10.213.241.10:8080/metrics", "-H", f"Authorization: Bearer {token}")
            if "openclaw_skills_running" not in agents:
                raise Broken(f"no metrics of the agent: {agents}")
            expect("without a token", scrape("http://10.213.241.10:8080/metrics").rsplit("\n", 1)[1], "401")
            # The agent's API is not Prometheus': its rule has one path.
            expect("another path", scrape("http://10.213.241.10:8080/v1/skills", "-H", f"Authorization: Bearer {token}").rsplit("\n", 1)[1], "403")
            ways = attack_ways(stack, [("10.213.241.1", 5140), ("10.213.241.10", 9090)])
            engine.on_host("nft", "-f", str(stack.tree / "deploy/nftables/sidecar-host.nft"))
            try:
                contained(engine, stack, ways)
            finally:
                engine.on_host("nft", "delete", "table", "inet", "agentport_sidecar")
            text = until("records of both by syslog", lambda: both(received.read_text()))
            record = next(line for line in text.splitlines() if '"event":"request"' in line)
            json.loads(record[record.index("{"):])
    finally:
        engine.docker("network", "rm", "agentport-monitor")


def both(text: str) -> str | None:
    return text if '"event":"request"' in text and '"event":"listening"' in text else None
