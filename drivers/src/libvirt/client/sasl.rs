//! SASL as a client: SCRAM-SHA-256 (RFC 5802, RFC 7677) and PLAIN (RFC 4616).
//!
//! Pure: takes what the server says and gives what to say. PLAIN is offered only where nobody listens: over TLS, ssh or a
//! unix socket.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use thiserror::Error;

/// Most rounds a server may ask for: a second of work here. RFC 7677 wants 4096 at least.
const ROUNDS_MAX: u32 = 1_000_000;
/// SHA-256's block, bytes (FIPS 180-4).
const BLOCK_BYTES: usize = 64;
/// The names by which the mechanisms are known.
pub(super) const SCRAM: &str = "SCRAM-SHA-256";
pub(super) const PLAIN: &str = "PLAIN";

/// Why one is not let in, or would not go in.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SaslError {
    /// Nothing the server offers is spoken here.
    #[error("the daemon offers {0:?}; SCRAM-SHA-256 is spoken here, and PLAIN where nobody listens")]
    Mechanisms(String),
    /// The server says what the mechanism does not know.
    #[error("the daemon's answer is no {SCRAM}: {0}")]
    Protocol(&'static str),
    /// The server does not know the password itself.
    #[error("the daemon could not prove that it knows the password")]
    Impostor,
}

/// Who one is.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// Name.
    pub user: String,
    /// Password.
    pub password: dunlin_model::Secret,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Chooses among the server's mechanisms.
pub(super) fn choose(offered: &str, private: bool) -> Result<&'static str, SaslError> {
    let offers = |name: &str| offered.split([',', ' ']).any(|one| one.eq_ignore_ascii_case(name));
    match () {
        () if offers(SCRAM) => Ok(SCRAM),
        () if offers(PLAIN) && private => Ok(PLAIN),
        () => Err(SaslError::Mechanisms(offered.to_owned())),
    }
}

/// PLAIN's only message.
pub(super) fn plain(login: &Login) -> Vec<u8> {
    format!("\0{}\0{}", login.user, login.password.expose()).into_bytes()
}

/// A SCRAM exchange under way.
pub(super) struct Scram<'a> {
    login: &'a Login,
    first_bare: String,
    nonce: String,
    proof_of_server: Option<[u8; 32]>,
}

impl<'a> Scram<'a> {
    /// Begins, with a nonce that nobody can guess.
    pub(super) fn new(login: &'a Login, nonce: &str) -> Self {
        let user = login.user.replace('=', "=3D").replace(',', "=2C");
        let first_bare = format!("n={user},r={nonce}");
        Self { login, first_bare, nonce: nonce.to_owned(), proof_of_server: None }
    }

    /// The first message.
    pub(super) fn first(&self) -> Vec<u8> {
        format!("n,,{}", self.first_bare).into_bytes()
    }

    /// The answer to what the server says; none once the server has proved itself.
    pub(super) fn answer(&mut self, said: &[u8]) -> Result<Option<Vec<u8>>, SaslError> {
        let said = str::from_utf8(said).map_err(|_| SaslError::Protocol("it is not text"))?;
        match self.proof_of_server {
            None => self.last(said).map(Some),
            Some(expected) => {
                let proof = field(said, "v=").ok_or(SaslError::Protocol("no verifier"))?;
                let proof =
                    STANDARD.decode(proof).map_err(|_| SaslError::Protocol("the verifier is not base64"))?;
                if proof == expected { Ok(None) } else { Err(SaslError::Impostor) }
            }
        }
    }

    /// Has the server proved that it knows the password?
    fn last(&mut self, said: &str) -> Result<Vec<u8>, SaslError> {
        let nonce = field(said, "r=").ok_or(SaslError::Protocol("no nonce"))?;
        if !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() {
            return Err(SaslError::Protocol("another nonce"));
        }
        let salt = field(said, "s=").and_then(|salt| STANDARD.decode(salt).ok());
        let salt = salt.ok_or(SaslError::Protocol("no salt"))?;
        let rounds = field(said, "i=").and_then(|rounds| rounds.parse().ok());
        let rounds = rounds.filter(|rounds| (1..=ROUNDS_MAX).contains(rounds));
        let rounds = rounds.ok_or(SaslError::Protocol("no sound number of rounds"))?;
        let salted = salted(self.login.password.expose().as_bytes(), &salt, rounds);
        let client = mac(&salted, b"Client Key");
        let stored: [u8; 32] = Sha256::digest(client).into();
        // "biws" is "n,,": no channel binding.
        let without_proof = format!("c=biws,r={nonce}");
        let all = format!("{},{said},{without_proof}", self.first_bare);
        let signature = mac(&stored, all.as_bytes());
        let proof: [u8; 32] = std::array::from_fn(|at| client[at] ^ signature[at]);
        self.proof_of_server = Some(mac(&mac(&salted, b"Server Key"), all.as_bytes()));
        Ok(format!("{without_proof},p={}", STANDARD.encode(proof)).into_bytes())
    }
}

fn field<'a>(said: &'a str, name: &str) -> Option<&'a str> {
    said.split(',').find_map(|part| part.strip_prefix(name))
}

/// HMAC (RFC 2104).
fn mac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut block = [0; BLOCK_BYTES];
    if key.len() > BLOCK_BYTES {
        block[..32].copy_from_slice(&Sha256::digest(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let inner = Sha256::new().chain_update(block.map(|byte| byte ^ 0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(block.map(|byte| byte ^ 0x5c)).chain_update(inner).finalize().into()
}

/// PBKDF2 (RFC 8018) of one block.
fn salted(password: &[u8], salt: &[u8], rounds: u32) -> [u8; 32] {
    let mut last = mac(password, &[salt, &1u32.to_be_bytes()].concat());
    let mut sum = last;
    for _ in 1..rounds {
        last = mac(password, &last);
        sum.iter_mut().zip(last).for_each(|(sum, byte)| *sum ^= byte);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login() -> Login {
        Login { user: "user".into(), password: dunlin_model::Secret::new("pencil") }
    }

    /// The exchange of RFC 7677, section 3, word for word; and a server that does not know the password is found out.
    #[test]
    fn the_rfc_s_own_exchange() {
        let login = login();
        let mut scram = Scram::new(&login, "rOprNGfwEbeRWgbNEkqO");
        assert_eq!(scram.first(), b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let said = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        let answer = String::from_utf8(scram.answer(said).unwrap().unwrap()).unwrap();
        let expected = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
        assert_eq!(answer, expected);
        let forged = scram.answer(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G5=");
        assert!(matches!(forged, Err(SaslError::Impostor | SaslError::Protocol(_))));
        assert_eq!(scram.answer(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="), Ok(None));
    }

    /// A server's odd words are an error, and cannot make us count for ever.
    #[test]
    fn odd_servers() {
        let login = login();
        for said in [
            "",
            "r=abc",
            "r=other,s=AAAA,i=1",
            "r=abcd,s=AAAA,i=0",
            "r=abcd,s=AAAA,i=4000000000",
            "r=abcd,s=*,i=1",
        ] {
            assert!(Scram::new(&login, "abc").answer(said.as_bytes()).is_err(), "{said}");
        }
        assert_eq!(choose("PLAIN,SCRAM-SHA-256", false), Ok(SCRAM));
        assert_eq!(choose("PLAIN", true), Ok(PLAIN));
        assert!(choose("PLAIN", false).is_err() && choose("GSSAPI", true).is_err());
        assert_eq!(plain(&login), b"\0user\0pencil");
        assert!(!format!("{login:?}").contains("pencil"));
    }
}
