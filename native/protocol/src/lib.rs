//! What the guest agent and the keeper share: the messages of `proto/`, ttrpc over any byte stream, and time as logs write it.
pub mod clock;
#[allow(clippy::all, clippy::pedantic)]
pub mod grpc {
    include!("gen/grpc.rs");
}
pub mod types {
    include!("gen/types.rs");
}
pub mod envelope {
    include!("gen/ttrpc.rs");
}
pub mod agent_ext {
    include!("gen/kata.agent.v1.rs");
}
pub mod keeper {
    include!("gen/kata.keeper.v1.rs");
}
#[allow(clippy::all, clippy::pedantic)]
pub mod containerd {
    include!("gen/kata.containerd.rs");
}
#[allow(clippy::all, clippy::pedantic)]
pub mod network {
    include!("gen/kata.network.v1.rs");
}
pub mod netlink;
pub mod ttrpc;

/// Where the agent connects the host to the guest's localhost, and the name that announces it (docs/ARCHITECTURE.md, "Port-forward").
pub const DIAL_PORT: u32 = 1028;
pub const DIAL_EXTENSION: &str = "dial";
