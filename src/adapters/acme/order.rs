//! One order at an ACME server, from the account to the certificate in its
//! file.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use instant_acme::{
    Account, AuthorizationStatus, CertificateIdentifier, ChallengeType, Error, ExternalAccountKey,
    Identifier, NewAccount, NewOrder, Order, OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls::pki_types::Der;

use crate::adapters::trust;
use crate::adapters::watch::POLL;
use crate::adapters::way_out::WayOut;
use crate::config::{Acme, AcmeChallenge};
use crate::egress::DnsName;

use super::client::Client;
use super::{AcmeFolder, Ordered};

/// How long an order may take from its first request to its last.
const LONGEST: Duration = Duration::from_secs(300);
/// How long the CA may take to look at the challenges, and then to sign.
const POLLING: RetryPolicy = RetryPolicy::new()
    .initial_delay(Duration::from_millis(200))
    .backoff(1.5)
    .timeout(Duration::from_secs(90));

/// Why an order came to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// For the operator.
    pub message: String,
    /// How long the server wants to be left alone.
    pub retry_after: Option<Duration>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Failure {
    pub(super) fn of(message: impl fmt::Display) -> Self {
        Self {
            message: message.to_string(),
            retry_after: None,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::of(format!("the ACME server: {error}"))
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::of(error)
    }
}

/// Orders a certificate for the configured names and puts it into its file.
/// Whoever calls this holds the lock. `replaces` is the one before, where the
/// server has said when to renew it; `answer` puts the TLS-ALPN-01 answers in
/// force that the directory holds.
///
/// # Errors
/// [`Failure`]; the file is then as it was.
pub async fn order(
    acme: &Acme,
    folder: &AcmeFolder,
    (replaces, now): (Option<&Ordered>, SystemTime),
    answer: &(dyn Fn() + Sync),
    way: &Arc<WayOut>,
) -> Result<(), Failure> {
    let client = client(acme, way)?;
    let mut answers = Answers {
        files: Vec::new(),
        answer,
    };
    let whole = whole_order(acme, folder, client.clone(), replaces, now, &mut answers);
    let outcome = tokio::time::timeout(LONGEST, whole).await;
    let outcome = outcome.unwrap_or_else(|_| Err(Failure::of("the order takes too long")));
    outcome.map_err(|failure| Failure {
        retry_after: client.retry_after(),
        ..failure
    })
}

/// Answers to challenges, which go when this does.
struct Answers<'a> {
    files: Vec<PathBuf>,
    answer: &'a (dyn Fn() + Sync),
}

impl Drop for Answers<'_> {
    fn drop(&mut self) {
        for file in &self.files {
            // One that stays proves nothing to a later order.
            let _ = fs::remove_file(file);
        }
        (self.answer)();
    }
}

async fn whole_order(
    acme: &Acme,
    folder: &AcmeFolder,
    client: Client,
    replaces: Option<&Ordered>,
    now: SystemTime,
    answers: &mut Answers<'_>,
) -> Result<(), Failure> {
    let account = account(acme, folder, client).await?;
    let identifiers: Vec<_> = acme
        .domains
        .iter()
        .map(|domain| Identifier::Dns(domain.as_str().to_owned()))
        .collect();
    let mut wanted = NewOrder::new(&identifiers);
    if let Some(id) = replaces.and_then(identifier) {
        wanted = wanted.replaces(id);
    }
    let mut order = account.new_order(&wanted).await?;
    prove(acme.challenge, folder, &mut order, answers).await?;
    let status = order.poll_ready(&POLLING).await?;
    if status != OrderStatus::Ready {
        return Err(refused(&mut order, status).await);
    }

    let key = KeyPair::generate().map_err(Failure::of)?;
    let names: Vec<String> = (acme.domains.iter())
        .map(|domain| domain.as_str().to_owned())
        .collect();
    let mut params = CertificateParams::new(names).map_err(Failure::of)?;
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(&key).map_err(Failure::of)?;
    order.finalize_csr(request.der()).await?;
    let chain = order.poll_certificate(&POLLING).await?;
    let pem = key.serialize_pem() + &chain;
    let given = Ordered::parse(&pem)
        .map_err(|error| Failure::of(format!("the CA's certificate: {error}")))?;
    if !given.covers(&acme.domains) || now >= given.until {
        return Err(Failure::of(
            "the CA's certificate has expired, or is for other names",
        ));
    }
    folder.keep_certificate(&pem)?;
    Ok(())
}

