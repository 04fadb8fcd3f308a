"""What must hold when all clients have been: the records, and the secrets."""

import json
import signal

from case import Wrong, untouched
from world import PATIENCE, World

# What every record has.
FIELDS = ("ts", "event", "request_id", "action_allowed", "reason", "policy_version", "mode")


def drained(world: World) -> str | None:
    """SIGTERM ends the gateway by itself, with nothing wrong."""
    gateway = world.processes[-1]
    gateway.send_signal(signal.SIGTERM)
    code = gateway.wait(PATIENCE)
    return None if code == 0 else f"it ends with {code}\n{(world.folder / 'gateway.log').read_text()[-2000:]}"


def recorded(world: World) -> str | None:
    """Each refused call of each client is there by its destination."""
    lines = (world.folder / "audit.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    if not records:
        return "there are no records"
    for record in records:
        if missing := [name for name in FIELDS if name not in record]:
            return f"a record lacks {missing}: {record}"
        host = record.get("destination_host") or ""
        if record["action_allowed"] and (host.endswith(".refused.test") or host.endswith(".unproven.test")):
            return f"a record says that a refused request was allowed: {record}"
    refused = {record.get("destination_host") for record in records if not record["action_allowed"]}
    missing = world.refused_hosts - refused
    return f"no record of the refusal of {sorted(missing)}" if missing else None


def secret(world: World) -> str | None:
    """Neither records nor logs have a token or the secret."""
    for path in (world.folder / "audit.jsonl", world.folder / "gateway.log"):
        text = path.read_text()
        for what, value in (("the token", world.token), ("its signature", world.token.split(".")[-1]),
                            ("the secret", world.secret)):
            if value in text:
                return f"{path.name} holds {what}"
    return None


def unreached(world: World) -> str | None:
    """No refused request has come to an origin, and of refused names none was
    asked for."""
    try:
        untouched(world)
    except Wrong as wrong:
        return str(wrong)
    if world.contacts:
        return f"{world.contacts} connections and requests came to origins that nobody may reach"
    asked = [name for name in world.names.asked if "refused" in name or "unproven" in name]
    return f"the resolver was asked for {asked}" if asked else None


CHECKS = (
    ("no refused request reached an origin or a resolver", unreached),
    ("the gateway drains on SIGTERM", drained),
    ("every refusal is recorded", recorded),
    ("no record and no log holds a secret", secret),
)
