//! What of a decision is kept with the object it was taken on.

use dunlin_model::Revision;
use dunlin_model::decision::{Candidate, Decision, REFUSALS_MAX, Refusal, Term};
use dunlin_scheduler::Scored;

/// The record of a decision.
pub(crate) fn of(decision: &dunlin_scheduler::Decision) -> Decision {
    let refused = decision.refused.iter().take(REFUSALS_MAX).map(|refusal| Refusal {
        reason: format!("{:?}", refusal.reason),
        hosts: refusal.hosts,
        text: refusal.text.clone(),
    });
    Decision {
        revision: Revision(decision.revision),
        winner: decision.winner.as_ref().map(candidate),
        runner_up: decision.runner_up.as_ref().map(candidate),
        fitting: decision.fitting,
        refused: refused.collect(),
    }
}

/// The same, on the heap: a command that carries it stays small.
pub(crate) fn boxed(decision: &dunlin_scheduler::Decision) -> Box<Decision> {
    Box::new(of(decision))
}

fn candidate(scored: &Scored) -> Candidate {
    let points = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let term = |term: &dunlin_scheduler::score::TermScore| Term {
        name: name_of(&term.term),
        points: points(term.value * u64::from(term.weight)),
    };
    Candidate {
        host: scored.host,
        name: scored.name.clone(),
        score: points(scored.score),
        terms: scored.terms.iter().map(term).collect(),
    }
}

/// A term or filter by the name it has in JSON.
pub(crate) fn name_of(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => name,
        _ => String::new(),
    }
}
