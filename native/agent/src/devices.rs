//! Devices that the host plugs for a container: found in the guest, then written into the container's spec.
use crate::agent::Agent;
use crate::device::parse_pci_path;
use crate::failure::{invalid, Context, Result};
use kata_protocol::grpc::{Device, LinuxDevice, LinuxDeviceCgroup, Spec};
use kata_protocol::ttrpc::{status, Code};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

const MAX_DEVICES: usize = 256;

/// Waits for each device and gives the spec the guest's device numbers. Errors: INVALID_ARGUMENT for a type or path that
/// is not understood, DEADLINE_EXCEEDED for a device that does not appear.
pub async fn add_devices(agent: &Agent, devices: &[Device], spec: &mut Spec) -> Result<()> {
    if devices.len() > MAX_DEVICES {
        return Err(invalid(format!("device: {} devices are over {MAX_DEVICES}", devices.len())));
    }
    let mut found = Vec::new();
    for device in devices {
        match device.r#type.as_str() {
            "blk" | "mmioblk" | "nvdimm" => {
                let around = agent.storages.surroundings();
                let source = if device.vm_path.is_empty() { &device.id } else { &device.vm_path };
                let node = around.roots.wait_for_disk(source, &around.uevents, around.hotplug_timeout).await?;
                found.push((device, node));
            }
            "vfio-pci-gk" => wait_for_vfio(agent, device).await?,
            other => {
                let text = format!("device: type {other:?} is not one of blk, mmioblk, nvdimm, vfio-pci-gk");
                return Err(status(Code::InvalidArgument, text));
            }
        }
    }
    rewrite(spec, &found)
}

/// Devices that the guest's own drivers take: it is enough that they are there.
async fn wait_for_vfio(agent: &Agent, device: &Device) -> Result<()> {
    let around = agent.storages.surroundings();
    for option in &device.options {
        let (_, path) = option
            .split_once('=')
            .ok_or_else(|| invalid(format!("device: {option:?} is not <host address>=<PCI path>")))?;
        let slots = parse_pci_path(path)?;
        let what = format!("the device at PCI path {path}");
        around.uevents.wait_for(&what, around.hotplug_timeout, || Ok(around.roots.pci_device(&slots))).await?;
    }
    Ok(())
}

/// The guest's numbers for the host's, in the devices and in the rules about them. A guest's device can have the numbers that another one
/// has on the host: a rule is changed once.
fn rewrite(spec: &mut Spec, found: &[(&Device, PathBuf)]) -> Result<()> {
    let linux = spec.linux.get_or_insert_with(Default::default);
    let rules = &mut linux.resources.get_or_insert_with(Default::default).devices;
    let mut changed = vec![false; rules.len()];
    for (device, node) in found {
        if !Path::new(&device.container_path).is_absolute() {
            return Err(invalid(format!("device: container path {:?} is not absolute", device.container_path)));
        }
        let metadata = fs::metadata(node).context(|| format!("device: {}", node.display()))?;
        let kind = if metadata.file_type().is_char_device() { "c" } else { "b" };
        let (major, minor) = (i64::from(libc::major(metadata.rdev())), i64::from(libc::minor(metadata.rdev())));
        let mut wanted = LinuxDevice {
            path: device.container_path.clone(),
            r#type: kind.into(),
            major,
            minor,
            file_mode: 0o660,
            ..Default::default()
        };
        let mut is_told = false;
        match linux.devices.iter_mut().find(|entry| entry.path == device.container_path) {
            Some(entry) => {
                (wanted.file_mode, wanted.uid, wanted.gid) = (entry.file_mode, entry.uid, entry.gid);
                for (rule, changed) in rules.iter_mut().zip(&mut changed) {
                    let is_its = (rule.major, rule.minor) == (entry.major, entry.minor) && rule.r#type == entry.r#type;
                    if is_its && !*changed {
                        (rule.major, rule.minor, rule.r#type) = (major, minor, kind.into());
                        (*changed, is_told) = (true, true);
                    }
                }
                *entry = wanted;
            }
            None => linux.devices.push(wanted),
        }
        if !is_told {
            rules.push(LinuxDeviceCgroup { allow: true, r#type: kind.into(), major, minor, access: "rwm".into() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_gets_the_guests_numbers_and_is_allowed() {
        let mut spec = Spec::default();
        let host = LinuxDevice {
            path: "/dev/x".into(),
            r#type: "b".into(),
            major: 99,
            minor: 9,
            uid: 5,
            ..Default::default()
        };
        spec.linux.get_or_insert_with(Default::default).devices.push(host);
        let device = Device { container_path: "/dev/x".into(), ..Default::default() };
        let null = PathBuf::from("/dev/null");
        rewrite(&mut spec, &[(&device, null.clone())]).unwrap();
        let linux = spec.linux.unwrap();
        let entry = &linux.devices[0];
        assert_eq!((entry.r#type.as_str(), entry.major, entry.minor, entry.uid), ("c", 1, 3, 5));
        let rule = &linux.resources.unwrap().devices[0];
        assert_eq!((rule.allow, rule.major, rule.minor), (true, 1, 3));
        let relative = Device { container_path: "dev/x".into(), ..Default::default() };
        assert!(rewrite(&mut Spec::default(), &[(&relative, null)]).is_err());
    }

    #[test]
    fn a_rule_of_the_host_keeps_its_access_and_is_changed_once() {
        let mut spec = Spec::default();
        let linux = spec.linux.get_or_insert_with(Default::default);
        // The second device has on the host the numbers that the first one gets in the guest.
        let numbers = [("/dev/x", "b", 7, 0, "r"), ("/dev/y", "c", 1, 3, "w")];
        for (path, kind, major, minor, access) in numbers {
            let device = LinuxDevice { path: path.into(), r#type: kind.into(), major, minor, ..Default::default() };
            linux.devices.push(device);
            let rule = LinuxDeviceCgroup { allow: true, r#type: kind.into(), major, minor, access: access.into() };
            linux.resources.get_or_insert_with(Default::default).devices.push(rule);
        }
        let at = |path: &str| Device { container_path: path.into(), ..Default::default() };
        let (x, y) = (at("/dev/x"), at("/dev/y"));
        rewrite(&mut spec, &[(&x, "/dev/null".into()), (&y, "/dev/zero".into())]).unwrap();
        let rules = spec.linux.unwrap().resources.unwrap().devices;
        let told: Vec<_> = rules.iter().map(|rule| (rule.major, rule.minor, rule.access.as_str())).collect();
        assert_eq!(told, [(1, 3, "r"), (1, 5, "w")]);
    }
}
