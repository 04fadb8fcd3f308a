"""Alerts, dashboard and log pipelines, against the metrics and records that the
running gateway and the running agent give out."""

import json
import os
import random
import re
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from engine import ROOT, Broken, run, until

HOME = ROOT / "compose/observability"
ALERTS = ROOT / "deploy/agentport-chart/files/alerts.yml"
DASHBOARD = HOME / "grafana/dashboards/agentport.json"
# What the short traffic of this test does not bring about. Each is registered
# in the source by that name, which is looked for there.
NOT_PROVOKED = {"agentport_certificate_expiry_timestamp_seconds": '"agentport_certificate_expiry_timestamp"'}
FIRST_GIVEN = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
PORTS = iter(random.sample(range(10_000, max(20_000, FIRST_GIVEN)), 5_000))
direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def checks(agentport: Path):
    openclaw = agentport.parent / "openclaw"
    yield "alerts: promtool takes them, and each fires when it must and not before", alerts
    yield "dashboard: its form, and no panel over another", dashboard
    yield "metrics: every query of alerts and dashboard names what is given out, and Prometheus evaluates it", lambda: queries(agentport, openclaw)
    yield "dashboard: as Grafana's own types have it, and what has not is found", grafana
    yield "Vector: its programs compile, and join both streams as they come", lambda: vector(agentport, openclaw)
    yield "Fluent Bit: whatever one part names is there", fluent_bit
    yield "rsyslog: both streams are joined by agent_id and trace_id", lambda: rsyslog(agentport, openclaw)


def program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if not found:
        raise Broken(f"{name} is missing: run tests/setup")
    return found


def alerts() -> None:
    run([program("promtool"), "check", "rules", str(ALERTS)])
    done = subprocess.run([program("promtool"), "test", "rules", str(HOME / "alerts_test.yml")], text=True, capture_output=True)
    if done.returncode:
        raise Broken(done.stdout + done.stderr)
    tested = set(re.findall(r"alertname: (\w+)", (HOME / "alerts_test.yml").read_text()))
    written = set(re.findall(r"alert: (\w+)", ALERTS.read_text()))
    if written != tested:
        raise Broken(f"alerts without a test, or tests without an alert: {written ^ tested}")


def dashboard() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    taken: dict[tuple[int, int], str] = {}
    for panel in panels:
        place = panel["gridPos"]
        if place["x"] + place["w"] > 24:
            raise Broken(f"{panel['title']} stands out of the grid")
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                if (x, y) in taken:
                    raise Broken(f"{panel['title']} lies over {taken[x, y]}")
                taken[x, y] = panel["title"]
        if panel["type"] != "row" and not panel["targets"]:
            raise Broken(f"{panel['title']} shows nothing")
    ids = [panel["id"] for panel in panels]
    if len(set(ids)) != len(ids):
        raise Broken("two panels have one id")


# Grafana's types, of the version that is started, as its panels read them. Where
# the programs write defaults, a part may be left out; enumerations are their words.
TYPES = """
import type { AnnotationQuery, Dashboard, DataQuery, Panel, RowPanel } from '@grafana/schema';
import type * as stat from '@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen.js';
import type * as timeseries from '@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen.js';
type Part<T> = T extends (infer U)[] ? Part<U>[] : T extends object ? { [K in keyof T]?: Part<T[K]> } : T;
type Plain<T> = T extends string ? `${T}`
  : T extends number ? (`${T}` extends `${infer N extends number}` ? N : never)
  : T extends (infer U)[] ? Plain<U>[] : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;
// Of the Prometheus plugin, whose types are not in the package.
type Query = Plain<DataQuery> & { expr: string; legendFormat?: string; exemplar?: boolean; instant?: boolean; range?: boolean;
  interval?: string; format?: 'time_series' | 'table' | 'heatmap' };
type Fields = NonNullable<Panel['fieldConfig']>;
type Of<O, F> = Plain<Omit<Panel, 'options' | 'fieldConfig' | 'targets'>> & { options?: Part<Plain<O>>; targets: Query[];
  fieldConfig?: { defaults: Plain<Omit<Fields['defaults'], 'custom'>> & { custom?: Part<Plain<F>> }; overrides: Plain<Fields['overrides']> } };
type Note = Plain<Omit<AnnotationQuery, 'target'>> & { target: Query; titleFormat?: string; textFormat?: string };
type Board = Plain<Omit<Dashboard, 'panels' | 'annotations'>>;
"""
PANELS = {"row": "Plain<RowPanel>", "stat": "Of<stat.Options, {}>", "timeseries": "Of<timeseries.Options, timeseries.FieldConfig>"}


