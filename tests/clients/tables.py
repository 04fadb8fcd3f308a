"""The clients, each in a table: how it is called, and what it shows."""

import hashlib
import io
import json
import subprocess
import tarfile
import zipfile
from pathlib import Path

from case import HELLO, REFUSED, UNPROVEN, Case, Wrong, allowed, matrix, refused
from world import AGENT, GO, NODE, PROGRAMS, PYTHON, ROOT, Broken, Outcome, World, find

# Where a refusal is seen: in the reason phrase of an answer to
# CONNECT, and in the body of any other.
PHRASE = "AgentPort: " + REFUSED + " {host} rid="
BODY = '"error":"' + REFUSED + '"'
NO_PHRASE = "AgentPort: " + UNPROVEN + " {host} rid="
NO_BODY = '"error":"' + UNPROVEN + '"'

BIG = 10_000_000


def curl_cases(world: World) -> list[Case]:
    """curl, with all the ways in which it is told of a proxy."""
    curl = find("curl", "curl")
    # http_connect is the status of the answer to CONNECT.
    show = ["-w", "\n%{http_code} %{http_connect} HTTP/%{http_version}\n"]
    base = [curl, "-q", "-sS", "--max-time", "40", "--cacert", str(world.ca), *show]
    gateway = f"http://{world.gateway}"
    plain = {"http": ("403 000", BODY), "https": ("000 403",)}
    without = {"http": ("407 000", NO_BODY), "https": ("000 407",)}

    def bare(_proven: bool) -> dict[str, str]:
        return world.bare

    def proxied(name, with_token, more=(), **expect):
        return matrix(world, name, lambda url, proven: [
            *base, *more, *(with_token if proven else ["-x", gateway]), url], plain, without, bare, **expect)

    user = ["-x", gateway, "--proxy-user", f"{AGENT}:{world.token}"]
    cases = [
        *proxied("curl -x", ["-x", world.proxy]),
        *proxied("curl --proxy-user", user),
        *proxied("curl token as user", ["-x", gateway, "--proxy-user", f"{world.token}:"]),
        # It is for CONNECT alone: that of an absolute-form request is next.
        *proxied("curl --proxy-header", ["-x", gateway, "--proxy-header",
                                         f"Proxy-Authorization: Bearer {world.token}"], schemes=("https",)),
        *proxied("curl --proxy1.0", ["--proxy1.0", world.gateway, *user[2:]]),
    ]
    bearer = [*base, "-x", gateway, "-H", f"Proxy-Authorization: Bearer {world.token}"]
    cases.append(Case("curl bearer, http, allowed", [*bearer, world.url("http", "/hello/curl-bearer")],
                      world.bare, allowed("curl-bearer", False)))

    # CONNECT with clear text in it: the tunnel is granted or not by the same
    # policy, and each request in it is judged.
    cases += matrix(world, "curl --proxytunnel", lambda url, proven: [
        *base, "--proxytunnel", *(user if proven else ["-x", gateway]), url],
        {"http": ("000 403",)}, {"http": ("000 407",)}, bare, schemes=("http",))
    host = "another.refused.test"
    cases.append(Case(
        "curl --proxytunnel, http, another Host inside",
        [*base, "--proxytunnel", *user, "-H", f"Host: {host}", world.url("http", "/hello/curl-other-host")],
        world.bare, nothing_arrived("curl-other-host", "400 200", '"error":"host_mismatch"')))

    def one(name, check, *arguments, stdin=b""):
        cases.append(Case(f"curl, {name}", [*base, *user, *arguments], world.bare, check, stdin))

    one("http/2 inside the tunnel", allowed("curl-h2", True, HELLO, "HTTP/2", version="2.0"),
        "--http2", world.url("https", "/hello/curl-h2"))
    upload = world.folder / "upload"
    upload.write_bytes(bytes(range(256)) * (BIG // 256))
    digest = f"{upload.stat().st_size} {hashlib.sha256(upload.read_bytes()).hexdigest()}"
    for scheme, tls in (("http", False), ("https", True)):
        slug = f"curl-upload-{scheme}"
        one(f"{scheme}, upload of 10 MB after Expect", allowed(slug, tls, digest, method="PUT"),
            "-H", "Expect: 100-continue", "-T", str(upload), world.url(scheme, f"/upload/{slug}"))
        slug = f"curl-chunked-{scheme}"
        one(f"{scheme}, chunked upload", allowed(slug, tls, digest, method="POST"),
            "-H", "Transfer-Encoding: chunked", "-X", "POST", "-T", "-", world.url(scheme, f"/upload/{slug}"),
            stdin=upload.read_bytes())
        slug = f"curl-download-{scheme}"
        one(f"{scheme}, download of 10 MB", allowed(slug, tls, f"{BIG} bytes"),
            "-o", "/dev/null", "-w", "%{size_download} bytes", world.url(scheme, f"/download/{BIG}/{slug}"))
        slug = f"curl-head-{scheme}"
        one(f"{scheme}, HEAD", allowed(slug, tls, "200", method="HEAD"),
            "--head", world.url(scheme, f"/hello/{slug}"))
        slug = f"curl-again-{scheme}"
        url = world.url(scheme, f"/hello/{slug}")
        # num_connects counts new connections: the second request needs none.
        one(f"{scheme}, two requests on one connection", allowed(slug, tls, "connects: 1", "connects: 0"),
            "-w", "connects: %{num_connects}\n", url, url)
        slug = f"curl-options-{scheme}"
        one(f"{scheme}, query and POST form", allowed(f"{slug}?a=b%20c&d", tls, "7 ", method="POST"),
            "-d", "k=value", world.url(scheme, f"/upload/{slug}?a=b%20c&d"))
    slug = "curl-10"
    one("http, HTTP/1.0 request", allowed(slug, False), "--http1.0", world.url("http", f"/hello/{slug}"))

    # Refusals that are neither the policy's names nor a missing credential.
    expired = world.token[:-4] + ("AAAA" if world.token[-4:] != "AAAA" else "BBBB")
    for scheme, shows in (("http", ("403 000", '"error":"bad_signature"')), ("https", ("000 403",))):
        host = f"forged-{scheme}.unproven.test"
        cases.append(Case(
            f"curl, {scheme}, forged token is 403 and not 407",
            [*base, "-x", gateway, "--proxy-user", f"{AGENT}:{expired}", world.url(scheme, "/", host, "closed")],
            world.bare, refused(host, *shows)))
        cases.append(Case(
            f"curl, {scheme}, a name that resolves to loopback",
            [*base, *user, world.url(scheme, "/", "loopback.test", "closed")],
            world.bare, refused("loopback.test", shows[0], *(["address_loopback"] if scheme == "http" else []),
                                by_name=False)))
        port = world.ports["closed_tls" if scheme == "https" else "closed_plain"]
        for spelling in ("127.0.0.1", "[::1]", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]"):
            # curl makes plain addresses of the odd ones before it asks.
            host = {"2130706433": "127.0.0.1", "0x7f.1": "127.0.0.1"}.get(spelling, spelling)
            cases.append(Case(
                f"curl, {scheme}, loopback as {spelling}",
                [*base, *user, "--noproxy", "", f"{scheme}://{spelling}:{port}/"],
                world.bare, refused(host, shows[0])))
    return cases


def nothing_arrived(marker: str, *shows: str):
    """No request with the marker is at any origin."""
    def check(world: World, outcome: Outcome) -> None:
        if [entry for entry in world.seen() if marker in entry.get("url", "")]:
            raise Wrong("the origin was reached")
        for text in shows:
            if text not in outcome.text:
                raise Wrong(f"does not show {text!r}")
    return check


def wget_cases(world: World) -> list[Case]:
    wget = find("wget", "wget")
    return matrix(
        world, "wget",
        lambda url, _proven: [wget, "--no-config", "--no-hsts", "-nv", "-S", "-O", "-", "-t", "1", "-T", "30",
                              f"--ca-certificate={world.ca}", url],
        {"http": ("403 " + PHRASE,), "https": (PHRASE,)},
        {"http": ("407 " + NO_PHRASE,), "https": (NO_PHRASE,)},
        world.environment)


def python_cases(world: World) -> list[Case]:
    """Python's libraries, by the environment that `agentport env` prints."""
    program = [str(PYTHON), str(PROGRAMS / "python_client.py")]
    digest = world.run([*program, "", "", "digest"], world.environment()).out.strip()
    cases = []
    for library in ("urllib", "requests", "urllib3", "httpx", "httpx-h2", "aiohttp"):
        version = {"version": "1.1"} if library != "httpx-h2" else {}
        cases += matrix(
            world, f"Python {library}", lambda url, _proven, library=library: [*program, library, url],
            # Where there is an answer they show all of it; a CONNECT that
            # failed is an exception that has the reason phrase.
            {"http": ("403 " + PHRASE, BODY), "https": (PHRASE, "403")},
            {"http": ("407 " + NO_PHRASE, NO_BODY), "https": (NO_PHRASE, "407")},
            world.environment, ("200 OK", HELLO), **version)
        for scheme, tls in (("http", False), ("https", True)):
            slug = f"{library}-post-{scheme}"
            cases.append(Case(
                f"Python {library}, {scheme}, POST of 1 MB",
                [*program, library, world.url(scheme, f"/upload/{slug}"), "post"],
                world.environment(), allowed(slug, tls, digest, method="POST")))
            if library in ("requests", "httpx", "httpx-h2", "aiohttp"):
                slug = f"{library}-events-{scheme}"
                cases.append(Case(
                    f"Python {library}, {scheme}, server-sent events one by one",
                    [*program, library, world.url(scheme, f"/events/{slug}"), "events"],
                    world.environment(), allowed(slug, tls, "data: first", "data: second")))
    slug = "httpx-is-h2"
    cases.append(Case("Python httpx-h2, https, speaks HTTP/2",
                      [*program, "httpx-h2", world.url("https", f"/hello/{slug}")], world.environment(),
                      allowed(slug, True, "HTTP/2", version="2.0")))
    for library in ("websockets", "websockets-sync"):
        cases += matrix(
            world, f"Python {library}", lambda url, _proven, library=library: [*program, library, url],
            {"ws": ("403",), "wss": ("403",)}, {"ws": ("407",), "wss": ("407",)},
            world.environment, ("echo me",), schemes=("ws", "wss"), version="websocket")
    cases += matrix(
        world, "Python aiohttp WebSocket", lambda url, _proven: [*program, "aiohttp", url, "websocket"],
        {"ws": ("403",), "wss": ("403",)}, {"ws": ("407",), "wss": ("407",)},
        world.environment, ("echo me",), schemes=("ws", "wss"), version="websocket")
    # Of a refused CONNECT it tells the status alone.
    for mode, shows in (("unary", ("OK", HELLO)), ("stream", ("OK", "first second"))):
        cases += matrix(
            world, f"Python grpc {mode}", lambda url, _proven, mode=mode: [*program, "grpc", url, mode],
            {"https": ("UNAVAILABLE", "403")}, {"https": ("UNAVAILABLE", "407")},
            world.environment, shows, f"/grpc/{mode}", schemes=("https",), method="POST", version="2.0")
    return cases


def node_cases(world: World) -> list[Case]:
    """Node 24, by the environment that `agentport env` prints."""
    check_node(world)
    program = [str(NODE), str(PROGRAMS / "node_client.mjs")]

    def env(token: bool = True) -> dict[str, str]:
        return {**world.environment(token), "NODE_PACKAGES": str(ROOT / "target/node")}

    # fetch and undici make a CONNECT of everything, and tell its status alone.
    connect = {"http": ("403",), "https": ("403",)}
    no_connect = {"http": ("407",), "https": ("407",)}
    cases = []
    for client, name, refusal, challenge in (
        ("fetch", "Node fetch", connect, no_connect),
        ("undici", "Node undici ProxyAgent", connect, no_connect),
        ("axios", "Node axios",
         {"http": ("403 " + PHRASE, BODY), "https": ("403",)},
         {"http": ("407 " + NO_PHRASE, NO_BODY), "https": ("407",)}),
        ("module", "Node http and https",
         {"http": ("403 " + PHRASE, BODY), "https": ("403", "AgentPort: " + REFUSED)},
         {"http": ("407 " + NO_PHRASE, NO_BODY), "https": ("407", "AgentPort: " + UNPROVEN)}),
    ):
        cases += matrix(world, name, lambda url, _proven, client=client: [*program, client, url],
                        refusal, challenge, env, ("200", HELLO))
        for scheme, tls in (("http", False), ("https", True)):
            slug = f"node-{client}-post-{scheme}"
            cases.append(Case(f"{name}, {scheme}, POST of 1 MB",
                              [*program, client, world.url(scheme, f"/upload/{slug}"), "post"], env(),
                              allowed(slug, tls, "1048576 ", method="POST")))
            if client not in ("module", "axios"):
                slug = f"node-{client}-events-{scheme}"
                cases.append(Case(f"{name}, {scheme}, server-sent events one by one",
                                  [*program, client, world.url(scheme, f"/events/{slug}"), "events"], env(),
                                  allowed(slug, tls, "data: first", "data: second")))
    # As in a browser, its error says nothing.
    nothing = {"ws": ("TypeError",), "wss": ("TypeError",)}
    cases += matrix(world, "Node WebSocket", lambda url, _proven: [*program, "websocket", url], nothing, nothing,
                    env, ("101", "echo me"), schemes=("ws", "wss"), version="websocket")
    cases += matrix(world, "Node http2 to the gateway", lambda url, _proven: [*program, "http2", url],
                    {"http": (f"403 {REFUSED}", BODY)}, {"http": (f"407 {UNPROVEN}", NO_BODY)},
                    env, ("200", HELLO), schemes=("http",))
    slug = "node-http2-post"
    cases.append(Case("Node http2 to the gateway, POST of 1 MB",
                      [*program, "http2", world.url("http", f"/upload/{slug}"), "post"], env(),
                      allowed(slug, False, "1048576 ", method="POST")))
    return cases


def check_node(world: World) -> None:
    version = world.run([str(NODE), "--version"], world.bare).out.strip()
    if not version.startswith("v24."):
        raise Broken(f"Node 24 is wanted, and target/node has {version}: remove target/node and run tests/setup")


def git_cases(world: World) -> list[Case]:
    """git: sends its credential only after a Basic challenge, on a connection
    of its own, and shows the status alone."""
    git = find("git", "git")
    make_repository(world, git)
    env = {"GIT_TERMINAL_PROMPT": "0", "GIT_CONFIG_NOSYSTEM": "1", "GIT_ASKPASS": "true"}

    def environment(token: bool) -> dict[str, str]:
        return {**world.environment(token), **env}

    cases = []
    for scheme, tls in (("http", False), ("https", True)):
        for name, more, given in (
            ("by the environment", [], environment(True)),
            ("by http.proxy", ["-c", f"http.proxy={world.proxy}", "-c", f"http.sslCAInfo={world.ca}"],
             {**world.bare, **env}),
        ):
            # Each has a folder of its own in the path, by which it is known.
            slug = f"git-{scheme}-{name.split()[-1].replace('.', '-')}"
            link(world, slug, "repository.git")
            url = world.url(scheme, f"/files/{slug}/repository.git")
            cases.append(Case(f"git clone, {scheme}, {name}", [
                "sh", "-c", '"$@" && cat "$0"/README', slug, git, *more, "clone", "-q", url, slug,
            ], given, allowed(slug, tls, "a small repository")))
        for what, domain, token, status in (("refused", "refused", True, "403"),
                                            ("without a credential", "unproven", False, "407")):
            host = f"git-{scheme}.{domain}.test"
            url = world.url(scheme, "/files/repository.git", host, "closed")
            cases.append(Case(f"git clone, {scheme}, {what}",
                              [git, "clone", "-q", url, f"git-{scheme}-{domain}"], environment(token),
                              refused(host, status, code=128)))
    return cases


def make_repository(world: World, git: str) -> None:
    """A bare repository that a plain file server can serve."""
    work, bare = world.folder / "work", world.folder / "files/repository.git"
    env = {**world.bare, "GIT_CONFIG_NOSYSTEM": "1"}
    work.mkdir()
    (work / "README").write_text("a small repository\n")
    who = ["-c", "user.name=A", "-c", "user.email=a@origin.test", "-c", "init.defaultBranch=main"]
    for command in (
        ["-C", str(work), *who, "init", "-q"],
        ["-C", str(work), "add", "README"],
        ["-C", str(work), *who, "commit", "-q", "-m", "One file"],
        ["clone", "-q", "--bare", str(work), str(bare)],
        ["-C", str(bare), "update-server-info"],
    ):
        done = world.run([git, *command], env)
        if done.code:
            raise Broken(f"git {command}: {done.err}")


def link(world: World, slug: str, name: str) -> None:
    """The same once more, below another folder."""
    folder = world.folder / "files" / slug
    folder.mkdir()
    (folder / name).symlink_to(world.folder / "files" / name)


def pip_cases(world: World) -> list[Case]:
    """pip, from an index of one package."""
    make_index(world.folder / "files/simple")
    pip = [str(PYTHON), "-m", "pip", "--isolated", "--disable-pip-version-check", "--no-cache-dir",
           "--retries", "0", "--timeout", "30", "--cert", str(world.ca), "download", "--no-deps", "-q"]
    cases = []
    for scheme, tls in (("http", False), ("https", True)):
        slug = f"pip-{scheme}"
        link(world, slug, "simple")
        for name, more, env in (
            ("by --proxy", ["--proxy", world.proxy], world.bare),
            ("by the environment", [], world.environment()),
        ):
            into = f"pip-{scheme}-{len(more)}"
            cases.append(Case(f"pip download, {scheme}, {name}", [
                "sh", "-c", '"$@" && ls "$0"', into, *pip, "-d", into, *more, "--trusted-host", "origin.test",
                "--index-url", world.url(scheme, f"/files/{slug}/simple/"), "tiny-thing",
            ], env, allowed(slug, tls, "tiny_thing-1.0-py3-none-any.whl")))
        for what, domain, token, shows in (
            ("refused", "refused", True, "403"), ("without a credential", "unproven", False, "407"),
        ):
            host = f"pip-{scheme}.{domain}.test"
            # Only at its most talkative it says why there is no such package.
            command = [word for word in pip if word != "-q"]
            cases.append(Case(f"pip download, {scheme}, {what}", [
                *command, "-vv", "-d", "pip-none", "--trusted-host", host,
                "--index-url", world.url(scheme, "/files/simple/", host, "closed"), "tiny-thing",
            ], world.environment(token), refused(host, f"{shows} ", "AgentPort: ", code=1)))
    return cases


def make_index(folder: Path) -> None:
    """The simple repository API (PEP 503), with one wheel."""
    package = folder / "tiny-thing"
    package.mkdir(parents=True)
    wheel = package / "tiny_thing-1.0-py3-none-any.whl"
    info = "tiny_thing-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_thing.py", "ANSWER = 42\n")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-thing\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL",
                         "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (package / "index.html").write_text(
        f'<!DOCTYPE html><html><body><a href="{wheel.name}#sha256={digest}">{wheel.name}</a></body></html>\n')


