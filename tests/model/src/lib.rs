//! Models of the protocols that ARCHITECTURE.md describes, small enough to be searched to the end.
//!
//! A model's steps have the names of the code's, and say in which function each is. What a protocol checks is a switch,
//! in [`tags::Check`] and [`blobs::Check`]: with all of them on, no state that can be reached breaks a promise; with
//! one of them off, one does (`tests/`), but for the few that others make spare.
//!
//! Time is not modelled by a clock: a lease may run out, a deadline may pass, a request may arrive late at any moment,
//! and where the protocol waits, the model only goes on once what it waits for can't happen any more.

pub mod blobs;
pub mod linear;
pub mod tags;
