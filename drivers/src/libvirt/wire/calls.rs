//! The table of procedures: number, name, arguments, answer, whether a stream follows, and the right it takes.
//!
//! Each line makes a structure of the arguments, which is the call itself, and an entry of [`TABLE`]. A client sends
//! the structure and reads its [`Call::Answer`]; a server finds the entry by number, checks the right, and decodes.

use super::types::{
    Cookie, DOMAINS_MAX, Domain, DomainStats, JobParams, Param, SASL_CHARS_MAX, Uuid, records,
};
use super::xdr::{self, CharArray, Chars, List, Xdr, XdrError};

/// Arguments of a procedure.
pub trait Call: Xdr + std::fmt::Debug + Send + Sync {
    /// What comes back.
    type Answer: Xdr + std::fmt::Debug + Send;
    /// Its line.
    const ENTRY: Entry;
}

/// What anyone may do before it is known who they are.
pub const BEFORE_LOGIN: &str = "";

/// A line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Number in the `remote` program.
    pub number: i32,
    /// Its name in libvirt's documentation of the protocol.
    pub name: &'static str,
    /// A stream follows the answer.
    pub streams: bool,
    /// Object and right it takes, as libvirt's access control calls them; [`BEFORE_LOGIN`]: none.
    pub right: &'static str,
    /// Are these bytes its arguments?
    pub check_arguments: fn(&[u8]) -> Result<(), XdrError>,
    /// Are these bytes its answer?
    pub check_answer: fn(&[u8]) -> Result<(), XdrError>,
    /// Arguments and answer, made up and read again.
    #[cfg(test)]
    pub round_trip: fn(&mut super::tests::Dice) -> Vec<Vec<u8>>,
}

macro_rules! calls {
    ($($number:literal $wire:literal $name:ident { $($field:ident: $kind:ty),* }
        -> $answer:ty, $right:expr, $streams:literal;)*) => {
        $(
            records! {
                #[doc = concat!("Procedure ", $number, ", ", $wire, ".")]
                $name { $($field: $kind),* }
            }

            impl Call for $name {
                type Answer = $answer;
                const ENTRY: Entry = Entry {
                    number: $number,
                    name: $wire,
                    streams: $streams,
                    right: $right,
                    check_arguments: |bytes| xdr::decode::<$name>(bytes).map(drop),
                    check_answer: |bytes| xdr::decode::<$answer>(bytes).map(drop),
                    #[cfg(test)]
                    round_trip: |dice| {
                        vec![super::tests::round_trip::<$name>(dice), super::tests::round_trip::<$answer>(dice)]
                    },
                };
            }
        )*

        /// Every procedure, by number.
        pub const TABLE: &[Entry] = &[$($name::ENTRY),*];
    };
}

records! {
    /// What the machine is.
    NodeInfo {
        model: CharArray<32>,
        memory_kib: u64,
        cpus: i32,
        mhz: i32,
        nodes: i32,
        sockets: i32,
        cores: i32,
        threads: i32,
    }
    /// State of a domain, as numbers of the API.
    DomainState { state: i32, reason: i32 }
    /// What a domain has and has used.
    DomainInfo { state: u32, max_memory_kib: u64, memory_kib: u64, cpus: u32, cpu_time_ns: u64 }
    /// Domains, and how many there are.
    Domains { domains: List<Domain, DOMAINS_MAX>, count: u32 }
    /// What a disk takes, could take, and takes on its device, bytes.
    BlockInfo { allocation: u64, capacity: u64, physical: u64 }
    /// One step of a SASL exchange.
    SaslStep { complete: i32, nil: i32, data: Chars<SASL_CHARS_MAX> }
    /// What a job of a domain is, and its figures.
    JobStats { kind: i32, params: JobParams }
    /// What the source gives to begin with.
    Begun { cookie: Cookie, xml: String }
    /// What the destination gives when it is ready.
    Prepared { cookie: Cookie, uri: Option<String> }
    /// What the destination gives when all has arrived.
    Finished { domain: Domain, cookie: Cookie }
}

