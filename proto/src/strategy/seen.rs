//! What a host reports of a VM.

use dunlin_model::MigrationId;
use dunlin_model::observed::{
    EndCause, ObservedVm, Process, ReceiveState, SavedFile, SendProgress, SendState,
};
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::select;

use super::built::built;
use super::{endpoint, figures, incarnation, name, path, sizes, uuid, words};

fn process() -> impl Strategy<Value = Process> {
    let causes = vec![EndCause::GuestShutdown, EndCause::Told, EndCause::Refused, EndCause::Died];
    prop_oneof![
        select(vec![Process::None, Process::Running, Process::Paused, Process::Incoming, Process::Outgoing]),
        words().prop_map(|doing| Process::Starting { doing }),
        words().prop_map(|why| Process::Unknown { why }),
        (select(causes), words(), any::<bool>()).prop_map(|(cause, message, ever_ran)| Process::Ended {
            cause,
            message,
            ever_ran
        }),
    ]
}

fn send_state() -> impl Strategy<Value = SendState> {
    let progress = || {
        any::<[u64; 6]>().prop_map(
            |[remaining_bytes, total_bytes, transferred_bytes, disk_bytes, disk_total_bytes, dirty_mib_s]| {
                SendProgress {
                    remaining_bytes,
                    total_bytes,
                    transferred_bytes,
                    disk_bytes,
                    disk_total_bytes,
                    dirty_mib_s,
                }
            },
        )
    };
    prop_oneof![
        progress().prop_map(SendState::Copying),
        progress().prop_map(SendState::AtSwitchover),
        figures().prop_map(SendState::Sent),
        words().prop_map(SendState::Holding),
        words().prop_map(SendState::Cancelled),
    ]
}

pub(crate) fn observed() -> BoxedStrategy<ObservedVm> {
    let receive = prop_oneof![
        Just(ReceiveState::Preparing),
        endpoint().prop_map(ReceiveState::Ready),
        Just(ReceiveState::Arrived),
        words().prop_map(ReceiveState::Failed),
    ];
    let who = (uuid(), name(), incarnation());
    let seen = (
        process(),
        any::<bool>(),
        of(any::<u32>()),
        of(words()),
        of((path(), any::<u64>(), incarnation())),
        of(any::<u64>()),
        sizes(),
        of(built()),
    );
    let sides =
        (of((uuid().prop_map(MigrationId), receive)), of((uuid().prop_map(MigrationId), send_state())));
    (who, seen, sides)
        .prop_map(|((vm, name, incarnation), seen, (receive, send))| {
            let (process, has_volumes, pid, vnc, saved, resumed_at_ms, disk_bytes, built) = seen;
            let saved =
                saved.map(|(path, size_bytes, incarnation)| SavedFile { path, size_bytes, incarnation });
            ObservedVm {
                vm: dunlin_model::VmId(vm),
                name,
                incarnation,
                process,
                has_volumes,
                pid,
                vnc,
                saved,
                resumed_at_ms,
                disk_bytes,
                built,
                receive,
                send,
            }
        })
        .boxed()
}
