//! Passwords: hashed and checked off the threads that serve, a few at a time, and at the same cost whoever is asked for.

use std::sync::{Arc, OnceLock};

use argon2::{Argon2, PasswordHasher as _, PasswordVerifier as _};
use dunlin_model::invalid::in_range;
use dunlin_model::{ErrorCode, Secret};
use dunlin_proto::Fault;
use tokio::sync::Semaphore;

use crate::mint;

/// Checks at once. Each takes 19 MiB and some 20 ms of a CPU (argon2id as OWASP has it: m = 19 MiB, t = 2, p = 1); more
/// would let logins starve everything else.
const AT_ONCE: usize = 2;
/// Checks that may wait for their turn; a login beyond them is told to come again.
const WAITING_MAX: usize = 64;
/// Shortest and longest password, bytes. A longer one buys nothing and costs.
const LENGTH: std::ops::RangeInclusive<u64> = 8..=1_024;

/// The place where passwords are hashed.
#[derive(Debug)]
pub(crate) struct Passwords {
    working: Arc<Semaphore>,
    waiting: Semaphore,
}

impl Default for Passwords {
    fn default() -> Self {
        Self { working: Arc::new(Semaphore::new(AT_ONCE)), waiting: Semaphore::new(AT_ONCE + WAITING_MAX) }
    }
}

fn broken(error: impl std::fmt::Display) -> Fault {
    Fault::new(ErrorCode::Internal, format!("hash a password: {error}"))
}

fn hash_now(password: &str) -> Result<Secret, Fault> {
    let hash: argon2::PasswordHash =
        Argon2::default().hash_password_with_salt(password.as_bytes(), &mint::salt()).map_err(broken)?;
    Ok(Secret::new(hash.to_string()))
}

impl Passwords {
    /// The PHC form of a new password.
    pub(crate) async fn hash(&self, password: Secret) -> Result<Secret, Fault> {
        in_range("password (bytes)", password.expose().len() as u64, LENGTH)?;
        self.work(move || hash_now(password.expose())).await?
    }

    /// Is it the password of that hash? Without a hash, as much work for a no.
    pub(crate) async fn fits(&self, password: Secret, hash: Option<Secret>) -> Result<bool, Fault> {
        static NOBODYS: OnceLock<Option<Secret>> = OnceLock::new();
        if password.expose().len() as u64 > *LENGTH.end() {
            return Ok(false);
        }
        self.work(move || {
            let nobodys = || NOBODYS.get_or_init(|| hash_now(&mint::secret()).ok()).clone();
            let known = hash.is_some();
            let Some(hash) = hash.or_else(nobodys) else { return false };
            let fits = Argon2::default().verify_password(password.expose().as_bytes(), hash.expose());
            fits.is_ok() && known
        })
        .await
    }

    async fn work<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Fault> {
        let busy = || Fault::new(ErrorCode::TooManyAttempts, "too many logins at once; try again in 1 s");
        let _place = self.waiting.try_acquire().map_err(|_| busy())?;
        let turn = Arc::clone(&self.working).acquire_owned().await.map_err(|_| busy())?;
        let done = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(turn);
            done
        });
        done.await.map_err(broken)
    }
}
