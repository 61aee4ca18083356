//! Images: names for bytes that are stored already.

use dunlin_model::event::EventLevel;
use dunlin_model::image::{Image, ImageSpec, ImageStatus};
use dunlin_model::{ErrorCode, ImageId, Kind, Labels, Name, Revision, meta};

use crate::Rejected;
use crate::draft::{Draft, refuse_stale};

/// VMs named in a refusal; the rest are counted.
const NAMED_MAX: usize = 3;

pub(crate) fn create(
    draft: &mut Draft,
    uid: ImageId,
    name: &Name,
    labels: &Labels,
    spec: &ImageSpec,
) -> Result<(), Rejected> {
    spec.validate()?;
    meta::validate_labels(labels)?;
    let metadata = draft.card::<Image, _>(uid, uid.0, name, labels)?;
    let image = Image { metadata, spec: spec.clone(), status: ImageStatus {} };
    let message = format!("{} bytes, {}", spec.size_bytes, spec.format.as_str());
    draft.event(EventLevel::Normal, "ImageImported", &image, message);
    draft.put(image);
    Ok(())
}

pub(crate) fn update(
    draft: &mut Draft,
    uid: ImageId,
    read: Revision,
    labels: &Labels,
    spec: &ImageSpec,
) -> Result<(), Rejected> {
    let mut image = draft.take::<Image>(uid)?;
    refuse_stale(image.clone(), read)?;
    meta::validate_labels(labels)?;
    if image.spec != *spec {
        let name = &image.metadata.name;
        let message =
            format!("image {name} is its bytes, which never change; import the new ones under another name");
        return Err(Rejected::new(ErrorCode::WrongState, message));
    }
    image.metadata.labels.clone_from(labels);
    draft.put(image);
    Ok(())
}

pub(crate) fn delete(draft: &mut Draft, uid: ImageId) -> Result<(), Rejected> {
    let image = draft.take::<Image>(uid)?;
    let name = &image.metadata.name;
    let users = draft.state.vms().filter(|vm| vm.spec.images().contains(name));
    let users: Vec<String> = users.map(|vm| vm.metadata.name.to_string()).collect();
    if !users.is_empty() {
        let more = users.len().saturating_sub(NAMED_MAX);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let named = users.iter().take(NAMED_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
        let message = format!("image {name} is used by {named}{more}");
        return Err(Rejected::new(ErrorCode::InUse, message));
    }
    draft.event(EventLevel::Normal, "ImageDeleted", &image, "the name was given up");
    draft.remove(Kind::Image, uid.0);
    Ok(())
}
