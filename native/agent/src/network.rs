//! Interfaces, routes and neighbours of the guest, as the host's network set-up sends them.
mod address;
mod apply;
mod links;
mod requests;
mod routes;

pub use apply::apply_network;
pub use links::{list_interfaces, loopback_up, update_interface};
pub use routes::{add_neighbours, list_routes, update_routes};
