//! Nothing acknowledged is lost: whoever leads knows each answer that was given, gives it again, and has what it was
//! about.

use dunlin_model::vm::VmPhase;
use dunlin_state::{Command, Stamp, State, Write, apply};

use crate::World;

impl World {
    /// Whoever leads from now on knows every answer.
    pub(crate) fn check_acknowledged(&self, c: usize) {
        for index in 0..self.requests.len() {
            self.check_answer(c, index);
        }
    }

    /// That controller has what was acknowledged to this request.
    pub(crate) fn check_answer(&self, c: usize, index: usize) {
        let request = &self.requests[index];
        let Some(Ok(revision)) = request.answer else { return };
        let state = &self.controllers[c].state;
        let mut copy = state.clone();
        let stamp = Stamp { index: self.log.len() as u64 + 1, time: self.controllers[c].clock.now() };
        let again = Command::Write { key: request.key.clone(), write: request.write.clone() };
        let again = apply(&mut copy, &stamp, &again);
        if !again.as_ref().is_ok_and(|done| done.repeated && done.revision == revision) {
            self.fail(&format!("{:?} was acknowledged at {revision}; now it is {again:?}", request.write));
        }
        if !self.effect_is_there(state, &request.write) {
            self.fail(&format!(
                "{:?} was acknowledged at {revision}, and controller {c} has nothing of it",
                request.write
            ));
        }
    }

    fn effect_is_there(&self, state: &State, write: &Write) -> bool {
        match write {
            Write::CreateVm { uid, .. } => {
                let doomed =
                    |write: &Write| matches!(write, Write::DeleteVm { uid: deleted } if deleted == uid);
                state.vm(*uid).is_some() || self.requests.iter().any(|request| doomed(&request.write))
            }
            Write::DeleteVm { uid } => state.vm(*uid).is_none_or(|vm| vm.status.phase == VmPhase::Deleting),
            Write::CreateTask { uid, .. } => state.task(*uid).is_some(),
            Write::CreateMigration { uid, .. } => state.migration(*uid).is_some(),
            _ => true,
        }
    }
}
