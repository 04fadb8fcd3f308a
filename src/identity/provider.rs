//! *ring* behind `jsonwebtoken`: the signers and the verifiers that crate asks a
//! [`CryptoProvider`] for, for the algorithms that a key may be for.
//!
//! The provider is never installed for the process, where whoever is first
//! decides and a missing one panics: its factories are called by name. What a
//! token says and which key it is for is decided elsewhere.

use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind, Result, new_error};
use jsonwebtoken::signature::{self, Signer, Verifier};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind, EncodingKey};
use ring::hmac;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, Ed25519KeyPair, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256,
    RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey,
};

/// Signs HS256 and EdDSA; verifies every [`super::Algorithm`].
///
/// The material of a key is what its constructor in `jsonwebtoken` was given:
/// a secret's bytes; PKCS#8 for an Ed25519 key that signs and its 32 bytes for
/// one that verifies; an uncompressed point; modulus and exponent.
pub(super) static RING: CryptoProvider = CryptoProvider {
    signer_factory: signer,
    verifier_factory: verifier,
    // JWKs are read and written by `jwk`, which asks for none of these.
    key_utils: KeyUtils {
        rsa_pub_components_from_private_key: |_| Err(unsupported()),
        rsa_pub_components_from_public_key: |_| Err(unsupported()),
        ec_pub_components_from_private_key: |_, _| Err(unsupported()),
        ed_pub_components_from_private_key: |_, _| Err(unsupported()),
        compute_digest: |_, _| Err(unsupported()),
    },
};

impl From<super::Algorithm> for Algorithm {
    fn from(algorithm: super::Algorithm) -> Self {
        match algorithm {
            super::Algorithm::EdDsa => Self::EdDSA,
            super::Algorithm::Es256 => Self::ES256,
            super::Algorithm::Rs256 => Self::RS256,
            super::Algorithm::Rs384 => Self::RS384,
            super::Algorithm::Rs512 => Self::RS512,
            super::Algorithm::Ps256 => Self::PS256,
            super::Algorithm::Hs256 => Self::HS256,
        }
    }
}

fn signer(algorithm: &Algorithm, key: &EncodingKey) -> Result<Box<dyn JwtSigner>> {
    if key.family() != algorithm.family() {
        return Err(new_error(ErrorKind::InvalidAlgorithm));
    }
    match algorithm {
        Algorithm::HS256 => Ok(Box::new(Hs256(hmac::Key::new(
            hmac::HMAC_SHA256,
            key.as_bytes(),
        )))),
        Algorithm::EdDSA => {
            let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(key.as_bytes())
                .map_err(|_| new_error(ErrorKind::InvalidEddsaKey))?;
            Ok(Box::new(EdDsa(pair)))
        }
        _ => Err(unsupported()),
    }
}

fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>> {
    use DecodingKeyKind::{RsaModulusExponent, SecretOrDer};
    if key.family() != algorithm.family() {
        return Err(new_error(ErrorKind::InvalidAlgorithm));
    }
    let public = |ring, bytes: &[u8]| UnparsedPublicKey::new(ring, bytes.to_vec());
    let check = match (algorithm, key.kind()) {
        (Algorithm::HS256, SecretOrDer(secret)) => {
            return Ok(Box::new(Hs256(hmac::Key::new(hmac::HMAC_SHA256, secret))));
        }
        (Algorithm::EdDSA, SecretOrDer(bytes)) => Check::Curve(public(&ED25519, bytes)),
        (Algorithm::ES256, SecretOrDer(point)) => {
            Check::Curve(public(&ECDSA_P256_SHA256_FIXED, point))
        }
        (_, RsaModulusExponent { n, e }) => {
            let parameters = match algorithm {
                Algorithm::RS256 => &RSA_PKCS1_2048_8192_SHA256,
                Algorithm::RS384 => &RSA_PKCS1_2048_8192_SHA384,
                Algorithm::RS512 => &RSA_PKCS1_2048_8192_SHA512,
                Algorithm::PS256 => &RSA_PSS_2048_8192_SHA256,
                _ => return Err(unsupported()),
            };
            let (n, e) = (n.clone(), e.clone());
            Check::Rsa(parameters, RsaPublicKeyComponents { n, e })
        }
        _ => return Err(unsupported()),
    };
    Ok(Box::new(Public {
        algorithm: *algorithm,
        check,
    }))
}

/// HMAC with SHA-256, which signs and verifies with the same key.
struct Hs256(hmac::Key);

impl Signer<Vec<u8>> for Hs256 {
    fn try_sign(&self, message: &[u8]) -> std::result::Result<Vec<u8>, signature::Error> {
        Ok(hmac::sign(&self.0, message).as_ref().to_vec())
    }
}

impl Verifier<Vec<u8>> for Hs256 {
    fn verify(
        &self,
        message: &[u8],
        signature: &Vec<u8>,
    ) -> std::result::Result<(), signature::Error> {
        // In constant time.
        hmac::verify(&self.0, message, signature).map_err(|_| signature::Error::new())
    }
}

impl JwtSigner for Hs256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

impl JwtVerifier for Hs256 {
    fn algorithm(&self) -> Algorithm {
        Algorithm::HS256
    }
}

/// A private Ed25519 key.
struct EdDsa(Ed25519KeyPair);

impl Signer<Vec<u8>> for EdDsa {
    fn try_sign(&self, message: &[u8]) -> std::result::Result<Vec<u8>, signature::Error> {
        Ok(self.0.sign(message).as_ref().to_vec())
    }
}

impl JwtSigner for EdDsa {
    fn algorithm(&self) -> Algorithm {
        Algorithm::EdDSA
    }
}

