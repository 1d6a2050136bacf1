//! The pod's network namespace: what it holds, and taps that are joined to its links.
use crate::failure;
use crate::keeper::Keeper;
use crate::macvtap;
use crate::sys;
use crate::tc;
use kata_protocol::envelope::Status;
use kata_protocol::keeper::{AttachTapRequest, ReadNetworkRequest, ReadNetworkResponse};
use kata_protocol::netlink::state::IFINFO_BYTES;
use kata_protocol::netlink::{self, state, Netlink, Request};
use kata_protocol::ttrpc::{status, Code};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

const MAX_TAPS: usize = 64;
const MAX_QUEUES: u32 = 16;
const MAX_POLL: Duration = Duration::from_secs(60);
/// Several changes of one plugin are one.
const QUIET: Duration = Duration::from_millis(5);
/// Our taps, in a namespace that a dead keeper left.
const TAP_ENDS: (&str, &str) = ("tap", "_kata");

#[derive(Clone, Copy, PartialEq)]
enum Model {
    TcFilter,
    Macvtap,
}

#[derive(Clone, PartialEq)]
struct Tap {
    link: u32,
    queues: u32,
    model: Model,
}

#[derive(Default)]
pub struct Network {
    taps: RefCell<BTreeMap<String, Tap>>,
    /// Of macvtaps, for the VMM to inherit.
    devices: RefCell<BTreeMap<String, OwnedFd>>,
    /// Rises with every change of the namespace; absent until somebody asks.
    generation: RefCell<Option<watch::Sender<u64>>>,
}

fn namespace(keeper: &Keeper) -> Result<OwnedFd, Status> {
    let netns = keeper.netns.borrow();
    let file: Option<&File> = netns.as_ref().map(|netns| &netns.file);
    let copy = file.map(|file| file.as_fd().try_clone_to_owned());
    let missing = || status(Code::FailedPrecondition, "the sandbox has no network namespace yet (UseNetns)");
    copy.ok_or_else(missing)?.map_err(|error| failure::from_io("network namespace", &error))
}

/// See `ReadNetwork` in proto/keeper.proto.
pub async fn read(keeper: &Rc<Keeper>, request: ReadNetworkRequest) -> Result<ReadNetworkResponse, Status> {
    let netns = namespace(keeper)?;
    let describe = |error: io::Error| failure::from_io("read the network namespace", &error);
    if keeper.network.generation.borrow().is_none() {
        let socket = sys::in_network_namespace(netns.as_fd(), netlink::changes).map_err(describe)?;
        let socket = sys::watch(socket).map_err(describe)?;
        keeper.network.generation.replace(Some(watch::Sender::new(1)));
        tokio::task::spawn_local(follow(Rc::clone(keeper), socket));
    }
    let subscription = keeper.network.generation.borrow().as_ref().map(watch::Sender::subscribe);
    let generation = match subscription {
        Some(changes) => next_generation(changes, request.after, request.wait_ms).await,
        None => 0,
    };
    let found = sys::in_network_namespace(netns.as_fd(), || state::read(&mut Netlink::open()?));
    Ok(ReadNetworkResponse { state: Some(found.map_err(describe)?), generation })
}

/// The number after `after`, once the namespace was quiet for a moment, or the one there is when nothing changes in time.
async fn next_generation(mut changes: watch::Receiver<u64>, after: u64, wait_ms: u32) -> u64 {
    let bound = Duration::from_millis(u64::from(wait_ms)).clamp(Duration::from_millis(1), MAX_POLL);
    let other = changes.wait_for(|now| after == 0 || *now != after);
    // A statement of its own: what it found is a lock on the number, which must not be held while others come.
    let changed = matches!(tokio::time::timeout(bound, other).await, Ok(Ok(_)));
    if changed && after != 0 {
        tokio::time::sleep(QUIET).await;
    }
    let generation = *changes.borrow();
    generation
}

async fn follow(keeper: Rc<Keeper>, socket: AsyncFd<OwnedFd>) {
    let mut buffer = [0; 8192];
    while let Ok(mut ready) = socket.readable().await {
        match ready.try_io(|fd| sys::read(fd.get_ref(), &mut buffer)) {
            // ENOBUFS: some were lost, which is a change as well.
            Ok(Err(error)) if error.raw_os_error() != Some(libc::ENOBUFS) => return,
            Ok(_) => {
                if let Some(generation) = keeper.network.generation.borrow().as_ref() {
                    generation.send_modify(|generation| *generation += 1);
                }
            }
            Err(_) => {}
        }
    }
}

