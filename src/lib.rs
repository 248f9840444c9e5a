//! Berth: a container registry in one binary.

pub mod api;
pub mod index;
pub mod oci;
pub mod server;
pub mod storage;
pub mod telemetry;
