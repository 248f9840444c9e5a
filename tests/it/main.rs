//! The one integration binary: Berth in process and as a real binary, against real stores and indexes.

mod cli;
mod config;
mod index;
mod redis_server;
mod s3_server;
mod server;
mod storage;
mod storage_local;
mod strace;
