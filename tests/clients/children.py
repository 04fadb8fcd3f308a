"""`agentport run -- COMMAND` and `agentport env`: programs that know nothing of
the gateway."""

from case import HELLO, Case, Wrong, allowed, refused
from tables import check_node
from world import NODE, PYTHON, Outcome, World, find


def run_cases(world: World) -> list[Case]:
    """Commands that are started by the gateway's own program."""
    check_node(world)
    curl, git = find("curl", "curl"), find("git", "git")
    requests = "import requests, sys; r = requests.get(sys.argv[1]); print(r.status_code, r.reason, r.text)"
    fetch = "fetch(process.argv[1]).then(r => r.text()).then(console.log, e => { console.log(e.cause); process.exit(1) })"
    programs = (
        ("curl", [curl, "-q", "-sS", "--max-time", "40", "-w", "%{http_code} %{http_connect}"]),
        ("Python requests", [str(PYTHON), "-c", requests]),
        ("node", [str(NODE), "-e", fetch]),
        ("git", [git, "ls-remote"]),
    )
    env = {**world.bare, "AGENTPORT_URL": f"http://{world.gateway}", "AGENTPORT_CA_FILE": str(world.ca),
           "GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0"}
    proven = {**env, "AGENTPORT_TOKEN_FILE": str(world.token_file)}
    run = [world.agentport, "run", "--"]
    cases = []
    for name, command in programs:
        for scheme, tls in (("http", False), ("https", True)):
            slug = f"run-{name}-{scheme}".replace(" ", "-").lower()
            path, shows = f"/hello/{slug}", HELLO
            if name == "git":
                (world.folder / "files" / slug).symlink_to(world.folder / "files/repository.git")
                path, shows = f"/files/{slug}", "refs/heads/main"
            cases.append(Case(f"agentport run -- {name}, {scheme}, allowed",
                              [*run, *command, world.url(scheme, path)], proven, allowed(slug, tls, shows)))
            for what, domain, given, status in (("refused", "refused", proven, "403"),
                                                ("without a credential", "unproven", env, "407")):
                host = f"{slug}.{domain}.test"
                cases.append(Case(f"agentport run -- {name}, {scheme}, {what}",
                                  [*run, *command, world.url(scheme, path, host, "closed")], given,
                                  refused(host, status)))
    # The exit code and the streams are the child's own.
    shell = find("sh", "dash")
    cases.append(Case("agentport run, the child's exit code and streams",
                      [*run, shell, "-c", "cat; echo to stderr >&2; exit 7"], proven, is_itself, b"from stdin"))
    cases.append(Case("agentport run, a command that is not there", [*run, "/no/such/command"], proven,
                      says_what_is_missing))
    cases.append(Case("agentport run, the child inherits no secret", [*run, "env"],
                      {**env, "AGENTPORT_TOKEN": world.token, "AGENTPORT_JWKS_SECRET": world.secret}, has_no_secret))
    return cases


def env_cases(world: World) -> list[Case]:
    """What `agentport env` prints, as a shell reads it."""
    curl = find("curl", "curl")
    call = f"{curl} -q -sS --max-time 40"
    cases = []
    for form, script in (
        ("shell", 'eval "$("$0" env)" && '),
        ("dotenv", '"$0" env --format dotenv >env.$$ && set -a && . ./env.$$ && '),
    ):
        for scheme, tls in (("http", False), ("https", True)):
            slug = f"env-{form}-{scheme}"
            cases.append(Case(
                f"agentport env --format {form}, curl, {scheme}",
                ["sh", "-c", f"{script}{call} {world.url(scheme, f'/hello/{slug}')}", world.agentport],
                {**world.bare, "AGENTPORT_URL": f"http://{world.gateway}", "AGENTPORT_CA_FILE": str(world.ca),
                 "AGENTPORT_TOKEN_FILE": str(world.token_file)},
                allowed(slug, tls)))
    return cases


def is_itself(_world: World, outcome: Outcome) -> None:
    if (outcome.code, outcome.out, outcome.err) != (7, "from stdin", "to stderr\n"):
        raise Wrong("the child's own ending is not what is seen")


def says_what_is_missing(_world: World, outcome: Outcome) -> None:
    if outcome.code != 1 or "agentport: cannot run /no/such/command: No such file" not in outcome.err:
        raise Wrong("does not say what is missing")


def has_no_secret(world: World, outcome: Outcome) -> None:
    variables = dict(line.split("=", 1) for line in outcome.out.splitlines())
    if outcome.code != 0 or variables.get("http_proxy") != world.proxy:
        raise Wrong("the child is not told of the gateway")
    if ours := [name for name in variables if name in ("AGENTPORT_TOKEN", "AGENTPORT_JWKS_SECRET")]:
        raise Wrong(f"the child inherits {ours}")
    if world.secret in outcome.text:
        raise Wrong("the child inherits the secret")


TABLES = (run_cases, env_cases)
