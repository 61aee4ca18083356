//! What documents mean, how bad ones are refused, and that what is written is read back.

use dunlin_model::capabilities::DriverName;
use dunlin_model::vm::*;
use dunlin_model::{Generation, Labels, Metadata, Revision, Secret, Timestamp};
use proptest::collection::{btree_map, vec};
use proptest::option::of;
use proptest::prelude::*;

use super::{Options, Parsed, XML_BYTES_MAX, XmlError, parse, write};

const LISTING: &str = include_str!("listing1.xml");
const STRICT: Options = Options { ignore_unsupported: false };
const LENIENT: Options = Options { ignore_unsupported: true };

fn read(text: &str) -> Result<Parsed, XmlError> {
    parse(text.as_bytes(), STRICT)
}

/// The corrected listing with one piece of it exchanged.
fn with(from: &str, to: &str) -> String {
    assert!(LISTING.contains(from), "{from}");
    LISTING.replacen(from, to, 1)
}

#[track_caller]
fn refused(document: &str, message: &str) {
    let error = read(document).unwrap_err().to_string();
    assert!(error.contains(message), "{error:?} has no {message:?}");
}

#[test]
fn listing_1_means_a_vm() {
    // The article's domain, with its XML mended, is a 128 MiB i686 PC with a VMDK disk on IDE, a NIC on network
    // "default" that such a guest has a driver for, and VNC on a free port.
    let parsed = read(LISTING).unwrap();
    assert_eq!((parsed.name.as_str(), parsed.uuid, parsed.ignored.len()), ("ReactOS-on-QEMU", None, 0));
    let mut expected = VmSpec::new(128);
    expected.arch = Arch::I686;
    expected.machine = MachineType::Pc;
    expected.disks = vec![Disk {
        name: "hda".parse().unwrap(),
        bus: DiskBus::Ide,
        format: DiskFormat::Vmdk,
        source: DiskSource::Path("/home/mtj/libvtest/ReactOS.vmdk".to_owned()),
        shared: false,
        read_only: false,
    }];
    let network = NicNetwork::Network("default".parse().unwrap());
    expected.nics = vec![Nic { mac: None, model: NicModel::Rtl8139, network }];
    expected.vnc = Some(Vnc::default());
    assert_eq!(parsed.spec, expected);
}

#[test]
fn listing_1_as_printed_is_refused_with_the_place() {
    // The listing is not well-formed: it ends before it is closed, and its first line is not an XML declaration.
    let error = read(include_str!("listing1-as-printed.xml")).unwrap_err();
    let XmlError::Syntax { at, reason } = &error else { panic!("{error}") };
    assert_eq!((at.line, at.column), (1, 19), "{error}");
    assert!(reason.contains("<?xml version=\"1.0\"?>"), "{error}");
    let second = read(&include_str!("listing1-as-printed.xml").replacen("<xml", "<?xml", 1)).unwrap_err();
    assert_eq!(second.to_string(), "not well-formed XML at 7:5: <interface> is never closed");
}

