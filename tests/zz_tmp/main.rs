//! Temporary.
#![allow(dead_code, unused)]
#[path = "../it/berth.rs"]
mod berth;
#[path = "../it/disk.rs"]
mod disk;
#[path = "../it/e2e_client.rs"]
mod e2e_client;
#[path = "../it/e2e_conditions.rs"]
mod e2e_conditions;
#[path = "../it/e2e_crash.rs"]
mod e2e_crash;
#[path = "../it/history.rs"]
mod history;

#[path = "../it/redis_server.rs"]
mod redis_server;
#[path = "../it/rules_bench.rs"]
mod rules_bench;
#[path = "../it/rules_collect.rs"]
mod rules_collect;
#[path = "../it/rules_events.rs"]
mod rules_events;
#[path = "../it/rules_faults.rs"]
mod rules_faults;
#[path = "../it/rules_tag.rs"]
mod rules_tag;
#[path = "../it/s3_server.rs"]
mod s3_server;
#[path = "../it/seeded.rs"]
mod seeded;
#[path = "../it/seeded_index.rs"]
mod seeded_index;
#[path = "../it/storage.rs"]
mod storage;
#[path = "../it/storage_front.rs"]
mod storage_front;
#[path = "../it/storage_options.rs"]
mod storage_options;
#[path = "../it/strace.rs"]
mod strace;
#[path = "../it/versitygw.rs"]
mod versitygw;
#[path = "../it/wrappers.rs"]
mod wrappers;
