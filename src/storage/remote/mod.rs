//! What stores behind a network have in common: the way there, the store's clock, what is tried again and how,
//! and the library's handles that write and read.
//!
//! It must not know one store from another: what only one of them does is in that store's own module.

mod clock;
mod egress;
mod fault;
mod handles;
mod pace;
mod reading;
mod transport;

pub use egress::{Egress, Patience};
pub(super) use fault::{code_in, explain, is_too_busy};
pub(super) use handles::{Handles, Object, RETRIES, retry};
pub(super) use reading::read;
pub(super) use transport::{Transport, client_for};