#[test]
fn words_have_libvirts_meaning() {
    // Units, defaults and aliases mean what they mean to libvirt.
    let spec = |from: &str, to: &str| read(&with(from, to)).unwrap().spec;
    for (size, mem_mib) in [
        ("<memory unit='MiB'>256</memory>", 256),
        ("<memory unit='M'>256</memory>", 256),
        ("<memory unit='GB'>1</memory>", 954),
        ("<memory unit='g'> 1\n</memory>", 1024),
        ("<memory unit='bytes'>134217729</memory>", 129),
        ("<memory>131073</memory>", 129),
    ] {
        let document =
            with("<memory>131072</memory>", size).replace("<currentMemory>131072</currentMemory>", "");
        assert_eq!(read(&document).unwrap().spec.mem_mib, mem_mib, "{size}");
    }
    for (machine, expected) in
        [("pc-i440fx-9.2", MachineType::Pc), ("pc-q35-10.0", MachineType::Q35), ("q35", MachineType::Q35)]
    {
        let document = with("machine='pc'", &format!("machine='{machine}'")).replace("'hda'", "'vda'");
        assert_eq!(read(&document).unwrap().spec.machine, expected);
    }
    assert_eq!(spec("'hda'", "'vda'").disks[0].bus, DiskBus::Virtio);
    assert_eq!(spec("ReactOS.vmdk", "ReactOS.img").disks[0].format, DiskFormat::Raw);
    let typed = "<driver name='qemu' type='qcow2'/><source file='/x.vmdk'/>";
    assert_eq!(
        spec("<source file='/home/mtj/libvtest/ReactOS.vmdk'/>", typed).disks[0].format,
        DiskFormat::Qcow2
    );
    assert_eq!(spec("type='qemu'", "type='kvm'").accel, AccelChoice::Kvm);
    assert_eq!(spec("type='qemu'", "type='test' id='4'").driver, DriverName::Test);
    let fixed = spec("port='-1'", "port='5907' listen='0.0.0.0' passwd='sesame'").vnc.unwrap();
    assert_eq!((fixed.port, fixed.listen.as_str()), (VncPort::Fixed(5907), "0.0.0.0"));
    assert_eq!(spec("port='-1'", "port='5907' autoport='yes'").vnc.unwrap().port, VncPort::Auto);
    let model = "<cpu mode='custom'><model>qemu64</model><feature name='ssse3' policy='require'/>\
                 <feature name='svm' policy='disable'/></cpu><os>";
    assert_eq!(spec("<os>", model).cpu_model, "qemu64,+ssse3,-svm");
    assert_eq!(spec("<os>", "<on_crash>destroy</on_crash><os>").restart, RestartPolicy::Never);
    let habits =
        "<features><acpi/><apic/></features><clock offset='utc'/><on_poweroff>destroy</on_poweroff><os>";
    assert_eq!(spec("<os>", habits), spec("<os>", "<os>"));
}

#[test]
fn what_is_not_modelled_is_refused_by_name_or_listed() {
    // Every element, attribute and text that is not understood is refused with its path and place; when it may be
    // ignored, the rest is read and each is listed once.
    let hostdev = with("<disk", "<hostdev mode='subsystem'><source/></hostdev>\n    <disk");
    refused(&hostdev, "not supported: /domain/devices/hostdev at 12:5");
    refused(&with("<vcpu>", "<vcpu cpuset='1-3'>"), "/domain/vcpu/@cpuset at 6:9");
    refused(&with("<vcpu>", "<vcpu current='3'>"), "/domain/vcpu/@current=\"3\" at 6:3");
    refused(&with("<target dev='hda'/>", "<target dev='hda'/>stray"), "/domain/devices/disk/text() at 14:26");
    refused(
        &with("<currentMemory>131072", "<currentMemory>65536"),
        "/domain/currentMemory other than memory",
    );
    refused(
        &with("<emulator>/usr/bin/qemu-system-i386", "<emulator>/bin/sh"),
        "/domain/devices/emulator at 11:5",
    );
    refused(
        &with("<os>", "<on_reboot>destroy</on_reboot><os>"),
        "/domain/on_reboot[text()=\"destroy\"] at 7:3",
    );
    let messy =
        with("<interface", "<disk type='block' device='disk'><source dev='/dev/sda'/></disk>\n<interface")
            .replace("<os>", "<iothreads>2</iothreads><features><acpi/><hyperv/></features><os>")
            .replace("<vcpu>", "<vcpu cpuset='1'>");
    let parsed = parse(messy.as_bytes(), LENIENT).unwrap();
    assert_eq!(parsed.spec, read(LISTING).unwrap().spec);
    assert_eq!(
        parsed.ignored,
        [
            "/domain/vcpu/@cpuset at 6:9",
            "/domain/iothreads at 7:3",
            "/domain/features/hyperv at 7:44",
            "/domain/devices/disk[2][@type=\"block\"] at 16:5",
        ]
    );
}

