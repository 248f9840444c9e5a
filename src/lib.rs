//! Berth: a container registry in one binary.
//!
//! The map is in ARCHITECTURE.md; imports point one way, from here down to [`oci`].

pub mod api;
pub mod app;
pub mod auth;
pub mod blob;
mod bucket;
pub mod cli;
pub mod collect;
pub mod config;
pub mod delivery;
pub mod epoch;
pub mod error;
pub mod event;
mod google;
pub mod index;
pub mod inspect;
pub mod manifest;
pub mod oci;
pub mod outbound;
pub mod outbox;
pub mod reader;
pub mod reconcile;
pub mod redirect;
pub mod registry;
pub mod roster;
pub mod server;
pub mod storage;
pub mod tag;
pub mod telemetry;
pub mod upload;
pub mod verify;
pub mod worker;
