//! The ordered end of the keeper itself.
use crate::config::VsockMode;
use crate::ending;
use crate::keeper::{End, Keeper};
use kata_protocol::envelope::Status;
use kata_protocol::keeper::ShutdownRequest;
use kata_protocol::ttrpc::{status, Code};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use tokio::time::{sleep, timeout};

const RELEASE_BOUND: Duration = Duration::from_secs(20);
/// From the answer to the exit: the answer must leave first, and whoever read it hangs up.
const ANSWER_GRACE: Duration = Duration::from_millis(100);
/// How long clients may take to read what they are owed.
const CLIENT_BOUND: Duration = Duration::from_secs(30);
/// How long a keeper without engine and without anything to keep stays.
pub const ORPHAN_BOUND: Duration = Duration::from_secs(60);

/// See `Shutdown` in proto/keeper.proto.
pub async fn run(keeper: &Rc<Keeper>, request: ShutdownRequest) -> Result<(), Status> {
    let cause = if request.cause.is_empty() { "shutdown".to_owned() } else { request.cause };
    if let Some(door) = &keeper.door {
        door.closed.set(true);
    }
    ending::begin(keeper, End { cause, ..Default::default() });
    let mut released = keeper.released.subscribe();
    let ended = timeout(RELEASE_BOUND, released.wait_for(|released| *released)).await;
    remove_sockets(&keeper.dir, &keeper.config.vsock);
    let keeper = Rc::clone(keeper);
    tokio::task::spawn_local(async move {
        let mut engines = keeper.engines.subscribe();
        let _ = timeout(ANSWER_GRACE, engines.wait_for(|engines| *engines == 0)).await;
        let _ = timeout(CLIENT_BOUND, clients_left(&keeper)).await;
        keeper.stop.send_replace(true);
    });
    match ended {
        Ok(_) => Ok(()),
        Err(_) => {
            Err(status(Code::DeadlineExceeded, "a process of the sandbox does not end; the keeper exits all the same"))
        }
    }
}

async fn clients_left(keeper: &Keeper) {
    while keeper.clients.get() > 0 {
        sleep(Duration::from_millis(20)).await;
    }
}

/// Removes every socket that this sandbox made in its directory.
pub fn remove_sockets(dir: &Path, vsock: &VsockMode) {
    let mut directories: Vec<PathBuf> = vec![dir.to_owned(), dir.join("vsock")];
    if let VsockMode::Hybrid { socket, .. } | VsockMode::Auto { socket, .. } = vsock {
        directories.extend(socket.parent().filter(|parent| parent.starts_with(dir)).map(Path::to_owned));
    }
    for directory in directories {
        remove_sockets_in(&directory);
    }
}

pub fn remove_sockets_in(directory: &Path) {
    use std::os::unix::fs::FileTypeExt;
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_socket()) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// A termination signal is a shutdown: the host goes down or a person wants the sandbox to end.
pub async fn watch_signals(keeper: Rc<Keeper>) {
    let Ok(mut terminate) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) else { return };
    terminate.recv().await;
    let _ = run(&keeper, ShutdownRequest::default()).await;
}

/// Ends a keeper that no engine asks for any more: nothing was ever started, or the sandbox ended and all is told.
pub async fn watch_orphan(keeper: Rc<Keeper>) {
    let mut engines = keeper.engines.subscribe();
    loop {
        if engines.wait_for(|engines| *engines == 0).await.is_err() {
            return;
        }
        if timeout(ORPHAN_BOUND, engines.wait_for(|engines| *engines > 0)).await.is_ok() {
            continue;
        }
        let ended = *keeper.released.borrow();
        let told = keeper.journal.borrow().is_told();
        let never_used = keeper.spawned.borrow().is_empty() && keeper.spawning.borrow().is_empty();
        if never_used || (ended && told) {
            keeper.note("no engine asks for this sandbox any more");
            let _ = run(&keeper, ShutdownRequest::default()).await;
            return;
        }
    }
}
