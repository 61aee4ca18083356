//! Several VMs in one call and one commit.
//!
//! DECISION: all or none. One key, one command, one revision: whoever repeats the call after a lost answer gets the same
//! answer, and never has to find out which half was made.

use std::sync::Arc;

use dunlin_model::invalid::in_range;
use dunlin_model::vm::Vm;
use dunlin_model::{Invalid, Kind};
use dunlin_proto::v1::object::Choice;
use dunlin_proto::{Fault, v1};
use dunlin_state::{NewVm, State, Write};
use tonic::{Request, Response, Status};

use super::call::{CALL_DEADLINE, Call};
use super::{Api, carry, commit, peers, writes};
use crate::rights::Caller;

/// VMs in one call: their command is then far below what the log takes, and applied within milliseconds.
const MANY_MAX: u64 = 256;

impl Api {
    pub(super) async fn many(
        &self,
        request: Request<v1::CreateManyRequest>,
    ) -> Result<Response<v1::CreateManyResponse>, Status> {
        let call = Call::admit(&self.node.calls, &request, CALL_DEADLINE)?;
        let mut ask = request.into_inner();
        in_range("objects (number)", ask.objects.len() as u64, 1..=MANY_MAX).map_err(Fault::from)?;
        super::complete_key(&mut ask.idempotency_key)?;
        let remote = |channel, request| async move { peers::fleet(channel).create_many(request).await };
        // Only a second try needs the request again.
        let ask = Arc::new(ask);
        let caller = &Arc::clone(&call.caller);
        let here = |ask: Arc<v1::CreateManyRequest>| async move { self.make_all(caller, &ask).await };
        let there = |channel, request: Request<Arc<v1::CreateManyRequest>>| {
            remote(channel, request.map(Arc::unwrap_or_clone))
        };
        Ok(Response::new(carry::to_leader(&self.node, call, ask, here, there).await?))
    }

    async fn make_all(
        &self,
        caller: &Caller,
        ask: &v1::CreateManyRequest,
    ) -> Result<v1::CreateManyResponse, Fault> {
        let (key, dry_run) = (ask.idempotency_key.clone(), ask.dry_run);
        let read = |(at, object): (usize, &v1::Object)| {
            new_vm(object).map_err(|e| e.under(&format!("objects[{at}]")))
        };
        let vms = ask.objects.iter().enumerate().map(read).collect::<Result<Vec<_>, Invalid>>()?;
        let made: Vec<_> = vms.iter().map(|vm| (vm.uid.0, vm.name.clone())).collect();
        let write = |_: &State| Ok(Write::CreateVms { vms });
        let outcome = commit::commit(&self.node, caller, key, dry_run, write).await?;
        let uids = if outcome.repeated {
            let view = self.node.replica.read();
            let uid = |(_, name)| view.object_named(Kind::Vm, &name).map(|vm| vm.uid().to_string());
            made.into_iter().map(|vm| uid(vm).unwrap_or_default()).collect()
        } else {
            made.into_iter().map(|(uid, _)| uid.to_string()).collect()
        };
        Ok(v1::CreateManyResponse { revision: outcome.revision.0, uids })
    }
}

fn new_vm(object: &v1::Object) -> Result<NewVm, Invalid> {
    let Some(Choice::Vm(vm)) = &object.choice else {
        return Err(Invalid::new("kind", "is none that is created by the dozen", "Vm"));
    };
    let vm: Vm = vm.clone().try_into()?;
    Ok(writes::new_vm(vm))
}