#[test]
fn bad_values_are_refused_with_the_place_and_what_is_allowed() {
    // A value that is none cannot be ignored: the VM would be another one.
    let cases = [
        (
            with("type='qemu'", "type='xen'"),
            "/domain/@type at 2:1: \"xen\" is not run here; allowed: qemu, kvm",
        ),
        (with("<name>ReactOS-on-QEMU", "<name>a b"), "/domain/name at 3:3: \"a b\" is not a name"),
        (with("<memory>131072", "<memory unit='bushel'>1"), "\"bushel\" is no unit; allowed: a whole number"),
        (with("<memory>131072", "<memory unit='EiB'>99"), "99 EiB is too large"),
        (with("<memory>131072</memory>", ""), "/domain/memory at 2:1: is missing"),
        (with("arch='i686'", "arch='sparc'"), "/domain/os/type/@arch at 8:5: \"sparc\""),
        (with("machine='pc'", "machine='virt'"), "\"virt\" is not modelled"),
        (with("<target dev='hda'/>", ""), "/domain/devices/disk/target at 12:5: is missing"),
        (with("port='-1'", "port='99999'"), "\"99999\" is no port"),
        (with("port='-1'", "port='80'"), "spec.vnc.port: 80 is out of range; allowed: 5900 to 65535"),
        (with("'hda'", "'sda'"), "spec.disks[0].bus: machine pc has no sata bus"),
        (with("<os>", "<uuid>12</uuid><os>"), "/domain/uuid at 7:3"),
        ("<network/>".to_owned(), "the document is a <network>"),
        (String::new(), "at 1:1: there is no element in it"),
        ("<domain type='qemu'><name>x".to_owned(), "at 1:21: <name> is never closed"),
    ];
    for (document, message) in cases {
        refused(&document, message);
        let lenient = parse(document.as_bytes(), LENIENT).unwrap_err();
        assert!(!matches!(lenient, XmlError::Unsupported { .. }));
    }
}

#[test]
fn hostile_documents_are_refused_early() {
    // No entity is expanded, no tree is built of what is too long or too deep, and bytes that are no text are no panic.
    let laughs = "<!DOCTYPE d [<!ENTITY a 'ha'><!ENTITY b '&a;&a;'>]><domain type='qemu'>&b;</domain>";
    refused(&format!("<?xml version='1.0'?>\n{laughs}"), "at 2:1: document type definitions are not read");
    refused(&with("ReactOS-on-QEMU", "&lol;"), "at 3:9: unknown entity reference 'lol'");
    let nested = format!("{}{}", "<a>".repeat(50_000), "</a>".repeat(50_000));
    refused(&nested, "deeper than 32 at 1:97");
    refused(&"<a b='>'>".repeat(33), "deeper than 32");
    let wide = format!("<domain type='qemu'>{}</domain>", "<a/>".repeat(1 << 17));
    refused(&wide, "more than 65536 nodes");
    let long = vec![b' '; 10 << 20];
    assert_eq!(parse(&long, STRICT), Err(XmlError::TooLong { bytes: 10 << 20 }));
    assert!(long.len() > XML_BYTES_MAX);
    refused("<domain>\n a\0</domain>", "at 2:3: a NUL byte");
    assert_eq!(parse(b"<a>\n\xff</a>", STRICT).unwrap_err().to_string(), "not UTF-8 at 2:1");
    for cut in 0..LISTING.len() {
        assert!(read(&LISTING[..cut]).is_err() || LISTING[cut..].trim().is_empty(), "{cut}");
    }
}

fn vm(spec: VmSpec) -> Vm {
    let metadata = Metadata {
        name: "web-1".parse().unwrap(),
        uid: "6b0a7b0e-0c4f-4f8e-9c51-8a1df7a0c001".parse().unwrap(),
        labels: Labels::new(),
        generation: Generation(1),
        revision: Revision(1),
        created: Timestamp(0),
    };
    Vm { metadata, spec, status: VmStatus::default() }
}

fn path() -> impl Strategy<Value = String> {
    "/[a-zA-Z0-9 <>&'\"\n\té€]{1,12}"
}

