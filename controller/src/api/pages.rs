//! Lists read page by page, at one revision.
//!
//! DECISION: a list that is cut keeps its view, and the token of the next page names that view's revision. A view is a
//! copy of the state that shares what has not changed since, so keeping one costs what is written meanwhile. When it is
//! given up (too many newer ones, too long unused, another controller asked), the token fails with `compacted` and the
//! list begins again: as with etcd and Kubernetes, a list is of one revision or it is refused, never a mixture.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use dunlin_model::{ErrorCode, Invalid, Name, Revision};
use dunlin_proto::{Fault, v1};
use prost::Message as _;
use tokio::time::Instant;

use crate::fleet::View;
use crate::mint::hex;

/// Views kept: as many lists of different revisions may be read at once.
const VIEWS_MAX: usize = 32;
/// A view that nobody read from for so long is given up: a client that pages asks again within a second or two.
const VIEW_IDLE_MAX: Duration = Duration::from_secs(60);
/// Longest token, bytes: a name, a revision and a hash as hex.
const TOKEN_BYTES_MAX: usize = 512;

/// The views that somebody has begun to read, last used last.
#[derive(Debug, Default)]
pub(crate) struct Pages {
    kept: Mutex<VecDeque<(Instant, View)>>,
}

/// Where the next page begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) revision: Revision,
    pub(super) after: Name,
}

impl Pages {
    /// Keeps a view of which more will be read.
    pub(super) fn keep(&self, view: &View) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        kept.retain(|(used, old)| *used + VIEW_IDLE_MAX > now && old.revision() != view.revision());
        while kept.len() >= VIEWS_MAX {
            kept.pop_front();
        }
        kept.push_back((now, view.clone()));
    }

    /// The view of that revision, if it is still kept.
    pub(super) fn at(&self, revision: Revision) -> Result<View, Fault> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept
            .iter()
            .find(|(used, view)| view.revision() == revision && *used + VIEW_IDLE_MAX > Instant::now());
        found.map(|(_, view)| view.clone()).ok_or_else(|| {
            let message = format!(
                "revision {revision}, at which this list was begun, is no longer held here; list again without page_token"
            );
            Fault::new(ErrorCode::Compacted, message)
        })
    }
}

/// The token of the page that begins at `place` of the list that was asked for.
pub(super) fn token(request: &v1::ListRequest, place: &Place) -> String {
    let Place { revision, after } = place;
    hex(format!("1 {revision} {:x} {after}", query(request)).as_bytes())
}

/// Where the page begins that a token stands for. Refuses one of another list.
pub(super) fn place(request: &v1::ListRequest) -> Result<Place, Invalid> {
    let refuse = |problem: &str| Invalid::new("page_token", problem, "next_page_token of the page before");
    let text = unhex(&request.page_token).ok_or_else(|| refuse("is none"))?;
    let parts: Vec<&str> = text.split(' ').collect();
    let ["1", revision, asked, after] = parts.as_slice() else { return Err(refuse("is none")) };
    let (Ok(revision), Ok(after)) = (revision.parse().map(Revision), after.parse::<Name>()) else {
        return Err(refuse("is none"));
    };
    if *asked != format!("{:x}", query(request)) {
        return Err(refuse("is that of another list: kind, selectors and fields must be the same"));
    }
    Ok(Place { revision, after })
}

/// Sums what makes two pages parts of the same list (FNV-1a). A guard against mistakes, not against malice.
fn query(request: &v1::ListRequest) -> u64 {
    let same = v1::ListRequest { limit: 0, page_token: String::new(), consistency: 0, ..request.clone() };
    same.encode_to_vec()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

fn unhex(text: &str) -> Option<String> {
    if text.len() > TOKEN_BYTES_MAX || !text.len().is_multiple_of(2) {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let bytes: Option<Vec<u8>> =
        text.as_bytes().chunks(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect();
    String::from_utf8(bytes?).ok()
}

#[cfg(test)]
mod tests {
    use dunlin_model::Kind;
    use dunlin_proto::Wire as _;

    use super::*;

    /// A token leads back to its place in its own list, and to none in another; anything else is refused.
    #[test]
    fn tokens_are_of_one_list() {
        let list = |selector: &str| v1::ListRequest {
            kind: Kind::Vm.to_wire(),
            label_selector: selector.to_owned(),
            ..v1::ListRequest::default()
        };
        let begun = Place { revision: Revision(7), after: "web-1".parse().unwrap() };
        let page_token = token(&list("a=b"), &begun);
        let next = v1::ListRequest { limit: 3, page_token: page_token.clone(), ..list("a=b") };
        assert_eq!(place(&next), Ok(begun));
        let other = v1::ListRequest { page_token: page_token.clone(), ..list("a=c") };
        assert!(place(&other).unwrap_err().problem.contains("another list"));
        for wrong in ["", "7", "zz", "é", &page_token[2..], &"00".repeat(400)] {
            let request = v1::ListRequest { page_token: wrong.to_owned(), ..list("a=b") };
            assert_eq!(place(&request).unwrap_err().field, "page_token", "{wrong}");
        }
    }
}
