"""A case: a client's command, and what must come of it."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field

from world import Outcome, World

HELLO = "hello from the origin"
# What a refusal by policy and one for want of a credential are known by.
REFUSED = "no_rule"
UNPROVEN = "no_credential"
# RFC 9110, 7.6.1 and 11.7: what belongs to the hop before the gateway.
HOP = ("proxy-authorization", "proxy-connection", "proxy-authenticate", "keep-alive", "http2-settings")


class Wrong(Exception):
    """A client got, showed or did another thing than it must."""


@dataclass
class Case:
    """One line of the result."""

    name: str
    command: list[str]
    env: dict[str, str]
    check: Callable[[World, Outcome], None]
    stdin: bytes = field(default=b"", repr=False)


def run_case(world: World, case: Case) -> str | None:
    """What is wrong, or nothing."""
    outcome = world.run(case.command, case.env, case.stdin)
    try:
        case.check(world, outcome)
    except Wrong as wrong:
        said = f"exit code {outcome.code}\n{outcome.out[-1500:]}\n{outcome.err[-1500:]}"
        # The token is good for minutes only, and still is nobody's to read.
        return f"{wrong}\n{said}".replace(world.token, "TOKEN")
    return None


def allowed(marker: str, encrypted: bool, *shows: str, method: str | None = None,
            version: str | None = None) -> Callable[[World, Outcome], None]:
    """The client is content, shows this, and the origin had a request with the
    marker in its path, clean of what was for the gateway."""

    def check(world: World, outcome: Outcome) -> None:
        if outcome.code != 0:
            raise Wrong("the client failed")
        for text in shows or (HELLO,):
            if text not in outcome.out:
                raise Wrong(f"does not show {text!r}")
        found = [entry for entry in world.seen() if entry["what"] == "request" and marker in entry["url"]]
        if not found:
            raise Wrong(f"the origin has not seen {marker}")
        for request in found:
            look_at(request, world, encrypted)
        if method and method not in {request["method"] for request in found}:
            raise Wrong(f"the origin has seen no {method}: {found}")
        if version and version not in {request["version"] for request in found}:
            raise Wrong(f"the origin has seen no HTTP/{version}: {found}")

    return check


def look_at(request: dict, world: World, encrypted: bool) -> None:
    """What any request that reaches an origin must be."""
    headers = request["headers"]
    if request["encrypted"] != encrypted:
        raise Wrong(f"encrypted at the origin: {request['encrypted']}")
    if world.token in json.dumps(headers):
        raise Wrong("the origin was sent the token")
    # Inside TLS a client may send what it likes.
    if leaked := [name for name in HOP if name in headers and not encrypted]:
        raise Wrong(f"the origin was sent {leaked}")
    # A request without it has walked around the gateway.
    if not encrypted and "agentport" not in headers.get("via", ""):
        raise Wrong(f"no Via of the gateway at the origin: {headers}")


def refused(host: str, *shows: str, code: int | None = None, by_name: bool = True) -> Callable[[World, Outcome], None]:
    """The client shows this, no origin was contacted, and nobody was asked for
    the address of a host that is refused by its name."""

    def check(world: World, outcome: Outcome) -> None:
        world.refused_hosts.add(host)
        untouched(world)
        if by_name and host in world.names.asked:
            raise Wrong(f"the resolver was asked for {host}")
        if HELLO in outcome.text:
            raise Wrong("the client has an answer of the origin")
        for text in shows:
            if text not in outcome.text:
                raise Wrong(f"does not show {text!r}")
        if code is not None and outcome.code != code:
            raise Wrong(f"ends with {outcome.code} and not with {code}")

    return check


def untouched(world: World) -> None:
    """Nothing has reached the closed origins."""
    if contacts := [entry for entry in world.seen() if entry["pair"] == "closed"]:
        raise Wrong(f"an origin was reached that nobody may reach: {contacts}")


def matrix(world: World, client: str, command: Callable[[str, bool], list[str]],
           refusal: dict[str, tuple[str, ...]], challenge: dict[str, tuple[str, ...]],
           env: Callable[[bool], dict[str, str]], shows: tuple[str, ...] = (),
           path: str = "/hello", schemes: tuple[str, ...] = ("http", "https"), **more) -> list[Case]:
    """Six cases of one client: plain and TLS; allowed, refused, and without a
    credential. `command` and `env` are asked with whether there is one."""
    cases = []
    for scheme in schemes:
        encrypted = scheme in ("https", "wss")
        slug = f"{client}-{scheme}".replace(" ", "-").replace(".", "").replace("/", "").lower()
        cases.append(Case(
            f"{client}, {scheme}, allowed", command(world.url(scheme, f"{path}/{slug}"), True), env(True),
            allowed(slug, encrypted, *shows, **more)))
        host = f"{slug}.refused.test"
        cases.append(Case(
            f"{client}, {scheme}, refused", command(world.url(scheme, f"{path}/{slug}", host, "closed"), True),
            env(True), refused(host, *(text.format(host=host) for text in refusal[scheme]))))
        host = f"{slug}.unproven.test"
        cases.append(Case(
            f"{client}, {scheme}, without a credential",
            command(world.url(scheme, f"{path}/{slug}", host, "closed"), False), env(False),
            refused(host, *(text.format(host=host) for text in challenge[scheme]))))
    return cases
