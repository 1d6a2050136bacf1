//! Tells the host that the agent serves, or why it does not.
use crate::log;
use crate::options::Options;
use crate::socket::connect_host;
use kata_protocol::agent_ext::ReadyMessage;
use kata_protocol::DIAL_EXTENSION;
use prost::Message;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub const EXTENSIONS: [&str; 8] =
    ["wait-ext", "next-event", "streams", "log-level", "network", "online", "tools", DIAL_EXTENSION];
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// CLOCK_BOOTTIME in microseconds.
pub fn boot_time_us() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000
}

pub fn message(pid1_boottime_us: u64, failure: &str) -> ReadyMessage {
    ReadyMessage {
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        extensions: EXTENSIONS.iter().map(|name| (*name).to_owned()).collect(),
        pid1_boottime_us,
        ready_boottime_us: boot_time_us(),
        kernel_release: rustix::system::uname().release().to_string_lossy().into_owned(),
        failure: failure.to_owned(),
    }
}

/// Pushes the message and waits for the host to close the connection. A host that does not listen (upstream's shims
/// ask for the agent's health instead) is no error.
pub async fn push(options: &Options, message: &ReadyMessage) {
    let mut frame = (message.encoded_len() as u32).to_be_bytes().to_vec();
    message.encode_raw(&mut frame);
    let port = options.ready_port;
    let mut stream = match connect_host(&options.address, port, CONNECT_TIMEOUT).await {
        Ok(stream) => stream,
        Err(error) => return log::info!("ready", "the host does not listen on port {port}: {error}"),
    };
    let exchange = async {
        stream.write_all(&frame).await?;
        stream.read(&mut [0]).await
    };
    match tokio::time::timeout(CLOSE_TIMEOUT, exchange).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => log::warning!("ready", "push to the host: {error}"),
        Err(_) => log::debug!("ready", "the host did not close the ready connection"),
    }
}
