//! Being somebody to Google: who Berth is there, by Google's own forms of credentials, and the tokens that say so.
//!
//! The bucket and the topics that are published to share this. It must not know what a token is shown for.

mod credentials;
mod exchange;
mod federation;
mod key;

pub(crate) use credentials::{Credentials, Who, bearer, machine_email};
pub(crate) use exchange::{Exchange, said};
pub(crate) use key::ServiceKey;