def grafana() -> None:
    board = json.loads(DASHBOARD.read_text())
    # One mistake of each kind too, which is found where these types are not blind.
    boards = {"board": board}
    for what, change in (
        ("a panel's option", lambda b: next(p for p in b["panels"] if p["type"] == "timeseries")["options"]["legend"].update(displayMode="lost")),
        ("a field's unit", lambda b: next(p for p in b["panels"] if p["type"] == "stat")["fieldConfig"]["defaults"].update(unit=1)),
        ("a place", lambda b: b["panels"][0]["gridPos"].update(high=1)),
        ("a key", lambda b: b.update(refresch="30s")),
        ("a query", lambda b: b["annotations"]["list"][0].update(target={"refId": "A"})),
    ):
        changed = json.loads(DASHBOARD.read_text())
        change(changed)
        boards[what.replace(" ", "-").replace("'", "")] = changed
    mistakes = of_types(boards)
    if mistakes["board"]:
        raise Broken("\n".join(mistakes["board"]))
    blind = [what for what, found in mistakes.items() if what != "board" and not found]
    if blind:
        raise Broken(f"what is wrong passes: {blind}")
    # What provisioning names is what Compose mounts and the dashboard asks.
    import yaml

    home = HOME / "grafana/provisioning"
    source = yaml.safe_load((home / "datasources/prometheus.yaml").read_text())["datasources"][0]
    asked = {p["datasource"]["uid"] for p in board["panels"] if "datasource" in p}
    path = yaml.safe_load((home / "dashboards/agentport.yaml").read_text())["providers"][0]["options"]["path"]
    service = yaml.safe_load((HOME / "docker-compose.yml").read_text())["services"]
    if asked != {source["uid"]} or not source["url"].startswith("http://prometheus:") or "prometheus" not in service:
        raise Broken(f"the dashboard asks {asked}, and there is {source}")
    if f"./grafana/dashboards:{path}:ro" not in service["grafana"]["volumes"]:
        raise Broken(f"nothing is mounted at {path}: {service['grafana']['volumes']}")


def of_types(boards: dict[str, dict]) -> dict[str, list[str]]:
    """What TypeScript says of each."""
    node = ROOT / "target/deploy/node"
    with tempfile.TemporaryDirectory(dir=node) as folder:
        for name, board in boards.items():
            rest = dict(board)
            lines = [TYPES]
            for panel in rest.pop("panels"):
                lines.append(f"export const panel{panel['id']}: {PANELS[panel['type']]} = {json.dumps(panel)};")
            for at, note in enumerate(rest.pop("annotations")["list"]):
                lines.append(f"export const note{at}: Note = {json.dumps(note)};")
            lines.append(f"export const board: Board = {json.dumps(rest)};")
            (Path(folder) / f"{name}.ts").write_text("\n".join(lines))
        done = subprocess.run([str(node / "node_modules/.bin/tsc"), "--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext",
                               "--moduleResolution", "nodenext", "--target", "es2022", *map(str, sorted(Path(folder).glob("*.ts")))],
                              cwd=node, text=True, capture_output=True)
    found = {name: [line for line in done.stdout.splitlines() if f"/{name}.ts(" in line] for name in boards}
    if done.returncode and not any(found.values()):
        raise Broken(f"tsc: {done.stdout}{done.stderr}")
    return found


