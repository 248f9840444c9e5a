//! The one integration binary: Berth in process and as a real binary, against real stores and indexes.

mod berth;
mod config;
mod conformance;
mod e2e_attacks;
mod e2e_client;
mod e2e_conditions;
mod e2e_crash;
mod e2e_docker;
mod e2e_process;
mod e2e_sync;
mod e2e_tools;
mod e2e_uploads;
mod history;
mod index;
mod redis_server;
mod s3_server;
mod server;
mod storage;
mod storage_local;
mod strace;