fn name() -> impl Strategy<Value = dunlin_model::Name> {
    "[a-z][a-z0-9._-]{0,8}".prop_map(|text| text.parse().unwrap())
}

fn file() -> impl Strategy<Value = FileRef> {
    prop_oneof![name().prop_map(FileRef::Image), path().prop_map(FileRef::Path)]
}

fn boot() -> impl Strategy<Value = Boot> {
    let kernel = (file(), of(file()), "[ -~\n\té]{0,20}");
    let kernel = kernel.prop_map(|(kernel, initrd, cmdline)| Boot::Kernel { kernel, initrd, cmdline });
    prop_oneof![Just(Boot::Disk), kernel]
}

fn disk() -> impl Strategy<Value = Disk> {
    let source = prop_oneof![
        name().prop_map(DiskSource::Image),
        path().prop_map(DiskSource::Path),
        (1_u64..=64 << 20).prop_map(DiskSource::EmptyMib),
    ];
    let format = prop_oneof![Just(DiskFormat::Raw), Just(DiskFormat::Qcow2), Just(DiskFormat::Vmdk)];
    let bus = prop_oneof![Just(DiskBus::Virtio), Just(DiskBus::Sata), Just(DiskBus::Ide)];
    (name(), bus, format, source, any::<bool>(), any::<bool>()).prop_map(
        |(name, bus, format, source, shared, read_only)| {
            let shared = shared && matches!(source, DiskSource::Path(_));
            Disk { name, bus, format, source, shared, read_only }
        },
    )
}

fn nic() -> impl Strategy<Value = Nic> {
    let network = prop_oneof![
        Just(NicNetwork::User),
        name().prop_map(NicNetwork::Network),
        "[!-.0-~]{1,15}".prop_map(NicNetwork::Tap),
    ];
    let model = prop_oneof![Just(NicModel::Virtio), Just(NicModel::E1000), Just(NicModel::Rtl8139)];
    let mac = of(any::<[u8; 6]>().prop_map(|[a, b, c, d, e, f]| Mac([a & !1, b, c, d, e, f])));
    (mac, model, network).prop_map(|(mac, model, network)| Nic { mac, model, network })
}

fn vnc() -> impl Strategy<Value = Vnc> {
    let listen = prop_oneof![Just(""), Just("0.0.0.0"), Just("::1")].prop_map(str::to_owned);
    let port = prop_oneof![Just(VncPort::Auto), (5900_u16..=65_535).prop_map(VncPort::Fixed)];
    let password = of("[ -)+-~é]{1,4}".prop_map(Secret::new));
    (listen, port, password).prop_map(|(listen, port, password)| Vnc { listen, port, password })
}

fn placement() -> impl Strategy<Value = Placement> {
    let labels = || btree_map("[ -~é]{1,6}", "[ -~\né]{0,6}", 0..3);
    let prefers = btree_map("[a-z]{1,4}=[ -~é]{0,4}", 1_u32..=100, 0..3);
    (of(name()), labels(), labels(), vec(rule(), 0..3), prefers, labels()).prop_map(
        |(host, host_labels, apart_from, rules, prefers, tolerates)| Placement {
            host,
            host_labels,
            apart_from,
            rules,
            prefers,
            tolerates,
            resources: std::collections::BTreeMap::from([("device/gpu".to_owned(), 1)]),
        },
    )
}

fn rule() -> impl Strategy<Value = Rule> {
    let wants = prop_oneof![Just(Wants::Together), Just(Wants::Apart)];
    let over = prop_oneof![Just(Scope::Host), Just(Scope::Rack), Just(Scope::Zone)];
    (wants, btree_map("[ -~é]{1,6}", "[ -~\né]{0,6}", 1..2), over, of(1_u32..=100))
        .prop_map(|(wants, with, over, weight)| Rule { wants, with, over, weight })
}

