//! From a document to a VM: the domain itself. Its devices are read in [`super::device`].

use dunlin_model::capabilities::DriverName;
use dunlin_model::project::default_project;
use dunlin_model::vm::{AccelChoice, Arch, Boot, FileRef, MachineType, RestartPolicy, VmSpec};
use dunlin_model::{Invalid, Name, VmId};
use roxmltree::{Document, ParsingOptions};

use super::element::{Element, Sieve};
use super::{At, Fleet, NAMESPACE, Options, Parsed, XML_NODES_MAX, XmlError, device, on_crash, scan, unit};

/// Reads a domain. `bytes` may be anything at all.
pub fn parse(bytes: &[u8], options: Options) -> Result<Parsed, XmlError> {
    let text = scan::check(bytes)?;
    let reading =
        ParsingOptions { allow_dtd: false, nodes_limit: XML_NODES_MAX, ..ParsingOptions::default() };
    let document = Document::parse_with_options(text, reading).map_err(|e| syntax(text, &e))?;
    let mut sieve = Sieve::new(options);
    let root = Element::new(document.root_element(), "");
    let (name, uuid, spec) = domain(root, &mut sieve)?;
    spec.validate().map_err(XmlError::Spec)?;
    Ok(Parsed { name, uuid, spec, ignored: sieve.ignored() })
}

/// The parser's error, with a place where it has none and a reason somebody can act on.
fn syntax(text: &str, error: &roxmltree::Error) -> XmlError {
    let place = |at: At, reason: String| XmlError::Syntax { at, reason };
    let at = At { line: error.pos().row, column: error.pos().col };
    match error {
        roxmltree::Error::DtdDetected => {
            let found = scan::at(text, text.find("<!DOCTYPE").unwrap_or(0));
            place(
                found,
                "document type definitions are not read, and no entity but XML's own five is".to_owned(),
            )
        }
        roxmltree::Error::NodesLimitReached => place(at, format!("more than {XML_NODES_MAX} nodes")),
        roxmltree::Error::NoRootNode => place(at, "there is no element in it".to_owned()),
        roxmltree::Error::UnclosedRootNode | roxmltree::Error::UnexpectedEndOfStream => {
            match scan::unclosed(text) {
                Some((name, opened)) => place(opened, format!("<{name}> is never closed")),
                None => place(scan::at(text, text.len()), "it ends in the middle of something".to_owned()),
            }
        }
        _ if text.trim_start().starts_with("<xml ") => {
            place(at, format!("{}; the XML declaration is written <?xml version=\"1.0\"?>", reason(error)))
        }
        _ => place(at, reason(error)),
    }
}

/// The parser's words, without the place it repeats.
fn reason(error: &roxmltree::Error) -> String {
    let words = error.to_string();
    let place = format!(" at {}", error.pos());
    words.strip_suffix(&place).map_or(words.clone(), str::to_owned)
}

fn domain(mut root: Element<'_>, sieve: &mut Sieve) -> Result<(Name, Option<VmId>, VmSpec), XmlError> {
    if root.name() != "domain" {
        let problem = format!("the document is a <{}>", root.name());
        return Err(root.value("", problem, "a <domain>"));
    }
    let mut spec = VmSpec::new(0);
    (spec.driver, spec.accel) = match root.required("type", "qemu, kvm, test, lxc or uml")? {
        "qemu" => (DriverName::Qemu, AccelChoice::Any),
        "kvm" => (DriverName::Qemu, AccelChoice::Kvm),
        "test" => (DriverName::Test, AccelChoice::Any),
        "lxc" => (DriverName::Lxc, AccelChoice::Any),
        "uml" => (DriverName::Uml, AccelChoice::Any),
        other => {
            return Err(root.value(
                "@type",
                format!("{other:?} is not run here"),
                "qemu, kvm, test, lxc or uml",
            ));
        }
    };
    // The number libvirt gives a running domain; means nothing elsewhere.
    root.attr("id");
    let name = name(&mut root, sieve)?;
    let uuid = uuid(&mut root, sieve)?;
    spec.mem_mib = memory(&mut root, sieve)?;
    spec.cpus = vcpu(&mut root, sieve)?;
    os(&mut root, sieve, &mut spec)?;
    cpu(&mut root, sieve, &mut spec)?;
    habits(&mut root, sieve, &mut spec)?;
    fleet(&mut root, sieve, &mut spec)?;
    if let Some(devices) = root.child("devices") {
        device::devices(devices, sieve, &mut spec)?;
    }
    root.finish(sieve)?;
    Ok((name, uuid, spec))
}

