//! Keys as they are made, read, chosen and refused.
use super::*;

#[test]
fn keys_are_generated_and_read_again() {
    let pem = generate_ed25519().expect("a key");
    assert_ne!(pem, generate_ed25519().expect("another key"));
    assert!(pem.lines().all(|line| line.len() <= 64));
    let key = SigningKey::from_pem(&pem).expect("the key");
    assert_eq!(
        key.verifying_key().id(),
        VerifyingKey::from_pem(&pem).expect("the key").id()
    );
    // The published half is the same key, and holds nothing of the private one.
    let jwks = public_jwks([
        key.verifying_key(),
        &VerifyingKey::from_secret(SECRET).expect("a secret"),
    ]);
    let set = KeySet::parse(&jwks).expect("the set");
    assert_eq!(set.keys.len(), 1, "a secret is never published");
    assert_eq!(set.keys[0].id(), key.verifying_key().id());
    assert!(!jwks.contains("\"d\"") && !jwks.contains("\"k\"") && !jwks.contains("oct"));
    let shown = format!("{key:?} {:?}", VerifyingKey::from_secret(SECRET));
    assert!(
        !shown.contains(SECRET) && !shown.contains("material"),
        "{shown}"
    );
}

#[test]
fn shared_secrets() {
    assert_eq!(
        VerifyingKey::from_secret("changeme")
            .expect_err("a refusal")
            .to_string(),
        "the shared secret has 8 bytes, and at least 32 are needed: write the output of `openssl rand -hex 32`"
    );
    assert_eq!(
        VerifyingKey::from_secret(&"a".repeat(31)).expect_err("short"),
        KeyError::ShortSecret(31)
    );
    assert!(VerifyingKey::from_secret(&"a".repeat(32)).is_ok());
    for padded in [
        format!("{SECRET}\n"),
        format!(" {SECRET}"),
        format!("{SECRET}\r\n"),
    ] {
        assert_eq!(
            VerifyingKey::from_secret(&padded).expect_err("white space"),
            KeyError::PaddedSecret
        );
    }
    // The bytes of the text are the key: `forge` does not decode hexadecimal either.
    assert_eq!(
        code_of(&forge(r#"{"alg":"HS256"}"#, &good_claims().to_string())),
        "ok"
    );
}

#[test]
fn which_key() {
    let claims = good_claims().to_string();
    let secret = |id: &str| {
        VerifyingKey::from_secret(SECRET)
            .and_then(|key| key.with_id(id))
            .expect("a key")
    };
    let other = VerifyingKey::from_secret(&"o".repeat(32))
        .and_then(|key| key.with_id("other"))
        .expect("a key");
    let unnamed = forge(r#"{"alg":"HS256"}"#, &claims);
    let named = forge(r#"{"alg":"HS256","kid":"ours"}"#, &claims);
    let strange = forge(r#"{"alg":"HS256","kid":"strange"}"#, &claims);
    let of = |token: &str, verifier: &TokenVerifier| {
        verifier
            .verify(token, NOW)
            .map_or_else(|error| error.code(), |_| "ok")
    };

    let one = with_keys([secret("ours")]);
    assert_eq!(of(&unnamed, &one), "ok", "no kid, and one key fits");
    assert_eq!(of(&named, &one), "ok");
    assert_eq!(of(&strange, &one), "unknown_key");
    let two = with_keys([secret("ours"), other.clone()]);
    assert_eq!(
        of(&unnamed, &two),
        "unknown_key",
        "no kid, and two keys fit"
    );
    assert_eq!(of(&named, &two), "ok");
    let any = with_keys([secret("ours").for_any_kid(), other]);
    assert_eq!(of(&strange, &any), "ok", "one key stands in for any id");
    let none = TokenVerifier::new(VerifyingKeys::new(), VerifierSettings::default());
    assert_eq!(of(&unnamed, &none), "unknown_key", "no keys");
}

/// An exchanged token of our own holds while the keys of all that it comes from
/// do, each of its own issuer.
#[test]
fn an_exchanged_token_does_not_outlive_the_keys_of_its_parents() {
    const IDP: &str = "https://idp.test";
    let ours = || VerifyingKey::from_secret(SECRET).expect("a secret");
    let old = || VerifyingKey::from_secret(&"o".repeat(32)).expect("a secret");
    let named = |letter: &str, name: &str| {
        let key = VerifyingKey::from_secret(&letter.repeat(32)).expect("a secret");
        key.with_id(name).expect("a name")
    };
    let other = |issuer: &str| TrustedIssuer {
        published: false,
        ..TrustedIssuer::own(issuer, "agentport")
    };
    type Others = Vec<(TrustedIssuer, VerifyingKey)>;
    let cached = |own: TrustedIssuer, keys: Vec<VerifyingKey>, others: Others| {
        let keys = VerifyingKeys::new().with(own, keys).expect("keys");
        let all = others.into_iter().fold(keys, |keys, (issuer, key)| {
            keys.with(issuer, [key]).expect("more keys")
        });
        let verifier = TokenVerifier::new(all, VerifierSettings::default());
        CachedVerifier::new(verifier, CacheSettings::default())
    };
    let (idp, until) = (named("i", "1"), NOW + 10);
    let mut claims = good_claims();
    claims["exchanged_from"] = json!([
        {"kid": old().id().as_ref(), "jti": "nearer"},
        {"iss": IDP, "kid": "1", "jkt": idp.print().as_ref(), "jti": "first"},
    ]);
    let header = json!({"alg": "HS256", "kid": ours().id().as_ref()}).to_string();
    let token = forge(&header, &claims.to_string());
    let whole = cached(
        TrustedIssuer::default(),
        vec![ours(), old()],
        vec![(other(IDP), idp.clone())],
    );
    let who = whole.verify(&token, NOW).expect("a principal").0;
    assert!(whole.trusts(&who, NOW));
    let partner = || TrustedIssuer {
        published: false,
        ..TrustedIssuer::default()
    };
    for (case, own, keys, others, lost) in [
        (
            "another key of the issuer beside it",
            TrustedIssuer::default(),
            vec![ours(), old()],
            vec![(other(IDP), idp.clone()), (other(IDP), named("j", "2"))],
            None,
        ),
        (
            "the issuer is gone",
            TrustedIssuer::default(),
            vec![ours(), old()],
            vec![],
            Some((IDP, "1")),
        ),
        (
            "its key is gone",
            TrustedIssuer::default(),
            vec![ours(), old()],
            vec![(other(IDP), named("j", "2"))],
            Some((IDP, "1")),
        ),
        (
            "another key has its name",
            TrustedIssuer::default(),
            vec![ours(), old()],
            vec![(other(IDP), named("j", "1"))],
            Some((IDP, "1")),
        ),
        (
            "its key is another issuer's",
            TrustedIssuer::default(),
            vec![ours(), old()],
            vec![(other("https://other.test"), idp.clone())],
            Some((IDP, "1")),
        ),
        (
            "our own key of the nearer one is gone",
            TrustedIssuer::default(),
            vec![ours()],
            vec![(other(IDP), idp.clone())],
            Some(("agentport", old().id().as_ref())),
        ),
        (
            "another gateway's, whose business it is",
            partner(),
            vec![ours()],
            vec![],
            None,
        ),
    ] {
        let verifier = cached(own, keys, others);
        let expected = lost.map(|(issuer, key): (&str, &str)| TokenError::LostParent {
            facts: Facts {
                agent: AgentId::parse("bot-01").ok(),
                jti: Some("j1".into()),
            },
            issuer: Some(issuer.to_owned()),
            key: key.to_owned(),
        });
        assert_eq!(verifier.verify(&token, NOW).err(), expected, "{case}");
        assert_eq!(verifier.trusts(&who, NOW), lost.is_none(), "{case}");
    }
    // One with an end takes it along, also out of what is remembered.
    let ending = cached(
        TrustedIssuer::default(),
        vec![ours(), old()],
        vec![(other(IDP), idp.valid_until(until))],
    );
    for (now, holds) in [(until - 1, true), (until, false)] {
        assert_eq!(ending.verify(&token, now).is_ok(), holds, "{now}");
        assert_eq!(ending.trusts(&who, now), holds, "{now}");
    }
}

#[test]
fn a_key_is_good_until_its_end_and_no_longer() {
    let until = NOW + 10;
    let key = VerifyingKey::from_secret(SECRET).expect("a key");
    let keys = VerifyingKeys::new()
        .with(TrustedIssuer::default(), [key.clone().valid_until(until)])
        .expect("keys");
    let verifier = TokenVerifier::new(keys, VerifierSettings::default());
    let token = forge(r#"{"alg":"HS256"}"#, &good_claims().to_string());
    let named = json!({"alg": "HS256", "kid": key.id().as_ref()}).to_string();
    let named = forge(&named, &good_claims().to_string());
    let cached = CachedVerifier::new(verifier.clone(), CacheSettings::default());
    let who = cached.verify(&token, NOW).expect("a principal").0;
    for (case, now, holds) in [
        ("its last second", until - 1, true),
        ("its end", until, false),
        ("later", until + 1000, false),
    ] {
        for token in [&token, &named] {
            let alone = verifier.verify(token, now).map_err(|error| error.code());
            assert_eq!(alone.is_ok(), holds, "{case}: {alone:?}");
            assert!(holds || alone == Err("unknown_key"), "{case}");
            // What is remembered is not remembered for longer.
            assert_eq!(cached.verify(token, now).is_ok(), holds, "{case}");
        }
        assert_eq!(cached.trusts(&who, now), holds, "{case}");
        assert_eq!(cached.keys_now().trusts(&who, now), holds, "{case}");
    }
    assert_eq!(cached.keys().first_end(), Some(until));
    let left = cached.keys().without_ended(until - 1);
    assert_eq!(left.first_end(), Some(until), "whoever comes late finds it");
    assert_eq!(cached.keys().without_ended(until).first_end(), None);
    assert!(!cached.keys().without_ended(until - 1).is_empty());
    assert!(cached.keys().without_ended(until).is_empty());
}

#[test]
fn keys_that_are_refused() {
    let jwk = |text: &str| VerifyingKey::from_jwk(text).expect_err(text).to_string();
    let x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
    for (case, text, says) in [
        ("no JSON", "hello".to_owned(), "is not valid JSON"),
        ("a set", r#"{"keys":[]}"#.into(), "this is a JWK Set"),
        (
            "a member twice",
            format!(r#"{{"kty":"OKP","kty":"OKP","crv":"Ed25519","x":"{x}"}}"#),
            "has a member twice",
        ),
        (
            "no type",
            format!(r#"{{"crv":"Ed25519","x":"{x}"}}"#),
            "`kty` is missing",
        ),
        (
            "no curve",
            format!(r#"{{"kty":"OKP","x":"{x}"}}"#),
            "`crv` is missing",
        ),
        (
            "no key",
            r#"{"kty":"OKP","crv":"Ed25519"}"#.into(),
            "`x` is missing",
        ),
        (
            "short",
            r#"{"kty":"OKP","crv":"Ed25519","x":"AAAA"}"#.into(),
            "`x` has not 32 bytes",
        ),
        (
            "padded",
            format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{x}="}}"#),
            "`x` is not base64url",
        ),
        (
            "a contradiction",
            format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{x}","alg":"HS256"}}"#),
            "`alg` HS256 contradicts `kty`",
        ),
        (
            "a curve for agreement",
            format!(r#"{{"kty":"OKP","crv":"X25519","x":"{x}"}}"#),
            "`crv` \"X25519\" is not supported",
        ),
        (
            "for encryption",
            format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{x}","use":"enc"}}"#),
            "`use` is \"enc\"",
        ),
        (
            "for signing only",
            format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{x}","key_ops":["sign"]}}"#),
            "`key_ops` does not hold",
        ),
        (
            "null for an id",
            format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{x}","kid":null}}"#),
            "`kid` is not a string",
        ),
        (
            "an empty id",
            format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{x}","kid":""}}"#),
            "1 to 256 bytes",
        ),
        (
            "small order",
            format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{}"}}"#, b64([0; 32])),
            "small order",
        ),
        (
            "a short secret",
            r#"{"kty":"oct","k":"c2hvcnQ"}"#.into(),
            "has 5 bytes",
        ),
        (
            "RSA as a secret",
            format!(
                r#"{{"kty":"RSA","n":"{}","e":"AQAB","alg":"HS256"}}"#,
                b64([0xff; 256])
            ),
            "RSA is not for HS256",
        ),
        (
            "1024 bits",
            format!(r#"{{"kty":"RSA","n":"{}","e":"AQAB"}}"#, b64([0xff; 128])),
            "1024 bits",
        ),
        (
            "2047 bits",
            format!(r#"{{"kty":"RSA","n":"{}","e":"AQAB"}}"#, b64([0x7f; 256])),
            "2047 bits",
        ),
        (
            "exponent 1",
            format!(r#"{{"kty":"RSA","n":"{}","e":"AQ"}}"#, b64([0xff; 256])),
            "modulus or exponent",
        ),
        (
            "an even exponent",
            format!(r#"{{"kty":"RSA","n":"{}","e":"AQAA"}}"#, b64([0xff; 256])),
            "modulus or exponent",
        ),
        (
            "an even modulus",
            format!(r#"{{"kty":"RSA","n":"{}","e":"AQAB"}}"#, b64([0xfe; 256])),
            "modulus or exponent",
        ),
    ] {
        let error = jwk(&text);
        assert!(error.contains(says), "{case}: {error}");
    }
    let pem = |text: &str| SigningKey::from_pem(text).expect_err(text);
    let block = |label: &str| ED25519_PRIVATE.replace("PRIVATE KEY", label);
    assert_eq!(pem("hello"), KeyError::NotPem);
    assert_eq!(pem(&ED25519_PRIVATE[..60]), KeyError::NotPem);
    assert_eq!(pem(&ED25519_PRIVATE.repeat(2)), KeyError::SeveralPem);
    assert_eq!(pem(&block("EC PRIVATE KEY")), KeyError::NotPkcs8);
    assert_eq!(pem(&block("ENCRYPTED PRIVATE KEY")), KeyError::EncryptedPem);
    assert_eq!(pem(&block("CERTIFICATE")), KeyError::Certificate);
    assert_eq!(pem(&block("PUBLIC KEY")), KeyError::UnsupportedPem);
    assert_eq!(
        pem(&ED25519_PRIVATE.replace("MC4C", "MC0C")),
        KeyError::DamagedPrivateKey
    );
}

/// What OpenSSL writes, as keys of each kind.
#[test]
fn keys_as_pem() {
    for (case, pem, algorithm) in [
        (
            "Ed25519",
            "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n",
            Algorithm::EdDsa,
        ),
        (
            "P-256, the key of RFC 7515 A.3",
            "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEf83OJ3D2xF1Bg8vub9tLe1gHMzV7\n6e8Tus9uPHvRVEXH8UTNG72bfocs3+257rn0s2ldbqkLJK2KRiMohYjlrQ==\n-----END PUBLIC KEY-----\n",
            Algorithm::Es256,
        ),
    ] {
        let key = VerifyingKey::from_pem(pem).expect(case);
        assert_eq!(key.algorithm(), algorithm, "{case}");
        // Through a set and back it is the same key.
        let set = KeySet::parse(&public_jwks([&key])).expect(case);
        assert_eq!(set.keys[0].id(), key.id(), "{case}");
    }
    assert_eq!(
        SigningKey::from_pem("-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n").expect_err("public"),
        KeyError::NotPrivate
    );
    for (case, algorithm, expected) in [
        (
            "ECDSA on P-256",
            &rcgen::PKCS_ECDSA_P256_SHA256,
            Ok(Algorithm::Es256),
        ),
        (
            "Ed25519, PKCS#8 version 2",
            &rcgen::PKCS_ED25519,
            Ok(Algorithm::EdDsa),
        ),
        ("ECDSA on P-384", &rcgen::PKCS_ECDSA_P384_SHA384, Err(())),
    ] {
        let pair = rcgen::KeyPair::generate_for(algorithm).expect(case);
        let private = VerifyingKey::from_pem(&pair.serialize_pem());
        assert_eq!(
            private
                .as_ref()
                .map(VerifyingKey::algorithm)
                .map_err(|_| ()),
            expected,
            "{case}"
        );
        let public = VerifyingKey::from_pem(&pair.public_key_pem());
        assert_eq!(
            private.ok().map(|key| Arc::clone(key.id())),
            public.ok().map(|key| Arc::clone(key.id())),
            "{case}: both halves have one id"
        );
    }
}

#[test]
fn sets_of_keys() {
    let x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
    let ed = |more: &str| format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{x}"{more}}}"#);
    let set = |items: &[String]| KeySet::parse(&format!(r#"{{"keys":[{}]}}"#, items.join(",")));

    let mixed = set(&[
        ed(r#","use":"enc""#),
        ed(r#","kid":"a","alg":"Ed25519","key_ops":["verify"]"#),
        ed(r#","kid":"b","d":"AAAA","key_ops":["sign"]"#),
        r#"{"kty":"EC","crv":"P-521","x":"AA","y":"AA"}"#.into(),
        r#"{"kty":"AKP"}"#.into(),
        ed(r#","kid":"c","alg":"ES512""#),
    ])
    .expect("a set");
    let ids: Vec<&str> = mixed.keys.iter().map(|key| &**key.id()).collect();
    assert_eq!(ids, ["a", "b"]);
    assert_eq!(
        mixed.skipped,
        [
            "keys[0]: `use` is \"enc\", not \"sig\"",
            "keys[3]: `crv` \"P-521\" is not supported",
            "keys[4]: `kty` \"AKP\" is not supported",
            "keys[5]: `alg` \"ES512\" is not supported",
        ]
    );

    let says = |result: Result<KeySet, KeyError>| result.expect_err("a refusal").to_string();
    assert_eq!(
        says(set(&[])),
        "there is no key that tokens can be verified with"
    );
    assert_eq!(
        says(set(&[ed(r#","use":"enc""#)])),
        "there is no key that tokens can be verified with"
    );
    assert_eq!(
        says(set(&[ed(""), ed(r#","alg":"RS256""#)])),
        "keys[1]: `alg` RS256 contradicts `kty` \"OKP\""
    );
    assert_eq!(says(set(&["1".into()])), "keys[0]: is not a JSON object");
    assert!(
        says(set(&[ed(r#","kid":"a""#), ed(r#","kid":"a""#)]))
            .contains("two keys have the id \"a\"")
    );
    assert!(says(set(&[ed(""), ed("")])).contains("two keys have the id"));
    assert_eq!(
        says(KeySet::parse("{}")),
        "the JWKS: write {\"keys\": [...]}"
    );
}
