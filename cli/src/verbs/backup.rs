//! Saving the whole state in a file, and making a new cluster's first controller of it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use clap::Args;
use dunlin_controller::backup;
use dunlin_model::Invalid;
use dunlin_proto::{Fault, v1};
use v1::operator_client::OperatorClient;

use super::Session;
use crate::daemon::MemberArg;
use crate::failure::{Failure, chain};
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct BackupArgs {
    /// The file to write; it holds the authority's key, hashes of secrets and the passwords of screens
    file: PathBuf,
    /// Take what the asked controller has, without the leader: for a cluster that has lost its quorum
    #[arg(long)]
    stale: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// A file that `backup` wrote
    file: PathBuf,
    /// The first controller of the restored cluster: ID=API_ADDRESS/RAFT_ADDRESS
    #[arg(long, value_name = "ID=API/RAFT", required_unless_present = "check")]
    member: Option<MemberArg>,
    /// Its data directory: none yet, or empty
    #[arg(long, required_unless_present = "check")]
    data_dir: Option<PathBuf>,
    /// Make another cluster of it: VMs stopped, no hosts; agents of the old one do not belong to it
    #[arg(long)]
    new_identity: bool,
    /// Only check the file, from its first byte to its last
    #[arg(long, conflicts_with_all = ["member", "data_dir", "new_identity"])]
    check: bool,
}

pub(crate) async fn run(session: &Session, args: &BackupArgs) -> Result<(), Failure> {
    let request = v1::BackupRequest { stale: args.stale };
    let call = async |mut client: OperatorClient<_>| client.backup(request).await;
    let mut chunks = session.fleet.operate(call).await?;
    let temporary = temporary(&args.file);
    let failed = |source| Failure::io(format!("writing {}", temporary.display()))(source);
    let mut options = OpenOptions::new();
    let mut file =
        options.write(true).create(true).truncate(true).mode(0o600).open(&temporary).map_err(failed)?;
    loop {
        match chunks.message().await {
            Ok(Some(chunk)) => file.write_all(&chunk.data).map_err(failed)?,
            Ok(None) => break,
            Err(status) => {
                let _ = fs::remove_file(&temporary);
                return Err(Fault::from_status(&status).into());
            }
        }
    }
    file.sync_all().map_err(failed)?;
    let (head, _) = backup::read(&temporary).map_err(|error| {
        let _ = fs::remove_file(&temporary);
        Failure::Local(chain(&error))
    })?;
    publish(&temporary, &args.file).map_err(Failure::io(format!("writing {}", args.file.display())))?;
    output::line(&format!("{}: {}", args.file.display(), described(&head)))
}

fn temporary(file: &Path) -> PathBuf {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    file.with_file_name(name)
}

fn publish(temporary: &Path, file: &Path) -> io::Result<()> {
    fs::rename(temporary, file)?;
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

fn described(head: &backup::Head) -> String {
    let backup::Head { name, cluster, taken, vms, hosts, .. } = head;
    format!("cluster {name} ({cluster}) as of {taken}, {vms} VMs, {hosts} hosts")
}

pub(crate) fn restore(args: &RestoreArgs) -> Result<(), Failure> {
    let local = |error: backup::BackupError| Failure::Local(chain(&error));
    let (Some(member), Some(data_dir)) = (&args.member, &args.data_dir) else {
        let (head, _) = backup::read(&args.file).map_err(local)?;
        return output::line(&format!("{} is whole: {}", args.file.display(), described(&head)));
    };
    if member.id.0 == 0 {
        return Err(Invalid::new("--member", "0 is no controller", "1 and up").into());
    }
    let target = backup::Target {
        id: member.id,
        data_dir: data_dir.clone(),
        api_endpoint: format!("https://{}", member.api),
        raft_endpoint: member.raft.clone(),
        new_identity: args.new_identity,
    };
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    let (head, cluster) = backup::restore(&args.file, &target).map_err(local)?;
    output::line(&format!("restored {}", described(&head)))?;
    output::line(&format!("into {}, controller {} of cluster {cluster}", data_dir.display(), member.id))?;
    let next = if args.new_identity {
        "hosts join with new tokens; import the images again"
    } else {
        "every host is cordoned: look what runs there, then uncordon it; import the images again"
    };
    output::line(&format!("start it with --member {}={}/{}; {next}", member.id, member.api, member.raft))
}
