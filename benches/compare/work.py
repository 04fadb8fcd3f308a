"""The work that is put on each side, and what comes of it as numbers.

Every workload checks its answers, and one wrong answer ends the run: a proxy
that answers wrongly has no speed.
"""

import http.client
import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from proxies import Broken, Side, find, pattern

HERE = Path(__file__).resolve().parent
GIB = 1024 ** 3
MIB = 1024 ** 2
SMALL = 1024
LARGE = 64 * MIB


@dataclass(frozen=True)
class Scale:
    """How much of everything: a measurement, or a smoke test of the same."""

    rounds: int
    seconds: int
    latency_rate: int
    single_bytes: int
    large_repeats: int
    idle_tunnels: int


MEASURE = Scale(rounds=3, seconds=5, latency_rate=1000, single_bytes=2 * GIB, large_repeats=16,
                idle_tunnels=2000)
SMOKE = Scale(rounds=1, seconds=1, latency_rate=200, single_bytes=64 * MIB, large_repeats=1,
              idle_tunnels=50)


@dataclass(frozen=True)
class Metric:
    key: str
    unit: str
    decimals: int = 1
    #: Whether the tables give it relative to the references too.
    compared: bool = False


@dataclass(frozen=True)
class Workload:
    key: str
    title: str
    metrics: tuple[Metric, ...]
    takes: Callable[[Side], bool]
    run: Callable[[Side, Scale], dict[str, float]]
    #: On an instance that has done nothing yet, so that memory is its own.
    fresh: bool = False


def check(side: Side) -> None:
    """One request whose every byte is compared, and one that must be refused."""
    if not side.requests:
        return
    status, body = get(side, side.header())
    if status != 200 or body != pattern()[:SMALL]:
        raise Broken(f"{side.name} answers wrongly: status {status}, {len(body)} bytes: {body[:100]!r}")
    if side.header() is not None:
        status, _ = get(side, None)
        if status != 407:
            raise Broken(f"{side.name} answers {status} without a credential, not 407: "
                         "what is measured would not be its work")


def get(side: Side, header: tuple[str, str] | None) -> tuple[int, bytes]:
    host = f"127.0.0.1:{side.world.origin_port}"
    target = f"http://{host}/small" if side.absolute_form else "/small"
    connection = http.client.HTTPConnection("127.0.0.1", side.request_port(), timeout=20)
    try:
        connection.request("GET", target, headers={"Host": host, **dict([header] if header else [])})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise Broken(f"{side.name} does not answer: {error!r}") from error
    finally:
        connection.close()


def saturate(side: Side, scale: Scale) -> dict[str, float]:
    """As many requests as go through 64 kept-alive connections."""
    host = f"127.0.0.1:{side.world.origin_port}"
    target = f"http://{host}/small" if side.absolute_form else "/small"
    before = side.cpu_seconds()
    line = output([
        find("wrk"), "-t1", "-c64", f"-d{scale.seconds}s", "-s", str(HERE / "request.lua"),
        f"http://127.0.0.1:{side.request_port()}/", "--", target, host, *(side.header() or ()),
    ], scale.seconds + 60).splitlines()[-1]
    cpu = side.cpu_seconds() - before
    result = json.loads(line)
    # wrk counts the end of a connection that is not kept as a read error, after
    # it has counted the whole answer.
    errors = result["errors"] + (result["read_errors"] if side.keeps_alive else 0)
    if errors or result["requests"] == 0:
        raise Broken(f"{side.name}: wrk counted {errors} errors in {result['requests']} requests")
    if result["bytes"] < result["requests"] * SMALL:
        raise Broken(f"{side.name}: {result['bytes']} bytes are too few "
                     f"for {result['requests']} requests")
    return {
        "per_second": result["requests"] / result["seconds"],
        "cpu_us": 1e6 * cpu / result["requests"],
        "p50_us": result["p50_us"],
        "p99_us": result["p99_us"],
    }


def pace(side: Side, scale: Scale) -> dict[str, float]:
    """The same request at a fixed rate, far from saturation."""
    before = side.cpu_seconds()
    result = load(side, "latency", [
        "--connections", "16", "--rate", str(scale.latency_rate), "--seconds", str(scale.seconds),
        "--path", "/small", "--bytes", str(SMALL),
    ], request=True)
    cpu = side.cpu_seconds() - before
    if side.keeps_alive and result["sent_again"]:
        raise Broken(f"{side.name} closed {result['sent_again']} kept-alive connections under a request")
    return {
        "p50_us": result["p50_us"],
        "p99_us": result["p99_us"],
        "cpu_us": 1e6 * cpu / result["completed"],
    }


def fetch(side: Side, scale: Scale) -> dict[str, float]:
    """A large response, four at a time."""
    total, seconds, before = 0, 0.0, side.cpu_seconds()
    for _ in range(scale.large_repeats):
        result = load(side, "bulk", [
            "--connections", "4", "--path", "/large", "--bytes", str(LARGE),
        ], request=True)
        total += result["bytes"]
        seconds += result["seconds"]
    cpu = side.cpu_seconds() - before
    return {"mib_s": total / MIB / seconds, "cpu_s_gib": cpu / (total / GIB)}


