//! The runbook in `deploy/README.md` has every reason that the gateway gives for
//! a refusal or for the end of a tunnel, and none that it does not give.
//!
//! The codes are read out of the source, where each stands once, as a word: a
//! new one fails this test until the runbook says what to do.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The functions that turn a reason into its word, by file.
const FUNCTIONS: [(&str, &str, usize); 7] = [
    ("src/gate/denial.rs", "fn code(", 2),
    (
        "src/policy/decision.rs",
        "fn as_str(self) -> &'static str",
        1,
    ),
    ("src/identity/error.rs", "fn code(", 1),
    ("src/identity/credential.rs", "fn code(", 1),
    ("src/identity/certificate.rs", "fn code(", 1),
    ("src/identity/agent_key.rs", "fn code(", 1),
    // Of a certificate that held at its handshake and no longer does.
    ("src/proxy/tls.rs", "fn certificate_code(", 1),
];

/// Where the gate writes a word itself: what stands before it.
const WRITTEN: [&str; 5] = [
    "code: \"",
    "bad_credential(\"",
    "bad_certificate(\"",
    "Err(\"",
    "const REVOKED: &str = \"",
];

#[test]
fn the_runbook_has_every_reason() {
    let reasons = reasons();
    for known in [
        "no_rule",
        "address_metadata",
        "expired",
        "revoked",
        "sni_mismatch",
        "certificate_mismatch",
        "issuer_unavailable",
        "user_mismatch",
    ] {
        assert!(
            reasons.contains(known),
            "{known} was not found: {reasons:?}"
        );
    }
    assert!(reasons.len() > 80, "only these were found: {reasons:?}");
    let explained = explained(&read("deploy/README.md"));
    let missing: Vec<_> = reasons.difference(&explained).collect();
    assert!(missing.is_empty(), "deploy/README.md lacks {missing:?}");
    let gone: Vec<_> = explained.difference(&reasons).collect();
    assert!(
        gone.is_empty(),
        "deploy/README.md explains what the gateway never says: {gone:?}"
    );
}

fn reasons() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (file, function, count) in FUNCTIONS {
        let text = read(file);
        let bodies: Vec<&str> = text.split(function).skip(1).collect();
        assert!(bodies.len() >= count, "{file} has another {function}");
        for body in bodies.into_iter().take(count) {
            // As far as the function goes, which is indented once or not at all.
            let body = body.split("\n    }\n").next().expect("a body");
            let body = body.split("\n}\n").next().expect("a body");
            let body = body.split_whitespace().collect::<Vec<_>>().join(" ");
            found.extend(words_after(&body, "=> \""));
            found.extend(words_after(&body, "=> { \""));
        }
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/gate");
    found.extend(words_after(&read("src/proxy/tls.rs"), "return Err(\""));
    for entry in fs::read_dir(folder).expect("the gate is there") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy();
        if !name.ends_with(".rs") || name.contains("test") {
            continue;
        }
        let text = read(&format!("src/gate/{name}"));
        let own = text.split("#[cfg(test)]").next().expect("a beginning");
        for before in WRITTEN {
            found.extend(words_after(own, before));
        }
    }
    found
}

/// Words of small letters and underscores that stand in quotes after this.
fn words_after(text: &str, before: &str) -> BTreeSet<String> {
    text.split(before)
        .skip(1)
        .filter_map(|rest| rest.split_once('"'))
        .map(|(word, _)| word)
        .filter(|word| word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
        .map(str::to_owned)
        .collect()
}

/// The codes in the first column of the tables below "Reasons".
fn explained(text: &str) -> BTreeSet<String> {
    let (_, section) = text.split_once("\n### Reasons").expect("the section");
    let section = section.split("\n### ").next().expect("its text");
    section
        .lines()
        .filter(|line| line.starts_with("| `"))
        .filter_map(|line| line.split('|').nth(1))
        .flat_map(|cell| cell.split('`').skip(1).step_by(2).map(str::to_owned))
        .collect()
}

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
