//! Policy as a whole: cases as data, subject by subject, and properties against
//! a reference that looks through all rules one by one. Here is what they share.

mod audiences;
mod calls;
mod decide;
mod diff;
mod documents;
mod exchanged;
mod limits;
mod modes;
mod properties;
mod reference;
mod replay;

use std::net::IpAddr;

use http::Method;
use proptest::prelude::*;

use super::*;
use crate::egress::{
    AddressClass, AddressRange, AgentId, Ask, Authority, Destination, EgressRequest, HostPattern,
    RequestPath, Scheme, Subject, TenantId, classify,
};

/// A policy from YAML texts, named `0.yaml`, `1.yaml` and so on.
fn build(texts: &[&str]) -> Result<PolicySet, Vec<PolicyError>> {
    build_in(texts, Mode::Enforce)
}

fn build_in(texts: &[&str], mode: Mode) -> Result<PolicySet, Vec<PolicyError>> {
    let mut documents = Vec::new();
    for (at, text) in texts.iter().enumerate() {
        let source = SourceName::from(format!("{at}.yaml"));
        let document =
            PolicyDocument::parse(&source, Format::Yaml, text).map_err(|error| vec![error])?;
        documents.push((source, document));
    }
    PolicySet::build(documents, mode)
}

fn policy(text: &str) -> PolicySet {
    build(&[text]).expect("a policy")
}

/// One global document with these rules.
fn rules(rules: &str) -> PolicySet {
    policy(&format!("version: 1\nrules:\n{rules}"))
}

/// `CONNECT host:port`, or `GET http://host/path`.
fn request(line: &str) -> EgressRequest {
    let (method, target) = line.split_once(' ').expect("a method and a target");
    if method == "CONNECT" {
        return EgressRequest {
            authority: Authority::parse(target).expect(target),
            ask: Ask::Tunnel,
        };
    }
    let (scheme, rest) = target.split_once("://").expect("a URL");
    let scheme = match scheme {
        "http" => Scheme::Http,
        _ => Scheme::Https,
    };
    let slash = rest.find('/').unwrap_or(rest.len());
    let authority = Authority::parse_with_default_port(&rest[..slash], scheme.default_port());
    let path = if slash == rest.len() {
        "/"
    } else {
        &rest[slash..]
    };
    EgressRequest {
        authority: authority.expect(target),
        ask: Ask::Request {
            scheme,
            method: Method::from_bytes(method.as_bytes()).expect(method),
            path: RequestPath::parse(path).expect(target),
        },
    }
}

fn decide_for(set: &PolicySet, agent: &str, tenant: Option<&str>, line: &str) -> Decision {
    let agent = AgentId::parse(agent).expect(agent);
    let tenant = tenant.map(|raw| TenantId::parse(raw).expect(raw));
    let who = Subject {
        agent: &agent,
        tenant: tenant.as_ref(),
        destinations: None,
        audiences: None,
    };
    set.decide(&who, &request(line))
}

/// `allow RULE`, `allow RULE, inside only`, `audit CODE` or `deny CODE`.
fn said(decision: &Decision) -> String {
    match decision {
        Decision::Deny(denied) => {
            let rule = denied
                .rule()
                .map(|rule| format!(" by {rule}"))
                .unwrap_or_default();
            format!("deny {}{rule}", denied.reason().as_str())
        }
        Decision::Allow(permit) => match permit.audited_denial() {
            Some(denied) => format!("audit {}", denied.reason().as_str()),
            None if !permit.opaque() => format!("allow {}, inside only", name(permit)),
            None => format!("allow {}", name(permit)),
        },
    }
}

fn name(permit: &Permit) -> &str {
    permit.rule().map_or("nothing", |rule| rule)
}

fn check(set: &PolicySet, cases: &[(&str, &str)]) {
    for (line, expected) in cases {
        assert_eq!(
            said(&decide_for(set, "bot", None, line)),
            *expected,
            "{line}"
        );
    }
}

fn permit(set: &PolicySet, line: &str) -> Permit {
    match decide_for(set, "bot", None, line) {
        Decision::Allow(permit) => permit,
        Decision::Deny(denied) => panic!("{line}: {denied}"),
    }
}

/// What the permit says of addresses: `ok`, `audit CODE` or `deny CODE`.
fn check_addresses(permit: &Permit, cases: &[(&str, &str)]) {
    for (address, expected) in cases {
        let said = match permit.address(address.parse().expect(address)) {
            Ok(None) => "ok".to_owned(),
            Ok(Some(denied)) => format!("audit {}", denied.reason()),
            Err(denied) => format!("deny {}", denied.reason()),
        };
        assert_eq!(said, *expected, "{address}");
    }
}

/// A global document with these members.
fn whole(rules: &str) -> PolicySet {
    policy(&format!("version: 1\n{rules}"))
}

/// What most changes begin with.
const BASE: &str = "rules:
  - {name: models, action: allow, agents: [bot], hosts: [api.example.com], ports: [443]}
  - {name: web, action: allow, agents: any, hosts: [\"*.web.example\"], ports: [80], methods: [GET]}
";
