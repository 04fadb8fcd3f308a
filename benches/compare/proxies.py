"""How each side of the comparison is started, and what it can do.

Knows configurations, processes and their accounts in /proc. Measures nothing
itself and judges nothing.
"""

import contextlib
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import textwrap
import time
import urllib.error
import urllib.request
from pathlib import Path

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")
FIRST_GIVEN = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
PORTS = iter(random.sample(range(10_000, max(20_000, FIRST_GIVEN)), 5_000))


class Broken(Exception):
    """Something does not start, or answers wrongly. Its text says what."""


def free_port() -> int:
    """A port below those that the kernel gives to who asks for any (ip(7)), so that
    none of them takes it meanwhile. No two calls give the same."""
    for port in PORTS:
        with contextlib.suppress(OSError), socket.create_server(("0.0.0.0", port)):
            return port
    raise RuntimeError("every port is taken")


def find(program: str) -> str:
    """The program's path; Debian keeps daemons where a user's PATH may not lead."""
    path = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        raise Broken(f"{program} is not installed: run tests/setup")
    return path


class Process:
    """A process of ours with all that it starts: its accounts and its end."""

    def __init__(self, command: list[str], log: Path, env: dict[str, str] | None = None,
                 stdout: int | None = None):
        self.command, self.log = command, log
        with log.open("ab") as file:
            # A session of its own, so that its children can be ended with it.
            self.child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file if stdout is None else stdout,
                stderr=file, env={**os.environ, **(env or {})}, start_new_session=True)

    @property
    def pid(self) -> int:
        return self.child.pid

    def alive(self) -> bool:
        return self.child.poll() is None

    def complaint(self) -> str:
        """The end of what it said."""
        return self.log.read_text(errors="replace")[-2000:]

    def tree(self) -> list[int]:
        """Its process and everything below."""
        parents: dict[int, list[int]] = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit() and (fields := stat_fields(int(entry))):
                parents.setdefault(int(fields[1]), []).append(int(entry))
        found, todo = [], [self.pid]
        while todo:
            pid = todo.pop()
            found.append(pid)
            todo += parents.get(pid, [])
        return found

    def cpu_seconds(self) -> float:
        """User and system time of the tree, of children that ended too."""
        ticks = 0
        for pid in self.tree():
            if fields := stat_fields(pid):
                ticks += sum(int(fields[i]) for i in (11, 12, 13, 14))
        return ticks / CLOCK_TICKS

    def resident_bytes(self) -> int:
        """The resident set of the tree; pages that processes share count in each."""
        pages = 0
        for pid in self.tree():
            try:
                pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            except (FileNotFoundError, ProcessLookupError):
                pass
        return pages * PAGE_SIZE

    def stop(self) -> None:
        """Ends it and what it started, by their ids: first asked, then made to."""
        for sign, patience in ((signal.SIGTERM, 5), (signal.SIGKILL, 5)):
            try:
                os.killpg(self.pid, sign)
            except ProcessLookupError:
                break
            try:
                self.child.wait(patience)
            except subprocess.TimeoutExpired:
                continue
        self.child.wait(5)


