//! Brings a call to the leader, wherever it was made, and a read to a state that is fresh enough.
//!
//! ```text
//!  here leads ------------> run it --------------> answer
//!  another leads ---------> pass it on, once ----> its answer
//!  nobody, or it moved ---> wait for a leader ---> again, until the deadline
//! ```
//! Trying again after a lost answer is safe: every write carries an idempotency key, given by the client or minted
//! before the first try.

use std::time::Duration;

use dunlin_model::{ControllerId, ErrorCode};
use dunlin_proto::Fault;
use dunlin_proto::v1::Consistency;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::call::Call;
use crate::fleet::View;
use crate::node::Node;
use crate::raft::{ProposeError, ReadError};

/// How long to wait for news of the leadership before trying again: a heartbeat, about.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Runs `local` here when this controller leads, or `remote` at the one that does.
pub(crate) async fn to_leader<Q, A, L, LF, R, RF>(
    node: &Node,
    call: Call,
    message: Q,
    local: L,
    remote: R,
) -> Result<A, Fault>
where
    Q: Clone,
    L: Fn(Q) -> LF,
    LF: Future<Output = Result<A, Fault>>,
    R: Fn(Channel, Request<Q>) -> RF,
    RF: Future<Output = Result<Response<A>, Status>>,
{
    let mut leadership = node.replica.leadership();
    loop {
        let now = leadership.borrow_and_update().clone();
        let result = match now.leader {
            _ if now.is_me => call.within(local(message.clone())).await,
            Some(leader) if leader.id != node.config.id => {
                let endpoint = node.endpoint_of(&leader);
                if call.forwarded {
                    // Whoever passed it on knows better by now; a second hop could chase a moving leader for ever.
                    return Err(not_leader(format!("controller {} leads, at {endpoint}", leader.id)));
                }
                let answer = remote(node.peers.channel(&endpoint)?, call.pass_on(message.clone()));
                call.within(unless_replaced(node, leader.id, answer)).await
            }
            _ => Err(not_leader("no controller leads at this moment".into())),
        };
        match result {
            Err(fault) if moved(&fault) && call.left() > RETRY_PAUSE => {
                tracing::debug!(code = %fault.code, message = fault.message, "looking for the leader again");
                // Either news or the pause; both end in another look.
                let _ = tokio::time::timeout(RETRY_PAUSE, leadership.changed()).await;
            }
            settled => return settled,
        }
    }
}

/// Waits for the answer of `leader`, unless another one takes its place: then that answer may never come.
async fn unless_replaced<A>(
    node: &Node,
    leader: ControllerId,
    answer: impl Future<Output = Result<Response<A>, Status>>,
) -> Result<A, Fault> {
    let mut leadership = node.replica.leadership();
    let replaced = leadership.wait_for(|now| now.leader.as_ref().is_some_and(|now| now.id != leader));
    tokio::select! {
        biased;
        answer = answer => Ok(answer?.into_inner()),
        _ = replaced => Err(not_leader(format!("controller {leader} no longer leads"))),
    }
}

fn not_leader(message: String) -> Fault {
    Fault::new(ErrorCode::NotLeader, message)
}

fn moved(fault: &Fault) -> bool {
    matches!(fault.code, ErrorCode::NotLeader | ErrorCode::Unavailable)
}

/// The state to read from.
pub(super) async fn view(node: &Node, call: &Call, consistency: Consistency) -> Result<View, Fault> {
    if consistency == Consistency::Stale {
        return Ok(node.replica.read());
    }
    let mut leadership = node.replica.leadership();
    loop {
        let result =
            call.within(async { node.replica.linearizable().await.map_err(|e| read_fault(&e)) }).await;
        match result {
            Err(fault) if moved(&fault) && call.left() > RETRY_PAUSE && !node.closing.is_cancelled() => {
                let _ = tokio::time::timeout(RETRY_PAUSE, leadership.changed()).await;
            }
            settled => return settled,
        }
    }
}

fn read_fault(error: &ReadError) -> Fault {
    let code = match error {
        ReadError::NotLeader { .. } => ErrorCode::NotLeader,
        ReadError::Deadline { .. } | ReadError::Stopped => ErrorCode::Unavailable,
    };
    Fault::new(code, error.to_string())
}

/// What a proposal without an outcome means to the client.
pub(crate) fn propose_fault(error: &ProposeError) -> Fault {
    let code = match error {
        ProposeError::NotLeader { .. } | ProposeError::TermOver { .. } => ErrorCode::NotLeader,
        ProposeError::TooLarge { .. } => ErrorCode::InvalidArgument,
        ProposeError::Encode(_) => ErrorCode::Internal,
        ProposeError::Deadline { .. } => ErrorCode::Deadline,
        ProposeError::Unavailable | ProposeError::Stopped => ErrorCode::Unavailable,
    };
    Fault::new(code, error.to_string())
}
