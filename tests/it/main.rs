//! The one integration binary: Berth in process and as a real binary, against real stores and indexes.

mod config;
