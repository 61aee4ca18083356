//! `doctor`: what is wrong, and what to do about it. The judging is the controller's.

use clap::Args;
use dunlin_proto::v1;
use dunlin_proto::v1::finding::Grade;
use serde_json::json;

use super::Session;
use crate::args::Format;
use crate::failure::Failure;
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Fail on warnings too
    #[arg(long)]
    strict: bool,
}

fn word(grade: Grade) -> &'static str {
    match grade {
        Grade::Error => "error",
        Grade::Warning => "warning",
        Grade::Fine | Grade::Unspecified => "fine",
    }
}

pub(crate) async fn run(session: &Session, args: &DoctorArgs) -> Result<(), Failure> {
    let call = async |mut client: v1::operator_client::OperatorClient<crate::client::Line>| {
        client.diagnose(v1::DiagnoseRequest {}).await
    };
    let findings = session.fleet.operate(call).await?.findings;
    match session.format {
        Format::Json | Format::Yaml => {
            let each = |one: &v1::Finding| json!({"grade": word(one.grade()), "check": one.check, "about": one.about, "found": one.found, "advice": one.advice});
            let all: Vec<_> = findings.iter().map(each).collect();
            output::value(session.format, &json!({ "findings": all }))?;
        }
        Format::Table | Format::Wide => {
            for one in &findings {
                output::line(&format!(
                    "{:8} {:12} {}: {}",
                    word(one.grade()),
                    one.check,
                    one.about,
                    one.found
                ))?;
                if !one.advice.is_empty() {
                    output::line(&format!("{:21} -> {}", "", one.advice))?;
                }
            }
        }
    }
    let count = |grade: Grade| findings.iter().filter(|one| one.grade() == grade).count();
    let (errors, warnings) = (count(Grade::Error), count(Grade::Warning));
    if errors > 0 || args.strict && warnings > 0 {
        return Err(Failure::Sick(format!("the doctor found {errors} errors and {warnings} warnings")));
    }
    Ok(())
}
