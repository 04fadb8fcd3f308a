//! The key of a private CA at rest: in clear, readable for its owner alone, or
//! encrypted by a passphrase as PKCS#8 has it (RFC 5958 section 3, PBES2 of
//! RFC 8018 with scrypt of RFC 7914 and AES-256-CBC), so that `openssl pkey`
//! reads it too.

use std::fmt;

use pkcs8::pkcs5::pbes2::Parameters;
use pkcs8::pkcs5::scrypt;
use pkcs8::{EncryptedPrivateKeyInfoRef, LineEnding, PrivateKeyInfoRef, SecretDocument};
use rcgen::KeyPair;

use super::host;

const CLEAR: &str = "PRIVATE KEY";
const ENCRYPTED: &str = "ENCRYPTED PRIVATE KEY";
/// What scrypt costs: five times 2^14 blocks of 1 KiB. OpenSSL gives it no more
/// than 32 MiB at once.
const COST: (u8, u32, u32) = (14, 8, 5);
/// The fewest characters of a passphrase. Whoever has the file may try as often
/// as he likes.
const FEWEST: usize = 12;

/// A passphrase, which is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Passphrase(String);

impl Passphrase {
    /// One that is long enough. The end of a line behind it is none of it.
    ///
    /// # Errors
    /// What to write.
    pub fn new(text: &str) -> Result<Self, String> {
        let text = text.trim_end_matches(['\r', '\n']);
        if text.chars().count() < FEWEST {
            return Err(format!(
                "the passphrase is too short: write at least {FEWEST} characters, such as those \
                 of openssl rand -base64 24"
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(…)")
    }
}

/// The key in PEM, encrypted where there is a passphrase.
///
/// # Errors
/// Where encrypting fails.
pub(super) fn write(key: &KeyPair, passphrase: Option<&Passphrase>) -> Result<String, String> {
    let Some(passphrase) = passphrase else {
        return Ok(key.serialize_pem());
    };
    let fail = |error: &dyn fmt::Display| format!("cannot encrypt the key: {error}");
    let der = key.serialize_der();
    let clear = PrivateKeyInfoRef::try_from(der.as_slice()).map_err(|error| fail(&error))?;
    let (log_n, r, p) = COST;
    let cost = scrypt::Params::new(log_n, r, p).map_err(|error| fail(&error))?;
    let salt = host::random_bits().to_be_bytes();
    let iv = host::random_bits().to_be_bytes();
    let parameters = Parameters::generate_scrypt_aes256cbc(cost, &salt, iv);
    let parameters = parameters.map_err(|error| fail(&error))?;
    let encrypted = clear.encrypt_with_params(parameters, &passphrase.0);
    let encrypted = encrypted.map_err(|error| fail(&error))?;
    let pem = encrypted.to_pem(ENCRYPTED, LineEnding::LF);
    Ok(pem.map_err(|error| fail(&error))?.to_string())
}

/// The key of a file in PEM.
///
/// # Errors
/// What is wrong with it, and what to do.
pub(super) fn read(pem: &str, passphrase: Option<&Passphrase>) -> Result<KeyPair, String> {
    const NO_KEY: &str = "it is no private key in PEM";
    if !pem.contains(ENCRYPTED) {
        return KeyPair::from_pem(pem).map_err(|_| NO_KEY.to_owned());
    }
    let Some(passphrase) = passphrase else {
        return Err(
            "it is encrypted: name the file with its passphrase by --passphrase-file".to_owned(),
        );
    };
    let (label, document) = SecretDocument::from_pem(pem).map_err(|_| NO_KEY.to_owned())?;
    if label != ENCRYPTED {
        return Err(NO_KEY.to_owned());
    }
    let encrypted =
        EncryptedPrivateKeyInfoRef::try_from(document.as_bytes()).map_err(|_| NO_KEY.to_owned())?;
    let clear = encrypted
        .decrypt(&passphrase.0)
        .map_err(|_| "the passphrase is not that of this key".to_owned())?;
    let clear = clear
        .to_pem(CLEAR, LineEnding::LF)
        .map_err(|_| NO_KEY.to_owned())?;
    KeyPair::from_pem(&clear).map_err(|_| NO_KEY.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_comes_back_with_its_passphrase_alone() {
        let key = KeyPair::generate().expect("a key");
        let right = Passphrase::new("correct horse battery\n").expect("long enough");
        let wrong = Passphrase::new("another horse battery").expect("long enough");
        let pem = write(&key, Some(&right)).expect("encrypted");
        assert!(
            pem.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----"),
            "{pem}"
        );
        let back = read(&pem, Some(&right)).expect("a key");
        assert_eq!(back.public_key_raw(), key.public_key_raw());
        for (case, found, says) in [
            ("no passphrase", read(&pem, None), "--passphrase-file"),
            (
                "another",
                read(&pem, Some(&wrong)),
                "is not that of this key",
            ),
            (
                "half a file",
                read(&pem[..200], Some(&right)),
                "no private key",
            ),
            ("no key", read("x", None), "no private key"),
        ] {
            let error = found.map(|_| ()).expect_err(case);
            assert!(error.contains(says), "{case}: {error}");
        }
        let clear = write(&key, None).expect("written");
        let back = read(&clear, Some(&right)).expect("a key");
        assert_eq!(back.public_key_raw(), key.public_key_raw());
        assert!(Passphrase::new("too short").is_err());
        assert_eq!(format!("{right:?}"), "Passphrase(…)");
    }
}
