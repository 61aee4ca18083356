//! Disks, network cards and the display of a VM.

use dunlin_model::Invalid;
use dunlin_model::vm as model;

use super::{Wire, missing, read, refuse};
use crate::v1;

records!(Disk { name, bus, format, source, shared, read_only });

choices!([default] DiskBus { Virtio, Sata, Ide });

choices!([default] DiskFormat { Qcow2, Raw, Vmdk });

oneofs!(DiskSource in disk_source { Image "image" (name), Path "path" (path), EmptyMib "empty_mib" (size) });

records!(Nic { mac, model, network });

choices!([default] NicModel { Virtio, E1000, Rtl8139 });

oneofs!([default] NicNetwork in nic_network { User "user", Network "network" (name), Tap "tap" (name) });

records!([default] Vnc { listen, port, password });

oneofs!([default] VncPort in vnc_port { Auto "auto", Fixed "fixed" (port) });