def vector(agentport: Path, openclaw: Path) -> None:
    """Vector is not to be had here; the language of its transforms is, and runs
    them on the records that gateway and agent write."""
    import yaml
    from vrl_python import VRLRuntime

    parts = yaml.safe_load((HOME / "vector.yaml").read_text())
    names = {*parts["sources"], *parts["transforms"]}
    inputs = {name for part in (*parts["transforms"].values(), *parts["sinks"].values()) for name in part["inputs"]}
    if inputs != names:
        raise Broken(f"named by nobody, or not there: {inputs ^ names}")
    joined, denials = parts["transforms"]["joined"]["source"], parts["transforms"]["denials"]["condition"]
    for program_ in (joined, denials):
        mistake = VRLRuntime.check_syntax(program_)
        if mistake is not None:
            raise Broken(mistake.formatted_message)
    if VRLRuntime.check_syntax("record = parse_json(.message)") is None:
        raise Broken("an error that nobody handles passes the compiler")
    runtime = VRLRuntime()

    def store(tag: str, line: str) -> dict:
        """What the transform makes of a line as syslog brings it."""
        event = {"appname": tag, "message": line, "timestamp": "2026-01-01T00:00:00Z", "host": "h", "severity": "info"}
        return dict(runtime.execute(joined, event).processed_event)

    with running(agentport, openclaw) as world:
        until("a record of a skill, and one of its call", lambda: world.traffic() or (world.shared_trace() is not None))
        trace = world.shared_trace()
        stored = [store("agentport", line) for line in world.records.read_text().splitlines() if line.endswith("}")]
        stored += [store("openclaw", line) for line in world.agent_log.read_text().splitlines() if line.endswith("}")]
    one = [event for event in stored if event["trace_id"] == trace]
    if {event["stream"] for event in one} != {"agentport", "openclaw"} or {event["agent_id"] for event in one} != {"bot-01"}:
        raise Broken(f"the trace {trace} is not whole: {one}")
    if any(event["kind"] != "record" for event in stored):
        raise Broken("a record was taken for text")
    text = store("agentport", " INFO no record")
    if (text["kind"], text["message"], text["agent_id"]) != ("log", " INFO no record", None):
        raise Broken(f"text became {text}")
    refused = [event for event in stored if runtime.execute(denials, event).runtime_result]
    wanted = [event for event in stored if event["stream"] == "agentport" and event.get("action_allowed") is False and event["reason"] != "ok"]
    if not refused or refused != wanted:
        raise Broken(f"{len(refused)} of {len(wanted)} refusals are found")


def fluent_bit() -> None:
    import yaml

    text = yaml.safe_load((ROOT / "deploy/fluent-bit/fluent-bit.yaml").read_text())
    pipeline = text["pipeline"]
    tags = [part["tag"].replace("*", "x") for part in pipeline["inputs"]]
    for part in (*pipeline["filters"], *pipeline["outputs"]):
        if not any(re.fullmatch(part["match"].replace(".", r"\.").replace("*", ".*"), tag) for tag in tags):
            raise Broken(f"{part['name']} matches no input: {part['match']}")
    parsers = {parser["name"] for parser in text["parsers"]}
    used = {part["parser"] for part in pipeline["filters"] if "parser" in part}
    if used != parsers:
        raise Broken(f"parsers without use, or not there: {used ^ parsers}")
    # The paths are those of the pods that the chart makes.
    pods = {(o["metadata"]["namespace"], o["metadata"]["name"], o["spec"]["template"]["spec"]["containers"][0]["name"])
            for o in yaml.safe_load_all((ROOT / "deploy/manifests/agentport.yaml").read_text()) if o and o["kind"] == "Deployment"}
    for part in pipeline["inputs"]:
        pod, namespace, container = re.fullmatch(r"/var/log/containers/(.+)-\*_(.+)_(.+)-\*\.log", part["path"]).groups()
        if (namespace, pod, container) not in pods:
            raise Broken(f"{part['path']} is no pod's of the manifests: {pods}")


def expressions() -> dict[str, str]:
    """Where each stands, and each."""
    import yaml

    found = {}
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        for rule in group["rules"]:
            found[f"alert {rule['alert']}"] = rule["expr"]
    board = json.loads(DASHBOARD.read_text())
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            found[f"panel {panel['title']} {target['refId']}"] = target["expr"].replace("$__rate_interval", "1m")
    for note in board["annotations"]["list"]:
        found[f"annotation {note['name']}"] = note["target"]["expr"]
    return found


