//! What a client asks to be written, as the command that writes it.
//!
//! Parses, resolves names, and mints what is new; decides nothing. Runs on the leader, against its own state: whether
//! what was assumed still holds is checked when the command is applied.

mod merging;

use merging::{apply, patch};

use dunlin_model::cluster::Cluster;
use dunlin_model::host::{Host, HostSpec};
use dunlin_model::image::{Image, ImageSpec};
use dunlin_model::invalid::in_range;
use dunlin_model::meta::NAME_MAX;
use dunlin_model::migration::{Migration, MigrationCause, MigrationSpec};
use dunlin_model::task::{Act, TaskSpec};
use dunlin_model::vm::{Vm, VmSpec};
use dunlin_model::{
    HostId, ImageId, Invalid, Kind, Metadata, MigrationId, Name, Object, Resource, Revision, TaskId, VmId,
};
use dunlin_proto::v1::object::Choice;
use dunlin_proto::{Fault, Wire as _, read, v1};
use dunlin_state::owners::Expected;
use dunlin_state::rights::{RightsSpec, RightsWrite};
use dunlin_state::{NewVm, State, Write};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::peers::fleet;
use super::policy;
use super::reads::find;
use crate::mint;

/// Longest and shortest time an act may be given, s: from a moment to a day.
const ACT_TIMEOUT_S: std::ops::RangeInclusive<u64> = 1..=86_400;

/// A request that writes: one of the Fleet API's.
pub(super) trait Ask: Clone + Send + Sync + 'static {
    /// Its idempotency key.
    fn key(&mut self) -> &mut String;

    /// Only to be tried, not to be kept?
    fn dry_run(&self) -> bool;

    /// Is it made from what is stored, so that it may be made anew when that has changed meanwhile?
    fn merges(&self) -> bool {
        false
    }

    /// May it take as long as an image takes to cross the network?
    fn moves_bytes(&self) -> bool {
        false
    }

    /// The write it asks for.
    fn write(self, state: &State) -> Result<Write, Fault>;

    /// Passes it on.
    fn send(
        channel: Channel,
        request: Request<Self>,
    ) -> impl Future<Output = Result<Response<v1::Object>, Status>> + Send;
}

macro_rules! ask {
    ($request:ident, $method:ident, $write:ident $(, $extra:item)*) => {
        impl Ask for v1::$request {
            fn key(&mut self) -> &mut String {
                &mut self.idempotency_key
            }

            fn dry_run(&self) -> bool {
                self.dry_run
            }

            fn write(self, state: &State) -> Result<Write, Fault> {
                $write(&self, state)
            }

            async fn send(channel: Channel, request: Request<Self>) -> Result<Response<v1::Object>, Status> {
                fleet(channel).$method(request).await
            }

            $($extra)*
        }
    };
}

ask!(
    CreateRequest,
    create,
    create,
    fn moves_bytes(&self) -> bool {
        matches!(self.object, Some(v1::Object { choice: Some(Choice::Image(_)) }))
    }
);
ask!(UpdateRequest, update, update);
ask!(
    PatchRequest,
    patch,
    patch,
    fn merges(&self) -> bool {
        self.revision == 0
    }
);
ask!(
    ApplyRequest,
    apply,
    apply,
    fn merges(&self) -> bool {
        true
    },
    fn moves_bytes(&self) -> bool {
        self.kind == Kind::Image.to_wire()
    }
);
ask!(DeleteRequest, delete, delete);
ask!(SetPowerRequest, set_power, set_power);
ask!(ReleaseRequest, release, release);
ask!(StartTaskRequest, start_task, start_task);
ask!(CancelRequest, cancel, cancel);
ask!(DecideRequest, decide, decide);

/// The one of the kinds that was sent. Each is read by itself, so that a refusal names the field as in YAML.
fn chosen(object: Option<&v1::Object>) -> Result<Choice, Invalid> {
    let choice = object.and_then(|object| object.choice.clone());
    choice.ok_or_else(|| Invalid::new("object", "is missing", "an object of some kind"))
}

