//! The process's allocator, and the only unsafe code of Berth.
//!
//! glibc's takes a fifth more CPU for a manifest by tag, and two fifths more for a page of 100 tags; a process that waits
//! has 2 MiB less with it. In huge pages (without `no_thp`) this one would have 14 MiB more.

use std::ffi::{c_int, c_long};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of mimalloc 2 and 3: for how many milliseconds free memory is kept.
const PURGE_DELAY: c_int = 15;

/// Has free memory given back at once. Kept for a second, as is mimalloc's default, it is beyond what limits promise: twenty
/// manifests that were refused one after the other took 46 MiB and not 12.
pub(crate) fn give_back_at_once() {
    const AT_ONCE: c_long = 0;
    #[expect(unsafe_code, reason = "mimalloc has no safe way to set an option")]
    // SAFETY: it stores a number in a table of mimalloc's own, at an index that both of its versions have; no other thread
    // runs yet.
    unsafe {
        libmimalloc_sys::mi_option_set(PURGE_DELAY, AT_ONCE);
    }
}
