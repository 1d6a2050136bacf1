//! Everything the agent knows, shared by its tasks (one thread; no borrow is held across an await).
use crate::container::Container;
use crate::device::DeviceRoots;
use crate::events::Events;
use crate::failure::{invalid, Result};
use crate::options::{Address, Options};
use crate::reaper::Reaper;
use crate::sandbox::Sandbox;
use crate::storage::{Storages, Surroundings};
use crate::streams::Streams;
use crate::uevent::Uevents;
use kata_protocol::network::NetworkState;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;

pub struct Agent {
    pub options: Options,
    /// cgroup directory of all containers.
    pub cgroup_parent: PathBuf,
    pub streams: Rc<Streams>,
    pub reaper: Rc<Reaper>,
    pub uevents: Rc<Uevents>,
    pub events: Events,
    pub storages: Storages,
    pub sandbox: RefCell<Sandbox>,
    pub containers: RefCell<BTreeMap<String, Rc<Container>>>,
    /// What ApplyNetwork put there, with the guest's link numbers.
    pub network: RefCell<NetworkState>,
}

impl Agent {
    pub fn new(options: Options, cgroup_parent: PathBuf) -> Rc<Self> {
        let reaper = Rc::new(Reaper::default());
        let uevents = Rc::new(Uevents::default());
        let surroundings = Surroundings {
            roots: DeviceRoots::default(),
            uevents: Rc::clone(&uevents),
            hotplug_timeout: options.hotplug_timeout,
            reaper: Rc::clone(&reaper),
        };
        Rc::new(Self {
            options,
            cgroup_parent,
            streams: Rc::default(),
            reaper,
            uevents,
            events: Events::default(),
            storages: Storages::new(surroundings),
            sandbox: RefCell::default(),
            containers: RefCell::default(),
            network: RefCell::default(),
        })
    }

    /// False when it runs on a host for tests, where it leaves the machine's own settings alone.
    pub fn is_guest(&self) -> bool {
        self.options.address == Address::Vsock
    }

    /// Errors: INVALID_ARGUMENT, as upstream's agent answers.
    pub fn container(&self, id: &str) -> Result<Rc<Container>> {
        let found = self.containers.borrow().get(id).cloned();
        found.ok_or_else(|| invalid(format!("container: {id:?} does not exist")))
    }
}
