//! One document for each tenant, in a directory: rotated one by one, under load,
//! with mistakes in between; and the modes in which they count.

#![cfg(feature = "gateway")]

#[path = "support/cli.rs"]
#[expect(dead_code, reason = "each file of tests uses a part")]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use agentport::egress::{AgentId, Destination, TenantId};
use agentport::identity::{IssueRequest, SigningKey, TokenIssuer};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use support::{Gateway, Origin, Response, ask, gateway, replace, stderr, until};

/// A token for an agent of a tenant.
fn token(agent: &str, tenant: &str, only: Option<&[&str]>) -> String {
    let key = SigningKey::from_secret(support::SECRET).expect("a secret");
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("after 1970");
    let request = IssueRequest {
        agent: AgentId::parse(agent).expect("an agent"),
        tenant: (!tenant.is_empty()).then(|| TenantId::parse(tenant).expect("a tenant")),
        destinations: only.map(|list| {
            let parse = |raw: &&str| Destination::parse(raw).expect("a destination");
            list.iter().map(parse).collect()
        }),
        lifetime: Duration::from_secs(3600),
        audience: None,
        client: None,
        scope: None,
        jti: now.as_nanos(),
        actors: Vec::new(),
    };
    TokenIssuer::new(key, "agentport", "agentport")
        .issue(&request, now.as_secs())
        .expect("a token")
}

/// A GET as this agent of this tenant.
fn get(gateway: &Gateway, agent: &str, tenant: &str, url: &str) -> Response {
    get_by(gateway, &token(agent, tenant, None), url)
}

fn get_by(gateway: &Gateway, token: &str, url: &str) -> Response {
    let host = url.trim_start_matches("http://");
    let host = host.split('/').next().expect("a host");
    let request = format!(
        "GET {url} HTTP/1.1\r\nHost: {host}\r\nProxy-Authorization: Bearer {token}\r\nConnection: close\r\n\r\n"
    );
    ask(gateway.egress(), request.as_bytes())
}

/// The status for a tenant; as another agent each time, since one that repeats
/// itself is slowed down.
fn status(gateway: &Gateway, origin: &Origin, tenant: &str) -> u16 {
    static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let agent = format!("bot-{}", NEXT.fetch_add(1, Ordering::SeqCst));
    get(gateway, &agent, tenant, &origin.url("/")).status
}

#[track_caller]
fn becomes(gateway: &Gateway, origin: &Origin, tenant: &str, expected: u16, case: &str) {
    until(&format!("{case}: the answer is {expected}"), || {
        (status(gateway, origin, tenant) == expected).then_some(())
    });
}

/// Allows these origins, by a rule of this name.
fn allows(tenant: &str, rule: &str, origins: &[&Origin]) -> String {
    let ports: Vec<u16> = origins.iter().map(|origin| origin.address.port()).collect();
    let head = match tenant {
        "" => String::new(),
        tenant => format!("tenant: {tenant}\n"),
    };
    format!(
        "version: 1\n{head}rules:\n  - name: {rule}\n    action: allow\n    agents: any\n    hosts: [\"127.0.0.1\"]\n    \
         addresses: [\"127.0.0.1/32\"]\n    ports: {ports:?}\n"
    )
}

/// A gateway over a directory with these documents.
fn over(files: &[(&str, &str)]) -> (support::Start, PathBuf) {
    let start = gateway("version: 1\n");
    let folder = start.path("tenants");
    std::fs::create_dir(&folder).expect("a folder");
    for (name, text) in files {
        std::fs::write(folder.join(name), text).expect("written");
    }
    let shown = folder.display().to_string();
    (start.set("policy", shown), folder)
}

