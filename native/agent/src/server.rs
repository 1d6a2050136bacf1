//! The listening ports and what serves each.
use crate::agent::Agent;
use crate::dial;
use crate::log;
use crate::options::AGENT_PORT;
use crate::service::Services;
use crate::socket::Listener;
use kata_protocol::ttrpc::{self, Limits};
use kata_protocol::DIAL_PORT;
use std::cell::Cell;
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

/// The host needs one or two of these; more would only hold memory.
const MAX_CONNECTIONS: usize = 16;
/// Descriptors or memory are short for a moment: accepting at once again would only spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Opens every port, then serves them from tasks of their own. Errors: the address and why it cannot be listened on.
pub fn start(agent: &Rc<Agent>) -> Result<(), String> {
    let bind = |port: u32| {
        Listener::bind(&agent.options.address, port).map_err(|error| format!("listen on port {port}: {error}"))
    };
    let calls = bind(AGENT_PORT)?;
    let streams = bind(agent.options.stream_port)?;
    let logs = bind(agent.options.log_port)?;
    let dials = bind(DIAL_PORT)?;
    let console = agent.options.debug_console_port.map(bind).transpose()?;

    let handler = Services::handler(Rc::clone(agent));
    accept(
        calls,
        bounded("rpc", MAX_CONNECTIONS, move |stream, _| {
            let handler = Rc::clone(&handler);
            async move {
                if let Err(error) = ttrpc::serve(stream, handler, Limits::default()).await {
                    log::warning!("rpc", "connection closed: {error}");
                }
            }
        }),
    );
    let claims = Rc::clone(&agent.streams);
    accept(streams, move |stream, port| claims.offer(port, stream));
    accept(
        logs,
        bounded("log", MAX_CONNECTIONS, |stream, _| async move {
            let _ = send_log(stream).await;
        }),
    );
    accept(dials, bounded("dial", dial::MAX_CONNECTIONS, |stream, _| dial::serve(stream)));
    if let Some(console) = console {
        log::warning!("debug", "the debug console is open: anybody on the host who reaches this port is root here");
        let agent = Rc::clone(agent);
        accept(console, move |stream, _| crate::debug_console::serve(&agent, stream));
    }
    Ok(())
}

fn accept(listener: Listener, serve: impl Fn(UnixStream, u32) + 'static) {
    tokio::task::spawn_local(async move {
        loop {
            match listener.accept().await {
                Ok((stream, port)) => serve(stream, port),
                Err(error) => {
                    log::warning!("listen", "accept: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    });
}

/// Serves each connection in a task; beyond `max` new ones are closed.
fn bounded<F: Future<Output = ()> + 'static>(
    name: &'static str,
    max: usize,
    serve: impl Fn(UnixStream, u32) -> F + 'static,
) -> impl Fn(UnixStream, u32) {
    let open = Rc::new(Cell::new(0));
    move |stream, port| {
        if open.get() >= max {
            return log::warning!("listen", "{name}: connection closed: {max} are open");
        }
        open.set(open.get() + 1);
        let open = Rc::clone(&open);
        let serving = serve(stream, port);
        tokio::task::spawn_local(async move {
            serving.await;
            open.set(open.get() - 1);
        });
    }
}

async fn send_log(mut stream: UnixStream) -> io::Result<()> {
    let mut cursor = log::Cursor::default();
    loop {
        // A reader that went away is noticed by the next line.
        let line = cursor.next().await;
        stream.write_all(line.as_bytes()).await?;
    }
}