/// See `AttachTap` in proto/keeper.proto.
pub fn attach(keeper: &Keeper, request: AttachTapRequest) -> Result<(), Status> {
    let AttachTapRequest { link, tap, model, queues } = request;
    let name_ok = |text: &str| {
        (1..=15).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
    };
    if !name_ok(&tap) || link == 0 || !(1..=MAX_QUEUES).contains(&queues) {
        return Err(status(Code::InvalidArgument, format!("tap {tap:?} on link {link} with {queues} queues")));
    }
    let model = match model.as_str() {
        "tcfilter" => Model::TcFilter,
        "macvtap" if queues == 1 => Model::Macvtap,
        _ => return Err(status(Code::Unimplemented, format!("network model {model:?} with {queues} queues"))),
    };
    let wanted = Tap { link, queues, model };
    let known = match keeper.network.taps.borrow().get(&tap) {
        Some(present) if *present == wanted => true,
        Some(_) => return Err(status(Code::AlreadyExists, format!("tap {tap} is joined to another link"))),
        None => false,
    };
    if !known && keeper.network.taps.borrow().len() >= MAX_TAPS {
        return Err(status(Code::ResourceExhausted, format!("{MAX_TAPS} taps exist")));
    }
    let netns = namespace(keeper)?;
    let joined = sys::in_network_namespace(netns.as_fd(), || {
        let mut netlink = Netlink::open()?;
        if known {
            return rejoin(&mut netlink, &tap, &wanted).map(|()| None);
        }
        join(&mut netlink, &tap, &wanted).inspect_err(|_| {
            let _ = part(&mut netlink, &tap, link);
        })
    });
    let device = joined.map_err(|error| failure::from_io(&format!("tap {tap} on link {link}"), &error))?;
    if let Some(device) = device {
        keeper.network.devices.borrow_mut().insert(tap.clone(), device);
    }
    keeper.network.taps.borrow_mut().insert(tap, wanted);
    Ok(())
}

fn join(netlink: &mut Netlink, name: &str, wanted: &Tap) -> io::Result<Option<OwnedFd>> {
    // What a keeper of before left under this name is nobody's.
    part(netlink, name, wanted.link)?;
    match wanted.model {
        Model::TcFilter => sys::make_tap(name, wanted.queues)?,
        Model::Macvtap => macvtap::make(netlink, name, wanted.link)?,
    }
    let tap = resize(netlink, name, wanted.link)?;
    if wanted.model == Model::Macvtap {
        return macvtap::open(name, tap).map(Some);
    }
    tc::redirect(netlink, tap, wanted.link)?;
    tc::redirect(netlink, wanted.link, tap)?;
    Ok(None)
}

/// For a tap that is there: its link may have got another size, or be another one of the same number.
fn rejoin(netlink: &mut Netlink, name: &str, wanted: &Tap) -> io::Result<()> {
    let tap = resize(netlink, name, wanted.link)?;
    if wanted.model == Model::Macvtap {
        return Ok(());
    }
    match tc::redirect(netlink, wanted.link, tap) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        Ok(()) => {
            tc::restore(netlink, tap)?;
            tc::redirect(netlink, tap, wanted.link)
        }
        other => other,
    }
}

/// Sets the tap up, with its link's size; answers its number.
fn resize(netlink: &mut Netlink, name: &str, link: u32) -> io::Result<u32> {
    let missing = || io::Error::from_raw_os_error(libc::ENODEV);
    let links = state::read(netlink)?.links;
    let mtu = links.iter().find(|one| one.index == link).ok_or_else(missing)?.mtu;
    let tap = links.iter().find(|one| one.name == name).ok_or_else(missing)?;
    if tap.mtu != mtu || tap.flags & libc::IFF_UP as u32 == 0 {
        let request = Request::new(libc::RTM_NEWLINK, 0, &ifinfo(tap.index, libc::IFF_UP as u32));
        netlink.execute(request.attribute(libc::IFLA_MTU, &mtu.to_ne_bytes()))?;
    }
    Ok(tap.index)
}

/// The device of a macvtap.
pub fn device(keeper: &Keeper, tap: &str) -> Option<i32> {
    keeper.network.devices.borrow().get(tap).map(AsRawFd::as_raw_fd)
}

/// Removes the tap and the redirection to it; what is not there is fine.
fn part(netlink: &mut Netlink, name: &str, link: u32) -> io::Result<()> {
    if let Some(tap) = index_of(netlink, name)? {
        netlink.execute(Request::new(libc::RTM_DELLINK, 0, &ifinfo(tap, 0)))?;
    }
    tc::restore(netlink, link)
}