#[test]
fn a_broken_document_is_its_tenants_own_affair() {
    let (one, two, shut) = (Origin::http(), Origin::http(), Origin::http());
    let (start, folder) = over(&[
        ("acme.yaml", &allows("acme", "acme-1", &[&one])),
        ("beta.yaml", &allows("beta", "beta-1", &[&one])),
        ("all.yaml", "version: 1\n"),
    ]);
    let mut gateway = start.start();
    for (tenant, expected) in [("acme", 200), ("beta", 200), ("gamma", 403), ("", 403)] {
        assert_eq!(status(&gateway, &one, tenant), expected, "{tenant:?}");
    }
    let refusal = get(&gateway, "bot", "gamma", &one.url("/"));
    assert_eq!(refusal.error(), "unknown_tenant");
    assert_eq!(gateway.ready()["policy"]["tenants"], 2);

    // A mistake of one, and the other goes on to be changed.
    replace(
        &folder.join("acme.yaml"),
        "version: 1\ntenant: acme\nrules: [{name: \n",
    );
    let shown = until("the mistake is shown", || {
        let list = gateway.ready()["policy"]["refused_documents"].clone();
        (list.as_array()?.len() == 1).then_some(list)
    });
    assert_eq!(shown[0]["tenant"], "acme", "{shown}");
    assert_eq!(shown[0]["last_good_in_force"], true, "{shown}");
    let document = shown[0]["document"].as_str().expect("a file");
    assert!(document.ends_with("acme.yaml"), "{shown}");
    replace(
        &folder.join("beta.yaml"),
        &allows("beta", "beta-2", &[&two]),
    );
    becomes(
        &gateway,
        &two,
        "beta",
        200,
        "the other tenant's new document",
    );
    assert_eq!(status(&gateway, &one, "beta"), 403);
    assert_eq!(
        status(&gateway, &one, "acme"),
        200,
        "what it said last holds"
    );
    assert_eq!(
        gateway.figure("agentport_policy_documents_refused"),
        Some(1.0)
    );
    let one_refused =
        format!("agentport_policy_document_refused{{document=\"{document}\",tenant=\"acme\"}}");
    assert_eq!(
        gateway.figure(&one_refused),
        Some(1.0),
        "{}",
        gateway.page("/metrics").text()
    );
    let said = gateway
        .said("the new policy is refused; the old one stays in force")
        .expect("a line in the log");
    assert_eq!(said["tenant"], "acme", "{said}");
    assert_eq!(gateway.page("/ready").status, 200);

    for (tenant, decision) in [("acme", "allow"), ("other", "deny"), ("none", "deny")] {
        let series = format!(
            "agentport_tenant_requests_total{{tenant=\"{tenant}\",decision=\"{decision}\"}}"
        );
        let counted = gateway.figure(&series).unwrap_or(0.0);
        assert!(
            counted >= 1.0,
            "{series}: {}",
            gateway.page("/metrics").text()
        );
    }

    // Mended, and then gone.
    replace(
        &folder.join("acme.yaml"),
        &allows("acme", "acme-2", &[&two]),
    );
    becomes(&gateway, &two, "acme", 200, "mended");
    until("nothing is refused", || {
        (gateway.figure("agentport_policy_documents_refused") == Some(0.0)).then_some(())
    });
    std::fs::remove_file(folder.join("acme.yaml")).expect("removed");
    becomes(&gateway, &two, "acme", 403, "gone");
    let refusal = get(&gateway, "bot", "acme", &two.url("/"));
    assert_eq!(refusal.error(), "unknown_tenant");
    assert_eq!(status(&gateway, &two, "beta"), 200);

    // The last one too: no tenant becomes everybody.
    replace(&folder.join("all.yaml"), &allows("", "everybody", &[&shut]));
    becomes(&gateway, &shut, "", 200, "the global document");
    becomes(
        &gateway,
        &shut,
        "beta",
        200,
        "the global document, for a tenant",
    );
    std::fs::remove_file(folder.join("beta.yaml")).expect("removed");
    becomes(
        &gateway,
        &shut,
        "beta",
        403,
        "the last tenant's document gone",
    );
    let before = shut.contacts();
    assert_eq!(status(&gateway, &shut, "acme"), 403);
    assert_eq!(status(&gateway, &shut, "beta"), 403);
    assert_eq!(
        shut.contacts(),
        before,
        "a refused request has reached the origin"
    );

    let records = gateway.stop();
    let rule_of = |tenant: &str, rule: &str| {
        records
            .iter()
            .any(|record| record["tenant"] == tenant && record["rule"] == rule)
    };
    for (tenant, rule) in [("acme", "acme-1"), ("acme", "acme-2"), ("beta", "beta-2")] {
        assert!(rule_of(tenant, rule), "{tenant} {rule}");
    }
    assert!(!rule_of("beta", "acme-1") && !rule_of("acme", "beta-1"));
}

