//! Names of scores and filters in a cluster's policy: checked where a user writes them, since only the scheduler knows
//! them.

use dunlin_model::Invalid;
use dunlin_model::cluster::ClusterSpec;
use dunlin_scheduler::filter::OPTIONAL;
use dunlin_scheduler::policy::{TERMS, Term};
use dunlin_state::near::distance;

/// Refuses a score or filter that there is not, with the one that was meant.
pub(super) fn check(spec: &ClusterSpec) -> Result<(), Invalid> {
    let terms: Vec<String> = TERMS.iter().copied().map(Term::name).map(str::to_owned).collect();
    let filters: Vec<String> = OPTIONAL.iter().map(|reason| format!("{reason:?}")).collect();
    spec.weights.keys().try_for_each(|name| known(&format!("spec.weights.{name}"), name, &terms))?;
    spec.without.iter().try_for_each(|name| known("spec.without", name, &filters))
}

fn known(field: &str, name: &str, names: &[String]) -> Result<(), Invalid> {
    if names.iter().any(|known| known == name) {
        return Ok(());
    }
    let near = names.iter().min_by_key(|known| distance(name, known));
    let near = near.filter(|known| distance(name, known) <= known.len() / 2);
    let hint = near.map_or(String::new(), |near| format!("; did you mean {near}?"));
    Err(Invalid::new(field, format!("{name:?} is not known{hint}"), names.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A misspelt name is refused with the one that was meant and all there are.
    #[test]
    fn misspelt_names_are_refused() {
        let mut spec = ClusterSpec::default();
        spec.weights.insert("spred".to_owned(), 3);
        let refused = check(&spec).unwrap_err().to_string();
        assert!(refused.contains("did you mean spread?") && refused.contains("near-source"), "{refused}");
        spec.weights.clear();
        spec.without.insert("Memory".to_owned());
        assert!(check(&spec).is_err(), "what cannot run is refused under every policy");
        spec.without = ["Tainted".to_owned()].into();
        assert_eq!(check(&spec), Ok(()));
    }
}
