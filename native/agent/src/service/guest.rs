//! The sandbox and the guest.
use super::Empty;
use crate::agent::Agent;
use crate::failure::{invalid, Result};
use crate::{command, copy_file as copying, guest, log, metrics as figures, network, power, sandbox, storage};
use kata_protocol::agent_ext::{OnlineRequest, OnlineResponse};
use kata_protocol::grpc::{
    AddArpNeighborsRequest, AddSwapPathRequest, AddSwapRequest, CopyFileRequest, CreateSandboxRequest,
    DestroySandboxRequest, GetIpTablesRequest, GetIpTablesResponse, GetMetricsRequest, GuestDetailsRequest,
    GuestDetailsResponse, Interfaces, ListInterfacesRequest, ListRoutesRequest, MemHotplugByProbeRequest, Metrics,
    OnlineCpuMemRequest, RemoveStaleVirtiofsShareMountsRequest, ReseedRandomDevRequest, Routes,
    SetGuestDateTimeRequest, SetIpTablesRequest, SetIpTablesResponse, UpdateEphemeralMountsRequest,
    UpdateInterfaceRequest, UpdateRoutesRequest, VolumeStatsRequest, VolumeStatsResponse,
};
use kata_protocol::types::Interface;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

/// Lets the answer of DestroySandbox leave before the machine goes off; a host that closes its connection ends it sooner.
const FAREWELL: Duration = Duration::from_millis(100);

pub async fn create_sandbox(agent: Rc<Agent>, request: CreateSandboxRequest) -> Result<Empty> {
    sandbox::create(&agent, request).await
}

pub async fn destroy_sandbox(agent: Rc<Agent>, _: DestroySandboxRequest) -> Result<Empty> {
    sandbox::destroy(&agent).await;
    tokio::task::spawn_local(async {
        tokio::time::sleep(FAREWELL).await;
        log::info!("sandbox", "destroyed; powering off");
        power::off(0);
    });
    Ok(())
}

pub fn update_ephemeral(agent: &Rc<Agent>, request: UpdateEphemeralMountsRequest) -> Result<Empty> {
    request.storages.iter().try_for_each(|entry| agent.storages.update_ephemeral(entry))
}

/// Looks at every entry of the shared file system, so that the guest's kernel drops those whose host side is gone.
pub fn remove_stale_mounts(agent: &Rc<Agent>, _: RemoveStaleVirtiofsShareMountsRequest) -> Result<Empty> {
    let shared = agent.options.run_dir.join("shared/containers");
    let Ok(mounts) = std::fs::read_to_string("/proc/self/mountinfo") else { return Ok(()) };
    for line in mounts.lines() {
        let Some(path) =
            line.split(' ').nth(4).map(Path::new).filter(|path| path.starts_with(&shared) && *path != shared)
        else {
            continue;
        };
        if std::fs::symlink_metadata(path).is_err() {
            if let Err(error) = storage::unmount(path) {
                log::warning!("storage", "stale share mount {}: {error}", path.display());
            }
        }
    }
    Ok(())
}

pub fn copy_file(agent: &Rc<Agent>, request: CopyFileRequest) -> Result<Empty> {
    // Never on a file system that the host shares.
    let secrets = agent.options.run_dir.join("secrets");
    let base = if Path::new(&request.path).starts_with(&secrets) {
        secrets
    } else {
        agent.options.run_dir.join("shared/containers")
    };
    if let Err(error) = std::fs::create_dir_all(&base) {
        return Err(crate::failure::internal(format!("copy: create {}: {error}", base.display())));
    }
    copying::copy_file(&base, &request)
}

pub async fn update_interface(agent: Rc<Agent>, request: UpdateInterfaceRequest) -> Result<Interface> {
    let wanted = request.interface.ok_or_else(|| invalid("network: the request has no interface"))?;
    network::update_interface(&agent, wanted).await
}

pub fn update_routes(_: &Rc<Agent>, request: UpdateRoutesRequest) -> Result<Routes> {
    Ok(Routes { routes: network::update_routes(&request.routes.unwrap_or_default().routes)? })
}

pub fn list_interfaces(_: &Rc<Agent>, _: ListInterfacesRequest) -> Result<Interfaces> {
    Ok(Interfaces { interfaces: network::list_interfaces()? })
}

pub fn list_routes(_: &Rc<Agent>, _: ListRoutesRequest) -> Result<Routes> {
    Ok(Routes { routes: network::list_routes()? })
}

pub fn add_neighbours(_: &Rc<Agent>, request: AddArpNeighborsRequest) -> Result<Empty> {
    network::add_neighbours(&request.neighbors.unwrap_or_default().arp_neighbors)
}

pub async fn get_iptables(agent: Rc<Agent>, request: GetIpTablesRequest) -> Result<GetIpTablesResponse> {
    let program = if request.is_ipv6 { "ip6tables-save" } else { "iptables-save" };
    Ok(GetIpTablesResponse { data: command::run(&[program], Vec::new(), &agent.reaper).await? })
}

pub async fn set_iptables(agent: Rc<Agent>, request: SetIpTablesRequest) -> Result<SetIpTablesResponse> {
    let program = if request.is_ipv6 { "ip6tables-restore" } else { "iptables-restore" };
    let data = command::run(&[program, "--wait", "5"], request.data, &agent.reaper).await?;
    Ok(SetIpTablesResponse { data })
}

pub fn metrics(_: &Rc<Agent>, _: GetMetricsRequest) -> Result<Metrics> {
    Ok(Metrics { metrics: figures::text() })
}

pub async fn online(agent: Rc<Agent>, request: OnlineCpuMemRequest) -> Result<Empty> {
    guest::online(&agent, &request).await
}

pub async fn online_extended(agent: Rc<Agent>, request: OnlineRequest) -> Result<OnlineResponse> {
    guest::online_all(&agent, &request).await?;
    Ok(OnlineResponse {})
}

pub fn reseed(_: &Rc<Agent>, request: ReseedRandomDevRequest) -> Result<Empty> {
    guest::reseed(&request.data)
}

pub fn details(_: &Rc<Agent>, request: GuestDetailsRequest) -> Result<GuestDetailsResponse> {
    guest::details(&request)
}

pub fn probe_memory(_: &Rc<Agent>, request: MemHotplugByProbeRequest) -> Result<Empty> {
    guest::probe_memory(&request.mem_hotplug_probe_addr)
}

pub fn set_time(_: &Rc<Agent>, request: SetGuestDateTimeRequest) -> Result<Empty> {
    guest::set_time(request.sec, request.usec)
}

pub async fn add_swap(agent: Rc<Agent>, request: AddSwapRequest) -> Result<Empty> {
    let slots: Vec<String> = request.pci_path.iter().map(|slot| format!("{slot:02x}")).collect();
    guest::add_swap(&agent, &slots.join("/")).await
}

pub async fn add_swap_path(agent: Rc<Agent>, request: AddSwapPathRequest) -> Result<Empty> {
    guest::add_swap(&agent, &request.path).await
}

pub fn volume_stats(_: &Rc<Agent>, request: VolumeStatsRequest) -> Result<VolumeStatsResponse> {
    guest::volume_stats(&request.volume_guest_path)
}