#[test]
fn a_start_with_a_broken_document() {
    let origin = Origin::http();
    let broken = "version: 1\ntenant: acme\nrules: [{name: \n";
    let beta = allows("beta", "beta-1", &[&origin]);
    let everybody = allows("", "everybody", &[&origin]);
    let (start, _) = over(&[
        ("acme.yaml", broken),
        ("beta.yaml", &beta),
        ("all.yaml", &everybody),
    ]);
    let gateway = start.start();
    assert_eq!(status(&gateway, &origin, "beta"), 200);
    let before = origin.contacts();
    assert_eq!(status(&gateway, &origin, "acme"), 403);
    assert_eq!(origin.contacts(), before);
    let shown = gateway.ready()["policy"]["refused_documents"][0].clone();
    assert_eq!(
        (&shown["tenant"], &shown["last_good_in_force"]),
        (&"acme".into(), &false.into())
    );
    let said = gateway.said("the policy is refused; nothing of this document is in force");
    assert!(said.is_some(), "{}", gateway.log());

    // Alone with a global one, and its tenant is not everybody.
    let (start, _) = over(&[("acme.yaml", broken), ("all.yaml", &everybody)]);
    let gateway = start.start();
    assert_eq!(status(&gateway, &origin, ""), 200);
    let before = origin.contacts();
    assert_eq!(status(&gateway, &origin, "acme"), 403);
    assert_eq!(origin.contacts(), before);

    // A global one, whose denylist would bind everybody.
    let (start, _) = over(&[
        ("all.yaml", "version: 1\ndenylist: [\"\n"),
        ("beta.yaml", &beta),
    ]);
    let failed = stderr(&start.fails());
    assert!(failed.contains("all.yaml"), "{failed}");
}

