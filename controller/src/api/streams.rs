//! Streams that are open: counted, in all and for each client, so that no client takes them all.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use dunlin_model::ErrorCode;
use dunlin_proto::Fault;

use crate::metrics;

/// Streams that one controller serves at once: each may hold a batch of changes in memory.
pub(crate) const STREAMS_MAX: usize = 4_096;
/// Streams of one client: a quarter of all, and enough for a program that watches a thousand things.
pub(crate) const STREAMS_PER_CLIENT_MAX: usize = STREAMS_MAX / 4;

/// The streams of one controller.
#[derive(Clone, Debug, Default)]
pub(crate) struct Streams {
    open: Arc<Mutex<Open>>,
}

#[derive(Debug, Default)]
struct Open {
    all: usize,
    by_client: BTreeMap<IpAddr, usize>,
}

/// One stream's place, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    streams: Streams,
    client: Option<IpAddr>,
}

impl Streams {
    /// A place for a stream of `client`. One that cannot be told, or that another controller passed on, counts among all.
    pub(crate) fn enter(&self, client: Option<IpAddr>) -> Result<Place, Fault> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.all >= STREAMS_MAX {
            metrics::API_SHED.inc(&["streams"]);
            let message =
                format!("{STREAMS_MAX} streams are open on this controller; close one or ask another");
            return Err(Fault::new(ErrorCode::Overloaded, message));
        }
        if let Some(client) = client {
            let own = open.by_client.entry(client).or_default();
            if *own >= STREAMS_PER_CLIENT_MAX {
                metrics::API_SHED.inc(&["streams of one client"]);
                let message = format!("{client} has {STREAMS_PER_CLIENT_MAX} streams open here; close one");
                return Err(Fault::new(ErrorCode::TooMany, message));
            }
            *own += 1;
        }
        open.all += 1;
        drop(open);
        Ok(Place { streams: self.clone(), client })
    }
}

impl Streams {
    /// How many are open.
    pub(crate) fn count(&self) -> usize {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).all
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.streams.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.all -= 1;
        let Some(client) = self.client else { return };
        if let Some(own) = open.by_client.get_mut(&client) {
            *own -= 1;
            if *own == 0 {
                open.by_client.remove(&client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One client's streams end before everybody's do, and what is closed is free again.
    #[test]
    fn a_client_cannot_take_them_all() {
        let streams = Streams::default();
        let client = |last: u8| Some(IpAddr::from([127, 0, 0, last]));
        let mut held: Vec<Place> = Vec::new();
        for last in 1..=3 {
            held.extend((0..STREAMS_PER_CLIENT_MAX).map(|_| streams.enter(client(last)).unwrap()));
            assert_eq!(streams.enter(client(last)).unwrap_err().code, ErrorCode::TooMany);
        }
        held.extend((0..STREAMS_PER_CLIENT_MAX).map(|_| streams.enter(None).unwrap()));
        assert_eq!(streams.enter(client(4)).unwrap_err().code, ErrorCode::Overloaded);
        held.remove(0);
        held.push(streams.enter(client(1)).unwrap());
        drop(held);
        assert!(streams.open.lock().unwrap().by_client.is_empty());
    }
}
