"""Refusals that are told inside the tunnel, to clients that trust their CA and to
others."""

import json
from collections.abc import Callable

from case import Case, Wrong, refused
from tables import check_node, java_classes
from world import AGENT, NODE, PROGRAMS, PYTHON, ROOT, Outcome, World, find

# The answer inside is the answer to the request, with its body.
TOLD = ("403", '"error":"rule"')


def inside_cases(world: World) -> list[Case]:
    """Each client twice: it reads the refusal where it trusts the CA of
    refusals, and where it does not it fails at the certificate."""
    check_node(world)
    curl, git = find("curl", "curl"), find("git", "git")
    python = [str(PYTHON), str(PROGRAMS / "python_client.py")]
    node = [str(NODE), str(PROGRAMS / "node_client.mjs")]
    classes = java_classes(world)
    packages = {"NODE_PACKAGES": str(ROOT / "target/node")}
    quiet = {"GIT_TERMINAL_PROMPT": "0", "GIT_CONFIG_NOSYSTEM": "1", "GIT_ASKPASS": "true"}
    verify = "CERTIFICATE_VERIFY_FAILED"
    clients: list[tuple[str, Callable[[str, str], list[str]], dict[str, str], tuple[str, ...], str]] = [
        ("curl", lambda url, ca: [curl, "-q", "-sS", "--max-time", "40", "-w", "%{http_code}", url], {}, TOLD,
         "SSL certificate problem"),
        *((f"Python {library}", lambda url, ca, library=library: [*python, library, url], {}, TOLD, verify)
          for library in ("urllib", "requests", "urllib3", "httpx", "httpx-h2", "aiohttp")),
        ("Python requests, POST of 1 MB", lambda url, ca: [*python, "requests", url, "post"], {}, TOLD, verify),
        ("Python httpx, POST of 1 MB", lambda url, ca: [*python, "httpx", url, "post"], {}, TOLD, verify),
        *((f"Node {client}", lambda url, ca, client=client: [*node, client, url], packages, TOLD,
           "self-signed certificate in certificate chain") for client in ("fetch", "undici", "axios", "module")),
        ("Node fetch, POST of 1 MB", lambda url, ca: [*node, "fetch", url, "post"], packages, TOLD,
         "self-signed certificate in certificate chain"),
        *((f"Java {client}", lambda url, ca, client=client: [
            *classes, client, url, ca, AGENT, world.token], {}, TOLD, "PKIX path building failed")
          for client in ("httpclient", "urlconnection")),
        # It shows the status alone.
        ("git", lambda url, ca: [git, "ls-remote", url], quiet, ("error: 403",), "certificate"),
    ]
    cases = []
    for name, command, more, told, doubts in clients:
        slug = name.lower().replace(", ", "-").replace(" ", "-")
        for what, ca, shows in (("trusts", world.refusal_ca, told), ("doubts", world.ca, (doubts,))):
            host = f"{slug}.{what}.told.test"
            url = world.url("https", "/hello/inside", host, "closed")
            token = not name.startswith("Java")
            cases.append(Case(
                f"refusal inside, {name} that {what} the CA", command(url, str(ca)),
                {**world.environment(token, ca), **more}, told_so(host, what, *shows)))
    return cases


def told_so(host: str, what: str, *shows: str) -> Callable[[World, Outcome], None]:
    """As every refusal, and the record says what became of it. Who doubts the CA
    has not read a word of it."""
    is_refused = refused(host, *shows)
    detail = {"trusts": "told inside the tunnel", "doubts": "may not trust refusals.certificate"}[what]

    def check(world: World, outcome: Outcome) -> None:
        is_refused(world, outcome)
        if what == "doubts" and (outcome.code == 0 or TOLD[1] in outcome.text):
            raise Wrong("the client was told by one whom it does not trust")
        details = world.until(lambda: [record["detail"] for record in records(world) if record[
            "destination_host"] == host and record["reason"] == "rule"])
        if not any(said.endswith(detail) for said in details):
            raise Wrong(f"the record says {details}")

    return check


def records(world: World) -> list[dict]:
    """Those that are written; the last line may be on its way."""
    lines = (world.folder / "audit.jsonl").read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


TABLES = (inside_cases,)
