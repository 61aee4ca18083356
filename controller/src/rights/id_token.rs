//! An ID token of an identity provider: is it genuine, meant for us, and of now? (OpenID Connect Core 1.0, 3.1.3.7; RFC 7515,
//! 7517, 7518.) Pure: keys and time are given.
//!
//! Takes RS256, which every provider signs with, and ES256. `none` and whatever shares its secret with us it does not know.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use dunlin_model::Timestamp;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey,
};
use serde::Deserialize;
use serde_json::{Map, Value};

/// How far the provider's clock may be from ours, ms.
const SKEW_MS: u64 = 60_000;
/// Longest token looked at, bytes: hundreds of groups.
const TOKEN_MAX: usize = 32 << 10;

/// Why a token is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("it is no signed token: {0}")]
    Malformed(&'static str),
    #[error("it is signed by {0:?}; RS256 and ES256 are taken")]
    Algorithm(String),
    #[error("it is signed by a key that the identity provider does not publish")]
    UnknownKey,
    #[error("its signature does not hold")]
    Signature,
    #[error("its {claim} is {found}")]
    Claim { claim: &'static str, found: String },
}

/// What must be so.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected<'a> {
    pub(crate) issuer: &'a str,
    pub(crate) client_id: &'a str,
    /// As the client sent it to the provider: the token was made for this login.
    pub(crate) nonce: &'a str,
    pub(crate) now: Timestamp,
}

/// The keys that a provider publishes, as far as they are of use to us.
#[derive(Clone, Debug, Default)]
pub(crate) struct Keys(Vec<Key>);

#[derive(Clone, Debug)]
struct Key {
    kid: Option<String>,
    material: Material,
}

#[derive(Clone, Debug)]
enum Material {
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// A point of P-256, uncompressed.
    P256(Vec<u8>),
}

impl Material {
    const fn algorithm(&self) -> &'static str {
        match self {
            Self::Rsa { .. } => "RS256",
            Self::P256(_) => "ES256",
        }
    }

    fn holds(&self, signed: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Rsa { n, e } => {
                let key = RsaPublicKeyComponents { n, e };
                key.verify(&RSA_PKCS1_2048_8192_SHA256, signed, signature).is_ok()
            }
            Self::P256(point) => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(signed, signature).is_ok()
            }
        }
    }
}

#[derive(Deserialize)]
struct Jwks {
    keys: Vec<Jwk>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    alg: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl Jwk {
    fn key(self) -> Option<Key> {
        let bytes = |text: Option<String>| URL_SAFE_NO_PAD.decode(text?).ok();
        let material = match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", _) => Material::Rsa { n: bytes(self.n)?, e: bytes(self.e)? },
            ("EC", Some("P-256")) => Material::P256([vec![4], bytes(self.x)?, bytes(self.y)?].concat()),
            _ => return None,
        };
        let signs = self.usage.is_none_or(|usage| usage == "sig");
        let fits = self.alg.is_none_or(|alg| alg == material.algorithm());
        (signs && fits).then_some(Key { kid: self.kid, material })
    }
}

impl Keys {
    /// From a JWK set; keys of other kinds are passed over.
    pub(crate) fn read(json: &[u8]) -> Result<Self, serde_json::Error> {
        let set: Jwks = serde_json::from_slice(json)?;
        Ok(Self(set.keys.into_iter().filter_map(Jwk::key).collect()))
    }

    fn find(&self, algorithm: &str, kid: Option<&str>) -> Option<&Key> {
        let mut fitting = self.0.iter().filter(|key| {
            key.material.algorithm() == algorithm && (kid.is_none() || key.kid.as_deref() == kid)
        });
        let found = fitting.next()?;
        // Without a name only a key that is alone is meant.
        (kid.is_some() || fitting.next().is_none()).then_some(found)
    }
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<Value>,
}

/// What a token that is believed says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Claims(Map<String, Value>);

impl Claims {
    pub(crate) fn text(&self, claim: &str) -> Option<&str> {
        self.0.get(claim)?.as_str().filter(|text| !text.is_empty())
    }

    /// A list of texts, or one alone.
    pub(crate) fn texts(&self, claim: &str) -> BTreeSet<String> {
        let one = |value: &Value| value.as_str().map(str::to_owned);
        match self.0.get(claim) {
            Some(Value::Array(all)) => all.iter().filter_map(one).collect(),
            Some(value) => one(value).into_iter().collect(),
            None => BTreeSet::new(),
        }
    }

    fn time_ms(&self, claim: &str) -> Option<u64> {
        let value = self.0.get(claim)?;
        value.as_u64()?.checked_mul(1_000)
    }

    fn check(&self, expected: &Expected<'_>) -> Result<(), TokenError> {
        let wrong = |claim, found: &str| Err(TokenError::Claim { claim, found: found.to_owned() });
        let text = |claim| self.text(claim).unwrap_or("missing");
        if self.text("iss") != Some(expected.issuer) {
            return wrong("iss", text("iss"));
        }
        let audience = self.texts("aud");
        if !audience.contains(expected.client_id) {
            return wrong("aud", "another");
        }
        let party = self.text("azp");
        if party.is_some_and(|party| party != expected.client_id) || party.is_none() && audience.len() > 1 {
            return wrong("azp", text("azp"));
        }
        if expected.nonce.is_empty() || self.text("nonce") != Some(expected.nonce) {
            return wrong("nonce", "another");
        }
        let now = expected.now.0;
        if self.time_ms("exp").is_none_or(|at| at.saturating_add(SKEW_MS) <= now) {
            return wrong("exp", "over");
        }
        for claim in ["iat", "nbf"] {
            if self.time_ms(claim).is_some_and(|at| at > now + SKEW_MS) {
                return wrong(claim, "yet to come");
            }
        }
        if self.text("sub").is_none() {
            return wrong("sub", "missing");
        }
        Ok(())
    }
}

/// What the token says, when it is to be believed.
pub(crate) fn verify(token: &str, keys: &Keys, expected: &Expected<'_>) -> Result<Claims, TokenError> {
    if token.len() > TOKEN_MAX {
        return Err(TokenError::Malformed("it is too long"));
    }
    let mut parts = token.split('.');
    let (Some(head), Some(body), Some(signature), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(TokenError::Malformed("it has not three parts"));
    };
    let bytes =
        |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed("it is not base64url"));
    let header: Header = serde_json::from_slice(&bytes(head)?)
        .map_err(|_| TokenError::Malformed("its header is unreadable"))?;
    if !matches!(header.alg.as_str(), "RS256" | "ES256") {
        return Err(TokenError::Algorithm(header.alg));
    }
    if header.crit.is_some() {
        return Err(TokenError::Malformed("it demands what is not understood"));
    }
    let key = keys.find(&header.alg, header.kid.as_deref()).ok_or(TokenError::UnknownKey)?;
    let signed = &token[..head.len() + 1 + body.len()];
    if !key.material.holds(signed.as_bytes(), &bytes(signature)?) {
        return Err(TokenError::Signature);
    }
    let claims = serde_json::from_slice(&bytes(body)?)
        .map_err(|_| TokenError::Malformed("its claims are unreadable"))?;
    let claims = Claims(claims);
    claims.check(expected)?;
    Ok(claims)
}

#[cfg(test)]
#[path = "id_token_tests.rs"]
mod tests;
