//! The command line: what may be typed. Noun, then verb, as with kubectl.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::verbs::access::LoginArgs;
use crate::verbs::apply::{ApplyArgs, DeleteArgs};
use crate::verbs::audit::AuditVerb;
use crate::verbs::authority::CaVerb;
use crate::verbs::backup::{BackupArgs, RestoreArgs};
use crate::verbs::balance::BalanceVerb;
use crate::verbs::cluster::{CapacityArgs, ClusterSetArgs};
use crate::verbs::controller::ControllerVerb;
use crate::verbs::enrol::{AdminVerb, JoinArgs};
use crate::verbs::explain::ExplainArgs;
use crate::verbs::get::GetArgs;
use crate::verbs::host_set::HostSetArgs;
use crate::verbs::rights::{ApiTokenVerb, BindingVerb, ProjectVerb, RoleVerb, UserVerb};
use crate::verbs::simulate::SimulateArgs;
use crate::verbs::vm_flags::VmFlags;
use crate::verbs::vm_set::VmSetArgs;

/// Virtual machines over a fleet of hosts.
#[derive(Debug, Parser)]
#[command(name = "dunlin", version, about, max_term_width = 110)]
pub(crate) struct Cli {
    /// Controllers to talk to, first one that answers: https://host:port[,https://host:port...], or unix:SOCKET [env: DUNLIN_ENDPOINT]
    #[arg(long, short = 'e', global = true, value_delimiter = ',')]
    pub(crate) endpoint: Vec<String>,
    /// Context of the context file to use instead of its current one
    #[arg(long, global = true)]
    pub(crate) context: Option<String>,
    /// How to print objects
    #[arg(long, short = 'o', global = true, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
    /// OpenTelemetry collector to send spans to, over gRPC, as in http://127.0.0.1:4317 [env: DUNLIN_OTLP_ENDPOINT]
    #[arg(long, global = true, value_name = "URL", hide_short_help = true)]
    pub(crate) otlp_endpoint: Option<String>,
    #[command(subcommand)]
    pub(crate) noun: Noun,
}