fn name(root: &mut Element<'_>, sieve: &mut Sieve) -> Result<Name, XmlError> {
    let mut element = root.child("name").ok_or_else(|| root.missing("name", "a <name>"))?;
    let text = element.text();
    let name = text.trim().parse().map_err(|e: Invalid| element.value("", e.problem, &e.allowed))?;
    element.finish(sieve)?;
    Ok(name)
}

fn uuid(root: &mut Element<'_>, sieve: &mut Sieve) -> Result<Option<VmId>, XmlError> {
    let Some(mut element) = root.child("uuid") else { return Ok(None) };
    let text = element.text();
    let uuid = text.trim().parse().map_err(|e: Invalid| element.value("", e.problem, &e.allowed))?;
    element.finish(sieve)?;
    Ok(Some(uuid))
}

fn memory(root: &mut Element<'_>, sieve: &mut Sieve) -> Result<u64, XmlError> {
    let size = |mut element: Element<'_>, sieve: &mut Sieve| {
        let unit = element.attr("unit").unwrap_or("KiB");
        let text = element.text();
        let mib = unit::mib(&text, unit).map_err(|problem| element.value("", problem, unit::ALLOWED))?;
        element.finish(sieve)?;
        Ok::<u64, XmlError>(mib)
    };
    let element = root.child("memory").ok_or_else(|| root.missing("memory", unit::ALLOWED))?;
    let mem_mib = size(element, sieve)?;
    if let Some(element) = root.child("currentMemory") {
        let (path, at) = (element.path.clone(), element.at());
        if size(element, sieve)? != mem_mib {
            // A balloon from the start.
            sieve.drop(format!("{path} other than memory"), at)?;
        }
    }
    Ok(mem_mib)
}

fn vcpu(root: &mut Element<'_>, sieve: &mut Sieve) -> Result<u32, XmlError> {
    let Some(mut element) = root.child("vcpu") else { return Ok(1) };
    let text = element.text();
    let text = text.trim();
    let cpus = text.parse().map_err(|_| element.value("", format!("{text:?} is no number"), "1 to 288"))?;
    element.only(sieve, "placement", &["static"])?;
    element.only(sieve, "current", &[text])?;
    element.finish(sieve)?;
    Ok(cpus)
}

fn os(root: &mut Element<'_>, sieve: &mut Sieve, spec: &mut VmSpec) -> Result<(), XmlError> {
    let mut os = root.child("os").ok_or_else(|| root.missing("os", "an <os> with a <type>"))?;
    let mut kind = os.child("type").ok_or_else(|| os.missing("type", "hvm"))?;
    let text = kind.text();
    if text.trim() != "hvm" {
        return Err(kind.value("", format!("{:?} is not run here", text.trim()), "hvm"));
    }
    spec.arch = match kind.attr("arch") {
        None | Some("x86_64") => Arch::X86_64,
        Some("i686") => Arch::I686,
        Some(other) => {
            return Err(kind.value("@arch", format!("{other:?} is not run here"), "x86_64 or i686"));
        }
    };
    spec.machine = match kind.attr("machine") {
        None | Some("pc") => MachineType::Pc,
        Some("q35") => MachineType::Q35,
        Some("microvm") => MachineType::Microvm,
        Some(name) if name.starts_with("pc-q35-") => MachineType::Q35,
        Some(name) if name.starts_with("pc-i440fx-") => MachineType::Pc,
        Some(other) => {
            let allowed = "pc, pc-i440fx-*, q35, pc-q35-* or microvm";
            return Err(kind.value("@machine", format!("{other:?} is not modelled"), allowed));
        }
    };
    kind.finish(sieve)?;
    for mut boot in os.all("boot") {
        boot.only(sieve, "dev", &["hd"])?;
        boot.finish(sieve)?;
    }
    let [kernel, initrd, cmdline] = ["kernel", "initrd", "cmdline"].map(|name| os.child(name));
    if let Some(kernel) = kernel {
        let kernel = file(kernel, sieve)?;
        let initrd = initrd.map(|initrd| file(initrd, sieve)).transpose()?;
        let mut text = String::new();
        if let Some(mut cmdline) = cmdline {
            text = cmdline.text();
            cmdline.finish(sieve)?;
        }
        spec.boot = Boot::Kernel { kernel, initrd, cmdline: text };
    } else {
        initrd.iter().chain(&cmdline).try_for_each(|element| element.drop(sieve))?;
    }
    os.finish(sieve)
}

