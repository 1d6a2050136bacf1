//! Takes root's connections at a unix socket.
use crate::keeper::Keeper;
use crate::sys;
use std::cell::Cell;
use std::future::Future;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};

/// Serves each connection of root with `connection`, at most `max` at a time; others are closed at once. `name` is for the log.
pub async fn roots<F: Future<Output = ()> + 'static>(
    keeper: Rc<Keeper>,
    name: &str,
    listener: UnixListener,
    max: usize,
    connection: fn(Rc<Keeper>, UnixStream) -> F,
) {
    let connections = Rc::new(Cell::new(0usize));
    loop {
        match listener.accept().await {
            Ok((stream, _)) if connections.get() < max && matches!(sys::peer(stream.as_fd()), Ok((_, 0))) => {
                connections.set(connections.get() + 1);
                let (keeper, connections) = (Rc::clone(&keeper), Rc::clone(&connections));
                tokio::task::spawn_local(async move {
                    connection(keeper, stream).await;
                    connections.set(connections.get() - 1);
                });
            }
            Ok(_) => keeper.note(&format!("{name}: a connection was turned away: not root, or too many")),
            Err(error) => {
                keeper.note(&format!("{name}: {error}"));
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}