def npm_cases(world: World) -> list[Case]:
    """npm, from a registry of one package. It shows the body of a refusal, and
    of a CONNECT that was refused the status."""
    npm = find("npm", "npm")
    cases = []
    for scheme, tls in (("http", False), ("https", True)):
        slug = f"npm-{scheme}"
        registry = world.url(scheme, f"/files/{slug}/")
        make_registry(world.folder / "files" / slug, registry)
        base = [npm, "--no-audit", "--no-fund", "--no-update-notifier", "--fetch-retries=0", "install"]
        cases.append(Case(f"npm install, {scheme}, allowed", [
            "sh", "-c", '"$@" && cat "$0"/node_modules/tiny-thing/index.js', slug, *base,
            f"--registry={registry}", "--prefix", slug, "tiny-thing",
        ], world.environment(), allowed(slug, tls, "module.exports = 42")))
        for what, domain, token, shows in (
            ("refused", "refused", True, ("403",)), ("without a credential", "unproven", False, ("407",)),
        ):
            host = f"npm-{scheme}.{domain}.test"
            registry = world.url(scheme, f"/files/{slug}/", host, "closed")
            cases.append(Case(f"npm install, {scheme}, {what}", [
                *base, f"--registry={registry}", "--prefix", f"{slug}-{domain}", "tiny-thing",
            ], world.environment(token), refused(host, *shows, code=1)))
    return cases