/// How to print objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    /// The table with more columns
    Wide,
    Json,
    Yaml,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Noun {
    /// Run a controller (a daemon), or keep the set of them
    Controller(ControllerArgs),
    /// Run this host's agent (a daemon)
    Agent(AgentArgs),
    /// Start a whole fleet on this machine: controllers and agents
    Up(UpArgs),
    /// Stop the fleet that `up` started, with its guests, and remove what it made
    Down(DownArgs),
    /// The deployment
    #[command(subcommand)]
    Cluster(ClusterVerb),
    /// Look the cluster over: quorum, clocks, disks, room, certificates, releases, hosts, drivers; and say what to do
    Doctor(crate::verbs::doctor::DoctorArgs),
    /// Machines that run guests
    #[command(subcommand)]
    Host(HostVerb),
    /// Log in as a user; the password is asked for, or read from standard input. Without USER: by the identity provider
    Login(LoginArgs),
    /// End the session
    Logout,
    /// Show whom the fleet takes you for, and what is bound to you
    Whoami,
    /// People and programs that may ask for something
    #[command(subcommand)]
    User(UserVerb),
    /// What somebody may do: verbs on kinds
    #[command(subcommand)]
    Role(RoleVerb),
    /// Who may do it, and where
    #[command(subcommand)]
    Binding(BindingVerb),
    /// Whose VMs are, and how much they may take
    #[command(subcommand)]
    Project(ProjectVerb),
    /// Tokens with which programs speak for a user
    #[command(subcommand)]
    ApiToken(ApiTokenVerb),
    /// Who did what
    #[command(subcommand)]
    Audit(AuditVerb),
    /// Becoming an admin
    #[command(subcommand)]
    Admin(AdminVerb),
    /// The cluster's certificate authority
    #[command(subcommand)]
    Ca(CaVerb),
    /// Hypervisor drivers of all hosts
    #[command(subcommand)]
    Driver(DriverVerb),
    /// One-time tokens with which hosts, controllers and admins join
    #[command(subcommand)]
    Token(TokenVerb),
    /// Disks, kernels and initrds to start guests from
    #[command(subcommand)]
    Image(ImageVerb),
    /// Guests
    #[command(subcommand)]
    Vm(VmVerb),
    /// Live migrations, running and past
    #[command(subcommand)]
    Migration(RecordVerb),
    /// Long work and one-shot acts, running and past
    #[command(subcommand)]
    Task(RecordVerb),
    /// What happened
    #[command(subcommand)]
    Event(EventVerb),
    /// Save the whole state in one file
    Backup(BackupArgs),
    /// Fill the data directory of a new cluster's first controller from a backup
    Restore(RestoreArgs),
    /// Levelling the load by live migration
    #[command(subcommand)]
    Balance(BalanceVerb),
    /// Show objects of any kind
    Get(GetArgs),
    /// Make the fleet as files say: what they do not say stays as it is
    Apply(ApplyArgs),
    /// Show what `apply` would change
    Diff(ApplyArgs),
    /// Delete what files name
    Delete(DeleteArgs),
    /// Say why a VM, host or migration is as it is
    Explain(ExplainArgs),
    /// Replay arrivals over a fleet file under a policy, or plan a Ganeti cluster
    Simulate(SimulateArgs),
    /// Where `dunlin` talks to when not told
    #[command(subcommand)]
    Context(ContextVerb),
    /// Print shell completions
    Completions { shell: clap_complete::Shell },
    /// Print the table of public errors
    Errors,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct ControllerArgs {
    #[command(subcommand)]
    pub(crate) verb: Option<ControllerVerb>,
    #[command(flatten)]
    pub(crate) daemon: Option<DaemonArgs>,
}

/// What the daemon is told.
#[derive(Debug, Args)]
pub(crate) struct DaemonArgs {
    /// This controller's number within the cluster, 1 and up
    #[arg(long, allow_negative_numbers = true, value_parser = whole::<u64>("1 and up"))]
    pub(crate) id: u64,
    /// Folder for the log, the state and the images
    #[arg(long)]
    pub(crate) data_dir: PathBuf,
    /// Address for the fleet API and the agents
    #[arg(long, default_value = "127.0.0.1:7400")]
    pub(crate) listen: std::net::SocketAddr,
    /// Address for the other controllers
    #[arg(long, default_value = "127.0.0.1:7401")]
    pub(crate) raft_listen: std::net::SocketAddr,
    /// A controller of the cluster, this one included, once for each: ID=API_ADDRESS/RAFT_ADDRESS
    #[arg(long = "member", value_name = "ID=API/RAFT", required = true)]
    pub(crate) members: Vec<crate::daemon::MemberArg>,
    /// Form no cluster: wait until `controller add` takes this one into another; give --member for this one alone
    #[arg(long)]
    pub(crate) join: bool,
    /// One-time token of a controller that joins a cluster that is there; needed for its first start only
    #[arg(long, env = "DUNLIN_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// Identity provider that vouches for people: its issuer, https://...
    #[arg(long, value_name = "URL", requires = "oidc_client_id")]
    pub(crate) oidc_issuer: Option<String>,
    /// This fleet's name at the identity provider, registered there as a public client with http://127.0.0.1 to come back to
    #[arg(long, value_name = "ID", requires = "oidc_issuer")]
    pub(crate) oidc_client_id: Option<String>,
    /// What people are asked to let the fleet know
    #[arg(long, value_name = "WORDS", default_value = "openid profile groups")]
    pub(crate) oidc_scope: String,
    /// Claim that becomes the name of a user
    #[arg(long, value_name = "CLAIM", default_value = "preferred_username")]
    pub(crate) oidc_name_claim: String,
    /// Claim with the groups of a user
    #[arg(long, value_name = "CLAIM", default_value = "groups")]
    pub(crate) oidc_groups_claim: String,
    /// Controllers of the cluster to join, for who comes with a token
    #[arg(long = "controller", value_name = "URL")]
    pub(crate) controllers: Vec<String>,
    /// Name of the cluster: what it is founded as, and later that of no other [default when founded: dunlin]
    #[arg(long)]
    pub(crate) cluster: Option<dunlin_model::Name>,
    /// How logs are written to standard error
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
    /// The same as --log-format json
    #[arg(long, hide = true)]
    pub(crate) log_json: bool,
    /// The highest feature level to read, below that of this release: for tests of rolling upgrades
    #[arg(long, hide = true, default_value_t = dunlin_model::Level::NEWEST.0)]
    pub(crate) level: u32,
    /// Leave the session of the terminal; `up` says so
    #[arg(long, hide = true)]
    pub(crate) own_session: bool,
}

#[derive(Debug, Args)]
pub(crate) struct AgentArgs {
    /// Folder for identity, journal, images and volumes
    #[arg(long)]
    pub(crate) data_dir: PathBuf,
    /// Controllers to join; remembered after the first join
    #[arg(long = "controller", value_name = "URL")]
    pub(crate) controllers: Vec<String>,
    /// One-time token, needed for the first start only
    #[arg(long, env = "DUNLIN_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// Name of this host; the kernel's node name when not said
    #[arg(long)]
    pub(crate) name: Option<dunlin_model::Name>,
    /// Labels of this host, set when it joins
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) labels: Vec<(String, String)>,
    /// Address at which other hosts reach this one for migrations
    #[arg(long, default_value = "127.0.0.1")]
    pub(crate) address: std::net::IpAddr,
    /// Hypervisor drivers to offer
    #[arg(long = "driver", value_delimiter = ',', default_value = "qemu")]
    pub(crate) drivers: Vec<DriverArg>,
    /// What stands behind a network's name: NAME=user or NAME=bridge:INTERFACE
    #[arg(long = "network", value_name = "NAME=KIND", value_parser = key_value, default_value = "default=user")]
    pub(crate) networks: Vec<(String, String)>,
    /// Most that fetched images may take, MiB; the longest unused go first, and none that a VM here needs
    #[arg(long, default_value_t = 20_480, value_parser = clap::value_parser!(u64).range(..=1 << 30))]
    pub(crate) image_cache_mib: u64,
    /// Where the libvirt daemon of the libvirt driver is, as in qemu:///system; given alone it offers that driver too
    #[arg(long, value_name = "URI")]
    pub(crate) libvirt_uri: Option<String>,
    /// Where agents of other hosts reach that daemon for migrations; ADDRESS in it is --address. By TLS there, if not said
    #[arg(long, value_name = "URI")]
    pub(crate) libvirt_peer_uri: Option<String>,
    /// Where this host's metrics and health are served, on the loopback only, as in 127.0.0.1:7490; nowhere, if not said
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) metrics_listen: Option<std::net::SocketAddr>,
    /// CPUs the test driver pretends to have
    #[arg(long, default_value_t = 16)]
    pub(crate) sim_cpus: u32,
    /// Memory the test driver pretends to have, MiB
    #[arg(long, default_value_t = 65_536)]
    pub(crate) sim_mem_mib: u64,
    /// How logs are written to standard error
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
    /// The same as --log-format json
    #[arg(long, hide = true)]
    pub(crate) log_json: bool,
    /// The highest feature level to read, below that of this release: for tests of rolling upgrades
    #[arg(long, hide = true, default_value_t = dunlin_model::Level::NEWEST.0)]
    pub(crate) level: u32,
    /// Leave the session of the terminal; `up` says so
    #[arg(long, hide = true)]
    pub(crate) own_session: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines for people
    Text,
    /// A JSON object a line
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DriverArg {
    Qemu,
    Lxc,
    Uml,
    Test,
    Libvirt,
}