/// One tenant's document is rewritten in every way, with nonsense in between,
/// while both tenants ask all the time: nobody is refused, and every request
/// sees one version whole.
#[test]
fn documents_are_rewritten_under_load() {
    let origin = Origin::http();
    let text = |number: usize| {
        // Long, so that a write takes more than one step; the last rule counts.
        let mut text = allows("acme", &format!("acme-{number}"), &[&origin]);
        for n in 0..500 {
            text += &format!(
                "  - {{name: filler-{n}, action: deny, agents: any, hosts: [\"{n}.example\"]}}\n"
            );
        }
        text
    };
    let start = gateway("version: 1\n");
    // As Kubernetes mounts it, links and all.
    let mount = start.path("mount");
    let publish = |version: &str, acme: &str| {
        let data = mount.join(version);
        std::fs::create_dir_all(&data).expect("a folder");
        std::fs::write(data.join("acme.yaml"), acme).expect("written");
        std::fs::write(data.join("beta.yaml"), allows("beta", "beta-1", &[&origin]))
            .expect("written");
        symlink(version, mount.join("..data_tmp")).expect("linked");
        std::fs::rename(mount.join("..data_tmp"), mount.join("..data")).expect("swapped");
    };
    publish("..v0", &text(0));
    for name in ["acme.yaml", "beta.yaml"] {
        symlink(format!("..data/{name}"), mount.join(name)).expect("linked");
    }
    let shown = mount.display().to_string();
    let mut gateway = start.set("policy", shown).start();

    type Change<'a> = Box<dyn Fn(&Path, &str) + 'a>;
    let ways: Vec<(&str, Change)> = vec![
        (
            "swapped",
            Box::new(|_: &Path, text: &str| {
                static NEXT: std::sync::atomic::AtomicUsize =
                    std::sync::atomic::AtomicUsize::new(1);
                publish(&format!("..v{}", NEXT.fetch_add(1, Ordering::SeqCst)), text);
            }),
        ),
        (
            "in place",
            Box::new(|file: &Path, text: &str| {
                std::fs::write(file, text).expect("written");
            }),
        ),
        ("renamed", Box::new(replace)),
        (
            "in pieces",
            Box::new(|file: &Path, text: &str| {
                let mut file = std::fs::File::create(file).expect("opened");
                for piece in text.as_bytes().chunks(1000) {
                    file.write_all(piece).expect("written");
                    file.sync_data().expect("synced");
                }
            }),
        ),
    ];
    let done = AtomicBool::new(false);
    let asked = std::thread::scope(|scope| {
        let clients: Vec<_> = ["acme", "beta"]
            .into_iter()
            .map(|tenant| {
                let (gateway, origin, done) = (&gateway, &origin, &done);
                scope.spawn(move || {
                    let mut asked = 0_usize;
                    while !done.load(Ordering::SeqCst) || asked < 100 {
                        let status = status(gateway, origin, tenant);
                        assert_eq!(status, 200, "{tenant}, request {asked}");
                        asked += 1;
                    }
                    asked
                })
            })
            .collect();
        let mut number = 0;
        let acme = mount.join("acme.yaml");
        let rule_of = || {
            let id = get(&gateway, "probe", "acme", &origin.url("/probe"));
            let id = id.field("x-request-id").expect("an id").to_owned();
            let record = gateway.record("the probe", |record| record["request_id"] == *id);
            record["rule"].as_str().unwrap_or_default().to_owned()
        };
        for (way, change) in &ways {
            for nonsense in [
                "version: 1\ntenant: acme\nrules: [",
                "",
                "version: 1\ntenant: acme\nmode: x\n",
            ] {
                change(&acme, nonsense);
                until(&format!("{way}: the mistake is shown"), || {
                    gateway.ready()["policy"]["refused"]
                        .is_string()
                        .then_some(())
                });
                number += 1;
                change(&acme, &text(number));
                until(&format!("{way}: version {number} is in force"), || {
                    (rule_of() == format!("acme-{number}")).then_some(())
                });
            }
        }
        done.store(true, Ordering::SeqCst);
        clients
            .into_iter()
            .map(|client| client.join().expect("no request has failed"))
            .sum::<usize>()
    });
    assert!(asked >= 200, "{asked}");
    let records = gateway.stop();
    // A version is one document of acme's, and never the half of one.
    let mut rules: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for record in records.iter().filter(|record| record["tenant"] == "acme") {
        let of = |field: &str| record[field].as_str().expect("a text").to_owned();
        rules
            .entry(of("policy_version"))
            .or_default()
            .insert(of("rule"));
    }
    assert!(rules.len() > 10, "{rules:?}");
    assert!(rules.values().all(|rules| rules.len() == 1), "{rules:?}");
    let beta = |record: &&serde_json::Value| record["tenant"] == "beta";
    assert!(
        records
            .iter()
            .filter(beta)
            .all(|record| record["rule"] == "beta-1")
    );
}