fn sim() -> impl Strategy<Value = SimSpec> {
    (any::<u64>(), any::<u64>(), any::<u32>(), any::<u32>(), any::<u64>()).prop_map(
        |(boot_ms, dirty_mib_s, cpu_percent, fault_ppm, seed)| SimSpec {
            boot_ms,
            dirty_mib_s,
            cpu_percent,
            fault_ppm,
            seed,
        },
    )
}

fn spec() -> impl Strategy<Value = VmSpec> {
    let power = prop_oneof![Just(Power::Stopped), Just(Power::Running), Just(Power::Paused)];
    let driver = prop_oneof![Just(DriverName::Qemu), Just(DriverName::Test), Just(DriverName::Libvirt)];
    let accel = prop_oneof![Just(AccelChoice::Any), Just(AccelChoice::Kvm), Just(AccelChoice::Tcg)];
    let arch = prop_oneof![Just(Arch::X86_64), Just(Arch::I686)];
    let machine = prop_oneof![Just(MachineType::Q35), Just(MachineType::Pc), Just(MachineType::Microvm)];
    let cpu_model = prop_oneof![Just("host".to_owned()), Just("max".to_owned()), "[a-z0-9.+,=_-]{0,12}"];
    let restart = prop_oneof![Just(RestartPolicy::Never), Just(RestartPolicy::OnCrash)];
    let board = (power, driver, accel, arch, machine, 1_u32..=288, 16_u64..=4 << 20, cpu_model);
    let rest = (boot(), vec(disk(), 0..4), vec(nic(), 0..4), of(vnc()), restart, placement(), of(sim()));
    let project = "[a-z][a-z0-9-]{0,8}".prop_map(|text| text.parse().unwrap());
    (board, rest, project).prop_map(
        |(
            (power, driver, accel, arch, machine, cpus, mem_mib, cpu_model),
            (boot, disks, nics, vnc, restart, placement, sim),
            project,
        )| {
            VmSpec {
                project,
                power,
                cpus,
                mem_mib,
                driver,
                accel,
                arch,
                machine,
                cpu_model,
                boot,
                disks,
                nics,
                vnc,
                restart,
                placement,
                cloud_init: None,
                sim,
            }
        },
    )
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(spec in spec().prop_filter("a VM that can be", |spec| spec.validate().is_ok())) {
        // Whatever VM there is, its document reads back as the same VM, strictly.
        let vm = vm(spec);
        let document = write(&vm).unwrap();
        let parsed = read(&document).map_err(|e| TestCaseError::fail(format!("{e}\n{document}")))?;
        prop_assert_eq!(&parsed.spec, &vm.spec, "{}", document);
        prop_assert_eq!((&parsed.name, parsed.uuid), (&vm.metadata.name, Some(vm.metadata.uid)));
    }

    #[test]
    fn bytes_never_panic(bytes in vec(any::<u8>(), 0..200), cut in 0..LISTING.len(), noise in "[<>/='\"&!\\[\\]?a-]{0,8}") {
        // Whatever the bytes, the answer is a VM or an error.
        let _ = parse(&bytes, STRICT);
        let mut document = LISTING.to_owned();
        document.insert_str(cut, &noise);
        let _ = parse(document.as_bytes(), LENIENT);
    }
}

#[test]
fn secrets_and_unwritable_texts() {
    // A redacted password does not become the password, and a character that XML cannot hold is named.
    let mut spec = VmSpec::new(64);
    spec.vnc = Some(Vnc { password: Some(Secret::new(Secret::REDACTED)), ..Vnc::default() });
    assert!(!write(&vm(spec.clone())).unwrap().contains("passwd"));
    let source = DiskSource::Path("/a\u{1}b".to_owned());
    let name = "vda".parse().unwrap();
    let (bus, format) = (DiskBus::Virtio, DiskFormat::Raw);
    spec.disks = vec![Disk { name, bus, format, source, shared: false, read_only: false }];
    let error = write(&vm(spec)).unwrap_err();
    assert_eq!(error, XmlError::Unwritable { field: "spec.disks.source", character: '\u{1}' });
}
