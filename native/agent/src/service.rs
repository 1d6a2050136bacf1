//! The ttrpc services: which method does what. Each method is one line here and a function in its own file.
mod containers;
mod guest;
mod stdio;

use crate::agent::Agent;
use crate::failure::Result;
use crate::log;
use kata_protocol::agent_ext;
use kata_protocol::envelope::{Request, Status};
use kata_protocol::grpc;
use kata_protocol::ttrpc::{decode, status, Code, Handler, HandlerFuture};
use prost::Message;
use std::future::Future;
use std::rc::Rc;

/// grpc_version of Health.Version, as upstream's agents say it.
const API_VERSION: &str = "0.0.1";

pub struct Services {
    agent: Rc<Agent>,
}

/// google.protobuf.Empty.
type Empty = ();

impl Services {
    pub fn handler(agent: Rc<Agent>) -> Rc<dyn Handler> {
        Rc::new(Self { agent })
    }

    /// A call that changes something runs to its end even when its caller has gone: half of a creation would be left.
    fn change<Q, R, F>(&self, payload: &[u8], act: impl FnOnce(Rc<Agent>, Q) -> F) -> HandlerFuture
    where
        Q: Message + Default,
        R: Message + 'static,
        F: Future<Output = Result<R>> + 'static,
    {
        let request = match decode(payload) {
            Ok(request) => request,
            Err(error) => return refuse(error),
        };
        let running = tokio::task::spawn_local(act(Rc::clone(&self.agent), request));
        Box::pin(async move {
            let done = running.await.unwrap_or_else(|_| Err(status(Code::Internal, "the call was cancelled")));
            done.map(|answer| answer.encode_to_vec())
        })
    }

    /// A call that only waits and reads ends with its caller.
    fn wait<Q, R, F>(&self, payload: &[u8], act: impl FnOnce(Rc<Agent>, Q) -> F) -> HandlerFuture
    where
        Q: Message + Default,
        R: Message,
        F: Future<Output = Result<R>> + 'static,
    {
        match decode(payload) {
            Ok(request) => {
                let running = act(Rc::clone(&self.agent), request);
                Box::pin(async move { running.await.map(|answer| answer.encode_to_vec()) })
            }
            Err(error) => refuse(error),
        }
    }

    /// A call that is done at once.
    fn now<Q, R>(&self, payload: &[u8], act: impl FnOnce(&Rc<Agent>, Q) -> Result<R>) -> HandlerFuture
    where
        Q: Message + Default,
        R: Message,
    {
        let answer = decode(payload).and_then(|request| act(&self.agent, request)).map(|answer| answer.encode_to_vec());
        Box::pin(std::future::ready(answer))
    }

    fn agent_service(&self, method: &str, payload: &[u8]) -> Option<HandlerFuture> {
        Some(match method {
            "CreateContainer" => self.change(payload, crate::lifecycle::create),
            "StartContainer" => self.change(payload, containers::start),
            "RemoveContainer" => self.change(payload, containers::remove),
            "ExecProcess" => self.change(payload, containers::exec),
            "SignalProcess" => self.now(payload, containers::signal),
            "WaitProcess" => self.wait(payload, containers::wait),
            "UpdateContainer" => self.now(payload, containers::update),
            "StatsContainer" => self.now(payload, containers::stats),
            "PauseContainer" => self.now(payload, containers::pause),
            "ResumeContainer" => self.now(payload, containers::resume),
            "GetDiagnosticData" => self.now(payload, containers::diagnostics),
            "GetOOMEvent" => self.wait(payload, containers::oom_event),
            "WriteStdin" => self.wait(payload, stdio::write),
            "ReadStdout" => self.wait(payload, |agent, request| stdio::read(agent, request, false)),
            "ReadStderr" => self.wait(payload, |agent, request| stdio::read(agent, request, true)),
            "CloseStdin" => self.now(payload, stdio::close),
            "TtyWinResize" => self.now(payload, stdio::resize),
            "CreateSandbox" => self.change(payload, guest::create_sandbox),
            "DestroySandbox" => self.change(payload, guest::destroy_sandbox),
            "UpdateEphemeralMounts" => self.now(payload, guest::update_ephemeral),
            "RemoveStaleVirtiofsShareMounts" => self.now(payload, guest::remove_stale_mounts),
            "CopyFile" => self.now(payload, guest::copy_file),
            "UpdateInterface" => self.change(payload, guest::update_interface),
            "UpdateRoutes" => self.now(payload, guest::update_routes),
            "ListInterfaces" => self.now(payload, guest::list_interfaces),
            "ListRoutes" => self.now(payload, guest::list_routes),
            "AddARPNeighbors" => self.now(payload, guest::add_neighbours),
            "GetIPTables" => self.wait(payload, guest::get_iptables),
            "SetIPTables" => self.change(payload, guest::set_iptables),
            "GetMetrics" => self.now(payload, guest::metrics),
            "OnlineCPUMem" => self.change(payload, guest::online),
            "ReseedRandomDev" => self.now(payload, guest::reseed),
            "GetGuestDetails" => self.now(payload, guest::details),
            "MemHotplugByProbe" => self.now(payload, guest::probe_memory),
            "SetGuestDateTime" => self.now(payload, guest::set_time),
            "AddSwap" => self.change(payload, guest::add_swap),
            "AddSwapPath" => self.change(payload, guest::add_swap_path),
            "GetVolumeStats" => self.now(payload, guest::volume_stats),
            "ResizeVolume" => refuse(unimplemented("ResizeVolume: volumes keep the size they were attached with")),
            "SetPolicy" => refuse(unimplemented("SetPolicy: this agent has no policy engine")),
            "MemAgentMemcgSet" | "MemAgentCompactSet" => refuse(unimplemented("this agent has no memory agent")),
            _ => return None,
        })
    }

