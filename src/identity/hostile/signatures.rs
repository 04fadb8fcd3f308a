//! Signatures: each has one form, and the vectors of the RFCs hold.
use super::*;

#[test]
fn a_public_key_is_no_shared_secret() {
    let verifier = verifier();
    let public = VerifyingKey::from_pem(ED25519_PRIVATE).expect("a key");
    let jwks: Value = serde_json::from_str(&public_jwks([&public])).expect("JSON");
    let x = URL_SAFE_NO_PAD
        .decode(jwks["keys"][0]["x"].as_str().expect("x"))
        .expect("base64");
    // With and without naming the key: its bytes sign as if they were a secret.
    for header in [
        json!({"alg": "HS256", "kid": public.id().as_ref()}),
        json!({"alg": "HS256"}),
        json!({"alg": "EdDSA", "kid": public.id().as_ref()}),
    ] {
        let signed = format!(
            "{}.{}",
            b64(header.to_string()),
            b64(good_claims().to_string())
        );
        for secret in [x.as_slice(), ED25519_PRIVATE.as_bytes()] {
            let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
            let token = format!("{signed}.{}", b64(hmac::sign(&key, signed.as_bytes())));
            let error = verifier.verify(&token, NOW).expect_err("a refusal");
            assert!(
                matches!(error.code(), "wrong_algorithm" | "bad_signature"),
                "{header}"
            );
        }
    }
}

