//! The Advisor service: questions to the scheduler, answered by the leader, which alone knows what is measured.

use std::sync::Arc;

use dunlin_model::cluster::LEVEL;
use dunlin_model::host::Host;
use dunlin_model::rights::Verb;
use dunlin_model::vm::Vm;
use dunlin_model::{Invalid, Kind, Object};
use dunlin_proto::v1::advisor_server::{Advisor, AdvisorServer};
use dunlin_proto::{Fault, Wire as _, read, v1};
use dunlin_scheduler::balance::Eagerness;
use dunlin_state::rights::Scope;
use tonic::{Request, Response, Status};

use super::call::{CALL_DEADLINE, Call};
use super::reads::find;
use super::{MESSAGE_BYTES_MAX, carry, commit, peers};
use crate::advise::{
    Aim, Scene, balance_plan, capacity, drain_plan, explain_host, explain_migration, explain_vm,
};
use crate::clock;
use crate::node::Node;
use crate::reconcile::level_by;
use crate::rights::{self, Caller};

/// Failures asked about at most: more hosts than that rarely share a cause.
const FAILURES_MAX: u64 = 16;

/// The Advisor service of one controller.
#[derive(Clone, Debug)]
pub(crate) struct Advice {
    node: Arc<Node>,
}

/// Carries a question to the leader and answers it there, on a thread of its own: over a large fleet it takes a while.
macro_rules! answered {
    ($self:ident, $request:ident, $method:ident, $kind:expr, $answer:expr) => {{
        let call = Call::admit(&$self.node.calls, &$request, CALL_DEADLINE)?;
        let (node, caller) = (&$self.node, &Arc::clone(&call.caller));
        let local = |asked| async move {
            may(node, caller, Verb::Read, $kind, stringify!($method))?;
            thinking(node, asked, $answer).await
        };
        let remote = |channel, request| async move { peers::advisor(channel).$method(request).await };
        Ok(Response::new(carry::to_leader(&$self.node, call, $request.into_inner(), local, remote).await?))
    }};
}

/// The scheduler looks at the whole fleet, and so must whoever asks it be allowed to.
fn may(node: &Node, caller: &Caller, verb: Verb, kind: Kind, asked: &str) -> Result<(), Fault> {
    let view = node.replica.read();
    rights::authorise(node, caller, &view, (verb, kind, Scope::Fleet), asked).map(drop)
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
    /// Begins every move of a plan made now. A move is named by the VM and its revision, so a repeated request begins
    /// none twice: the VM is on its way, and the new plan leaves it alone.
    async fn apply(
        &self,
        caller: &Caller,
        asked: v1::ApplyBalanceRequest,
    ) -> Result<v1::ApplyBalanceResponse, Fault> {
        may(&self.node, caller, Verb::Operate, Kind::Vm, "apply_balance")?;
        let aim = Aim { level: level(asked.level)?, consolidate: asked.consolidate };
        let planned = thinking(&self.node, aim, |scene, aim| {
            let (plan, moves) = balance_plan(scene, aim);
            let writes: Vec<_> = moves.iter().map(|found| level_by(scene.state, found)).collect();
            Ok((plan, writes))
        });
        let (plan, writes) = planned.await?;
        let mut migrations = Vec::new();
        for (key, write) in writes {
            let outcome = commit::commit(&self.node, caller, key, false, |_| Ok(write)).await?;
            if let Some(Object::Migration(begun)) = outcome.object.as_deref() {
                migrations.push(begun.clone().into());
            }
        }
        Ok(v1::ApplyBalanceResponse { plan: Some(plan.into()), migrations })
    }

    pub(crate) fn new(node: Arc<Node>) -> Self {
        Self { node }
    }

    pub(crate) fn service(self) -> AdvisorServer<Self> {
        let server = AdvisorServer::new(self);
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
        answered!(self, request, explain, Kind::Vm, explain)
    }

    #[tracing::instrument(skip_all)]
    async fn plan_drain(
        &self,
        request: Request<v1::PlanDrainRequest>,
    ) -> Result<Response<v1::DrainPlan>, Status> {
        answered!(self, request, plan_drain, Kind::Host, |scene: &Scene<'_>, asked: v1::PlanDrainRequest| {
            plan_drain(scene, &asked)
        })
    }

    #[tracing::instrument(skip_all)]
    async fn plan_balance(
        &self,
        request: Request<v1::PlanBalanceRequest>,
    ) -> Result<Response<v1::BalancePlan>, Status> {
        answered!(
            self,
            request,
            plan_balance,
            Kind::Vm,
            |scene: &Scene<'_>, asked: v1::PlanBalanceRequest| {
                let aim = Aim { level: level(asked.level)?, consolidate: asked.consolidate };
                Ok(balance_plan(scene, aim).0.into())
            }
        )
    }

    #[tracing::instrument(skip_all)]
    async fn apply_balance(
        &self,
        request: Request<v1::ApplyBalanceRequest>,
    ) -> Result<Response<v1::ApplyBalanceResponse>, Status> {
        let call = Call::admit(&self.node.calls, &request, CALL_DEADLINE)?;
        let caller = Arc::clone(&call.caller);
        let local = |asked: v1::ApplyBalanceRequest| self.apply(&caller, asked);
        let remote = |channel, request| async move { peers::advisor(channel).apply_balance(request).await };
        let asked = request.into_inner();
        Ok(Response::new(carry::to_leader(&self.node, call, asked, local, remote).await?))
    }

    #[tracing::instrument(skip_all)]
    async fn count_capacity(
        &self,
        request: Request<v1::CapacityRequest>,
    ) -> Result<Response<v1::Capacity>, Status> {
        answered!(self, request, count_capacity, Kind::Host, count_capacity)
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
    dunlin_model::invalid::in_range("failures", asked.failures.into(), 0..=FAILURES_MAX)?;
    Ok(capacity(scene, &flavour, asked.failures).into())
}

fn plan_drain(scene: &Scene<'_>, asked: &v1::PlanDrainRequest) -> Result<v1::DrainPlan, Fault> {
    if asked.hosts.is_empty() {
        return Err(Invalid::new("hosts", "names none", "one host or more").into());
    }
    let mut hosts: Vec<&Host> = Vec::new();
    for name in &asked.hosts {
        if let Object::Host(host) = &**find(scene.state, Kind::Host, name)? {
            hosts.push(host);
        }
    }
    Ok(drain_plan(scene, &hosts).into())
}

fn level(asked: Option<u32>) -> Result<Option<Eagerness>, Invalid> {
    let read = |level: u32| {
        dunlin_model::invalid::in_range("level", level.into(), LEVEL)?;
        Eagerness::try_from(u8::try_from(level).unwrap_or(u8::MAX))
    };
    asked.map(read).transpose()
}