def make_registry(folder: Path, url: str) -> None:
    """What npm asks a registry for, with one package in it."""
    folder.mkdir()
    archive = folder / "tiny-thing-1.0.0.tgz"
    manifest = {"name": "tiny-thing", "version": "1.0.0", "main": "index.js"}
    with tarfile.open(archive, "w:gz") as tar:
        for name, text in (("package.json", json.dumps(manifest)), ("index.js", "module.exports = 42\n")):
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    dist = {"tarball": url + archive.name, "shasum": hashlib.sha1(archive.read_bytes()).hexdigest()}
    (folder / "tiny-thing").write_text(json.dumps({
        "name": "tiny-thing", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": {**manifest, "dist": dist}}}))


def java_classes(world: World) -> list[str]:
    """How the client in Java is called, which is built first."""
    javac, java = find("javac", "default-jdk-headless"), find("java", "default-jdk-headless")
    classes = world.folder / "classes"
    done = world.run([javac, "-d", str(classes), str(PROGRAMS / "Client.java")], world.bare)
    if done.code:
        raise Broken(f"javac: {done.err}")
    return [java, "-cp", str(classes), "Client"]


def java_cases(world: World) -> list[Case]:
    """Java, by JAVA_TOOL_OPTIONS of `agentport env`, with an Authenticator."""
    java = java_classes(world)

    def command(client: str, url: str, proven: bool) -> list[str]:
        given = [AGENT, world.token] if proven else []
        return [*java, client, url, str(world.ca), *given]

    cases = []
    for client, name, refusal, challenge in (
        # Of a CONNECT that failed HttpClient makes the answer to the request.
        ("httpclient", "Java HttpClient", {"http": ("403", BODY), "https": ("403",)},
         {"http": ("407", NO_BODY), "https": ("407",)}),
        ("urlconnection", "Java HttpURLConnection", {"http": ("403 " + PHRASE, BODY), "https": ("403 " + PHRASE,)},
         {"http": ("407 " + NO_PHRASE,), "https": ("407 " + NO_PHRASE,)}),
    ):
        cases += matrix(world, name, lambda url, proven, client=client: command(client, url, proven),
                        refusal, challenge, lambda _proven: world.environment(False), ("200", HELLO))
    return cases


def go_cases(world: World) -> list[Case]:
    """Go's net/http, by the environment that `agentport env` prints. It shows
    the reason phrase of a CONNECT that was refused."""
    if not GO.exists():
        raise Broken(f"{GO.relative_to(ROOT)} is missing: run tests/setup")
    program = world.folder / "go-client"
    # Nothing but its own library, and nothing from anywhere else.
    cache = {"GOCACHE": str(ROOT / "target/go"), "GOPROXY": "off", "GOTOOLCHAIN": "local", "GO111MODULE": "off"}
    done = subprocess.run([GO, "build", "-o", program, str(PROGRAMS / "client.go")],
                          env={**world.bare, **cache}, capture_output=True, text=True)
    if done.returncode:
        raise Broken(f"go build: {done.stderr}")
    cases = matrix(
        world, "Go net/http", lambda url, _proven: [str(program), "get", url],
        {"http": ("403 " + PHRASE, BODY), "https": (PHRASE,)},
        {"http": ("407 " + NO_PHRASE, NO_BODY), "https": (NO_PHRASE,)},
        world.environment, ("200 OK", HELLO))
    for scheme, tls in (("http", False), ("https", True)):
        for mode, path, shows, more in (
            ("post", "upload", "1048576 ", {"method": "POST"}),
            ("events", "events", "data: second", {}),
        ):
            slug = f"go-{mode}-{scheme}"
            cases.append(Case(f"Go net/http, {scheme}, {mode}",
                              [str(program), mode, world.url(scheme, f"/{path}/{slug}")], world.environment(),
                              allowed(slug, tls, shows, **more)))
    for mode, version in (("get", "2.0"), ("http1", "1.1")):
        slug = f"go-{mode}-version"
        cases.append(Case(f"Go net/http, https, speaks HTTP/{version}",
                          [str(program), mode, world.url("https", f"/hello/{slug}")], world.environment(),
                          allowed(slug, True, HELLO, version=version)))
    return cases


TABLES = (curl_cases, wget_cases, python_cases, node_cases, git_cases, pip_cases, npm_cases, java_cases, go_cases)
