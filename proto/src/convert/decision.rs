//! What the scheduler decided, and the moves it recommends.

use dunlin_model::Invalid;
use dunlin_model::decision as model;

use super::{Wire, missing, read, refuse};
use crate::v1;

records!(Decision { revision, winner, runner_up, fitting, refused });

records!(Candidate { host, name, score, terms });

records!(Term { name, points });

records!(Refusal { reason, hosts, text });

records!(Grounds { reason, predicted, cost });

records!([default] Effect {
    pain_before_milli,
    pain_after_milli,
    from_percent_before,
    from_percent_after,
    to_percent_before,
    to_percent_after,
});

records!([default] MoveCost { send_mib, total_ms, downtime_ms });

mod recommendation {
    use dunlin_model::recommendation as model;

    use super::{Invalid, Wire, missing, read, refuse, v1};

    records!(RecommendationSpec { vm, vm_name, from, from_name, to, to_name, wave, grounds });

    records!([default] RecommendationStatus { phase, since as since_ms, migration, message });

    choices!([default] RecommendationPhase { Open, Approved, Dismissed, Expired });
}
