//! What tests of mounts over io_uring need of the machine.

use std::path::Path;

/// Lets FUSE mounts be served over io_uring, which the kernel's administrator has to allow: no mount uses it for that
/// alone. False where the kernel (before Linux 6.14) has no such switch.
pub fn permit_io_uring() -> bool {
    let switch = Path::new("/sys/module/fuse/parameters/enable_uring");
    if !switch.exists() {
        eprintln!("{} is missing: no io_uring here", switch.display());
        return false;
    }
    if std::fs::read_to_string(switch).unwrap().trim() != "Y" {
        std::fs::write(switch, "Y").expect("a switch that root can set");
    }
    true
}
