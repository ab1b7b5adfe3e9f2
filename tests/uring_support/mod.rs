//! What tests of mounts over io_uring need of the machine.

use std::io::Write;
use std::path::Path;

/// Lets FUSE mounts be served over io_uring, which the kernel's administrator has to allow: no mount uses it for that
/// alone. False where the kernel (before Linux 6.14) has no such switch.
pub fn permit_io_uring() -> bool {
    let switch = Path::new("/sys/module/fuse/parameters/enable_uring");
    if !switch.exists() {
        let release = rustix::system::uname();
        let release = release.release().to_string_lossy();
        let mut numbers = release.split(['.', '-']).map_while(|n| n.parse().ok());
        let version: (u32, u32) = (numbers.next().unwrap(), numbers.next().unwrap());
        assert!(
            version < (6, 14),
            "Linux {release} was built without CONFIG_FUSE_IO_URING: what is to be tested is missing"
        );
        // Past what the test runner keeps to itself of a test that passes.
        let told = format!("NOT TESTED: FUSE over io_uring, which Linux {release} does not have\n");
        let _ = std::io::stderr().write_all(told.as_bytes());
        return false;
    }
    if std::fs::read_to_string(switch).unwrap().trim() != "Y" {
        std::fs::write(switch, "Y").expect("a switch that root can set");
    }
    true
}
