//! The vocabulary of the OCI specifications: names, digests, references, manifests.
//!
//! Everything here is pure: no I/O, no clock, no configuration. A value of one of these types has been
//! checked; the rest of the program never looks at a raw name again.

pub mod digest;
pub mod manifest;
pub mod name;

pub use digest::{Algorithm, Digest, Hasher};
pub use manifest::{Descriptor, Manifest};
pub use name::{Reference, RepositoryName, Tag};
