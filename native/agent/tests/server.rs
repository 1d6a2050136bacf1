//! The agent's server on unix sockets: what every host relies on and needs no guest.
use kata_protocol::agent_ext::{
    NextEventRequest, NextEventResponse, ReadyMessage, SetLogLevelRequest, SetLogLevelResponse,
};
use kata_protocol::envelope::Status;
use kata_protocol::grpc::*;
use kata_protocol::ttrpc::{Client, Code};
use prost::Message;
use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

const AGENT: &str = "grpc.AgentService";
const EXTENSION: &str = "kata.agent.v1.AgentExtension";
const BOUND: Option<Duration> = Some(Duration::from_secs(20));

struct Agent {
    child: Child,
    directory: PathBuf,
    ready: ReadyMessage,
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl Agent {
    /// Starts an agent and waits until it says that it is ready.
    async fn start() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("kata-agent-server-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let listener = UnixListener::bind(directory.join("1030.sock")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_kata-agent"))
            .arg("--listen")
            .arg(format!("unix:{}", directory.display()))
            .arg("--run-dir")
            .arg(directory.join("run"))
            .spawn()
            .unwrap();
        let mut agent = Self { child, directory, ready: ReadyMessage::default() };
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut message = vec![0; stream.read_u32().await.unwrap() as usize];
        stream.read_exact(&mut message).await.unwrap();
        agent.ready = ReadyMessage::decode(message.as_slice()).unwrap();
        agent
    }

    async fn connect(&self, port: u32) -> UnixStream {
        UnixStream::connect(self.directory.join(format!("{port}.sock"))).await.unwrap()
    }

    async fn client(&self) -> Client {
        Client::new(self.connect(1024).await)
    }

    fn shared(&self) -> PathBuf {
        self.directory.join("run/shared/containers")
    }
}

fn run<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let guarded = async { tokio::time::timeout(Duration::from_secs(60), test).await.expect("the test hangs") };
    tokio::task::LocalSet::new().block_on(&runtime, guarded)
}

async fn call<Q: Message, R: Message + Default>(client: &Client, method: &str, request: &Q) -> Result<R, Status> {
    client.call(AGENT, method, request, BOUND).await
}

fn copy_request(path: &Path, data: &[u8]) -> CopyFileRequest {
    CopyFileRequest {
        path: path.to_str().unwrap().to_owned(),
        file_size: data.len() as i64,
        file_mode: 0o100_600,
        uid: rustix::process::getuid().as_raw() as i32,
        gid: rustix::process::getgid().as_raw() as i32,
        data: data.to_vec(),
        ..Default::default()
    }
}

#[test]
fn it_says_ready_answers_health_and_names_what_it_adds() {
    run(async {
        let agent = Agent::start().await;
        assert!(agent.ready.failure.is_empty());
        assert!(agent.ready.ready_boottime_us >= agent.ready.pid1_boottime_us && agent.ready.pid1_boottime_us > 0);
        let client = agent.client().await;
        let health: HealthCheckResponse =
            client.call("grpc.Health", "Check", &CheckRequest::default(), BOUND).await.unwrap();
        assert_eq!(health.status, health_check_response::ServingStatus::Serving as i32);
        let version: VersionCheckResponse =
            client.call("grpc.Health", "Version", &CheckRequest::default(), BOUND).await.unwrap();
        assert_eq!(version.grpc_version, "0.0.1");
        let details: GuestDetailsResponse =
            call(&client, "GetGuestDetails", &GuestDetailsRequest::default()).await.unwrap();
        assert_eq!(details.agent_details.unwrap().extra_features, agent.ready.extensions);
    });
}

#[test]
fn every_method_of_the_contract_answers_and_unknown_ones_are_unimplemented() {
    let proto = include_str!("../../../proto/agent.proto");
    let methods: Vec<&str> =
        proto.lines().filter_map(|line| line.trim().strip_prefix("rpc ")?.split('(').next()).collect();
    assert_eq!(methods.len(), 42);
    run(async {
        let agent = Agent::start().await;
        let client = agent.client().await;
        // They end the agent, wait for ever by design, or change the machine that the test runs on.
        let skipped =
            ["DestroySandbox", "GetOOMEvent", "UpdateRoutes", "OnlineCPUMem", "SetGuestDateTime", "SetIPTables"];
        for method in methods.iter().filter(|method| !skipped.contains(method)) {
            let answer = client.call_raw(AGENT, method, Vec::new(), BOUND).await;
            if let Err(status) = &answer {
                assert_ne!(status.code, Code::DeadlineExceeded as i32, "{method}");
                assert!(!status.message.contains("is not served"), "{method}");
                assert!(!status.message.is_empty(), "{method}");
            }
            let garbage = client.call_raw(AGENT, method, vec![0xff; 40], BOUND).await.unwrap_err();
            let refused = [Code::InvalidArgument as i32, Code::Unimplemented as i32];
            assert!(refused.contains(&garbage.code), "{method}: {garbage:?}");
        }
        for (service, method) in [(AGENT, "Nope"), ("grpc.Nope", "Check"), ("", ""), (EXTENSION, "Check")] {
            let error = client.call_raw(service, method, Vec::new(), BOUND).await.unwrap_err();
            assert_eq!(error.code, Code::Unimplemented as i32, "{service}/{method}");
        }
    });
}

