//! The one integration binary: Berth in process and as a real binary, against real stores and indexes.

mod api;
mod config;
mod fuzz_parsers;
mod index;
mod model;
mod redis_server;
mod rules_bench;
mod rules_cost;
mod rules_faults;
mod rules_rebuild;
mod rules_tag;
mod rules_upload;
mod s3_server;
mod server;
mod storage;
mod storage_local;
mod strace;
mod wrappers;
