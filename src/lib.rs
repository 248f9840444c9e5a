//! Berth: a container registry in one binary.

pub mod index;
pub mod oci;
pub mod storage;