fn create(request: &v1::CreateRequest, state: &State) -> Result<Write, Fault> {
    match chosen(request.object.as_ref())? {
        Choice::Vm(vm) => Ok(create_vm(vm.try_into()?)),
        Choice::Image(image) => Ok(create_image(image.try_into()?)?),
        Choice::Migration(mut migration) => {
            complete_migration(&mut migration, state)?;
            let Migration { metadata, spec, .. } = migration.try_into()?;
            let spec = MigrationSpec { cause: MigrationCause::User, grounds: None, ..spec };
            Ok(Write::CreateMigration { uid: MigrationId(mint::uuid()), name: metadata.name, spec })
        }
        Choice::User(user) => Ok(made(user.try_into()?, RightsSpec::User)),
        Choice::Role(role) => Ok(made(role.try_into()?, RightsSpec::Role)),
        Choice::Binding(binding) => Ok(made(binding.try_into()?, RightsSpec::Binding)),
        Choice::Project(project) => Ok(made(project.try_into()?, RightsSpec::Project)),
        Choice::Cluster(_)
        | Choice::Host(_)
        | Choice::Task(_)
        | Choice::Event(_)
        | Choice::ApiToken(_)
        | Choice::Recommendation(_) => {
            let problem =
                "only these are created by hand; a host joins, a task is started, a token is minted";
            let allowed = "Vm, Image, Migration, User, Role, Binding or Project";
            Err(Invalid::new("kind", problem, allowed).into())
        }
    }
}

fn release(request: &v1::ReleaseRequest, state: &State) -> Result<Write, Fault> {
    let vm = find(state, Kind::Vm, &request.vm)?;
    Ok(Write::ReleaseVm { uid: VmId(vm.uid()) })
}

fn create_image(image: Image) -> Result<Write, Invalid> {
    let Image { metadata, spec, .. } = image;
    if !metadata.uid.0.is_nil() {
        let problem = format!("{} was given, but the fleet gives an image its uid", metadata.uid);
        return Err(Invalid::new("metadata.uid", problem, "none"));
    }
    let uid = ImageId(mint::uuid());
    Ok(Write::CreateImage { uid, name: metadata.name, labels: metadata.labels, spec })
}

/// Cards of which nobody says the address keep the one they have, or get one.
fn address_nics(spec: &mut VmSpec, stored: Option<&VmSpec>) {
    for (index, nic) in spec.nics.iter_mut().enumerate() {
        let kept = stored.and_then(|stored| stored.nics.get(index)).and_then(|nic| nic.mac);
        nic.mac = nic.mac.or(kept).or_else(|| Some(mint::mac()));
    }
}

fn made<Id, Spec, Status>(object: Resource<Id, Spec, Status>, wrap: impl Fn(Spec) -> RightsSpec) -> Write {
    let Resource { metadata: Metadata { name, labels, .. }, spec, .. } = object;
    Write::Rights(RightsWrite::Create { uid: mint::uuid(), name, labels, spec: wrap(spec), secret: None })
}

fn changed<Id, Spec, Status>(
    object: Resource<Id, Spec, Status>,
    uid: Uuid,
    revision: Revision,
    wrap: impl Fn(Spec) -> RightsSpec,
) -> Write {
    let Resource { metadata: Metadata { labels, .. }, spec, .. } = object;
    Write::Rights(RightsWrite::Update { uid, revision, labels, spec: wrap(spec) })
}

fn create_vm(vm: Vm) -> Write {
    let NewVm { uid, own_uid, name, labels, spec } = new_vm(vm);
    Write::CreateVm { uid, own_uid, name, labels, spec }
}

/// What is minted for a new VM, and what was asked for it.
pub(super) fn new_vm(vm: Vm) -> NewVm {
    let mut spec = vm.spec;
    address_nics(&mut spec, None);
    let Metadata { name, uid, labels, .. } = vm.metadata;
    // Whoever brings a VM from elsewhere may bring its uid: a guest sees it, and so does its licence.
    let own_uid = !uid.0.is_nil();
    let uid = if own_uid { uid } else { VmId(mint::uuid()) };
    NewVm { uid, own_uid, name, labels, spec }
}

/// A migration may name its VM by name or by uid, and need not have a name of its own.
fn complete_migration(migration: &mut v1::Migration, state: &State) -> Result<(), Fault> {
    let spec = migration.spec.get_or_insert_default();
    let text = if spec.vm.is_empty() { &spec.vm_name } else { &spec.vm };
    if text.is_empty() {
        return Err(Invalid::new("spec.vm_name", "is missing", "the VM to move").into());
    }
    let vm = find(state, Kind::Vm, text)?;
    (spec.vm, spec.vm_name) = (vm.uid().to_string(), vm.name().to_string());
    spec.cause = v1::MigrationCause::User.into();
    let metadata = migration.metadata.get_or_insert_default();
    if metadata.name.is_empty() {
        metadata.name = generated(vm.name(), "").to_string();
    }
    Ok(())
}

