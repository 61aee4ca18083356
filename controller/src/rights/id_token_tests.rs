use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use dunlin_model::Timestamp;
use ring::rand::SystemRandom;
use ring::rsa::PublicKeyComponents;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
};
use serde_json::{Value, json};

use super::{Expected, Keys, TokenError, verify};

/// PKCS #1, made for this test and good for nothing else.
const RSA_KEY: &str = include_str!("id_token_test_key.txt");

/// A provider with a key of each kind.
struct Issuer {
    rsa: RsaKeyPair,
    p256: EcdsaKeyPair,
}

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Issuer {
    fn new() -> Self {
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let p256 = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.as_ref(), &random).unwrap();
        let rsa = RsaKeyPair::from_der(&STANDARD.decode(RSA_KEY.trim()).unwrap()).unwrap();
        Self { rsa, p256 }
    }

    fn keys(&self) -> Value {
        let PublicKeyComponents { n, e }: PublicKeyComponents<Vec<u8>> = self.rsa.public().into();
        let point = self.p256.public_key().as_ref();
        json!({"keys": [
            {"kty": "RSA", "kid": "r", "use": "sig", "n": b64(n), "e": b64(e)},
            {"kty": "EC", "kid": "p", "crv": "P-256", "alg": "ES256", "x": b64(&point[1..33]), "y": b64(&point[33..])},
            {"kty": "oct", "kid": "s", "k": "c2VjcmV0"},
        ]})
    }

    fn token(&self, header: &Value, claims: &Value) -> String {
        let signed = format!("{}.{}", b64(header.to_string()), b64(claims.to_string()));
        let random = SystemRandom::new();
        let signature = if header["kid"] == "p" {
            self.p256.sign(&random, signed.as_bytes()).unwrap().as_ref().to_vec()
        } else {
            let mut signature = vec![0; self.rsa.public().modulus_len()];
            self.rsa.sign(&RSA_PKCS1_SHA256, &random, signed.as_bytes(), &mut signature).unwrap();
            signature
        };
        format!("{signed}.{}", b64(signature))
    }
}

fn claims() -> Value {
    json!({"iss": "https://id.example", "aud": "fleet", "sub": "7", "nonce": "n", "iat": 1_000, "exp": 1_300,
           "preferred_username": "ada", "groups": ["web", "ops"]})
}

const EXPECTED: Expected<'_> =
    Expected { issuer: "https://id.example", client_id: "fleet", nonce: "n", now: Timestamp(1_100_000) };

/// A token of either algorithm is believed; one that is altered, of another key, provider, client, login or time, or that
/// is not signed by a published key in its own way is not, each with its reason.
#[test]
fn what_is_believed() {
    let issuer = Issuer::new();
    let keys = Keys::read(issuer.keys().to_string().as_bytes()).unwrap();
    let (rs, es) = (json!({"alg": "RS256", "kid": "r"}), json!({"alg": "ES256", "kid": "p"}));
    for header in [&rs, &es, &json!({"alg": "RS256"})] {
        let found = verify(&issuer.token(header, &claims()), &keys, &EXPECTED).unwrap();
        assert_eq!(found.text("preferred_username"), Some("ada"));
        assert_eq!(found.texts("groups").into_iter().collect::<Vec<_>>(), ["ops", "web"]);
    }
    let refused = |token: &str| verify(token, &keys, &EXPECTED).unwrap_err();
    let good = issuer.token(&rs, &claims());
    let parts: Vec<&str> = good.split('.').collect();
    let mut other = claims();
    other["sub"] = json!("8");
    let altered = format!("{}.{}.{}", parts[0], b64(other.to_string()), parts[2]);
    assert_eq!(refused(&altered), TokenError::Signature);
    assert_eq!(refused(&format!("{}.{}.", parts[0], parts[1])), TokenError::Signature);
    assert_eq!(
        refused(&issuer.token(&json!({"alg": "ES256", "kid": "r"}), &claims())),
        TokenError::UnknownKey
    );
    assert_eq!(
        refused(&issuer.token(&json!({"alg": "RS256", "kid": "x"}), &claims())),
        TokenError::UnknownKey
    );
    for alg in ["none", "HS256", "RS512"] {
        let token = issuer.token(&json!({"alg": alg, "kid": "s"}), &claims());
        assert_eq!(refused(&token), TokenError::Algorithm(alg.to_owned()));
    }
    for text in ["", "a.b", "a.b.c.d", "!.!.!", &b64("{}"), &good[1..]] {
        assert!(matches!(refused(text), TokenError::Malformed(_)), "{text}");
    }
    let foreign = Issuer::new();
    assert_eq!(refused(&foreign.token(&es, &claims())), TokenError::Signature);
    for (claim, value) in [
        ("iss", json!("https://id.example/")),
        ("aud", json!("other")),
        ("aud", json!(["fleet", "other"])),
        ("azp", json!("other")),
        ("nonce", json!("m")),
        ("nonce", Value::Null),
        ("exp", json!(1_040)),
        ("exp", Value::Null),
        ("iat", json!(1_161)),
        ("nbf", json!(1_161)),
        ("sub", json!("")),
    ] {
        let mut wrong = claims();
        wrong[claim] = value.clone();
        let found = refused(&issuer.token(&rs, &wrong));
        assert!(matches!(found, TokenError::Claim { .. }), "{claim} {value}: {found}");
    }
    let mut several = claims();
    (several["aud"], several["azp"]) = (json!(["fleet", "other"]), json!("fleet"));
    verify(&issuer.token(&es, &several), &keys, &EXPECTED).unwrap();
}
