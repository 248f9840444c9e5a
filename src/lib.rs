//! Berth: a container registry in one binary.

pub mod cli;
pub mod config;
pub mod index;
pub mod oci;
pub mod storage;