calls! {
    1 "CONNECT_OPEN" ConnectOpen { name: Option<String>, flags: u32 } -> (), "connect:getattr", false;
    2 "CONNECT_CLOSE" ConnectClose {} -> (), BEFORE_LOGIN, false;
    3 "CONNECT_GET_TYPE" ConnectGetType {} -> String, "connect:getattr", false;
    4 "CONNECT_GET_VERSION" ConnectGetVersion {} -> u64, "connect:getattr", false;
    6 "NODE_GET_INFO" NodeGetInfo {} -> NodeInfo, "connect:read", false;
    7 "CONNECT_GET_CAPABILITIES" ConnectGetCapabilities {} -> String, "connect:read", false;
    9 "DOMAIN_CREATE" DomainCreate { domain: Domain } -> (), "domain:start", false;
    12 "DOMAIN_DESTROY" DomainDestroy { domain: Domain } -> (), "domain:stop", false;
    14 "DOMAIN_GET_XML_DESC" DomainGetXml { domain: Domain, flags: u32 } -> String, "domain:read", false;
    16 "DOMAIN_GET_INFO" DomainGetInfo { domain: Domain } -> DomainInfo, "domain:read", false;
    23 "DOMAIN_LOOKUP_BY_NAME" DomainLookupByName { name: String } -> Domain, "domain:getattr", false;
    24 "DOMAIN_LOOKUP_BY_UUID" DomainLookupByUuid { uuid: Uuid } -> Domain, "domain:getattr", false;
    27 "DOMAIN_REBOOT" DomainReboot { domain: Domain, flags: u32 } -> (), "domain:init_control", false;
    28 "DOMAIN_RESUME" DomainResume { domain: Domain } -> (), "domain:suspend", false;
    33 "DOMAIN_SHUTDOWN" DomainShutdown { domain: Domain } -> (), "domain:init_control", false;
    34 "DOMAIN_SUSPEND" DomainSuspend { domain: Domain } -> (), "domain:suspend", false;
    54 "DOMAIN_RESTORE" DomainRestore { from: String } -> (), "domain:start", false;
    55 "DOMAIN_SAVE" DomainSave { domain: Domain, to: String } -> (), "domain:hibernate", false;
    59 "CONNECT_GET_HOSTNAME" ConnectGetHostname {} -> String, "connect:read", false;
    60 "CONNECT_SUPPORTS_FEATURE" ConnectSupportsFeature { feature: i32 } -> i32, BEFORE_LOGIN, false;
    66 "AUTH_LIST" AuthList {} -> List<i32, 20>, BEFORE_LOGIN, false;
    67 "AUTH_SASL_INIT" AuthSaslInit {} -> String, BEFORE_LOGIN, false;
    68 "AUTH_SASL_START" AuthSaslStart { mechanism: String, nil: i32, data: Chars<SASL_CHARS_MAX> }
        -> SaslStep, BEFORE_LOGIN, false;
    69 "AUTH_SASL_STEP" AuthSaslStep { nil: i32, data: Chars<SASL_CHARS_MAX> } -> SaslStep, BEFORE_LOGIN, false;
    70 "AUTH_POLKIT" AuthPolkit {} -> i32, BEFORE_LOGIN, false;
    150 "DOMAIN_IS_ACTIVE" DomainIsActive { domain: Domain } -> i32, "domain:read", false;
    157 "CONNECT_GET_LIB_VERSION" ConnectGetLibVersion {} -> u64, "connect:getattr", false;
    164 "DOMAIN_ABORT_JOB" DomainAbortJob { domain: Domain } -> (), "domain:write", false;
    166 "DOMAIN_MIGRATE_SET_MAX_DOWNTIME" DomainMigrateSetMaxDowntime { domain: Domain, ms: u64, flags: u32 }
        -> (), "domain:migrate", false;
    194 "DOMAIN_GET_BLOCK_INFO" DomainGetBlockInfo { domain: Domain, path: String, flags: u32 }
        -> BlockInfo, "domain:read", false;
    196 "DOMAIN_CREATE_WITH_FLAGS" DomainCreateWithFlags { domain: Domain, flags: u32 }
        -> Domain, "domain:start", false;
    201 "DOMAIN_OPEN_CONSOLE" DomainOpenConsole { domain: Domain, device: Option<String>, flags: u32 }
        -> (), "domain:open_device", true;
    207 "DOMAIN_MIGRATE_SET_MAX_SPEED" DomainMigrateSetMaxSpeed { domain: Domain, mib_s: u64, flags: u32 }
        -> (), "domain:migrate", false;
    212 "DOMAIN_GET_STATE" DomainGetState { domain: Domain, flags: u32 } -> DomainState, "domain:read", false;
    231 "DOMAIN_UNDEFINE_FLAGS" DomainUndefineFlags { domain: Domain, flags: u32 } -> (), "domain:delete", false;
    232 "DOMAIN_SAVE_FLAGS" DomainSaveFlags { domain: Domain, to: String, xml: Option<String>, flags: u32 }
        -> (), "domain:hibernate", false;
    233 "DOMAIN_RESTORE_FLAGS" DomainRestoreFlags { from: String, xml: Option<String>, flags: u32 }
        -> (), "domain:start", false;
    234 "DOMAIN_DESTROY_FLAGS" DomainDestroyFlags { domain: Domain, flags: u32 } -> (), "domain:stop", false;
    245 "DOMAIN_RESET" DomainReset { domain: Domain, flags: u32 } -> (), "domain:reset", false;
    264 "DOMAIN_SET_METADATA" DomainSetMetadata {
        domain: Domain, kind: i32, metadata: Option<String>, key: Option<String>, uri: Option<String>, flags: u32
    } -> (), "domain:write", false;
    265 "DOMAIN_GET_METADATA" DomainGetMetadata { domain: Domain, kind: i32, uri: Option<String>, flags: u32 }
        -> String, "domain:read", false;
    273 "CONNECT_LIST_ALL_DOMAINS" ConnectListAllDomains { need_results: i32, flags: u32 }
        -> Domains, "connect:search_domains", false;
    298 "DOMAIN_GET_JOB_STATS" DomainGetJobStats { domain: Domain, flags: u32 } -> JobStats, "domain:read", false;
    302 "DOMAIN_MIGRATE_BEGIN3_PARAMS" DomainMigrateBegin { domain: Domain, params: JobParams, flags: u32 }
        -> Begun, "domain:migrate", false;
    303 "DOMAIN_MIGRATE_PREPARE3_PARAMS" DomainMigratePrepare { params: JobParams, cookie: Cookie, flags: u32 }
        -> Prepared, "domain:migrate", false;
    305 "DOMAIN_MIGRATE_PERFORM3_PARAMS" DomainMigratePerform {
        domain: Domain, destination: Option<String>, params: JobParams, cookie: Cookie, flags: u32
    } -> Cookie, "domain:migrate", false;
    306 "DOMAIN_MIGRATE_FINISH3_PARAMS" DomainMigrateFinish {
        params: JobParams, cookie: Cookie, flags: u32, cancelled: i32
    } -> Finished, "domain:migrate", false;
    307 "DOMAIN_MIGRATE_CONFIRM3_PARAMS" DomainMigrateConfirm {
        domain: Domain, params: JobParams, cookie: Cookie, flags: u32, cancelled: i32
    } -> (), "domain:migrate", false;
    316 "CONNECT_DOMAIN_EVENT_CALLBACK_REGISTER_ANY" RegisterDomainEvent { event: i32, domain: Option<Domain> }
        -> i32, "connect:search_domains", false;
    317 "CONNECT_DOMAIN_EVENT_CALLBACK_DEREGISTER_ANY" DeregisterDomainEvent { callback: i32 }
        -> (), "connect:getattr", false;
    342 "CONNECT_GET_DOMAIN_CAPABILITIES" ConnectGetDomainCapabilities {
        emulator: Option<String>, arch: Option<String>, machine: Option<String>, kind: Option<String>, flags: u32
    } -> String, "connect:write", false;
    344 "CONNECT_GET_ALL_DOMAIN_STATS" ConnectGetAllDomainStats {
        domains: List<Domain, DOMAINS_MAX>, stats: u32, flags: u32
    } -> List<DomainStats, DOMAINS_MAX>, "connect:search_domains", false;
    350 "DOMAIN_DEFINE_XML_FLAGS" DomainDefineXml { xml: String, flags: u32 } -> Domain, "domain:write", false;
    390 "DOMAIN_SET_LIFECYCLE_ACTION" DomainSetLifecycleAction {
        domain: Domain, kind: u32, action: u32, flags: u32
    } -> (), "domain:write", false;
}

/// A parameter with a text.
#[must_use]
pub fn text_param(field: &str, text: impl Into<String>) -> Param {
    Param { field: field.to_owned(), value: super::Value::Text(text.into()) }
}

/// A parameter with a number.
#[must_use]
pub fn number_param(field: &str, number: u64) -> Param {
    Param { field: field.to_owned(), value: super::Value::Uhyper(number) }
}