#[test]
fn unknown_containers_and_processes_are_refused_by_every_method() {
    run(async {
        let agent = Agent::start().await;
        let client = agent.client().await;
        // Field 1 is the container's id in every one of these requests.
        let request = StartContainerRequest { container_id: "nope".into() }.encode_to_vec();
        let methods = [
            "StartContainer",
            "RemoveContainer",
            "ExecProcess",
            "SignalProcess",
            "WaitProcess",
            "UpdateContainer",
            "StatsContainer",
            "PauseContainer",
            "ResumeContainer",
            "WriteStdin",
            "ReadStdout",
            "ReadStderr",
            "CloseStdin",
            "TtyWinResize",
        ];
        for method in methods {
            let error = client.call_raw(AGENT, method, request.clone(), BOUND).await.unwrap_err();
            assert_eq!(error.code, Code::InvalidArgument as i32, "{method}: {}", error.message);
            assert!(error.message.contains("\"nope\""), "{method}: {}", error.message);
        }
    });
}

#[test]
fn copies_stay_below_the_shared_directory() {
    run(async {
        let agent = Agent::start().await;
        let client = agent.client().await;
        let inside = agent.shared().join("a/file");
        let _: () = call(&client, "CopyFile", &copy_request(&inside, b"data")).await.unwrap();
        assert_eq!(std::fs::read(&inside).unwrap(), b"data");
        assert_eq!(std::fs::metadata(&inside).unwrap().permissions().mode() & 0o777, 0o600);
        std::os::unix::fs::symlink(&agent.directory, agent.shared().join("out")).unwrap();
        for path in ["../escape", "a/../../escape", "out/escape", "a/../../../escape"] {
            let result = call::<_, ()>(&client, "CopyFile", &copy_request(&agent.shared().join(path), b"x")).await;
            assert!(result.is_err(), "{path}");
        }
        assert!(call::<_, ()>(&client, "CopyFile", &copy_request(&agent.directory.join("escape"), b"x"))
            .await
            .is_err());
        assert!(!agent.directory.join("escape").exists() && !agent.directory.join("run/escape").exists());
        assert!(!agent.directory.join("run/shared/escape").exists());
    });
}

#[test]
fn waiting_calls_do_not_keep_others_from_answering() {
    run(async {
        let agent = Agent::start().await;
        let client = agent.client().await;
        let mut waiting = Vec::new();
        for _ in 0..50 {
            let client = client.clone();
            waiting.push(tokio::task::spawn_local(async move {
                let request = NextEventRequest { after_sequence: 0 };
                client.call::<_, NextEventResponse>(EXTENSION, "NextEvent", &request, None).await
            }));
        }
        let short = Some(Duration::from_millis(50));
        let late = client.call::<_, OomEvent>(AGENT, "GetOOMEvent", &GetOomEventRequest {}, short).await.unwrap_err();
        assert_eq!(late.code, Code::DeadlineExceeded as i32);
        let metrics: Metrics = call(&client, "GetMetrics", &GetMetricsRequest {}).await.unwrap();
        assert!(metrics.metrics.contains("kata_agent_threads 1\n"));
        waiting.iter().for_each(tokio::task::JoinHandle::abort);
    });
}

#[test]
fn hostile_connections_harm_only_themselves() {
    run(async {
        let agent = Agent::start().await;
        let client = agent.client().await;
        for bytes in [b"GET / HTTP/1.1\r\n\r\n".as_slice(), &[0xff; 4096], &[0; 4096]] {
            let mut hostile = agent.connect(1024).await;
            let _ = hostile.write_all(bytes).await;
            let mut answer = Vec::new();
            let _ = tokio::time::timeout(Duration::from_millis(200), hostile.read_to_end(&mut answer)).await;
        }
        // More connections than the agent keeps, each with a promise of a message that never comes.
        let mut idle = Vec::new();
        for _ in 0..40 {
            let mut stream = agent.connect(1024).await;
            let _ = stream.write_all(&[0, 0x40, 0, 0, 0, 0, 0, 1, 1, 0]).await;
            idle.push(stream);
        }
        let _: HealthCheckResponse =
            client.call("grpc.Health", "Check", &CheckRequest::default(), BOUND).await.unwrap();
        drop(idle);
        let streams: Vec<_> = connections(&agent, 1027, 30).await;
        drop(streams);
        let _: HealthCheckResponse =
            agent.client().await.call("grpc.Health", "Check", &CheckRequest::default(), BOUND).await.unwrap();
    });
}

async fn connections(agent: &Agent, port: u32, count: usize) -> Vec<UnixStream> {
    let mut streams = Vec::new();
    for _ in 0..count {
        streams.push(agent.connect(port).await);
    }
    streams
}