/// `image:NAME`, or a path.
fn file(mut element: Element<'_>, sieve: &mut Sieve) -> Result<FileRef, XmlError> {
    let text = element.text();
    let file = match text.strip_prefix("image:") {
        Some(name) => {
            let name = name.trim().parse();
            FileRef::Image(name.map_err(|e: Invalid| element.value("", e.problem, &e.allowed))?)
        }
        None => FileRef::Path(text),
    };
    element.finish(sieve)?;
    Ok(file)
}

fn cpu(root: &mut Element<'_>, sieve: &mut Sieve, spec: &mut VmSpec) -> Result<(), XmlError> {
    let Some(mut cpu) = root.child("cpu") else { return Ok(()) };
    cpu.only(sieve, "match", &["exact"])?;
    cpu.only(sieve, "check", &["none"])?;
    match cpu.attr("mode") {
        Some("host-passthrough") => spec.cpu_model = "host".to_owned(),
        Some("maximum") => spec.cpu_model = "max".to_owned(),
        None | Some("custom") => {
            if let Some(mut model) = cpu.child("model") {
                model.only(sieve, "fallback", &["forbid"])?;
                spec.cpu_model = model.text().trim().to_owned();
                model.finish(sieve)?;
            }
        }
        Some(_) => cpu.drop_attr(sieve, "mode")?,
    }
    for mut feature in cpu.all("feature") {
        let name = feature.required("name", "a CPU feature's name")?;
        let sign = match feature.attr("policy") {
            None | Some("require") => '+',
            Some("disable") => '-',
            Some(_) => {
                feature.drop_attr(sieve, "policy")?;
                continue;
            }
        };
        if spec.cpu_model.is_empty() {
            feature.drop(sieve)?;
            continue;
        }
        spec.cpu_model.extend([',', sign]);
        spec.cpu_model.push_str(name);
        feature.finish(sieve)?;
    }
    cpu.finish(sieve)
}

/// Elements that may say what is so anyway.
fn habits(root: &mut Element<'_>, sieve: &mut Sieve, spec: &mut VmSpec) -> Result<(), XmlError> {
    for (name, usual) in [("on_poweroff", "destroy"), ("on_reboot", "restart")] {
        if let Some(mut element) = root.child(name) {
            let text = element.text();
            if text.trim() != usual {
                element.drop_where(sieve, "text()", text.trim())?;
            }
            element.finish(sieve)?;
        }
    }
    if let Some(mut element) = root.child("on_crash") {
        let text = element.text();
        match [RestartPolicy::Never, RestartPolicy::OnCrash].iter().find(|r| on_crash(**r) == text.trim()) {
            Some(restart) => spec.restart = *restart,
            None => element.drop_where(sieve, "text()", text.trim())?,
        }
        element.finish(sieve)?;
    }
    if let Some(mut features) = root.child("features") {
        for feature in features.any(&["acpi", "apic", "pae"]) {
            feature.finish(sieve)?;
        }
        features.finish(sieve)?;
    }
    if let Some(mut clock) = root.child("clock") {
        clock.only(sieve, "offset", &["utc"])?;
        clock.finish(sieve)?;
    }
    Ok(())
}

fn fleet(root: &mut Element<'_>, sieve: &mut Sieve, spec: &mut VmSpec) -> Result<(), XmlError> {
    let Some(mut metadata) = root.child("metadata") else { return Ok(()) };
    if let Some(mut element) = metadata.foreign(NAMESPACE, "vm") {
        let allowed = "a JSON object with power, accel, placement, sim, project";
        let text = element.text();
        let fleet: Fleet =
            serde_json::from_str(&text).map_err(|e| element.value("", e.to_string(), allowed))?;
        spec.power = fleet.power.unwrap_or_default();
        spec.driver = fleet.driver.unwrap_or(spec.driver);
        spec.accel = fleet.accel.unwrap_or(spec.accel);
        (spec.placement, spec.sim) = (fleet.placement, fleet.sim);
        spec.project = fleet.project.unwrap_or_else(default_project);
        element.finish(sieve)?;
    }
    metadata.finish(sieve)
}
