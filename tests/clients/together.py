"""`agentport up`: the first command of the README, and the lines it prints, run
as a user would."""

import os
import re
import signal
import stat
import subprocess
import time
from pathlib import Path

from world import NODE, PATIENCE, PYTHON, Broken, World, stop

GREETING = "hello from the loopback origin"
# Where the refused call goes.
REFUSED = "collector.example"


def needs_agent(world: World) -> None:
    """Fails where the program was built without what `up` starts."""
    done = world.run([world.agentport, "openclaw", "--help"], world.bare)
    if done.code != 0 or "run" not in done.out:
        raise Broken("this agentport has no agent in it: build it with the default features (cargo build)")


def up(world: World, state: Path, *more: str) -> list[str]:
    return [world.agentport, "up", "--state", str(state), "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", *more]


def up_once(world: World) -> str | None:
    """Twice in one folder: it makes its keys and policy once, and shows an
    allowed and a refused call each time."""
    needs_agent(world)
    state = world.folder / "state"
    kept: dict[str, bytes] = {}
    for turn in ("first", "second"):
        done = world.run(up(world, state, "--once"), world.bare)
        if done.code != 0:
            return f"{turn} start: exit code {done.code}\n{done.text}"
        for text in ("AgentPort is up.", "An allowed call", "  200 ", GREETING, "A refused call", REFUSED):
            if text not in done.out:
                return f"{turn} start does not show {text!r}\n{done.out}"
        files = {name: (state / name).read_bytes() for name in ("signing-key.pem", "policies/policy.yaml")}
        if kept and kept != files:
            return "the second start has changed the keys or the policy"
        kept = files
    for path in (state, *state.rglob("*")):
        mode = stat.S_IMODE(path.lstat().st_mode)
        if (path.is_file() and mode & 0o077) or (path == state and mode != 0o700):
            return f"{path.relative_to(world.folder)} has mode {mode:o}: others may read it"
    records = (state / "audit.jsonl").read_text()
    if f'"{REFUSED}"' not in records or GREETING in records:
        return f"the records do not tell of the calls:\n{records}"
    return None


def up_stays(world: World) -> str | None:
    """It stays up, its printed lines work as they stand, and SIGTERM ends it
    and its agent."""
    needs_agent(world)
    state, log = world.folder / "staying", world.folder / "up.out"
    with log.open("wb") as out:
        process = subprocess.Popen(up(world, state), env=world.bare, stdin=subprocess.DEVNULL, stdout=out,
                                   stderr=subprocess.STDOUT, start_new_session=True)
    try:
        said = wait_for(process, log)
        wrong = run_printed_lines(world, said)
        if wrong:
            return wrong
        children = children_of(process.pid)
        if not children:
            return "it has started no agent"
        process.send_signal(signal.SIGTERM)
        code = process.wait(PATIENCE)
        if code != 0:
            return f"ends with {code} after SIGTERM\n{log.read_text()}"
        left = [pid for pid in children if Path(f"/proc/{pid}").exists()]
        return f"its agent is still there: {left}" if left else None
    finally:
        stop(process)


def wait_for(process: subprocess.Popen, log: Path) -> str:
    deadline = time.monotonic() + PATIENCE
    while "agentport run --" not in (said := log.read_text()):
        if process.poll() is not None or time.monotonic() > deadline:
            raise Broken(f"agentport up does not come up:\n{said}")
        time.sleep(0.05)
    return said


def run_printed_lines(world: World, said: str) -> str | None:
    """Each line that it says will work, as it says it."""
    lines = [line.strip() for line in said.splitlines()]
    tools = {"curl": "curl ", "Python": "python3 -c", "Node": "node -e", "run": "agentport run --"}
    token = next(line for line in lines if line.startswith("export TOKEN="))
    # The programs that tests/setup has installed come first.
    path = f"{Path(world.agentport).parent}:{NODE.parent}:{PYTHON.parent}:{os.environ['PATH']}"
    origin = re.search(r"http://[0-9.:]+/hello", said)
    for name, word in tools.items():
        line = next((line for line in lines if word in line and line != token), None)
        if line is None or origin is None:
            return f"prints no line for {name}\n{said}"
        # The last one is for a program of one's own.
        line = line.replace("YOUR-AGENT", f"env no_proxy= NO_PROXY= curl -q -sS {origin[0]}")
        done = world.run(["bash", "-c", f"{token}\n{line}"], {**world.bare, "PATH": path})
        if done.code != 0 or GREETING not in done.out:
            return f"the printed line for {name} does not work: {line}\n{done.text}"
    return None


def children_of(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


CHECKS = (("agentport up --once, twice", up_once), ("agentport up, the lines it prints, and its end", up_stays))
