//! The one cluster object.

use dunlin_model::cluster::{Cluster, ClusterSpec, ClusterStatus, Controller};
use dunlin_model::event::EventLevel;
use dunlin_model::{ClusterId, ErrorCode, Kind, Labels, Level, Name, Revision, meta};

use crate::draft::{Draft, refuse_stale};
use crate::{Rejected, rights};

/// A cluster is founded once. The same founding again is done already.
pub(crate) fn found(
    draft: &mut Draft,
    uid: ClusterId,
    name: &Name,
    controllers: &[Controller],
    level: Level,
) -> Result<(), Rejected> {
    if let Some(cluster) = draft.state.cluster() {
        if cluster.metadata.uid == uid {
            return draft.take::<Cluster>(uid).map(drop);
        }
        let message = format!("this is cluster {} ({}) already", cluster.metadata.name, cluster.metadata.uid);
        return Err(Rejected::new(ErrorCode::AlreadyExists, message));
    }
    let metadata = draft.card::<Cluster, _>(uid, uid.0, name, &Labels::new())?;
    let status = ClusterStatus { controllers: controllers.to_vec(), leader: None, level };
    draft.put(Cluster { metadata, spec: ClusterSpec::default(), status });
    rights::seed(draft)?;
    draft.answer(Kind::Cluster, uid.0);
    Ok(())
}

pub(crate) fn set_controllers(draft: &mut Draft, controllers: &[Controller]) -> Result<(), Rejected> {
    let mut cluster = the(draft)?;
    cluster.status.controllers = controllers.to_vec();
    draft.put(cluster);
    Ok(())
}

pub(crate) fn update(
    draft: &mut Draft,
    read: Revision,
    labels: &Labels,
    spec: &ClusterSpec,
) -> Result<(), Rejected> {
    let mut cluster = the(draft)?;
    refuse_stale(cluster.clone(), read)?;
    spec.validate()?;
    meta::validate_labels(labels)?;
    cluster.metadata.labels.clone_from(labels);
    if cluster.spec != *spec {
        cluster.spec = spec.clone();
        cluster.metadata.generation = cluster.metadata.generation.next();
        draft.event(EventLevel::Normal, "ClusterChanged", &cluster, "the cluster's policy was changed");
    }
    draft.put(cluster);
    Ok(())
}

/// Raises the level by one. Whether everybody reads it was found out by whoever proposes it: that is nothing the log knows.
pub(crate) fn raise_level(draft: &mut Draft, to: Level) -> Result<(), Rejected> {
    let mut cluster = the(draft)?;
    let from = cluster.status.level;
    if to > from {
        if to.0 != from.0 + 1 {
            let message = format!("the cluster is at level {from}, and is raised one by one, not to {to}");
            return Err(Rejected::new(ErrorCode::WrongState, message));
        }
        cluster.status.level = to;
        let message = format!("everything is written at level {to} from now on");
        draft.event(EventLevel::Normal, "LevelRaised", &cluster, message);
    }
    draft.put(cluster);
    Ok(())
}

fn the(draft: &mut Draft) -> Result<Cluster, Rejected> {
    let uid = draft.state.cluster().map(|cluster| cluster.metadata.uid);
    let uid = uid.ok_or_else(|| Rejected::new(ErrorCode::WrongState, "the cluster is not founded yet"))?;
    draft.take::<Cluster>(uid)
}