def set_up(side: Side, scale: Scale) -> dict[str, float]:
    """Tunnels opened, one byte each way, and closed, 16 at a time."""
    before = side.cpu_seconds()
    result = load(side, "setup", ["--connections", "16", "--seconds", str(scale.seconds)])
    # What a proxy still does for tunnels that are closed belongs to them.
    time.sleep(0.2)
    cpu = side.cpu_seconds() - before
    return {
        "per_second": result["completed"] / result["seconds"],
        "cpu_us": 1e6 * cpu / result["completed"],
        "p50_us": result["p50_us"],
        "p99_us": result["p99_us"],
    }


def bulk(tunnels: int) -> Callable[[Side, Scale], dict[str, float]]:
    """Bytes through this many tunnels, the same number in all."""
    def run(side: Side, scale: Scale) -> dict[str, float]:
        before = side.cpu_seconds()
        result = load(side, "bulk", [
            "--connections", str(tunnels), "--bytes", str(scale.single_bytes // tunnels),
        ])
        cpu = side.cpu_seconds() - before
        return {
            "mib_s": result["bytes"] / MIB / result["seconds"],
            "cpu_s_gib": cpu / (result["bytes"] / GIB),
        }
    return run


def hold(side: Side, scale: Scale) -> dict[str, float]:
    """The memory of tunnels in which nothing moves, over a process at rest."""
    # What the first tunnels make once and for all is not theirs.
    load(side, "setup", ["--connections", "16", "--seconds", "0.2"])
    time.sleep(0.2)
    before = side.process.resident_bytes()
    command = load_command(side, "idle", ["--connections", str(scale.idle_tunnels)])
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True)
    try:
        if child.stdout.readline().strip() != f'{{"open": {scale.idle_tunnels}}}':
            child.kill()
            raise Broken(f"{side.name}, idle tunnels: {child.stderr.read().strip()}")
        after = side.process.resident_bytes()
        rest, complaint = child.communicate(timeout=60)
        if child.returncode != 0 or f'"alive": {scale.idle_tunnels}' not in rest:
            raise Broken(f"{side.name}, idle tunnels: {complaint.strip()}")
    finally:
        child.kill()
        child.wait()
    return {
        "kib_tunnel": max(0, after - before) / 1024 / scale.idle_tunnels,
        "rest_mib": before / MIB,
    }


def load_command(side: Side, mode: str, options: list[str], request: bool = False) -> list[str]:
    world = side.world
    command = [str(world.load), mode, *options]
    command += ["--proxy", str(side.request_port() if request else side.tunnel_port())]
    command += ["--target", str(world.origin_port if request else world.sink_port)]
    if not (side.absolute_form if request else side.connect):
        command.append("--direct")
    if header := side.header():
        command += ["--header", f"{header[0]}: {header[1]}"]
    return command


def load(side: Side, mode: str, options: list[str], request: bool = False) -> dict[str, float]:
    try:
        return json.loads(output(load_command(side, mode, options, request), 180))
    except Broken as error:
        raise Broken(f"{side.name}, {mode}: {error}") from error


def output(command: list[str], patience: float) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=patience)
    except subprocess.TimeoutExpired as error:
        raise Broken(f"{command[0]} took more than {patience:.0f} s") from error
    if done.returncode != 0:
        raise Broken((done.stderr or done.stdout).strip() or f"{command[0]} exited {done.returncode}")
    return done.stdout


CPU_EACH = Metric("cpu_us", "CPU us each", 1, compared=True)
P50, P99 = Metric("p50_us", "p50 us", 0), Metric("p99_us", "p99 us", 0)
BYTES = (Metric("mib_s", "MiB/s", 0, compared=True), Metric("cpu_s_gib", "CPU s/GiB", 2, compared=True))

WORKLOADS: tuple[Workload, ...] = (
    Workload("get", "GET 1 KiB, kept alive, 64 connections, as fast as it goes",
             (Metric("per_second", "requests/s", 0, compared=True), CPU_EACH, P50, P99),
             lambda side: side.requests, saturate),
    Workload("latency", "GET 1 KiB at a fixed rate (1,000/s; smoke: 200/s), timed from when it was due",
             (Metric("p50_us", "p50 us", 0, compared=True), Metric("p99_us", "p99 us", 0), CPU_EACH),
             lambda side: side.requests, pace),
    Workload("large", "GET 64 MiB, 4 at a time", BYTES, lambda side: side.requests, fetch),
    Workload("setup", "Tunnel opened, one byte each way, closed; 16 at a time",
             (Metric("per_second", "tunnels/s", 0, compared=True), CPU_EACH, P50, P99),
             lambda side: side.tunnels, set_up),
    Workload("bulk1", "Bytes down one tunnel", BYTES, lambda side: side.tunnels, bulk(1)),
    Workload("bulk4", "Bytes down four tunnels", BYTES, lambda side: side.tunnels, bulk(4)),
    Workload("idle", "Idle tunnels (2,000; smoke: 50): resident memory",
             (Metric("kib_tunnel", "KiB each", 1, compared=True), Metric("rest_mib", "MiB at rest", 1)),
             lambda side: side.tunnels and side.name != "direct", hold, fresh=True),
)
