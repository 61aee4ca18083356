//! `--rule`: affinity towards other VMs, as one flag.

use dunlin_model::vm::{Rule, Scope, Wants};
use dunlin_model::{Invalid, Labels};

use crate::args::key_value;

/// `apart|together,with=KEY=VALUE[,over=host|rack|zone][,weight=N]`.
pub(crate) fn rule(text: &str) -> Result<Rule, Invalid> {
    let refuse = |problem: String| {
        let allowed = "apart or together, then with=KEY=VALUE, over=host|rack|zone, weight=1 to 100";
        Invalid::new("--rule", problem, allowed)
    };
    let mut parts = text.split(',');
    let wants = match parts.next() {
        Some("apart") => Wants::Apart,
        Some("together") => Wants::Together,
        other => return Err(refuse(format!("{:?} is no wish", other.unwrap_or_default()))),
    };
    let mut rule = Rule { wants, with: Labels::new(), over: Scope::default(), weight: None };
    for part in parts {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        match (key, value) {
            ("with", label) => rule.with.extend([key_value(label).map_err(refuse)?]),
            ("over", "host") => rule.over = Scope::Host,
            ("over", "rack") => rule.over = Scope::Rack,
            ("over", "zone") => rule.over = Scope::Zone,
            ("weight", number) => {
                let weight = number.parse().map_err(|_| refuse(format!("{number:?} is no weight")))?;
                rule.weight = Some(weight);
            }
            _ => return Err(refuse(format!("{part:?} is not known in {text:?}"))),
        }
    }
    Ok(rule)
}

/// `KEY=VALUE:WEIGHT`.
pub(crate) fn preference(text: &str) -> Result<(String, u32), String> {
    let wrong = || format!("{text:?} is not KEY=VALUE:WEIGHT");
    let (label, weight) = text.rsplit_once(':').ok_or_else(wrong)?;
    key_value(label)?;
    Ok((label.to_owned(), weight.parse().map_err(|_| wrong())?))
}

/// `KIND/NAME=COUNT`; what the kinds are is the model's to say.
pub(crate) fn resource(text: &str) -> Result<(String, u64), String> {
    let wrong = || format!("{text:?} is not KIND/NAME=COUNT");
    let (name, count) = key_value(text).map_err(|_| wrong())?;
    Ok((name, count.parse().map_err(|_| wrong())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A rule reads as it is typed, and a wrong part is named.
    #[test]
    fn rules_read_as_typed() {
        let hard = rule("apart,with=app=db,over=rack").unwrap();
        assert_eq!(hard.to_string(), "apart from app=db over rack");
        assert!(hard.keeps_apart());
        assert_eq!(rule("together,with=app=web,weight=5").unwrap().weight, Some(5));
        for (text, part) in
            [("near,with=a=b", "\"near\""), ("apart,over=row", "\"over=row\""), ("apart,with=a", "\"a\"")]
        {
            let refused = rule(text).unwrap_err().to_string();
            assert!(refused.contains(part), "{text}: {refused}");
        }
        assert_eq!(preference("disk=ssd:40"), Ok(("disk=ssd".to_owned(), 40)));
        assert!(preference("disk=ssd").is_err());
    }
}