/// In audit mode the origin answers, and the record says what would have been;
/// the one agent on which enforcing is tried is refused.
#[test]
fn a_canary_is_enforced_and_the_others_are_watched() {
    let teapot = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = teapot.local_addr().expect("an address");
    std::thread::spawn(move || {
        for mut stream in teapot.incoming().map_while(Result::ok) {
            let mut head = [0; 2048];
            let _ = stream.read(&mut head);
            let answer =
                b"HTTP/1.1 418 I'm a teapot\r\nContent-Length: 5\r\nConnection: close\r\n\r\nshort";
            let _ = stream.write_all(answer);
        }
    });
    let mut gateway = gateway(
        "version: 1\nmode: audit\naudit_addresses: true\nagent_modes: {canary: enforce}\nrules: []\n",
    )
    .start();
    let url = format!("http://{address}/tea");
    let watched = get(&gateway, "bot", "", &url);
    assert_eq!((watched.status, watched.text().as_str()), (418, "short"));
    let refused = get(&gateway, "canary", "", &url);
    assert_eq!((refused.status, refused.error().as_str()), (403, "no_rule"));
    // Identity binds in audit mode.
    let request = format!("GET {url} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    assert_eq!(ask(gateway.egress(), request.as_bytes()).status, 407);
    let records = gateway.stop();
    let of = |agent: &str| {
        let mut records = records.iter();
        records
            .find(|record| record["agent_id"] == agent)
            .expect("a record")
    };
    let bot = of("bot");
    assert_eq!(
        (
            &bot["action_allowed"],
            &bot["would_deny"],
            &bot["mode"],
            &bot["status"]
        ),
        (
            &true.into(),
            &"no_rule".into(),
            &"audit".into(),
            &418.into()
        )
    );
    let canary = of("canary");
    assert_eq!(
        (
            &canary["action_allowed"],
            &canary["reason"],
            &canary["mode"]
        ),
        (&false.into(), &"no_rule".into(), &"enforce".into())
    );
}

/// A GET to the gateway itself.
fn policy_page(gateway: &Gateway, fields: &str) -> Response {
    let request = format!(
        "GET /.well-known/agentport/policy HTTP/1.1\r\nHost: gateway\r\n{fields}Connection: close\r\n\r\n"
    );
    ask(gateway.egress(), request.as_bytes())
}

#[test]
fn agents_ask_what_they_may_reach() {
    let origin = Origin::http();
    let (start, _) = over(&[
        ("acme.yaml", &allows("acme", "acme-1", &[&origin])),
        ("beta.yaml", &allows("beta", "beta-1", &[&origin])),
        (
            "all.yaml",
            "version: 1\nrules:\n  - {name: docs, action: allow, agents: any, hosts: ['*.docs.example']}\n",
        ),
    ]);
    let mut gateway = start.start();
    let bearer = |name: &str, tenant: &str, only: Option<&[&str]>| {
        format!("{name}: Bearer {}\r\n", token("bot", tenant, only))
    };

    // Refusals lead here.
    let refused = get(&gateway, "bot", "acme", "http://127.0.0.1:1/");
    assert_eq!(
        refused.json()["policy_url"],
        "/.well-known/agentport/policy"
    );
    let unknown = get(&gateway, "bot", "gamma", "http://127.0.0.1:1/");
    assert_eq!(unknown.json().get("policy_url"), None);

    for field in ["Authorization", "Proxy-Authorization"] {
        let told = policy_page(&gateway, &bearer(field, "acme", None));
        assert_eq!(told.status, 200, "{field}: {}", told.text());
        assert_eq!(told.field("content-type"), Some("application/json"));
        assert_eq!(told.field("cache-control"), Some("no-store"));
        let json = told.json();
        let rules: Vec<&str> = json["allow"]
            .as_array()
            .expect("rules")
            .iter()
            .map(|rule| rule["rule"].as_str().expect("a name"))
            .collect();
        assert_eq!(rules, ["acme-1", "docs"], "{field}");
        assert_eq!(
            (&json["agent"], &json["tenant"]),
            (&"bot".into(), &"acme".into())
        );
        assert_eq!(json["allow"][0]["hosts"][0], "127.0.0.1");
        assert_eq!(
            json["allow"][0]["ports"][0],
            origin.address.port().to_string()
        );
        assert_eq!(json["otherwise"], "refused");
        assert_eq!(json["policy_version"], gateway.ready()["policy"]["version"]);
        assert!(
            json["expires_at"]
                .as_str()
                .is_some_and(|at| at.ends_with('Z')),
            "{json}"
        );
        assert!(!told.text().contains("beta"), "{}", told.text());
    }
    let own = format!("X-AgentPort-Token: {}\r\n", token("bot", "acme", None));
    assert_eq!(policy_page(&gateway, &own).status, 200);

    // The token's own destinations are applied.
    let narrow = policy_page(
        &gateway,
        &bearer("Authorization", "acme", Some(&["a.docs.example"])),
    );
    assert_eq!(
        narrow.json()["allow"].as_array().map(Vec::len),
        Some(1),
        "{}",
        narrow.text()
    );
    assert_eq!(narrow.json()["allow"][0]["hosts"][0], "a.docs.example");

    // For a reader.
    let fields =
        bearer("Authorization", "acme", None) + "Accept: text/markdown, application/json;q=0.5\r\n";
    let text = policy_page(&gateway, &fields);
    assert_eq!(
        text.field("content-type"),
        Some("text/markdown; charset=utf-8")
    );
    assert!(
        text.text()
            .starts_with("# What bot may reach (tenant acme)\n"),
        "{}",
        text.text()
    );
    assert!(
        text.text()
            .contains("- *.docs.example port 80, 443 (rule \"docs\")"),
        "{}",
        text.text()
    );

    // Nobody is told anything without a credential, nor of another tenant.
    let none = policy_page(&gateway, "");
    assert_eq!(none.status, 401, "{}", none.text());
    assert!(none.field("www-authenticate").is_some());
    let bad = policy_page(&gateway, "Authorization: Bearer a.b.c\r\n");
    assert_eq!(bad.status, 403);
    let gamma = policy_page(&gateway, &bearer("Authorization", "gamma", None));
    assert_eq!(
        (gamma.status, gamma.error().as_str()),
        (403, "unknown_tenant")
    );
    let records = gateway.stop();
    let told = records
        .iter()
        .find(|record| record["path"] == "/.well-known/agentport/policy" && record["status"] == 200)
        .expect("a record");
    assert_eq!(
        (&told["agent_id"], &told["tenant"], &told["action_allowed"]),
        (&"bot".into(), &"acme".into(), &true.into())
    );
    assert!(told["policy_version"].is_string(), "{told}");
}

#[test]
fn a_document_for_other_audiences_refuses_its_tenants_tokens() {
    let origin = Origin::http();
    let with = |audience: &str| {
        let text = allows("acme", "acme-1", &[&origin]);
        text.replace(
            "tenant: acme\n",
            &format!("tenant: acme\naudience: [{audience}]\n"),
        )
    };
    let (start, folder) = over(&[("acme.yaml", &with("acme-prod"))]);
    let gateway = start.start();
    let refused = get(&gateway, "bot", "acme", &origin.url("/"));
    assert_eq!(refused.status, 403, "{}", refused.text());
    assert_eq!(refused.error(), "tenant_audience");
    let record = gateway.record("the refusal", |record| {
        record["reason"] == "tenant_audience"
    });
    assert_eq!(record["detail"], "the token's aud is agentport", "{record}");
    let token = token("bot", "acme", None);
    let page = policy_page(&gateway, &format!("Authorization: Bearer {token}\r\n"));
    assert_eq!(
        (page.status, page.error().as_str()),
        (403, "tenant_audience")
    );
    // The tokens here are for `agentport`.
    replace(&folder.join("acme.yaml"), &with("acme-prod, agentport"));
    becomes(&gateway, &origin, "acme", 200, "its audience is named");
}

/// A token for these audiences, of which one must be the gateway's.
fn token_for(audiences: &[&str], agent: &str, tenant: &str) -> String {
    let encoded = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let header = serde_json::json!({"alg": "HS256", "typ": "JWT"});
    let claims = serde_json::json!({
        "iss": "agentport", "aud": audiences, "sub": agent, "agent_id": agent, "tenant": tenant,
        "iat": 1_700_000_000, "exp": 4_000_000_000_u64, "jti": agent,
    });
    let signed = format!(
        "{}.{}",
        encoded(header.to_string().as_bytes()),
        encoded(claims.to_string().as_bytes())
    );
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, support::SECRET.as_bytes());
    let tag = ring::hmac::sign(&key, signed.as_bytes());
    format!("{signed}.{}", encoded(tag.as_ref()))
}

