//! What a process shows and trusts, replaced while it runs: connections made from then on use the new.

use std::sync::{Arc, PoisonError};

use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, ServerConfig};
use tokio::sync::watch;

use crate::tls::{self, Theirs, Trust};
use crate::verify::issuer;
use crate::{Clock, Dialer, PkiError, Refusal, Shown, Usage, Verified, verify};

/// What is shown and trusted at one moment.
#[derive(Clone, Debug)]
pub struct Ring {
    /// Who this process is; none for one that is yet to join.
    pub shown: Option<Shown>,
    /// Whom it believes.
    pub trust: Trust,
    /// Shown after its own certificate: what leads a caller from it to whichever root he knows. Servers only.
    pub beside: Vec<CertificateDer<'static>>,
}

impl Ring {
    /// Judges who called.
    pub fn judge(&self, chain: &[CertificateDer<'_>], clock: &Clock) -> Result<Verified, Refusal> {
        match &self.trust {
            Trust::Roots(roots) => verify(chain, roots, Usage::Client, clock.now()),
            Trust::Pinned(_) => Err(Refusal::Foreign),
        }
    }
}

#[derive(Debug)]
struct Made {
    ring: Ring,
    caller: Arc<ClientConfig>,
    server: Option<Arc<ServerConfig>>,
}

/// Holds a [`Ring`], and what was made of it.
#[derive(Debug)]
pub struct Keyring {
    clock: Clock,
    /// Who issued the certificate of the controller spoken to last.
    theirs: Theirs,
    made: watch::Sender<Arc<Made>>,
}

impl Keyring {
    /// Begins with that.
    pub fn new(ring: Ring, clock: Clock) -> Result<Arc<Self>, PkiError> {
        let theirs = Theirs::default();
        let made = watch::Sender::new(Arc::new(make(ring, &clock, &theirs)?));
        Ok(Arc::new(Self { clock, theirs, made }))
    }

    /// From now on that.
    pub fn replace(&self, ring: Ring) -> Result<(), PkiError> {
        self.made.send_replace(Arc::new(make(ring, &self.clock, &self.theirs)?));
        Ok(())
    }

    /// What there is now.
    #[must_use]
    pub fn ring(&self) -> Ring {
        self.made.borrow().ring.clone()
    }

    /// Whose time counts.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// What a server takes connections with, whoever calls; none without an identity.
    #[must_use]
    pub fn server(&self) -> Option<Arc<ServerConfig>> {
        self.made.borrow().server.clone()
    }

    /// Judges who called, by what is trusted now.
    pub fn judge(&self, chain: &[CertificateDer<'_>]) -> Result<Verified, Refusal> {
        let made = Arc::clone(&self.made.borrow());
        made.ring.judge(chain, &self.clock)
    }

    /// Connects to controllers, with what is shown and trusted at each time.
    #[must_use]
    pub fn dialer(self: &Arc<Self>) -> Dialer {
        Dialer::new(Arc::clone(self))
    }

    /// Is it time for another certificate: half of its life is over, or the controllers show certificates of another
    /// authority than its own?
    #[must_use]
    pub fn is_due(&self) -> bool {
        let made = Arc::clone(&self.made.borrow());
        let Some(shown) = &made.ring.shown else { return false };
        let own = shown.certificate().ok().and_then(|own| issuer(&own));
        let theirs = self.theirs.lock().unwrap_or_else(PoisonError::into_inner).clone();
        shown.is_due(self.clock.now()) || (theirs.is_some() && theirs != own)
    }

    /// What TLS to a controller is begun with now.
    #[must_use]
    pub fn caller(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.made.borrow().caller)
    }
}

fn make(ring: Ring, clock: &Clock, theirs: &Theirs) -> Result<Made, PkiError> {
    let caller = tls::caller(ring.shown.as_ref(), &ring.trust, clock, theirs)?;
    let server = ring.shown.as_ref().map(|_| tls::acceptor(&ring, None)).transpose()?;
    Ok(Made { ring, caller, server })
}