    fn health(&self, method: &str, payload: &[u8]) -> Option<HandlerFuture> {
        Some(match method {
            "Check" => self.now(payload, |_, _: grpc::CheckRequest| {
                let serving = grpc::health_check_response::ServingStatus::Serving as i32;
                Ok(grpc::HealthCheckResponse { status: serving })
            }),
            "Version" => self.now(payload, |_, _: grpc::CheckRequest| {
                let agent_version = env!("CARGO_PKG_VERSION").to_owned();
                Ok(grpc::VersionCheckResponse { grpc_version: API_VERSION.to_owned(), agent_version })
            }),
            _ => return None,
        })
    }

    fn extension(&self, method: &str, payload: &[u8]) -> Option<HandlerFuture> {
        Some(match method {
            "WaitProcess" => self.wait(payload, containers::wait_extended),
            "NextEvent" => self.wait(payload, containers::next_event),
            "Online" => self.change(payload, guest::online_extended),
            "StartTool" => self.change(payload, crate::tools::start),
            "ListProcesses" => self.now(payload, crate::processes::list),
            "ApplyNetwork" => self.change(payload, crate::network::apply_network),
            "SetLogLevel" => self.now(payload, |_, request: agent_ext::SetLogLevelRequest| {
                let level = log::Level::parse(&request.level);
                log::set_level(
                    level.ok_or_else(|| crate::failure::invalid(format!("{:?} is no log level", request.level)))?,
                );
                Ok(agent_ext::SetLogLevelResponse {})
            }),
            _ => return None,
        })
    }
}

fn refuse(error: Status) -> HandlerFuture {
    Box::pin(std::future::ready(Err(error)))
}

/// The guest could not do it; every other status is about what was asked.
fn is_failure(error: &Status) -> bool {
    [Code::Unknown, Code::Internal, Code::ResourceExhausted, Code::DeadlineExceeded, Code::Unavailable]
        .iter()
        .any(|code| *code as i32 == error.code)
}

fn unimplemented(message: &str) -> Status {
    status(Code::Unimplemented, message)
}

impl Handler for Services {
    fn call(&self, request: Request) -> HandlerFuture {
        let Request { service, method, payload, .. } = request;
        let found = match service.as_str() {
            "grpc.AgentService" => self.agent_service(&method, &payload),
            "grpc.Health" => self.health(&method, &payload),
            "kata.agent.v1.AgentExtension" => self.extension(&method, &payload),
            _ => None,
        };
        let answer = found.unwrap_or_else(|| refuse(unimplemented(&format!("/{service}/{method} is not served"))));
        Box::pin(async move {
            let result = answer.await;
            match &result {
                Ok(_) => log::debug!("rpc", "{method}: ok"),
                Err(error) if is_failure(error) => log::error!("rpc", "{method}: {}", error.message),
                Err(error) => log::debug!("rpc", "{method}: status {}: {}", error.code, error.message),
            }
            result
        })
    }
}
