//! The Advisor service: questions to the scheduler, answered by the leader, which alone knows what is measured.

use std::sync::Arc;

use dunlin_model::vm::Vm;
use dunlin_model::{Invalid, Kind, Object};
use dunlin_proto::v1::advisor_server::{Advisor, AdvisorServer};
use dunlin_proto::{Fault, Wire as _, read, v1};
use tonic::{Request, Response, Status};

use super::call::{CALL_DEADLINE, Call};
use super::reads::find;
use super::{MESSAGE_BYTES_MAX, carry, peers};
use crate::advise::{Scene, capacity, explain_host, explain_migration, explain_vm};
use crate::clock;
use crate::node::Node;

/// The Advisor service of one controller.
#[derive(Debug)]
pub(crate) struct Advice {
    node: Arc<Node>,
}

/// Carries a question to the leader and answers it there, on a thread of its own: over a large fleet it takes a while.
macro_rules! answered {
    ($self:ident, $request:ident, $method:ident, $answer:expr) => {{
        let call = Call::of(&$request, CALL_DEADLINE);
        let local = |asked| thinking(&$self.node, asked, $answer);
        let remote = |channel, request| async move { peers::advisor(channel).$method(request).await };
        Ok(Response::new(carry::to_leader(&$self.node, call, $request.into_inner(), local, remote).await?))
    }};
}

async fn thinking<Q: Send + 'static, A: Send + 'static>(
    node: &Node,
    asked: Q,
    answer: impl Fn(&Scene<'_>, Q) -> Result<A, Fault> + Send + 'static,
) -> Result<A, Fault> {
    let (view, observed) = (node.replica.read(), node.board.snapshot());
    let thought = tokio::task::spawn_blocking(move || {
        answer(&Scene { state: &view, observed: &observed, now: clock::now() }, asked)
    });
    thought.await.map_err(|error| Fault::new(dunlin_model::ErrorCode::Internal, error.to_string()))?
}

impl Advice {
    pub(crate) fn service(node: Arc<Node>) -> AdvisorServer<Self> {
        let server = AdvisorServer::new(Self { node });
        server.max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX)
    }
}

#[tonic::async_trait]
impl Advisor for Advice {
    #[tracing::instrument(skip_all, fields(name = request.get_ref().name))]
    async fn explain(
        &self,
        request: Request<v1::ExplainRequest>,
    ) -> Result<Response<v1::Explanation>, Status> {
        answered!(self, request, explain, explain)
    }

    #[tracing::instrument(skip_all)]
    async fn count_capacity(
        &self,
        request: Request<v1::CapacityRequest>,
    ) -> Result<Response<v1::Capacity>, Status> {
        answered!(self, request, count_capacity, count_capacity)
    }
}

fn explain(scene: &Scene<'_>, asked: v1::ExplainRequest) -> Result<v1::Explanation, Fault> {
    if let Some(vm) = asked.vm {
        let vm: Vm = vm.try_into()?;
        return Ok(explain_vm(scene, &vm).into());
    }
    let kind = read(asked.kind, "kind")?;
    let found = match kind {
        Kind::Vm | Kind::Host | Kind::Migration => find(scene.state, kind, &asked.name)?,
        other => {
            let problem = format!("a {other} is not explained");
            return Err(Invalid::new("kind", problem, "Vm, Host or Migration").into());
        }
    };
    let told = match &**found {
        Object::Vm(vm) => explain_vm(scene, vm),
        Object::Host(host) => explain_host(scene, host),
        Object::Migration(migration) => explain_migration(scene, migration),
        _ => return Err(Invalid::new("kind", "is another kind", "Vm, Host or Migration").into()),
    };
    Ok(told.to_wire())
}

fn count_capacity(scene: &Scene<'_>, asked: v1::CapacityRequest) -> Result<v1::Capacity, Fault> {
    let flavour: Vm = read(asked.vm.ok_or_else(|| Invalid::new("vm", "is missing", "a flavour"))?, "vm")?;
    Ok(capacity(scene, &flavour).into())
}