def queries(agentport: Path, openclaw: Path) -> None:
    with running(agentport, openclaw) as world:
        given = world.metrics("admin", "/metrics") + world.metrics("agent", "/metrics")
        names = set(re.findall(r"^([a-z_:]+)(?:{| )", given, re.M)) | {"up"}
        labels = {name: set() for name in names}
        for name, inside in re.findall(r"^([a-z_:]+){([^}]*)}", given, re.M):
            labels[name] |= set(re.findall(r"(\w+)=", inside))
        source = "".join(p.read_text() for p in (ROOT / "src").rglob("*.rs"))
        mistakes = []
        for where, expression in expressions().items():
            for name, chosen in re.findall(r"\b((?:agentport|openclaw|process)_\w+|up)\b(?:{([^}]*)})?", expression):
                if name in NOT_PROVOKED:
                    if NOT_PROVOKED[name] not in source:
                        mistakes.append(f"{where}: {name} is nowhere in the source")
                elif name not in names:
                    mistakes.append(f"{where}: {name} is not given out")
                else:
                    unknown = set(re.findall(r"(\w+)\s*[=!]", chosen)) - labels[name] - {"job", "instance"}
                    if unknown:
                        mistakes.append(f"{where}: {name} has no label {unknown}")
        if mistakes:
            raise Broken("\n".join(mistakes))
        with prometheus(world) as base:
            evaluated(world, base)


def evaluated(world: "Running", base: str) -> None:
    """By a Prometheus that scrapes both as compose/observability has it."""

    def ask(path: str, **query):
        with direct.open(f"{base}{path}?{urllib.parse.urlencode(query)}", timeout=20) as answer:
            return json.load(answer)

    until("both are scraped", lambda: len([t for t in ask("/api/v1/targets")["data"]["activeTargets"] if t["health"] == "up"]) == 2)
    for where, expression in expressions().items():
        answer = ask("/api/v1/query", query=expression)
        if answer["status"] != "success":
            raise Broken(f"{where}: {answer}")

    # Of the panels, only what nothing here provokes may show nothing. Rates want
    # two scrapes with traffic between them.
    shown = {where: expression for where, expression in expressions().items()
             if where.startswith("panel") and not any(name in expression for name in NOT_PROVOKED)}

    def empty() -> list[str]:
        world.traffic()
        return [where for where, expression in shown.items() if not ask("/api/v1/query", query=expression)["data"]["result"]]

    silent = [[]]

    def all_show() -> bool:
        silent[0] = empty()
        return not silent[0]

    try:
        until("every panel shows something", all_show)
    except Broken as broken:
        raise Broken(f"{broken}; these show nothing: {silent[0]}") from None
    loaded = {rule["name"] for group in ask("/api/v1/rules")["data"]["groups"] for rule in group["rules"]}
    if "AgentPortDenials" not in loaded:
        raise Broken(f"the alerts are not loaded: {loaded}")
    now = time.time()
    exemplars = ask("/api/v1/query_exemplars", query="openclaw_skill_duration_seconds_bucket", start=now - 300, end=now)["data"]
    if not any("trace_id" in e["labels"] and "skill" in e["labels"] for series in exemplars for e in series["exemplars"]):
        raise Broken(f"no exemplar names a trace and a skill: {exemplars}")