fn index_of(netlink: &mut Netlink, name: &str) -> io::Result<Option<u32>> {
    Ok(state::read(netlink)?.links.iter().find(|link| link.name == name).map(|link| link.index))
}

/// `struct ifinfomsg` that sets these flags.
fn ifinfo(link: u32, flags: u32) -> [u8; IFINFO_BYTES] {
    let mut structure = [0; IFINFO_BYTES];
    structure[4..8].copy_from_slice(&link.to_ne_bytes());
    structure[8..12].copy_from_slice(&flags.to_ne_bytes());
    structure[12..16].copy_from_slice(&flags.to_ne_bytes());
    structure
}

/// Sets the loopback interface up, which has number 1 in every namespace.
pub fn loopback_up(netlink: &mut Netlink) -> io::Result<()> {
    netlink.execute(Request::new(libc::RTM_NEWLINK, 0, &ifinfo(1, libc::IFF_UP as u32)))
}

pub fn detach(keeper: &Keeper, tap: &str) -> Result<(), Status> {
    let Some(Tap { link, .. }) = keeper.network.taps.borrow().get(tap).cloned() else { return Ok(()) };
    let netns = namespace(keeper)?;
    keeper.network.devices.borrow_mut().remove(tap);
    sys::in_network_namespace(netns.as_fd(), || part(&mut Netlink::open()?, tap, link))
        .map_err(|error| failure::from_io(&format!("tap {tap}"), &error))?;
    keeper.network.taps.borrow_mut().remove(tap);
    Ok(())
}

/// At the sandbox's end; the namespace may outlive it.
pub fn detach_all(keeper: &Keeper) {
    let names: Vec<String> = keeper.network.taps.borrow().keys().cloned().collect();
    for name in names {
        if let Err(refusal) = detach(keeper, &name) {
            keeper.note(&refusal.message);
        }
    }
}

/// What a dead keeper left in its pod's namespace: every tap of ours, which belong to that one sandbox. The number in a tap's
/// name is its link's.
pub fn sweep(netns: &File) -> io::Result<()> {
    sys::in_network_namespace(netns.as_fd(), || {
        let mut netlink = Netlink::open()?;
        for link in state::read(&mut netlink)?.links {
            let number = link.name.strip_prefix(TAP_ENDS.0).and_then(|rest| rest.strip_suffix(TAP_ENDS.1));
            if let Some(Ok(number)) = number.map(str::parse) {
                part(&mut netlink, &link.name, number)?;
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_that_follow_each_other_are_one() {
        let (told, result) = std::sync::mpsc::channel();
        // A thread of its own: what this is about would stop it for ever.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let last = runtime.block_on(async {
                let (sender, receiver) = watch::channel(1);
                let changes = async {
                    for _ in 0..2 {
                        tokio::time::sleep(QUIET / 5).await;
                        sender.send_modify(|generation| *generation += 1);
                    }
                };
                tokio::join!(next_generation(receiver, 1, 60_000), changes).0
            });
            told.send(last).unwrap();
        });
        // On a busy machine the second one may come too late to be waited for.
        assert!(matches!(result.recv_timeout(Duration::from_secs(60)), Ok(2 | 3)));
    }

    #[test]
    fn a_tap_is_joined_to_a_link_and_parted_again() {
        // Without the privilege there is nothing to see.
        let Ok(netns) = sys::new_netns() else { return };
        let result = sys::in_network_namespace(netns.as_fd(), || {
            let mut netlink = Netlink::open()?;
            // Any link will do: a tap of its own.
            sys::make_tap("eth0", 1)?;
            let link = index_of(&mut netlink, "eth0")?.unwrap();
            let name = format!("tap{link}_kata");
            let wanted = Tap { link, queues: 2, model: Model::TcFilter };
            join(&mut netlink, &name, &wanted)?;
            rejoin(&mut netlink, &name, &wanted)?;
            tc::restore(&mut netlink, link)?;
            rejoin(&mut netlink, &name, &wanted)?;
            let tap = state::read(&mut netlink)?.links.into_iter().find(|link| link.name == name).unwrap();
            assert_eq!(tap.flags & libc::IFF_UP as u32, libc::IFF_UP as u32);
            Ok(name)
        });
        match result {
            Ok(name) => {
                sweep(&netns).unwrap();
                let left = sys::in_network_namespace(netns.as_fd(), || index_of(&mut Netlink::open()?, &name)).unwrap();
                assert_eq!(left, None);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => panic!("{error}"),
        }
    }
}