/// A public key and how it verifies.
struct Public {
    algorithm: Algorithm,
    check: Check,
}

enum Check {
    Curve(UnparsedPublicKey<Vec<u8>>),
    Rsa(&'static RsaParameters, RsaPublicKeyComponents<Vec<u8>>),
}

impl Verifier<Vec<u8>> for Public {
    fn verify(
        &self,
        message: &[u8],
        signature: &Vec<u8>,
    ) -> std::result::Result<(), signature::Error> {
        match &self.check {
            Check::Curve(key) => key.verify(message, signature),
            Check::Rsa(parameters, key) => key.verify(parameters, message, signature),
        }
        .map_err(|_| signature::Error::new())
    }
}

impl JwtVerifier for Public {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

fn unsupported() -> Error {
    new_error(ErrorKind::UnsupportedAlgorithm)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_works_for_its_own_algorithm_only() {
        let (secret, curve) = (&[1; 32], &[2; 32]);
        for (case, algorithm, key, there) in [
            (
                "a secret for HS256",
                Algorithm::HS256,
                DecodingKey::from_secret(secret),
                true,
            ),
            (
                "a secret for HS512, which no key is for",
                Algorithm::HS512,
                DecodingKey::from_secret(secret),
                false,
            ),
            (
                "an Ed25519 key as a secret",
                Algorithm::HS256,
                DecodingKey::from_ed_der(curve),
                false,
            ),
            (
                "an Ed25519 key for EdDSA",
                Algorithm::EdDSA,
                DecodingKey::from_ed_der(curve),
                true,
            ),
            (
                "a P-256 key for ES384",
                Algorithm::ES384,
                DecodingKey::from_ec_der(&[4; 65]),
                false,
            ),
            (
                "RSA by its numbers",
                Algorithm::PS256,
                DecodingKey::from_rsa_raw_components(&[1; 256], &[1, 0, 1]),
                true,
            ),
            (
                "RSA for PS512, which no key is for",
                Algorithm::PS512,
                DecodingKey::from_rsa_raw_components(&[1; 256], &[1, 0, 1]),
                false,
            ),
            (
                "RSA as DER, which no key is kept as",
                Algorithm::RS256,
                DecodingKey::from_rsa_der(&[1; 256]),
                false,
            ),
        ] {
            let found = (RING.verifier_factory)(&algorithm, &key);
            assert_eq!(found.is_ok(), there, "{case}");
            if let Ok(found) = found {
                assert_eq!(found.algorithm(), algorithm, "{case}");
                assert!(found.verify(b"message", &vec![0; 64]).is_err(), "{case}");
            }
        }
        for (case, algorithm, key) in [
            (
                "a secret as a private key",
                Algorithm::EdDSA,
                EncodingKey::from_secret(secret),
            ),
            (
                "a private key that is none",
                Algorithm::EdDSA,
                EncodingKey::from_ed_der(curve),
            ),
            (
                "RSA, which nothing here signs with",
                Algorithm::RS256,
                EncodingKey::from_rsa_der(curve),
            ),
        ] {
            assert!((RING.signer_factory)(&algorithm, &key).is_err(), "{case}");
        }
    }

    /// The crate's own whole path, for which alone the provider is installed.
    #[test]
    fn the_crate_itself_makes_and_reads_the_same_tokens() {
        use super::super::*;
        use crate::egress::AgentId;

        // An error means that it is installed, by whichever test ran first.
        let _ = RING.install_default();
        let now = 1_767_225_600;
        let secret = "0123456789abcdef0123456789abcdef";
        let pem = generate_ed25519().expect("a key");
        let pem::PemKey::Private(_, der) = pem::parse(&pem).expect("a key") else {
            panic!("a private key was written");
        };
        for (case, ours, theirs) in [
            (
                "a shared secret",
                SigningKey::from_secret(secret),
                EncodingKey::from_secret(secret.as_bytes()),
            ),
            (
                "Ed25519",
                SigningKey::from_pem(&pem),
                EncodingKey::from_ed_der(&der),
            ),
        ] {
            let ours = ours.expect("a key");
            let key = ours.verifying_key().clone();
            let algorithm = key.algorithm().into();
            let keys = VerifyingKeys::new().with(TrustedIssuer::default(), [key.clone()]);
            let settings = VerifierSettings::default();
            let verifier = TokenVerifier::new(keys.expect("keys"), settings);

            let claims = serde_json::json!({
                "iss": "agentport", "aud": "agentport", "sub": "bot-01", "exp": now + 60,
            });
            let header = jsonwebtoken::Header::new(algorithm);
            let token = jsonwebtoken::encode(&header, &claims, &theirs).expect("a token");
            let principal = verifier.verify(&token, now).expect(case);
            assert_eq!(principal.agent().as_str(), "bot-01", "{case}");

            let issuer = TokenIssuer::new(ours, "agentport", "agentport");
            let request = IssueRequest {
                agent: AgentId::parse("bot-02").expect("a name"),
                tenant: None,
                destinations: None,
                lifetime: std::time::Duration::from_secs(60),
                audience: None,
                jti: 1,
                actors: Vec::new(),
                scope: None,
                client: None,
            };
            let token = issuer.issue(&request, now).expect("a token");
            let mut validation = jsonwebtoken::Validation::new(algorithm);
            // By the system's clock, and this token is of another time.
            validation.validate_exp = false;
            validation.set_audience(&["agentport"]);
            let read: jsonwebtoken::TokenData<serde_json::Value> =
                jsonwebtoken::decode(&token, key.material(), &validation).expect(case);
            assert_eq!(read.claims["agent_id"], "bot-02", "{case}");
        }
    }
}
