//! What is done to objects rather than written in them: power, tasks, cancelling, deciding; and tokens.

use axum::http::StatusCode;
use dunlin_model::observed::Unmanaged;
use dunlin_model::task::Act;
use dunlin_model::vm::Power;
use dunlin_model::{Invalid, Kind, Timestamp};
use dunlin_proto::v1::fleet_server::Fleet as _;
use dunlin_proto::{Wire as _, v1};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::incoming::Incoming;
use super::objects::{made, model, shown};
use super::questions::ours;
use super::route::{DRY_RUN, Served};
use super::{Rest, json};

/// What a VM's power should be.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PowerBody {
    power: Power,
}

pub(super) fn power(rest: &Rest, mut incoming: Incoming) -> Served<'_> {
    Box::pin(async move {
        let PowerBody { power } = incoming.body().await?;
        let ask = v1::SetPowerRequest {
            idempotency_key: incoming.key(),
            vm: incoming.name(),
            power: power.to_wire(),
            dry_run: incoming.flag(&DRY_RUN)?,
            revision: incoming.if_match()?,
        };
        shown(rest.api.set_power(incoming.request(ask)?).await?.into_inner())
    })
}

/// Which guest is adopted, and as what.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AdoptBody {
    /// The guest's name as it is there, or its uid.
    name: String,
    /// Only on this host; needed when several have one of that name.
    #[serde(default)]
    host: String,
    /// What the VM is to be called; as it is called there when empty.
    #[serde(default)]
    rename: String,
    /// The project it goes to; `default` when empty.
    #[serde(default)]
    project: String,
}

/// Guests that nobody in the fleet manages.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct UnmanagedVms {
    items: Vec<Unmanaged>,
}

pub(super) fn list_unmanaged(rest: &Rest, mut incoming: Incoming) -> Served<'_> {
    Box::pin(async move {
        let asked = incoming.request(v1::ListUnmanagedRequest {})?;
        let told = rest.api.list_unmanaged(asked).await?.into_inner().vms;
        let items: Result<Vec<Unmanaged>, Invalid> = told.into_iter().map(TryInto::try_into).collect();
        Ok(json(StatusCode::OK, &UnmanagedVms { items: items.map_err(ours)? }))
    })
}

pub(super) fn adopt(rest: &Rest, mut incoming: Incoming) -> Served<'_> {
    Box::pin(async move {
        let dry_run = incoming.flag(&DRY_RUN)?;
        let AdoptBody { name, host, rename, project } = incoming.body().await?;
        let idempotency_key = incoming.key();
        let ask = v1::AdoptRequest { idempotency_key, name, host, rename, project, dry_run };
        shown(rest.api.adopt(incoming.request(ask)?).await?.into_inner())
    })
}

pub(super) fn release(rest: &Rest, mut incoming: Incoming) -> Served<'_> {
    Box::pin(async move {
        let dry_run = incoming.flag(&DRY_RUN)?;
        let ask = v1::ReleaseRequest { idempotency_key: incoming.key(), vm: incoming.name(), dry_run };
        shown(rest.api.release(incoming.request(ask)?).await?.into_inner())
    })
}

/// A task that is to be begun.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TaskBody {
    spec: TaskWish,
}

/// What is to be done, to what.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct TaskWish {
    act: Act,
    /// Kind of the object it is done to: Vm or Host.
    kind: Kind,
    /// Its name.
    name: String,
}

pub(super) fn start_task(rest: &Rest, mut incoming: Incoming) -> Served<'_> {
    Box::pin(async move {
        let dry_run = incoming.flag(&DRY_RUN)?;
        let TaskBody { spec: TaskWish { act, kind, name } } = incoming.body().await?;
        let ask = v1::StartTaskRequest {
            idempotency_key: incoming.key(),
            kind: kind.to_wire(),
            name,
            act: act.to_wire(),
            dry_run,
        };
        let task = model(rest.api.start_task(incoming.request(ask)?).await?.into_inner())?;
        Ok(made(&task, dry_run))
    })
}

pub(super) fn cancel(rest: &Rest, mut incoming: Incoming) -> Served<'_> {
    Box::pin(async move {
        let ask = v1::CancelRequest {
            idempotency_key: incoming.key(),
            kind: incoming.kind_number(),
            name: incoming.name(),
            dry_run: incoming.flag(&DRY_RUN)?,
        };
        shown(rest.api.cancel(incoming.request(ask)?).await?.into_inner())
    })
}

/// What becomes of a recommendation.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DecideBody {
    /// Approve it, or else dismiss it.
    approve: bool,
}

pub(super) fn decide(rest: &Rest, mut incoming: Incoming) -> Served<'_> {
    Box::pin(async move {
        let DecideBody { approve } = incoming.body().await?;
        let ask = v1::DecideRequest {
            idempotency_key: incoming.key(),
            name: incoming.name(),
            approve,
            dry_run: incoming.flag(&DRY_RUN)?,
        };
        shown(rest.api.decide(incoming.request(ask)?).await?.into_inner())
    })
}

/// How long a token is good.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TokenBody {
    /// Seconds until it expires, 1 to 604800.
    ttl_s: u64,
}

/// A token.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Token {
    /// Shown once; only its hash is kept. Empty after a dry run.
    token: String,
    expires: Timestamp,
}

pub(super) fn create_token(rest: &Rest, mut incoming: Incoming) -> Served<'_> {
    Box::pin(async move {
        let dry_run = incoming.flag(&DRY_RUN)?;
        let TokenBody { ttl_s } = incoming.body().await?;
        let ask = v1::CreateTokenRequest {
            idempotency_key: incoming.key(),
            ttl_s,
            dry_run,
            ..v1::CreateTokenRequest::default()
        };
        let made = rest.api.create_token(incoming.request(ask)?).await?.into_inner();
        let token = Token { token: made.token, expires: Timestamp(made.expires_ms) };
        Ok(json(if dry_run { StatusCode::OK } else { StatusCode::CREATED }, &token))
    })
}
