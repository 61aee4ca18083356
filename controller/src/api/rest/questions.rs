//! Questions to the scheduler.

use axum::http::StatusCode;
use dunlin_model::advice::{BalancePlan, Capacity, DrainPlan, Explanation};
use dunlin_model::migration::Migration;
use dunlin_model::vm::{Vm, VmSpec, VmStatus};
use dunlin_model::{
    ErrorCode, Generation, Invalid, Kind, Labels, Metadata, Object, Revision, Timestamp, VmId,
};
use dunlin_proto::v1::advisor_server::Advisor as _;
use dunlin_proto::{Fault, document, v1};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::incoming::Incoming;
use super::problem::Refused;
use super::route::{CONSOLIDATE, LEVEL, Served};
use super::{Rest, json};

pub(super) fn explain(rest: &Rest, mut incoming: Incoming) -> Served<'_> {
    Box::pin(async move {
        let ask = v1::ExplainRequest { kind: incoming.kind_number(), name: incoming.name(), vm: None };
        let told = rest.advice.explain(incoming.request(ask)?).await?.into_inner();
        Ok(json(StatusCode::OK, &Explanation::try_from(told).map_err(ours)?))
    })
}

pub(super) fn explain_new(rest: &Rest, mut incoming: Incoming) -> Served<'_> {
    Box::pin(async move {
        incoming.expect_json()?;
        let Object::Vm(vm) = document::object(Kind::Vm, &incoming.json().await?)? else {
            return Err(Invalid::new("kind", "is another", "Vm").into());
        };
        let ask = v1::ExplainRequest { kind: 0, name: String::new(), vm: Some(vm.into()) };
        let told = rest.advice.explain(incoming.request(ask)?).await?.into_inner();
        Ok(json(StatusCode::OK, &Explanation::try_from(told).map_err(ours)?))
    })
}

/// A flavour of VMs, and how much may break.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CapacityBody {
    #[serde(default)]
    labels: Labels,
    spec: VmSpec,
    /// Hosts that may fail at once, 0 to 16.
    #[serde(default)]
    failures: u32,
}

pub(super) fn capacity(rest: &Rest, mut incoming: Incoming) -> Served<'_> {
    Box::pin(async move {
        let CapacityBody { labels, spec, failures } = incoming.body().await?;
        let metadata = Metadata {
            name: "flavour".parse()?,
            uid: VmId(uuid::Uuid::nil()),
            labels,
            generation: Generation(0),
            revision: Revision(0),
            created: Timestamp(0),
        };
        let vm = Vm { metadata, spec, status: VmStatus::default() };
        let ask = v1::CapacityRequest { vm: Some(vm.into()), failures };
        let told = rest.advice.count_capacity(incoming.request(ask)?).await?.into_inner();
        Ok(json(StatusCode::OK, &Capacity::try_from(told).map_err(ours)?))
    })
}

/// Hosts that are to be emptied.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DrainBody {
    /// Their names.
    hosts: Vec<String>,
}

pub(super) fn plan_drain(rest: &Rest, mut incoming: Incoming) -> Served<'_> {
    Box::pin(async move {
        let DrainBody { hosts } = incoming.body().await?;
        let told =
            rest.advice.plan_drain(incoming.request(v1::PlanDrainRequest { hosts })?).await?.into_inner();
        Ok(json(StatusCode::OK, &DrainPlan::try_from(told).map_err(ours)?))
    })
}

pub(super) fn plan_balance(rest: &Rest, mut incoming: Incoming) -> Served<'_> {
    Box::pin(async move {
        let (level, consolidate) = (incoming.number(&LEVEL)?, incoming.flag(&CONSOLIDATE)?);
        let ask = incoming.request(v1::PlanBalanceRequest { level, consolidate })?;
        let told = rest.advice.plan_balance(ask).await?.into_inner();
        Ok(json(StatusCode::OK, &BalancePlan::try_from(told).map_err(ours)?))
    })
}

/// How eager the plan is to be.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct BalanceBody {
    /// 1 to 5; the cluster's own otherwise.
    #[serde(default)]
    level: Option<u32>,
    /// Empty hosts, so that they can be switched off, rather than level the load.
    #[serde(default)]
    consolidate: bool,
}

/// A plan that was made and begun.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Balanced {
    plan: BalancePlan,
    /// The migrations begun, in the order of the plan.
    migrations: Vec<Migration>,
}

pub(super) fn apply_balance(rest: &Rest, mut incoming: Incoming) -> Served<'_> {
    Box::pin(async move {
        let BalanceBody { level, consolidate } = incoming.body().await?;
        let ask = v1::ApplyBalanceRequest { idempotency_key: incoming.key(), level, consolidate };
        let told = rest.advice.apply_balance(incoming.request(ask)?).await?.into_inner();
        let plan = told.plan.ok_or_else(|| Fault::new(ErrorCode::Internal, "a plan without a plan"))?;
        let migrations: Result<Vec<Migration>, Invalid> =
            told.migrations.into_iter().map(TryInto::try_into).collect();
        let balanced =
            Balanced { plan: plan.try_into().map_err(ours)?, migrations: migrations.map_err(ours)? };
        Ok(json(StatusCode::OK, &balanced))
    })
}

/// An answer of ours that cannot be read.
pub(super) fn ours(invalid: Invalid) -> Refused {
    Fault { code: ErrorCode::Internal, ..Fault::from(invalid) }.into()
}