@contextmanager
def prometheus(world: "Running"):
    """The configuration of compose/observability, with the addresses of here."""
    text = (HOME / "prometheus.yml").read_text()
    changes = {
        "/etc/prometheus/alerts.yml": str(ALERTS),
        "10.213.241.10:9090": f"127.0.0.1:{world.admin}",
        "10.213.241.10:8080": f"127.0.0.1:{world.egress}",
        "/run/secrets/prometheus_token": str(world.home / "prometheus_token"),
        "_interval: 15s": "_interval: 1s",
    }
    for old, new in changes.items():
        if old not in text:
            raise Broken(f"prometheus.yml does not say {old}")
        text = text.replace(old, new)
    (world.home / "prometheus_token").write_text(world.token("prometheus"))
    config = world.home / "prometheus.yml"
    config.write_text(text)
    run([program("promtool"), "check", "config", str(config)])
    port = free_port()
    with started([program("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={world.home}/tsdb",
                  f"--web.listen-address=127.0.0.1:{port}", "--enable-feature=exemplar-storage"], world.home / "prometheus.log"):
        base = f"http://127.0.0.1:{port}"
        until("Prometheus is ready", lambda: fetched(f"{base}/-/ready"))
        yield base


def rsyslog(agentport: Path, openclaw: Path) -> None:
    """Real records, by syslog as the engine's driver sends them."""
    if os.geteuid() != 0:
        raise Broken("rsyslogd needs root here")
    with running(agentport, openclaw) as world:
        # Another process begins the trace; the agent and the gateway take it on.
        until("a record of a skill, and one of its call", lambda: world.traffic() or (world.shared_trace() is not None))
        trace = world.shared_trace()
        port = free_port()
        spool = world.home / "spool"
        spool.mkdir()
        text = (HOME / "rsyslog.conf").read_text()
        for old, new in {"/var/spool/rsyslog": str(spool), "/var/log/agents": str(world.home), 'port="5140"': f'port="{port}"'}.items():
            text = text.replace(old, new)
        config = world.home / "rsyslog.conf"
        config.write_text(text)
        run([program("rsyslogd"), "-N1", "-f", str(config)])
        with started([program("rsyslogd"), "-n", "-f", str(config), "-i", str(world.home / "rsyslog.pid")], world.home / "rsyslogd.log"):
            stream = until("rsyslogd listens", lambda: connected(port))
            for tag, log in (("agentport", world.records), ("openclaw", world.agent_log)):
                for line in log.read_text().splitlines():
                    stream.sendall(f"<30>1 2026-01-01T00:00:00Z host {tag} 1 {tag} - {line}\n".encode())
            stream.sendall(b"<30>1 2026-01-01T00:00:00Z host agentport 1 agentport -  INFO not a record\n")
            stream.close()
            joined, other = world.home / "joined.ndjson", world.home / "other.ndjson"
            until("everything is stored", lambda: other.exists() and joined.exists() and trace in joined.read_text())
            until("both streams", lambda: {"agentport", "openclaw"} <= {r["stream"] for r in lines(joined) if r["trace_id"] == trace})
            for stored in lines(joined):
                if stored["trace_id"] == trace and stored["agent_id"] != "bot-01":
                    raise Broken(f"a line has another agent: {stored}")
                if not isinstance(stored["record"], dict):
                    raise Broken(f"the record is not whole: {stored}")
            denials = world.home / "denials.ndjson"
            until("denials", lambda: denials.exists() and lines(denials))
            if any(d["record"]["action_allowed"] for d in lines(denials)):
                raise Broken("something that was allowed is among the denials")


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


class Running:
    """A gateway and an agent behind it, on loopback, and an origin."""

    def __init__(self, home: Path, agentport: Path):
        self.home, self.program = home, agentport
        self.egress, self.admin, self.agent, self.origin = (free_port() for _ in range(4))
        self.records, self.agent_log = home / "records.ndjson", home / "agent.ndjson"
        self.environment = {"AGENTPORT_JWKS_SECRET": "ab" * 32, "PATH": "/usr/bin:/bin"}

    def token(self, agent: str) -> str:
        return run([str(self.program), "issue-token", f"--agent-id={agent}"], env=self.environment).strip()

    def metrics(self, which: str, path: str) -> str:
        with direct.open(f"http://127.0.0.1:{getattr(self, which)}{path}", timeout=10) as answer:
            return answer.read().decode()

    def traffic(self) -> None:
        """Some of each: allowed, refused, throttled, broken, by skill and by hand."""
        trace = f"00-{os.urandom(16).hex()}-{os.urandom(8).hex()}-01"
        for skill in ("allowed", "refused"):
            request = urllib.request.Request(f"http://127.0.0.1:{self.agent}/v1/skills/{skill}/invoke", b'{"input":{}}',
                                             {"content-type": "application/json", "traceparent": trace})
            quiet(lambda: direct.open(request, timeout=20).read())
        token = self.token("bot-02")
        for credential in (token, token, token, "a.b.c"):
            by = urllib.request.build_opener(urllib.request.ProxyHandler({
                "http": f"http://x:{credential}@127.0.0.1:{self.egress}", "https": f"http://x:{credential}@127.0.0.1:{self.egress}"}))
            for url in (f"http://localhost:{self.origin}/", "http://refused.example/", f"http://localhost:{free_port()}/", f"https://localhost:{self.origin}/"):
                quiet(lambda: by.open(url, timeout=20).read())
        # By a route, and by the parent proxy, which is not there.
        token = self.token("bot-03")
        request = urllib.request.Request(f"http://127.0.0.1:{self.egress}/routes/api/", headers={"authorization": f"Bearer {token}"})
        quiet(lambda: direct.open(request, timeout=20).read())
        by = urllib.request.build_opener(urllib.request.ProxyHandler({"http": f"http://x:{token}@127.0.0.1:{self.egress}"}))
        quiet(lambda: by.open("http://parent.example/", timeout=20).read())

    def shared_trace(self) -> str | None:
        """A trace that is in records of both."""
        if not (self.records.exists() and self.agent_log.exists()):
            return None
        mine = {r.get("trace_id") for r in lines(self.records)} - {None}
        theirs = {r.get("trace_id") for r in lines(self.agent_log) if r.get("event") == "skill"}
        return next(iter(mine & theirs), None)


@contextmanager
def running(agentport: Path, openclaw: Path):
    home = Path(tempfile.mkdtemp(prefix="agentport-observed-"))
    world = Running(home, agentport)
    (home / "policy.yaml").write_text("""
version: 1
rules:
  - {name: local, action: allow, agents: any, hosts: [localhost], addresses: [127.0.0.0/8], ports: any}
  - {name: by-parent, action: allow, agents: any, hosts: [parent.example], ports: any}
  - {name: scrape, action: allow, agents: [prometheus], hosts: [openclaw.agent], ports: [80], methods: [GET], paths: [/metrics]}
""")
    (home / "agentport.yaml").write_text(f"""
listen: {{egress: ["127.0.0.1:{world.egress}"], admin: "127.0.0.1:{world.admin}"}}
policy: {home}/policy.yaml
audit: {{path: {world.records}}}
identity: {{revocations: {{file: {home}/revocations}}}}
redis: {{url: "redis://127.0.0.1:{free_port()}"}}
limits: {{requests_per_agent: 2/s burst 3}}
routes: [{{name: api, to: "http://localhost:{world.origin}"}}]
upstream_proxy: {{url: "http://127.0.0.1:{free_port()}", address: unchecked, no_proxy: [localhost]}}
agent: {{upstream: "127.0.0.1:{world.agent}"}}
""")
    def skill(name, host):
        return {"id": name, "version": "1.0.0", "runtime": {"type": "http", "url": f"http://{host}/", "response": "text"}}
    (home / "manifest.json").write_text(json.dumps({"skills": [skill("allowed", f"localhost:{world.origin}"), skill("refused", "refused.example")]}))
    (home / "token").write_text(world.token("bot-01"))
    try:
        with origin(world.origin), \
             started([str(agentport), "-c", str(home / "agentport.yaml"), "serve"], home / "gateway.log", world.environment), \
             started([str(openclaw), "run"], world.agent_log, {
                 "OPENCLAW_LISTEN": f"127.0.0.1:{world.agent}", "OPENCLAW_MANIFEST": str(home / "manifest.json"), "PATH": "/usr/bin:/bin",
                 "AGENTPORT_URL": f"http://127.0.0.1:{world.egress}", "AGENTPORT_TOKEN_FILE": str(home / "token")}):
            for which, path in (("admin", "/health"), ("agent", "/healthz")):
                until(f"{which} is up: {(home / 'gateway.log').read_text()}", lambda which=which, path=path: fetched(f"http://127.0.0.1:{getattr(world, which)}{path}"))
            world.traffic()
            yield world
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def origin(port: int, address: str = "127.0.0.1"):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.send_response(200)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer((address, port), Handler)
    server.daemon_threads = True
    # Whoever only looks whether it is there leaves before the answer.
    server.handle_error = lambda *_: None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()


@contextmanager
def started(command: list[str], log: Path, environment: dict[str, str] | None = None):
    with open(log, "ab") as out:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment)
    try:
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def free_port() -> int:
    """A port below those that the kernel gives to who asks for any (ip(7)), so that
    none of them takes it meanwhile. No two calls give the same."""
    for port in PORTS:
        with suppress(OSError), socket.create_server(("0.0.0.0", port)):
            return port
    raise RuntimeError("every port is taken")


def connected(port: int):
    try:
        return socket.create_connection(("127.0.0.1", port), 2)
    except OSError:
        return None


def fetched(url: str) -> bool:
    try:
        with direct.open(url, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def quiet(attempt) -> None:
    """What is refused on purpose is no failure."""
    try:
        attempt()
    except (OSError, ssl.SSLError):
        pass