def stat_fields(pid: int) -> list[str] | None:
    """/proc/PID/stat from the state on: [0] state, [1] parent, [11..14] times."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may hold anything, parentheses too.
    return text[text.rindex(")") + 2:].split()


class World:
    """What all sides share: the origin, the sink, and a directory for files."""

    def __init__(self, directory: Path, load: Path, small: int, large: int):
        self.directory, self.load = directory, load
        self.small, self.large = small, large
        self.processes: list[Process] = []
        self.origin_port = free_port()
        self.write_files()
        self.start_origin()
        self.sink_port = self.start_far_end("sink")

    def write_files(self) -> None:
        block = pattern()
        root = self.directory / "www"
        root.mkdir()
        (root / "small").write_bytes(block[:self.small])
        with (root / "large").open("wb") as file:
            for _ in range(self.large // len(block)):
                file.write(block)

    def start_origin(self) -> None:
        config = self.directory / "origin.conf"
        config.write_text(nginx_config(self.directory / "origin", f"""
            listen 127.0.0.1:{self.origin_port} backlog=4096;
            root {self.directory / "www"};
        """))
        origin = self.start([find("nginx"), "-c", str(config)], "origin")
        wait_for_port(origin, self.origin_port)

    def start_far_end(self, mode: str, *options: str) -> int:
        """The sink or the relay, which say their own port."""
        process = Process([str(self.load), mode, *options], self.directory / f"{mode}.log",
                          stdout=subprocess.PIPE)
        self.processes.append(process)
        line = process.child.stdout.readline()
        if not line.strip().isdigit():
            raise Broken(f"load {mode} did not start:\n{process.complaint()}")
        return int(line)

    def start(self, command: list[str], name: str, env: dict[str, str] | None = None) -> Process:
        process = Process(command, self.directory / f"{name}.log", env)
        self.processes.append(process)
        return process

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.stop()


def pattern() -> bytes:
    """64 KiB, the same as in load.c."""
    out, x = bytearray(64 * 1024), 1
    for i in range(len(out)):
        x = (x * 1103515245 + 12345) & 0xFFFFFFFF
        out[i] = x >> 16 & 0xFF
    return bytes(out)


def wait_for_port(process: Process, port: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if not process.alive():
            break
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.02)
    raise Broken(f"{' '.join(process.command)} does not listen:\n{process.complaint()}")


def nginx_config(prefix: Path, server: str, http: str = "") -> str:
    """One nginx in the foreground, with every path it writes to under `prefix`."""
    prefix.mkdir()
    prefix.chmod(0o777)
    temporary = "\n".join(
        f"{module}_temp_path {prefix}/{module};"
        for module in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    user = "user root;" if os.geteuid() == 0 else ""
    return f"""
        {user}
        daemon off;
        worker_processes 2;
        worker_rlimit_nofile 20000;
        pid {prefix}/pid;
        error_log {prefix}/error.log warn;
        events {{ worker_connections 8192; }}
        http {{
            {temporary}
            access_log off;
            sendfile on;
            keepalive_timeout 600;
            keepalive_requests 1000000000;
            {http}
            server {{ {server} }}
        }}
    """


class Side:
    """One side of the comparison, as it is before it is started."""

    #: What the tables call it.
    name: str
    #: One line for the report: what it is here, and what it does.
    role: str
    #: Whether it takes requests, and whether in the form for proxies.
    requests = True
    absolute_form = True
    keeps_alive = True
    #: Whether it takes tunnels, and whether by CONNECT.
    tunnels = True
    connect = True

    def __init__(self, world: World, number: int):
        self.world = world
        self.process: Process | None = None
        self.port = free_port()
        self.directory = world.directory / f"{self.name}-{number}"
        self.directory.mkdir()
        # Some of them give up root and still want to write here.
        self.directory.chmod(0o777)

    def start(self) -> None:
        raise NotImplementedError

    def launch(self, command: list[str], env: dict[str, str] | None = None) -> None:
        self.process = self.world.start(command, self.directory.name, env)
        wait_for_port(self.process, self.port)

    def request_port(self) -> int:
        return self.port

    def tunnel_port(self) -> int:
        return self.port

    def header(self) -> tuple[str, str] | None:
        """The credential, as a header's name and value."""
        return None

    def cpu_seconds(self) -> float:
        return self.process.cpu_seconds() if self.process else 0.0

    def stop(self) -> None:
        if self.process:
            self.process.stop()
            self.world.processes.remove(self.process)

    @classmethod
    def version(cls) -> str:
        return ""


class Direct(Side):
    name = "direct"
    role = "no proxy: the client at the origin"
    absolute_form = False
    connect = False

    def start(self) -> None:
        pass

    def request_port(self) -> int:
        return self.world.origin_port

    def tunnel_port(self) -> int:
        return self.world.sink_port


class Relay(Side):
    name = "relay"
    role = "load.c as a bare TCP relay: 64 KiB each way, no HTTP"
    requests = False
    connect = False

    def start(self) -> None:
        self.port = self.world.start_far_end("relay", "--target", str(self.world.sink_port))
        self.process = self.world.processes[-1]


class AgentPort(Side):
    name = "agentport"
    role = "forward proxy: JWT, policy, addresses, one audit record per request"
    #: Set by `run`.
    binary = Path("target/release/agentport")

    def start(self) -> None:
        self.admin_port = free_port()
        self.environment = {"AGENTPORT_JWKS_SECRET": secrets.token_hex(32)}
        self.token, self.token_until = "", 0.0
        policy = self.directory / "policy.yaml"
        policy.write_text(
            "version: 1\n"
            "rules:\n"
            "  - name: bench\n"
            "    action: allow\n"
            "    agents: any\n"
            '    hosts: ["127.0.0.1"]\n'
            '    addresses: ["127.0.0.0/8"]\n'
            "    ports: any\n"
            "    tls: any\n")
        # Apart from the policy, whose folder is watched: each write there is news.
        audit = self.directory / "audit"
        audit.mkdir()
        config = self.directory / "agentport.yaml"
        config.write_text(
            f'listen: {{egress: ["127.0.0.1:{self.port}"], admin: "127.0.0.1:{self.admin_port}"}}\n'
            f"policy: {policy}\n"
            f"audit: {{path: {audit / 'audit.jsonl'}}}\n")
        self.launch([str(self.binary), "serve", "--config", str(config)], self.environment)
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        deadline, answer = time.monotonic() + 20, "no answer"
        while time.monotonic() < deadline and self.process.alive():
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}/ready", timeout=2) as r:
                    if r.status == 200:
                        return
            except urllib.error.HTTPError as error:
                answer = error.read().decode(errors="replace")
            except OSError as error:
                answer = str(error)
            time.sleep(0.05)
        raise Broken(f"agentport is not ready: {answer}\n{self.process.complaint()}")

    def header(self) -> tuple[str, str]:
        # Issued anew long before it ends: a full run takes longer than one lives.
        if time.monotonic() > self.token_until:
            issued = subprocess.run(
                [str(self.binary), "issue-token", "--agent-id=bench"],
                env={**os.environ, **self.environment}, capture_output=True, text=True, timeout=20)
            if issued.returncode != 0:
                raise Broken(f"agentport issue-token failed: {issued.stderr.strip()}")
            self.token, self.token_until = issued.stdout.strip(), time.monotonic() + 300
        return "Proxy-Authorization", f"Bearer {self.token}"

    @classmethod
    def version(cls) -> str:
        return first_line([str(cls.binary), "--version"])