fn update(request: &v1::UpdateRequest, state: &State) -> Result<Write, Fault> {
    // Whoever names a uid means that object, even if the name has been given to another since.
    let uid = |kind: Kind, uid: Uuid, name: &Name| match uid {
        uid if uid.is_nil() => find(state, kind, name.as_str()).map(|found| found.uid()),
        uid => Ok(uid),
    };
    let wire = v1::Object { choice: Some(chosen(request.object.as_ref())?) };
    let object = match wire.choice {
        Some(Choice::Vm(vm)) => Object::Vm(vm.try_into()?),
        Some(Choice::Host(host)) => Object::Host(host.try_into()?),
        Some(Choice::Cluster(cluster)) => Object::Cluster(cluster.try_into()?),
        Some(Choice::Image(image)) => Object::Image(image.try_into()?),
        Some(Choice::User(user)) => Object::User(user.try_into()?),
        Some(Choice::Role(role)) => Object::Role(role.try_into()?),
        Some(Choice::Binding(binding)) => Object::Binding(binding.try_into()?),
        Some(Choice::Project(project)) => Object::Project(project.try_into()?),
        _ => return Err(not_updated().into()),
    };
    let uid = uid(object.kind(), object.uid(), object.name())?;
    let revision = object.revision();
    let stored = state.object(object.kind(), uid).map(|stored| &**stored);
    Ok(replaced(uid, revision, object, stored)?)
}

/// The write that puts the labels and spec of `object` in place of those of the object with that uid and revision.
fn replaced(
    uid: Uuid,
    revision: Revision,
    object: Object,
    stored: Option<&Object>,
) -> Result<Write, Invalid> {
    match object {
        Object::Vm(Vm { metadata, mut spec, .. }) => {
            let stored = match stored {
                Some(Object::Vm(stored)) => Some(&stored.spec),
                _ => None,
            };
            address_nics(&mut spec, stored);
            Ok(Write::UpdateVm { uid: VmId(uid), revision, labels: metadata.labels, spec })
        }
        Object::Host(Host { metadata, spec, .. }) => {
            let HostSpec { cordoned, rack, zone, taints, resources } = spec;
            let (uid, labels) = (HostId(uid), metadata.labels);
            Ok(Write::UpdateHost { uid, revision, labels, cordoned, rack, zone, taints, resources })
        }
        Object::Cluster(Cluster { metadata, spec, .. }) => {
            policy::check(&spec)?;
            Ok(Write::UpdateCluster { revision, labels: metadata.labels, spec })
        }
        Object::Image(Image { metadata, spec, .. }) => {
            Ok(Write::UpdateImage { uid: ImageId(uid), revision, labels: metadata.labels, spec })
        }
        Object::User(user) => Ok(changed(user, uid, revision, RightsSpec::User)),
        Object::Role(role) => Ok(changed(role, uid, revision, RightsSpec::Role)),
        Object::Binding(binding) => Ok(changed(binding, uid, revision, RightsSpec::Binding)),
        Object::Project(project) => Ok(changed(project, uid, revision, RightsSpec::Project)),
        Object::Migration(_)
        | Object::Task(_)
        | Object::Event(_)
        | Object::ApiToken(_)
        | Object::Recommendation(_) => Err(not_updated()),
    }
}

fn not_updated() -> Invalid {
    Invalid::new(
        "kind",
        "only these can be updated",
        "Vm, Host, Cluster, Image, User, Role, Binding or Project",
    )
}

