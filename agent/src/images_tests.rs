use super::*;

/// The size of a disk is read from the first bytes that qemu-img itself writes, and other bytes are no header.
#[test]
fn headers() {
    let dir = tempfile::TempDir::new().unwrap();
    for (format, bytes) in [(ImageFormat::Qcow2, 5 << 20), (ImageFormat::Vmdk, 70 << 20)] {
        let file = dir.path().join(format.as_str());
        let made = std::process::Command::new("qemu-img")
            .args(["create", "-q", "-f", format.as_str(), file.to_str().unwrap(), &bytes.to_string()])
            .status()
            .unwrap();
        assert!(made.success());
        let mut head = Vec::new();
        std::fs::File::open(&file).unwrap().take(HEAD_BYTES as u64).read_to_end(&mut head).unwrap();
        assert_eq!(disk_bytes_of(&head, format), Some(bytes));
        assert_eq!(disk_bytes_of(&head[..10], format), None);
        assert_eq!(disk_bytes_of(&[0; HEAD_BYTES], format), None);
    }
}