class HAProxy(Side):
    name = "haproxy"
    role = "forward proxy by set-dst; passes CONNECT on, and the sink answers it"

    def start(self) -> None:
        config = self.directory / "haproxy.cfg"
        # HAProxy has no answer to CONNECT of its own: it dials the address and
        # sends the request there, as to a further proxy. The sink answers it.
        config.write_text(textwrap.dedent(f"""
            global
                maxconn 8192
            defaults
                mode http
                timeout connect 5s
                timeout client 600s
                timeout server 600s
                timeout tunnel 600s
                timeout http-request 10s
            frontend egress
                bind 127.0.0.1:{self.port}
                http-request del-header Proxy-Authorization
                default_backend anywhere
            backend anywhere
                http-reuse always
                http-request set-dst req.hdr(host),host_only
                http-request set-dst-port req.hdr(host),port_only
                http-request set-uri %[pathq] unless METH_CONNECT
                server any 0.0.0.0:0
        """) + "\n")
        self.launch([find("haproxy"), "-db", "-f", str(config)])

    @classmethod
    def version(cls) -> str:
        return first_line([find("haproxy"), "-v"])


class Squid(Side):
    name = "squid"
    role = "forward proxy, nothing cached or logged"

    def start(self) -> None:
        config = self.directory / "squid.conf"
        config.write_text("\n".join([
            f"http_port 127.0.0.1:{self.port}",
            "http_access allow all",
            "cache deny all",
            "cache_mem 8 MB",
            "access_log none",
            "cache_store_log none",
            f"cache_log {self.directory / 'cache.log'}",
            f"pid_filename {self.directory / 'squid.pid'}",
            f"coredump_dir {self.directory}",
            "netdb_filename none",
            "pinger_enable off",
            "visible_hostname bench",
            "max_filedescriptors 16384",
            "shutdown_lifetime 1 seconds",
            "",
        ]))
        # The service's name keeps its shared memory apart from another Squid's.
        service = f"bench{os.getpid()}n{self.directory.name.rsplit('-', 1)[1]}"
        self.launch([find("squid"), "-N", "-n", service, "-f", str(config)])

    @classmethod
    def version(cls) -> str:
        return first_line([find("squid"), "-v"])


class Nginx(Side):
    name = "nginx"
    role = "reverse proxy with a kept-alive upstream; no CONNECT"
    absolute_form = False
    tunnels = False

    def start(self) -> None:
        config = self.directory / "nginx.conf"
        config.write_text(nginx_config(
            self.directory / "state",
            f"""
            listen 127.0.0.1:{self.port} backlog=4096;
            location / {{
                proxy_pass http://origin;
                proxy_http_version 1.1;
                proxy_set_header Connection "";
                proxy_set_header Host $http_host;
            }}
            """,
            f"upstream origin {{ server 127.0.0.1:{self.world.origin_port}; keepalive 256; "
            "keepalive_requests 1000000000; }"))
        self.launch([find("nginx"), "-c", str(config)])

    @classmethod
    def version(cls) -> str:
        return first_line([find("nginx"), "-v"])


class Tinyproxy(Side):
    name = "tinyproxy"
    role = "forward proxy, a thread and two new connections per request"
    keeps_alive = False

    def start(self) -> None:
        config = self.directory / "tinyproxy.conf"
        config.write_text("\n".join([
            f"Port {self.port}",
            "Listen 127.0.0.1",
            "Allow 127.0.0.1",
            "Timeout 600",
            "MaxClients 8192",
            "LogLevel Critical",
            f'LogFile "{self.directory / "log"}"',
            f'PidFile "{self.directory / "pid"}"',
            "",
        ]))
        self.launch([find("tinyproxy"), "-d", "-c", str(config)])

    @classmethod
    def version(cls) -> str:
        return first_line([find("tinyproxy"), "-v"])


#: In the order of the tables: what is measured against, then what is measured.
SIDES: dict[str, type[Side]] = {
    side.name: side for side in (Direct, Relay, AgentPort, HAProxy, Squid, Nginx, Tinyproxy)
}


def first_line(command: list[str]) -> str:
    """The first line that the command prints, on either stream."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    return ((done.stdout or done.stderr).strip().splitlines() or ["?"])[0]
