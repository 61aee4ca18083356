//! The readers of what other programs send: documents, bodies of calls, domains and libvirt's frames.

use dunlin_drivers::domain_xml;
use dunlin_drivers::libvirt::wire::events::{EVENTS, Event};
use dunlin_drivers::libvirt::wire::{Frame, TABLE};
use dunlin_model::object::Kind;
use dunlin_model::vm::{Vm, VmStatus};
use dunlin_model::{Generation, Labels, Metadata, Object, Revision, Timestamp, VmId};
use dunlin_proto::document;
use serde::Deserialize as _;
use serde_json::Value;

use crate::Target;

/// Domains: what was taken is written, and read as the same.
pub(crate) const DOMAIN_XML: Target = Target {
    name: "domain-xml",
    seeds: &[include_bytes!("../../drivers/src/domain_xml/listing1.xml"), include_bytes!("seeds/domain.xml")],
    words: &[
        "<",
        "/>",
        "</domain>",
        "<disk type='file'>",
        "<!--",
        "-->",
        "<![CDATA[",
        "&amp;",
        "&#x0;",
        "&x;",
        "<!DOCTYPE a [<!ENTITY x 'y'>]>",
        " unit='KiB'",
        "xmlns:qemu=''",
        "'",
        "\u{feff}",
        "<metadata>",
    ],
    run: |bytes| {
        let lenient = domain_xml::Options { ignore_unsupported: true };
        let strict = domain_xml::parse(bytes, domain_xml::Options::default());
        let Ok(parsed) = domain_xml::parse(bytes, lenient) else {
            assert!(strict.is_err(), "strict took what lenient refused");
            return false;
        };
        let metadata = Metadata {
            name: parsed.name.clone(),
            uid: parsed.uuid.unwrap_or(VmId(uuid::Uuid::nil())),
            labels: Labels::new(),
            generation: Generation(1),
            revision: Revision(1),
            created: Timestamp(0),
        };
        let vm = Vm { metadata, spec: parsed.spec.clone(), status: VmStatus::default() };
        if let Ok(written) = domain_xml::write(&vm) {
            let again = domain_xml::parse(written.as_bytes(), lenient).expect("what was written can be read");
            assert_eq!((again.name, again.spec), (parsed.name, parsed.spec));
        }
        true
    },
};

const CALL: &[u8] = b"\0\0\0\x38\x20\0\x80\x86\0\0\0\x01\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\
    \0\0\0\x01\0\0\0\x0eqemu:///system\0\0\0\0\0\0";
const EVENT: &[u8] = b"\0\0\0\x44\x20\0\x80\x86\0\0\0\x01\0\0\x01\x3e\0\0\0\x02\0\0\0\0\0\0\0\0\
    \0\0\0\x07\0\0\0\x03vm1\x000123456789abcdef\0\0\0\x05\0\0\0\x02\0\0\0\0";

/// Frames of libvirt's protocol: one that was taken is the same bytes again, and its payload is read as whatever it may
/// be: the arguments and the answer of its procedure, or its event.
pub(crate) const LIBVIRT_FRAME: Target = Target {
    name: "libvirt-frame",
    seeds: &[CALL, EVENT],
    words: &["\0\0\0\0", "\0\0\0\u{1}", "\0\0\u{1}>", "\u{7f}\0\0\0", "\0\0\u{10}\0"],
    run: |bytes| {
        let Ok(Some((frame, length))) = Frame::decode(bytes) else { return false };
        assert_eq!(frame.encode().expect("it was a frame"), bytes.get(..length).unwrap_or_default());
        let mut understood = 0;
        for entry in TABLE {
            understood += u32::from((entry.check_arguments)(&frame.body).is_ok());
            understood += u32::from((entry.check_answer)(&frame.body).is_ok());
        }
        for (number, _) in EVENTS {
            understood += u32::from(matches!(Event::decode(*number, &frame.body), Ok(Some(_))));
        }
        understood > 0
    },
};

fn as_object(value: &Value) -> Option<Object> {
    let kind = document::kind(value).ok()?;
    let object = document::object(kind, value).ok()?;
    assert_eq!(object.kind(), kind);
    if let Object::Vm(vm) = &object {
        drop(vm.spec.validate());
    }
    Some(object)
}

/// Documents: several to a text, of any kind.
pub(crate) const DOCUMENTS: Target = Target {
    name: "documents",
    seeds: &[include_bytes!("seeds/documents.yaml")],
    words: &[
        "---\n",
        "kind: ",
        "spec:",
        "  ",
        "- ",
        "&a ",
        "*a",
        "!!binary ",
        "<<: ",
        "|\n",
        "? ",
        "{",
        "}",
        "\t",
        "''",
        "~",
    ],
    run: |bytes| {
        let mut taken = false;
        for one in serde_norway::Deserializer::from_slice(bytes) {
            let Ok(value) = serde_norway::Value::deserialize(one) else { return false };
            let Ok(value) = serde_json::to_value(&value) else { return false };
            taken |= as_object(&value).is_some();
        }
        taken
    },
};

/// Bodies of calls: read as each kind there is.
pub(crate) const BODY: Target = Target {
    name: "body",
    seeds: &[
        br#"{"kind":"Vm","metadata":{"name":"web-1","labels":{"app":"web"}},"spec":{"cpus":2,"mem_mib":2048}}"#,
        br#"{"kind":"Host","metadata":{"name":"h1","revision":7},"spec":{"cordoned":true}}"#,
    ],
    words: &["{", "}", "[", "]", "\"kind\":", "\"spec\":", "null", "\"\\ud800\"", "1e999", ",", "\"\\u0000\""],
    run: |bytes| {
        let Ok(value) = serde_json::from_slice::<Value>(bytes) else { return false };
        for kind in Kind::ALL {
            drop(document::object(kind, &value));
        }
        as_object(&value).is_some()
    },
};