#[test]
fn a_tenants_documents_are_chosen_by_audience_and_rotated_apart() {
    let (prod, batch, other) = (Origin::http(), Origin::http(), Origin::http());
    let with = |audience: &str, rule: &str, origins: &[&Origin]| {
        let text = allows("acme", rule, origins);
        text.replace("tenant: acme\n", &format!("tenant: acme\n{audience}"))
    };
    let (start, folder) = over(&[
        (
            "prod.yaml",
            &with("audience: [prod]\n", "of-prod", &[&prod]),
        ),
        (
            "batch.yaml",
            &with("audience: [batch, night]\n", "of-batch", &[&batch]),
        ),
        ("other.yaml", &with("", "of-others", &[&other])),
    ]);
    let mut gateway = start.start();
    let asked = |audiences: &[&str], origin: &Origin| {
        static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let agent = format!("bot-{}", NEXT.fetch_add(1, Ordering::SeqCst));
        get_by(
            &gateway,
            &token_for(audiences, &agent, "acme"),
            &origin.url("/"),
        )
    };
    for (case, audiences, origin) in [
        ("one", &["agentport", "prod"][..], &prod),
        ("the second of one", &["night", "agentport"], &batch),
        ("none that is named", &["agentport"], &other),
    ] {
        assert_eq!(asked(audiences, origin).status, 200, "{case}");
    }
    let before = (prod.contacts(), batch.contacts(), other.contacts());
    for (case, audiences, origin, reason) in [
        (
            "what the others may",
            &["agentport", "prod"][..],
            &other,
            "no_rule",
        ),
        ("what another may", &["agentport"], &prod, "no_rule"),
        (
            "two",
            &["agentport", "prod", "night"],
            &prod,
            "tenant_audience",
        ),
    ] {
        let refused = asked(audiences, origin);
        assert_eq!((refused.status, &*refused.error()), (403, reason), "{case}");
    }
    // Its page is of the same document.
    let page = |audiences: &[&str]| {
        let token = token_for(audiences, "bot-page", "acme");
        policy_page(&gateway, &format!("Authorization: Bearer {token}\r\n"))
    };
    let shown = page(&["agentport", "night"]).text();
    assert!(
        shown.contains("of-batch") && !shown.contains("of-others"),
        "{shown}"
    );
    assert_eq!(
        page(&["batch", "prod", "agentport"]).error(),
        "tenant_audience"
    );
    assert_eq!(
        before,
        (prod.contacts(), batch.contacts(), other.contacts())
    );

    // One has a mistake and holds, another one changes.
    replace(
        &folder.join("prod.yaml"),
        "version: 1\ntenant: acme\naudience: [prod\n",
    );
    replace(
        &folder.join("batch.yaml"),
        &with("audience: [batch, night]\n", "of-batch-2", &[&prod]),
    );
    until("the new document is in force", || {
        (asked(&["agentport", "batch"], &prod).status == 200).then_some(())
    });
    assert_eq!(asked(&["agentport", "prod"], &prod).status, 200);
    assert_eq!(asked(&["agentport", "prod"], &other).status, 403);
    let refused = |says: &str| {
        until(says, || {
            let list = gateway.ready()["policy"]["refused_documents"].clone();
            list.to_string().contains(says).then_some(list)
        })
    };
    assert_eq!(refused("prod.yaml")[0]["last_good_in_force"], true);
    // Two for one audience: what was in force stays.
    replace(
        &folder.join("prod.yaml"),
        &with("audience: [prod, night]\n", "of-prod-2", &[&other]),
    );
    let list = refused("has a document already");
    let error = list[0]["error"].as_str().expect("an error");
    assert!(
        error.contains("prod.yaml:3:18: audience[1]: audience \"night\" of tenant \"acme\""),
        "{error}"
    );
    assert_eq!(asked(&["agentport", "prod"], &prod).status, 200);
    replace(
        &folder.join("prod.yaml"),
        &with("audience: [prod]\n", "of-prod-2", &[&other]),
    );
    until("the mended one is in force", || {
        (asked(&["agentport", "prod"], &other).status == 200).then_some(())
    });

    let records = gateway.stop();
    let by = |rule: &str| {
        records
            .iter()
            .find(|record| record["rule"] == rule)
            .expect(rule)
    };
    assert_eq!(
        by("of-prod")["audience"],
        serde_json::json!(["agentport", "prod"])
    );
    assert_eq!(by("of-prod")["tenant"], "acme");
    assert_eq!(
        by("of-others")["audience"],
        serde_json::json!(["agentport"])
    );
}