#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// Folder for everything the fleet makes
    #[arg(long, default_value = "dunlin-fleet")]
    pub(crate) dir: PathBuf,
    /// Controllers: 1, 3 or 5
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=5))]
    pub(crate) controllers: u8,
    /// Hosts, each with an agent
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(0..=64))]
    pub(crate) hosts: u8,
    /// Give each host a network namespace of its own (needs root)
    #[arg(long, value_enum, default_value_t = Namespaces::Auto)]
    pub(crate) namespaces: Namespaces,
    /// Hypervisor drivers each agent offers
    #[arg(long = "driver", value_delimiter = ',', default_value = "qemu")]
    pub(crate) drivers: Vec<DriverArg>,
    /// First TCP port of the controllers
    #[arg(long, default_value_t = 7400)]
    pub(crate) port: u16,
    /// First three numbers of the /24 network between namespaces
    #[arg(long, default_value = "10.77.0")]
    pub(crate) subnet: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Namespaces {
    /// Where it runs as root
    Auto,
    Always,
    Never,
}

#[derive(Debug, Args)]
pub(crate) struct DownArgs {
    /// Folder given to `up`
    #[arg(long, default_value = "dunlin-fleet")]
    pub(crate) dir: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterVerb {
    /// Show the cluster and who leads it
    Show,
    /// Change how the cluster behaves
    Set(ClusterSetArgs),
    /// List the names of scores and filters, and what each counts
    Policy,
    /// Raise the feature level, once every controller and agent reads the next one
    Upgrade {
        /// To which level [default: the highest that any controller reads]
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
        to: Option<u32>,
        /// Although hosts are down, of which nobody knows what their agents read
        #[arg(long)]
        force: bool,
        /// Say only whether it could be raised
        #[arg(long)]
        dry_run: bool,
    },
    /// Count how many more VMs of a flavour fit
    Capacity(Box<CapacityArgs>),
}

#[derive(Debug, Subcommand)]
pub(crate) enum DriverVerb {
    /// List what each host has probed of each driver, and how
    #[command(visible_alias = "ls")]
    List,
}

#[derive(Debug, Subcommand)]
pub(crate) enum HostVerb {
    /// List hosts
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show one host and what its agent has probed
    Show { name: String },
    /// Take no new VM
    Cordon { name: String },
    /// Take VMs again
    Uncordon { name: String },
    /// Change its rack, zone, taints, resources or labels
    Set(HostSetArgs),
    /// Cordon, and migrate every VM away
    Drain {
        #[arg(required = true)]
        names: Vec<String>,
        /// Show where every VM would go, and what does not fit; change nothing
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Refuse its certificates from now on and cut its session; it comes back only with a new token
    Revoke { name: String },
    /// Remove a host from the fleet
    Remove {
        name: String,
        /// Even though VMs are bound to it
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenVerb {
    /// Mint a token; it is shown once
    Create {
        /// Seconds until it expires
        #[arg(long, visible_alias = "ttl", default_value_t = 3600, allow_negative_numbers = true, value_parser = whole::<u64>("1 to 604800"))]
        ttl_s: u64,
        /// What its bearer becomes: host, controller or admin
        #[arg(long, default_value = "host")]
        role: dunlin_model::Role,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImageVerb {
    /// Import a file or an http(s) URL
    Import {
        name: dunlin_model::Name,
        /// File, or http:// or https:// address
        source: String,
        /// raw, qcow2 or vmdk; found out from the first bytes when not said
        #[arg(long)]
        format: Option<String>,
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = key_value)]
        labels: Vec<(String, String)>,
    },
    /// List images
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show one image
    Show { name: String },
    /// Delete an image that no VM names
    Delete { name: String },
}

#[derive(Debug, Subcommand)]
pub(crate) enum VmVerb {
    /// Create a VM from flags, a YAML or JSON spec, or libvirt domain XML
    Create(Box<VmCreateArgs>),
    /// List VMs
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        list: ListArgs,
        /// Guests on the hosts that nobody in the fleet manages
        #[arg(long)]
        unmanaged: bool,
    },
    /// Show one VM
    Show {
        name: String,
        /// Print it again at every change
        #[arg(long, short = 'w')]
        watch: bool,
    },
    /// Start it, or restore it if it was saved
    Start(VmActArgs),
    /// Press its power button and let it power off by itself
    Shutdown {
        #[command(flatten)]
        act: VmActArgs,
        /// Given up after so many seconds; the guest then goes on running
        #[arg(long, default_value_t = 60, allow_negative_numbers = true, value_parser = whole::<u64>("1 to 86400"))]
        timeout_s: u64,
    },
    /// Cut its power
    Destroy(VmActArgs),
    /// Press its power button, and start it again when it is off
    Reboot {
        #[command(flatten)]
        act: VmActArgs,
        /// Given up after so many seconds
        #[arg(long, default_value_t = 60, allow_negative_numbers = true, value_parser = whole::<u64>("1 to 86400"))]
        timeout_s: u64,
    },
    /// Restart its machine at once
    Reset(VmActArgs),
    /// Stop its vCPUs, keep its memory
    Pause(VmActArgs),
    /// Let its vCPUs run again
    Resume(VmActArgs),
    /// Save its memory to a file on its host, and stop it
    Save(VmActArgs),
    /// Start it from its saved memory
    Restore(VmActArgs),
    /// Change its vCPUs, memory, disks and NICs, while it runs where that can be
    Set(VmSetArgs),
    /// Move it to another host while it runs
    Migrate(VmMigrateArgs),
    /// Take a guest that runs on a host already under management; it goes on as it is
    Adopt(VmAdoptArgs),
    /// Hand an adopted VM back: it goes on as it is, and the fleet forgets it
    Release(VmActArgs),
    /// Stop it and delete it with its disks
    Delete(VmActArgs),
    /// Talk to its serial console; leave with Ctrl-]
    Console { name: String },
    /// Print what it wrote to its serial console
    Logs {
        name: String,
        /// Go on printing what follows
        #[arg(long, short = 'f')]
        follow: bool,
    },
    /// Print it as libvirt domain XML
    Xml { name: String },
}

#[derive(Debug, Args)]
pub(crate) struct VmCreateArgs {
    /// Name of the VM; may come from the file or the XML
    pub(crate) name: Option<dunlin_model::Name>,
    /// Read the object, or only its spec, as YAML or JSON; - for standard input
    #[arg(long, short = 'f', conflicts_with = "xml")]
    pub(crate) file: Option<PathBuf>,
    /// Read libvirt domain XML; - for standard input
    #[arg(long)]
    pub(crate) xml: Option<PathBuf>,
    /// Leave out what the XML says and Dunlin does not model, and list it
    #[arg(long, requires = "xml")]
    pub(crate) ignore_unsupported: bool,
    #[command(flatten)]
    pub(crate) flags: VmFlags,
    /// Start it at once
    #[arg(long)]
    pub(crate) start: bool,
    /// Check only: print what would be stored
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
}

#[derive(Debug, Args)]
pub(crate) struct VmActArgs {
    #[arg(required = true)]
    pub(crate) names: Vec<String>,
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
}

#[derive(Debug, Args)]
pub(crate) struct VmAdoptArgs {
    /// Its name as `vm list --unmanaged` shows it, or its uid
    pub(crate) name: String,
    /// Only on this host; needed when several have one of that name
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) host: String,
    /// What the VM is to be called; as it is called there when it is not said
    #[arg(long = "as", default_value = "", hide_default_value = true)]
    pub(crate) rename: String,
    /// The project it goes to; default when it is not said
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) project: String,
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
}

#[derive(Debug, Args)]
pub(crate) struct VmMigrateArgs {
    pub(crate) name: String,
    /// Host to move to; the scheduler chooses when it is not said
    #[arg(long)]
    pub(crate) to: Option<dunlin_model::Name>,
    /// Stand-still the hypervisor may plan for, ms
    #[arg(long, default_value_t = 300, allow_negative_numbers = true, value_parser = whole::<u64>("1 to 60000"))]
    pub(crate) downtime_ms: u64,
    /// Copy speed, MiB/s; 0: as fast as it goes
    #[arg(long, default_value_t = 0, allow_negative_numbers = true, value_parser = whole::<u64>("0 and up"))]
    pub(crate) bandwidth_mib_s: u64,
    /// Given up when it takes longer
    #[arg(long, default_value_t = 600, allow_negative_numbers = true, value_parser = whole::<u64>("1 to 86400"))]
    pub(crate) timeout_s: u64,
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
}

/// Waiting for what was asked for to be so.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct WaitArgs {
    /// Wait until it is done, and show how far it is
    #[arg(long)]
    pub(crate) wait: bool,
    /// Stop waiting after so many seconds
    #[arg(
        long,
        default_value_t = 300,
        value_name = "SECONDS",
        allow_negative_numbers = true,
        value_parser = whole::<u64>("0 and up")
    )]
    pub(crate) wait_s: u64,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct ListArgs {
    /// Only those with such labels: a=b, a!=b, 'a in (b,c)', a, '!a'; several with commas
    #[arg(long, short = 'l', default_value = "", hide_default_value = true)]
    pub(crate) selector: String,
    /// Only those with such fields, as in status.phase=Running
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) field_selector: String,
    /// At most so many; 0 for all
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    pub(crate) limit: u32,
    /// Go on printing what changes
    #[arg(long, short = 'w')]
    pub(crate) watch: bool,
    /// Read the answering controller's own copy, which may lag
    #[arg(long)]
    pub(crate) stale: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RecordVerb {
    /// List them
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show one
    Show { name: String },
    /// Ask it to end
    Cancel {
        name: String,
        #[command(flatten)]
        wait: WaitArgs,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum EventVerb {
    /// List events, oldest first
    #[command(visible_alias = "ls")]
    List(ListArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum ContextVerb {
    /// List the contexts
    List,
    /// Make or change a context, and use it
    Set {
        name: String,
        #[arg(required = true)]
        endpoints: Vec<String>,
    },
    /// Use a context from now on
    Use { name: String },
    /// Show the current context, and whom one is there
    Show,
    /// Become an admin with a token, and make a context of it
    Join(JoinArgs),
    /// Get another certificate now
    Renew,
}

/// `KEY=VALUE`.
pub(crate) fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not KEY=VALUE")),
    }
}

/// A whole number; what it may be is for the model to say, which is why `allowed` is only told when it is none at all.
pub(crate) fn whole<N>(allowed: &'static str) -> impl Fn(&str) -> Result<N, String> + Clone
where
    N: std::str::FromStr,
{
    move |text| text.parse().map_err(|_| format!("{text:?} is no such number; allowed: {allowed}"))
}
