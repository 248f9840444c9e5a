//! The released clients that CI doesn't run, each as its users run it, against the real binary: `make check-all`.
//!
//! What Docker, crane, skopeo and buildah do is tested in `tests/it`. A client that isn't installed fails its
//! test; each prints which version it was and how long it took.

mod buildkit;
mod compose;
mod containerd;
mod cosign;
mod distribution;
mod helm;
mod large;
mod oras;
mod regctl;
mod tool;

#[expect(dead_code, reason = "the other tests use the rest of it")]
#[path = "../it/authority.rs"]
mod authority;
#[expect(dead_code, reason = "the other tests use the rest of it")]
#[path = "../it/berth.rs"]
mod berth;
#[path = "../it/discarding_s3.rs"]
mod discarding_s3;
#[expect(dead_code, reason = "the other tests use the rest of it")]
#[path = "../it/docker_daemon.rs"]
mod docker_daemon;
#[expect(dead_code, reason = "the other tests use the rest of it")]
#[path = "../it/e2e_client.rs"]
mod e2e_client;
#[expect(dead_code, reason = "the other tests use the rest of it")]
#[path = "../it/issuer.rs"]
mod issuer;
#[path = "../it/many_pushes.rs"]
mod many_pushes;
#[path = "../it/strace.rs"]
mod strace;
