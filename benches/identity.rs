//! What it costs to know who asks: verifying, remembering and issuing.

use std::hint::black_box;
use std::time::Duration;

use agentport::egress::{AgentId, Destination};
use agentport::identity::{
    CacheSettings, CachedVerifier, Credential, IssueRequest, SigningKey, TokenIssuer,
    TokenVerifier, TrustedIssuer, VerifierSettings, VerifyingKeys, generate_ed25519,
};
use criterion::{Criterion, criterion_group, criterion_main};

const NOW: u64 = 1_767_225_600;
const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn request() -> IssueRequest {
    let destinations = ["api.example.com", "*.example.org", "10.0.0.0/8"];
    IssueRequest {
        agent: AgentId::parse("bot-01").expect("a name"),
        tenant: None,
        destinations: Some(
            destinations
                .map(|raw| Destination::parse(raw).expect("a destination"))
                .to_vec(),
        ),
        lifetime: Duration::from_secs(900),
        audience: None,
        jti: 7,
        actors: Vec::new(),
        scope: None,
        client: None,
    }
}

fn verifier(issuer: &TokenIssuer) -> TokenVerifier {
    let keys = VerifyingKeys::new()
        .with(TrustedIssuer::default(), [issuer.verifying_key().clone()])
        .expect("keys");
    TokenVerifier::new(keys, VerifierSettings::default())
}

fn identity(bench: &mut Criterion) {
    let ed25519 = SigningKey::from_pem(&generate_ed25519().expect("a key")).expect("a key");
    let secret = SigningKey::from_secret(SECRET).expect("a secret");
    let mut group = bench.benchmark_group("identity");
    for (name, key) in [("EdDSA", ed25519), ("HS256", secret)] {
        let issuer = TokenIssuer::new(key, "agentport", "agentport");
        let token = issuer.issue(&request(), NOW).expect("a token");
        let verifier = verifier(&issuer);
        group.bench_function(format!("verify {name}"), |b| {
            b.iter(|| {
                verifier
                    .verify(black_box(&token), NOW)
                    .expect("a principal")
            });
        });
        group.bench_function(format!("issue {name}"), |b| {
            b.iter(|| issuer.issue(black_box(&request()), NOW).expect("a token"));
        });
        let cached = CachedVerifier::new(verifier, CacheSettings::default());
        group.bench_function(format!("remembered {name}"), |b| {
            b.iter(|| cached.verify(black_box(&token), NOW).expect("a principal"));
        });
        let header = format!("Bearer {token}");
        group.bench_function(format!("credential {name}"), |b| {
            b.iter(|| Credential::parse(black_box(header.as_bytes())).expect("a credential"));
        });
    }
    group.finish();
}

criterion_group!(benches, identity);
criterion_main!(benches);