#[test]
fn the_log_port_gives_earlier_lines_and_follows_the_level() {
    run(async {
        let agent = Agent::start().await;
        let client = agent.client().await;
        let mut lines = BufReader::new(agent.connect(1025).await).lines();
        let first = lines.next_line().await.unwrap().unwrap();
        assert!(first.starts_with("{\"msg\":\"kata-agent ") && first.ends_with("\"subsystem\":\"agent\"}"), "{first}");
        let level = |level: &str| SetLogLevelRequest { level: level.into() };
        let refused = client.call::<_, SetLogLevelResponse>(EXTENSION, "SetLogLevel", &level("loud"), BOUND).await;
        assert_eq!(refused.unwrap_err().code, Code::InvalidArgument as i32);
        let _: SetLogLevelResponse = client.call(EXTENSION, "SetLogLevel", &level("debug"), BOUND).await.unwrap();
        let _: VersionCheckResponse =
            client.call("grpc.Health", "Version", &CheckRequest::default(), BOUND).await.unwrap();
        loop {
            let line = lines.next_line().await.unwrap().unwrap();
            if line.contains("\"msg\":\"Version: ok\",\"level\":\"DEBG\"") {
                break;
            }
        }
    });
}

#[test]
fn a_sandbox_is_made_once_and_ends_the_agent() {
    run(async {
        let mut agent = Agent::start().await;
        let client = agent.client().await;
        let request = CreateSandboxRequest {
            sandbox_id: "sb".into(),
            dns: vec!["nameserver 192.0.2.1".into(), String::new()],
            storages: vec![Storage {
                driver: "local".into(),
                mount_point: agent.directory.join("run/local").to_str().unwrap().into(),
                ..Default::default()
            }],
            ..Default::default()
        };
        let bad = CreateSandboxRequest {
            storages: vec![Storage { driver: "nope".into(), mount_point: "/run/x".into(), ..Default::default() }],
            ..request.clone()
        };
        assert!(call::<_, ()>(&client, "CreateSandbox", &bad).await.unwrap_err().message.contains("nope"));
        let _: () = call(&client, "CreateSandbox", &request).await.unwrap();
        let resolv = std::fs::read_to_string(agent.directory.join("run/sandbox/resolv.conf")).unwrap();
        assert_eq!(resolv, "nameserver 192.0.2.1\n");
        assert!(agent.directory.join("run/local").is_dir());
        let twice = call::<_, ()>(&client, "CreateSandbox", &request).await.unwrap_err();
        assert_eq!(twice.code, Code::AlreadyExists as i32);
        let _: () = call(&client, "DestroySandbox", &DestroySandboxRequest {}).await.unwrap();
        client.closed().await;
        assert!(agent.child.wait().unwrap().success());
    });
}

#[test]
fn the_guests_localhost_is_dialled_at_either_family() {
    run(async {
        let agent = Agent::start().await;
        assert!(agent.ready.extensions.iter().any(|name| name == kata_protocol::DIAL_EXTENSION));
        let dial = |family: u8, port: u16| {
            let agent = &agent;
            async move {
                let mut stream = agent.connect(kata_protocol::DIAL_PORT).await;
                let [high, low] = port.to_be_bytes();
                stream.write_all(&[family, high, low]).await.unwrap();
                let answer = stream.read_u8().await.unwrap();
                (answer, stream)
            }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        // Nobody listens on ::1: the program is found at 127.0.0.1.
        for family in [4, 6] {
            let ((answer, mut host), accepted) = tokio::join!(dial(family, port), listener.accept());
            assert_eq!(answer, 0);
            let mut program = accepted.unwrap().0;
            host.write_all(&[7; 100_000]).await.unwrap();
            host.shutdown().await.unwrap();
            let mut heard = Vec::new();
            program.read_to_end(&mut heard).await.unwrap();
            assert_eq!(heard, [7; 100_000]);
            // The other way is open still.
            program.write_all(b"answer").await.unwrap();
            drop(program);
            let mut text = String::new();
            host.read_to_string(&mut text).await.unwrap();
            assert_eq!(text, "answer");
        }
        drop(listener);
        assert_eq!(dial(4, port).await.0, libc::ECONNREFUSED as u8);
        assert_eq!(dial(5, port).await.0, libc::EINVAL as u8);
        let mut mute = agent.connect(kata_protocol::DIAL_PORT).await;
        mute.write_all(&[4]).await.unwrap();
        mute.shutdown().await.unwrap();
        assert_eq!(mute.read(&mut [0]).await.unwrap(), 0);
    });
}

#[test]
fn wrong_arguments_are_said() {
    for arguments in [vec![], vec!["--listen", "tcp:1"], vec!["--what"], vec!["--log", "loud"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_kata-agent")).args(&arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(String::from_utf8_lossy(&output.stderr).starts_with("kata-agent: "), "{arguments:?}");
    }
}