/// The account that is kept, or a new one, which is kept before it is used.
async fn account(acme: &Acme, folder: &AcmeFolder, client: Client) -> Result<Account, Failure> {
    let builder = Account::builder_with_http(Box::new(client));
    if let Some(kept) = folder.account(&acme.directory).map_err(Failure::of)? {
        let credentials = serde_json::from_value(kept)
            .map_err(|_| Failure::of("account.json is no account: take it away"))?;
        return Ok(builder.from_credentials(credentials).await?);
    }
    let external = match &acme.eab {
        None => None,
        Some(eab) => {
            let key = external_key(&eab.key_file)?;
            Some(ExternalAccountKey::new(eab.kid.clone(), &key))
        }
    };
    let contact: Vec<&str> = acme.contact.iter().map(String::as_str).collect();
    let new = NewAccount {
        contact: &contact,
        terms_of_service_agreed: true,
        only_return_existing: false,
    };
    let directory = acme.directory.clone();
    let (account, credentials) = builder.create(&new, directory, external.as_ref()).await?;
    let text = serde_json::to_string(&credentials).map_err(Failure::of)?;
    folder.keep_account(&text)?;
    Ok(account)
}

fn external_key(file: &Path) -> Result<Vec<u8>, Failure> {
    let text = fs::read_to_string(file)
        .map_err(|error| Failure::of(format!("{}: {error}", file.display())))?;
    let text = text.trim().trim_end_matches('=');
    URL_SAFE_NO_PAD
        .decode(text)
        .or_else(|_| STANDARD_NO_PAD.decode(text))
        .ok()
        .filter(|key| !key.is_empty())
        .ok_or_else(|| Failure::of(format!("{}: write the key in base64url", file.display())))
}

/// Answers what the CA asks of each name, and says that it may look.
async fn prove(
    challenge: AcmeChallenge,
    folder: &AcmeFolder,
    order: &mut Order,
    answers: &mut Answers<'_>,
) -> Result<(), Failure> {
    let kind = match challenge {
        AcmeChallenge::Http01 => ChallengeType::Http01,
        AcmeChallenge::TlsAlpn01 => ChallengeType::TlsAlpn01,
    };
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        match authorization.status {
            AuthorizationStatus::Valid => continue,
            AuthorizationStatus::Pending => {}
            status => {
                let name = authorization.identifier();
                return Err(Failure::of(format!(
                    "{name}: the CA's authorization is {status:?}"
                )));
            }
        }
        let name = authorization.identifier().to_string();
        let Some(mut asked) = authorization.challenge(kind.clone()) else {
            return Err(Failure::of(format!(
                "{name}: the CA does not offer the challenge of tls.acme.challenge: write the other"
            )));
        };
        let key = asked.key_authorization();
        match challenge {
            AcmeChallenge::Http01 => {
                let token = asked.token.clone();
                answers
                    .files
                    .push(folder.answer_http01(&token, key.as_str())?);
            }
            AcmeChallenge::TlsAlpn01 => {
                let name = DnsName::parse(&name).map_err(Failure::of)?;
                let digest = key.digest();
                answers
                    .files
                    .push(folder.answer_tls_alpn01(&name, digest.as_ref())?);
                (answers.answer)();
                // The CA may ask another replica, which notices by now.
                tokio::time::sleep(2 * POLL).await;
            }
        }
        asked.set_ready().await?;
    }
    Ok(())
}

/// Why the CA does not go on: what it found at a name, where it says so.
async fn refused(order: &mut Order, status: OrderStatus) -> Failure {
    let mut reasons = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        let _ = authorization.refresh().await;
        let name = authorization.identifier().to_string();
        let errors = authorization.challenges.iter();
        reasons.extend(
            errors
                .filter_map(|challenge| challenge.error.as_ref())
                .map(|error| format!("{name}: {error}")),
        );
    }
    match (reasons.is_empty(), &order.state().error) {
        (false, _) => Failure::of(format!("the CA refuses: {}", reasons.join("; "))),
        (true, Some(error)) => Failure::of(format!("the CA refuses: {error}")),
        (true, None) => Failure::of(format!("the CA leaves the order {status:?}")),
    }
}

pub(super) fn identifier(ordered: &Ordered) -> Option<CertificateIdentifier<'static>> {
    let (issuer, serial) = ordered.id.as_ref()?;
    let id = CertificateIdentifier::new(Der::from_slice(issuer), Der::from_slice(serial));
    Some(id.into_owned())
}

pub(super) fn client(acme: &Acme, way: &Arc<WayOut>) -> Result<Client, Failure> {
    let tls = trust::client(acme.ca.as_deref()).map_err(Failure::of)?;
    Ok(Client::new(tls, Arc::clone(way)))
}