#[test]
fn every_bit_of_a_token_counts() {
    for (kind, token) in [
        ("EdDSA", issuer().issue(&request(), NOW).expect("a token")),
        (
            "HS256",
            forge(r#"{"alg":"HS256"}"#, &good_claims().to_string()),
        ),
    ] {
        let verifier = verifier();
        assert!(verifier.verify(&token, NOW).is_ok(), "{kind}");
        let (signed, signature) = token.rsplit_once('.').expect("segments");
        let raw = URL_SAFE_NO_PAD.decode(signature).expect("base64");
        for bit in 0..raw.len() * 8 {
            let mut flipped = raw.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let token = format!("{signed}.{}", b64(&flipped));
            assert_eq!(
                verifier.verify(&token, NOW),
                Err(TokenError::BadSignature),
                "{kind} {bit}"
            );
        }
        for length in 0..raw.len() {
            let token = format!("{signed}.{}", b64(&raw[..length]));
            assert_eq!(
                verifier.verify(&token, NOW),
                Err(TokenError::BadSignature),
                "{kind} {length}"
            );
        }
        let longer = format!("{signed}.{}", b64([&raw[..], &[0]].concat()));
        assert_eq!(
            verifier.verify(&longer, NOW),
            Err(TokenError::BadSignature),
            "{kind}, longer"
        );
        for at in 0..signed.len() {
            let mut bytes = token.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let token = String::from_utf8(bytes).expect("ASCII");
            assert!(verifier.verify(&token, NOW).is_err(), "{kind} byte {at}");
        }
    }
}

/// RFC 8032, 5.1.7: S must be under the group's order, or each signature has
/// a second form.
#[test]
fn a_second_form_of_an_ed25519_signature() {
    const ORDER: [u8; 32] = [
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde,
        0x14, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
    ];
    let token = issuer().issue(&request(), NOW).expect("a token");
    let (signed, signature) = token.rsplit_once('.').expect("segments");
    let mut raw = URL_SAFE_NO_PAD.decode(signature).expect("base64");
    let mut carry = 0;
    for (byte, order) in raw[32..].iter_mut().zip(ORDER) {
        let sum = u16::from(*byte) + u16::from(order) + carry;
        *byte = sum.to_le_bytes()[0];
        carry = sum >> 8;
    }
    assert_eq!(carry, 0);
    let token = format!("{signed}.{}", b64(raw));
    assert_eq!(
        verifier().verify(&token, NOW),
        Err(TokenError::BadSignature)
    );
}

/// RFC 8037, A.1 to A.4.
#[test]
fn the_vector_of_rfc_8037() {
    let jwk = r#"{"kty":"OKP","crv":"Ed25519",
        "d":"nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A",
        "x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
    let key = VerifyingKey::from_jwk(jwk).expect("a key");
    assert_eq!(&**key.id(), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    let message = b"eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc";
    let signature = URL_SAFE_NO_PAD
        .decode("hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg")
        .expect("base64");
    assert!(key.confirms(message, &signature));
    assert!(!key.confirms(&message[1..], &signature));
    // The same key, as the PEM of these tests.
    let pem = VerifyingKey::from_pem(ED25519_PRIVATE).expect("a key");
    assert_eq!(pem.id(), key.id());
    assert!(pem.confirms(message, &signature));
}

/// RFC 7515, A.1; RFC 7638, 3.1 for the thumbprint of an RSA key.
#[test]
fn the_vectors_of_rfc_7515_and_7638() {
    let jwk = r#"{"kty":"oct","k":"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"}"#;
    let key = VerifyingKey::from_jwk(jwk).expect("a key");
    assert_eq!(key.algorithm(), Algorithm::Hs256);
    let message = b"eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    let signature = URL_SAFE_NO_PAD
        .decode("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk")
        .expect("base64");
    assert!(key.confirms(message, &signature));
    assert!(!key.confirms(message, &signature[..31]));

    let rsa = r#"{"kty":"RSA","alg":"RS256","e":"AQAB","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"}"#;
    let key = VerifyingKey::from_jwk(rsa).expect("a key");
    assert_eq!(&**key.id(), "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs");
}

/// RFC 7515, A.2 and A.3: RS256 and ES256.
#[test]
fn the_asymmetric_vectors_of_rfc_7515() {
    let claims = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    let rsa = r#"{"kty":"RSA","n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ","e":"AQAB"}"#;
    let rs256 = "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw";
    let ec = r#"{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#;
    let es256 =
        "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
    for (algorithm, jwk, header, signature) in [
        (Algorithm::Rs256, rsa, "eyJhbGciOiJSUzI1NiJ9", rs256),
        (Algorithm::Es256, ec, "eyJhbGciOiJFUzI1NiJ9", es256),
    ] {
        let key = VerifyingKey::from_jwk(jwk).expect("a key");
        assert_eq!(key.algorithm(), algorithm);
        let mut signature = URL_SAFE_NO_PAD.decode(signature).expect("base64");
        let message = format!("{header}.{claims}");
        assert!(key.confirms(message.as_bytes(), &signature), "{algorithm}");
        signature[9] ^= 1;
        assert!(!key.confirms(message.as_bytes(), &signature), "{algorithm}");
        assert!(
            !key.confirms(message.as_bytes(), &[0; 64]),
            "{algorithm}: all zero"
        );
    }
}

/// An ECDSA signature that holds has a second form, with the other root for
/// `s`. Both are signatures of that key, honest signers write either, and a
/// token is known by its `jti` and its claims and not by its bytes: so both are
/// accepted. Whatever else looks like one is none.
#[test]
fn forms_of_an_ecdsa_signature() {
    // The order of P-256 (SEC 2, 2.4.2).
    const ORDER: [u8; 32] = [
        0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc,
        0xe6, 0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
    ];
    let jwk = r#"{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#;
    let key = VerifyingKey::from_jwk(jwk).expect("a key");
    let message = b"eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    let good = URL_SAFE_NO_PAD
        .decode("DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q")
        .expect("base64");
    let (r, s) = good.split_at(32);
    let mut other_root = ORDER;
    let mut borrow = 0;
    for (digit, taken) in other_root.iter_mut().zip(s).rev() {
        let left = 256 + i32::from(*digit) - i32::from(*taken) - borrow;
        borrow = i32::from(left < 256);
        *digit = u8::try_from(left % 256).expect("a byte");
    }
    // The top bits of both numbers are set, so that each has a leading zero.
    let der = [&[0x30, 0x45, 0x02, 0x20][..], r, &[0x02, 0x21, 0x00], s].concat();
    let padded = [&[0][..], r, &[0], s].concat();
    for (case, signature, holds) in [
        ("as it was made", good.clone(), true),
        ("the other root", [r, &other_root].concat(), true),
        ("DER", der, false),
        ("numbers with a zero in front", padded, false),
        ("a byte more", [&good[..], &[0]].concat(), false),
        ("a byte less", good[..63].to_vec(), false),
        ("nothing", Vec::new(), false),
        ("r is zero", [&[0; 32], s].concat(), false),
        ("s is zero", [r, &[0; 32]].concat(), false),
        ("both are zero", vec![0; 64], false),
        ("r is the order", [&ORDER, s].concat(), false),
        ("s is the order", [r, &ORDER].concat(), false),
        ("both are the order", [ORDER, ORDER].concat(), false),
        ("r and s changed over", [s, r].concat(), false),
    ] {
        assert_eq!(key.confirms(message, &signature), holds, "{case}");
    }
}

/// A 2048-bit key and its signatures over `header.claims`, made with OpenSSL
/// 3: each holds under its own algorithm and no other.
#[test]
fn rsa_as_openssl_writes_it() {
    let spki = "-----BEGIN PUBLIC KEY-----\nMIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA4eLZmkXaqHQWB/No/B0e\nJkbQAED65S2QtoowXLSD9lgl/FFhmMO57ADi+dkd4cW0QqBB6K6zMWQW4Suk6cAy\n43zYjT+U/54eyEUBTryxQOABxCkcPeceqpRQW/+RqbLcTeue3Hr6Wl+9igiGk6i2\nMvbjSGCQQwNEYFvXDvDvtT/x5Hva35ss9tkkRLkJ7Bo6aeMIWqw3c1pultWLcliW\nD1XTQGyidI4mQ4jxZuN3fGPjam6z7jHGtF0tmBIj667yRkv3YYmXlEVOC6juGPSS\nRko6Av2nSAmZBYYNKFp7CFKfrDNdhuFRkZH9G/8NagOiE4x98f26pL1rYl2tOSWO\nXwIDAQAB\n-----END PUBLIC KEY-----\n";
    let pkcs1 = "-----BEGIN RSA PUBLIC KEY-----\nMIIBCgKCAQEA4eLZmkXaqHQWB/No/B0eJkbQAED65S2QtoowXLSD9lgl/FFhmMO5\n7ADi+dkd4cW0QqBB6K6zMWQW4Suk6cAy43zYjT+U/54eyEUBTryxQOABxCkcPece\nqpRQW/+RqbLcTeue3Hr6Wl+9igiGk6i2MvbjSGCQQwNEYFvXDvDvtT/x5Hva35ss\n9tkkRLkJ7Bo6aeMIWqw3c1pultWLcliWD1XTQGyidI4mQ4jxZuN3fGPjam6z7jHG\ntF0tmBIj667yRkv3YYmXlEVOC6juGPSSRko6Av2nSAmZBYYNKFp7CFKfrDNdhuFR\nkZH9G/8NagOiE4x98f26pL1rYl2tOSWOXwIDAQAB\n-----END RSA PUBLIC KEY-----\n";
    let small = "-----BEGIN PUBLIC KEY-----\nMIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDVYIiCID/znQUEfdnLSfQQXHzp\neUpJFM+7i/vuo1EdC1mxMuWtSnx+Iezo5LLtcetZGXSrj0Ho7ftsBY8Bgho4ca9l\ntcuTzVmZJXHVPc8DlLwM8vE2rpWPT1sSa580qSNMw3TYOd8+kOmGQ2jib2QiI5jN\nCuawW1PUrWMTGnggDQIDAQAB\n-----END PUBLIC KEY-----\n";
    let key = VerifyingKey::from_pem(spki).expect("a key");
    assert_eq!(key.algorithm(), Algorithm::Rs256);
    assert_eq!(VerifyingKey::from_pem(pkcs1).expect("a key").id(), key.id());
    assert_eq!(
        VerifyingKey::from_pem(small).expect_err("small"),
        KeyError::RsaSize(1024)
    );
    let jwks: Value = serde_json::from_str(&public_jwks([&key])).expect("JSON");
    let signatures = [
        (
            "RS256",
            "PCO-vqmucCozb-PCNs1k2IV8rGUSMxOSm-H1uK2GlSFx5lcQSd-BhuKqM1SUvgOfzF5jo-w53XqQpdcfwcbPmH3MCOAwYTLk9ZcCneqOqK9zb_riztZnVuXlzlyCcuJlJ4ZBagPy_Xq9wMDKhVIWQ-1D8Sfkfdhk_R_cVl_82LLF58N-pNDV677whmOYMcdgWcX0YABCwRm8VR9kD7iLYzA1-ShRlr9IUoaUeAyNq6C7OAWPVlUFTVoRJQvRPJEgI_01LGWY8R8ROgX8udvGm3W8vSq_Ar_yto5G6XYQH4PzhxIyeyYaWOTaq9pZ3PJOK-5Pzfta6aeFrRsyJZzhPw",
        ),
        (
            "RS384",
            "P45Rv_gnB7tahK2SWqKRJEwUzfMnfbbJiUMA-lj2CYLJh5nwEptNzKphDhC7SKjO3DX2_Q3oJmXRJersmSenKu8p3em8cNoM_2iYci167jhSjskUpj86hYOl7thK007aXR3tT4Z88W4gUMWCZ2uHjRKQVuqg3zAZmRn0xOndjkFYLgHmBTF3fF1bW34Kr_yi6h3WIszRWc2gmq9YmgKNBXFKyXinPsi22c6su1YFWKeht7Gjubxg08eXBs1-XBNBByjslRtrx4pUI6gsnrE1Yd3jPU92vjb7K5ZS4E5qtF1FXy58QGj04b1i8Fphuz-EvXK94Y9kAP3YjpdEGbwGFg",
        ),
        (
            "RS512",
            "ye-11dUjUtqIDhNwIo-SU9WzN16KEhvG9QIrQNMWuHn-bt3Nc1OukMjxB_0jXKaoyva-xwSJiZff3UcDfb3jEglZnbncT_Cbpi1grCzmuCgKWMtVVlEakigoKhNs7pGYvBsCU8QBAaK4w0kW25nse_A-jL5bKOSXsrp0yyLLJPpqP1n_m-X_CUnnl_HsL7qYtPqQfIoZ4e8_2051QW9hi8KHFEEmeqqiTOXtD_inEOFixLEC3SQMPaJhT-Yy-EzAX2H4SPBlrAE5S3TufPVCxuKAb9KK2KKxefHPyKCP2yzP5IesHQ2Xblx3JTwQGmHheh82GQSMTFg29v7-m-SNWw",
        ),
        (
            "PS256",
            "qOKj0hOm7bdpPg0gwbxyl0jDWsxmOahgXEXfdeldtHu_AktlgIy-wTriPwO4FIozwrBvN3iMplyECtZgjwqeGCC-xE6MlPuX7rlC1LcP26U65rjBzZ9zwdceFq_XQEPfUSGw1MKcnoi6KTNBoBJGUtcBIHH9FSwFONLgGaoVtcK-F_UokG7oPz-uNO0fPu2gUVf1OwwX-cqIUpBNvAtOXpy-ScUv-y6xa6dHI-5G2H4s9wL6KNk-dAF6wXHC8q4qgx_TyBchGy9-SXEfYflwZZ5JnIo0RDj0XIINaWlS91g1PKE8rFi6nzDN78yWUxVa5fDeo5JH2Ajgp9cT8gFK8w",
        ),
    ];
    for (algorithm, _) in signatures {
        let mut jwk = jwks["keys"][0].clone();
        jwk["alg"] = algorithm.into();
        let key = VerifyingKey::from_jwk(&jwk.to_string()).expect(algorithm);
        assert_eq!(key.algorithm().as_str(), algorithm);
        for (other, signature) in signatures {
            let signature = URL_SAFE_NO_PAD.decode(signature).expect("base64");
            assert_eq!(
                key.confirms(b"header.claims", &signature),
                algorithm == other,
                "{other} by a key for {algorithm}"
            );
        }
    }
}