fn delete(request: &v1::DeleteRequest, state: &State) -> Result<Write, Fault> {
    let kind = read(request.kind, "kind")?;
    let uid = match find(state, kind, &request.name) {
        Ok(found) => found.uid(),
        // A repeated deletion whose object is gone by now is still the same deletion.
        Err(fault) => match state.answer(&request.idempotency_key) {
            Some(answer) if answer.kind == kind => answer.uid,
            _ => return Err(fault),
        },
    };
    let write = match kind {
        Kind::Vm => Write::DeleteVm { uid: VmId(uid) },
        Kind::Image => Write::DeleteImage { uid: ImageId(uid) },
        Kind::Host => Write::RemoveHost { uid: HostId(uid), force: request.force },
        Kind::User | Kind::Role | Kind::Binding | Kind::Project | Kind::ApiToken => {
            Write::Rights(RightsWrite::Delete { kind, uid })
        }
        other => {
            let problem = format!("a {other} cannot be deleted");
            let allowed = "Vm, Image, Host, User, Role, Binding, Project or ApiToken";
            return Err(Invalid::new("kind", problem, allowed).into());
        }
    };
    Ok(only_at(kind, uid, request.revision, write))
}

/// The write, if it is only meant for a certain revision.
fn only_at(kind: Kind, uid: Uuid, revision: u64, write: Write) -> Write {
    if revision == 0 {
        return write;
    }
    let expect = Some(Expected { kind, uid, revision: Revision(revision) });
    Write::Checked { expect, claim: None, asked: String::new(), write: Box::new(write) }
}

fn set_power(request: &v1::SetPowerRequest, state: &State) -> Result<Write, Fault> {
    let uid = find(state, Kind::Vm, &request.vm)?.uid();
    let write = Write::SetPower { uid: VmId(uid), power: read(request.power, "power")? };
    Ok(only_at(Kind::Vm, uid, request.revision, write))
}

fn start_task(request: &v1::StartTaskRequest, state: &State) -> Result<Write, Fault> {
    let kind = read(request.kind, "kind")?;
    let act: Act = read(request.act, "act")?;
    let needed = if act == Act::Drain { Kind::Host } else { Kind::Vm };
    if kind != needed {
        let problem = format!("{} is not done to a {kind}", act.as_str());
        return Err(Invalid::new("kind", problem, needed.to_string()).into());
    }
    if let Act::Shutdown { timeout_s } | Act::Reboot { timeout_s } = act {
        in_range("act.timeout_s", timeout_s, ACT_TIMEOUT_S)?;
    }
    let target = find(state, kind, &request.name)?;
    let (uid, name) = (target.uid(), target.name().clone());
    let task = generated(&name, act.as_str());
    Ok(Write::CreateTask { uid: TaskId(mint::uuid()), name: task, spec: TaskSpec { act, kind, uid, name } })
}

fn cancel(request: &v1::CancelRequest, state: &State) -> Result<Write, Fault> {
    let kind = read(request.kind, "kind")?;
    match kind {
        Kind::Migration => {
            Ok(Write::CancelMigration { uid: MigrationId(find(state, kind, &request.name)?.uid()) })
        }
        Kind::Task => Ok(Write::CancelTask { uid: TaskId(find(state, kind, &request.name)?.uid()) }),
        other => {
            let problem = format!("a {other} cannot be cancelled");
            Err(Invalid::new("kind", problem, "Migration or Task").into())
        }
    }
}

fn decide(request: &v1::DecideRequest, state: &State) -> Result<Write, Fault> {
    let found = find(state, Kind::Recommendation, &request.name)?;
    let Object::Recommendation(recommendation) = &**found else {
        return Err(Invalid::new("name", "is no recommendation", "the name of one").into());
    };
    let uid = recommendation.metadata.uid;
    let vm_name = &recommendation.spec.vm_name;
    let name = generated(&format!("balance-{vm_name}").parse().unwrap_or_else(|_| vm_name.clone()), "");
    let migration = MigrationId(mint::uuid());
    Ok(Write::DecideRecommendation { uid, approve: request.approve, migration, name })
}

/// A name nobody chose: that of the object it is about, what is done, and a tail that makes it unique.
fn generated(about: &Name, what: &str) -> Name {
    let tail = if what.is_empty() { mint::suffix() } else { format!("{what}-{}", mint::suffix()) };
    let room = NAME_MAX - tail.len() - 1;
    let head: String = about.as_str().chars().take(room).collect();
    format!("{head}-{tail}")
        .parse()
        .expect("a name, cut, with letters, digits and dashes behind it, is a name")
}

/// The image whose bytes must be stored before that write may be proposed.
pub(super) fn needs_bytes(write: &Write) -> Option<&ImageSpec> {
    match write.inner() {
        Write::CreateImage { spec, .. } => Some(spec),
        _ => None,
    }
}
