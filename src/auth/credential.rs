//! What callers show to say who they are, and the one seam behind which it is checked.

use std::{fmt, time::Duration};

use async_trait::async_trait;
use base64::{Engine, engine::general_purpose::STANDARD};

use super::Identity;
use crate::error::{Code, Error, Result};

/// What a request shows. It prints without its secret.
#[derive(Clone, PartialEq, Eq)]
pub enum Presented {
    /// Nothing.
    Nothing,
    /// A name and a password: `Authorization: Basic`, or the form of an OAuth2 password grant.
    Password {
        /// The name; for some kinds of password it doesn't matter.
        name: String,
        /// The password.
        secret: String,
    },
    /// A token that this service, or one that it trusts, has issued: `Authorization: Bearer`.
    Token(String),
}

impl Presented {
    /// Reads the value of an `Authorization` header (RFC 7617, RFC 6750).
    ///
    /// # Errors
    /// 401 for one that is neither.
    pub fn read(header: Option<&[u8]>) -> Result<Self> {
        let Some(header) = header else { return Ok(Self::Nothing) };
        let refused = || Error::new(Code::Unauthorized, "the Authorization header is malformed");
        let (scheme, rest) =
            std::str::from_utf8(header).ok().and_then(|text| text.split_once(' ')).ok_or_else(refused)?;
        let rest = rest.trim();
        if scheme.eq_ignore_ascii_case("bearer") && !rest.is_empty() {
            return Ok(Self::Token(rest.to_owned()));
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return Err(refused());
        }
        let pair = STANDARD.decode(rest).ok().and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(refused)?;
        let (name, secret) = pair.split_once(':').ok_or_else(refused)?;
        // Clients without credentials send an empty pair rather than nothing.
        if name.is_empty() && secret.is_empty() {
            return Ok(Self::Nothing);
        }
        Ok(Self::Password { name: name.to_owned(), secret: secret.to_owned() })
    }
}

impl fmt::Debug for Presented {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "Nothing",
            Self::Password { .. } => "Password(***)",
            Self::Token(_) => "Token(***)",
        })
    }
}

/// Somebody whose password was right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// Who.
    pub identity: Identity,
    /// Names the credential as it is now, and changes with it: a hash of the line in the htpasswd file, the
    /// revision of an account. It is in refresh tokens, which any holder can read, so it tells nothing. With an
    /// empty one there is no refresh token.
    pub fingerprint: String,
    /// For how long it may be used without showing the password again, where that is not for the
    /// configuration to say: the ID tokens of an issuer end soon, so a login by one shouldn't go on for weeks.
    pub at_most: Option<Duration>,
}

/// One kind of password. [`super::Authority`] asks each kind in turn.
#[async_trait]
pub trait Logins: fmt::Debug + Send + Sync {
    /// What [`Self::check`] would find, where that is known without any work: such a login is no attempt.
    fn recalls(&self, _name: &str, _secret: &str) -> Option<Login> {
        None
    }

    /// Whether people choose these passwords, so that others may guess them.
    fn can_be_guessed(&self) -> bool {
        false
    }

    /// Who is proven by this password. `None` if it is wrong, or not of this kind: the caller isn't told which.
    ///
    /// # Errors
    /// Only where it can't be known now.
    async fn check(&self, name: &str, secret: &str) -> Result<Option<Login>>;

    /// Whether a login that [`Self::check`] gave earlier, which a refresh token carries, still stands. `None`
    /// if it is not of this kind.
    ///
    /// # Errors
    /// Only where it can't be known now.
    async fn stands(&self, identity: &Identity, fingerprint: &str) -> Result<Option<bool>>;

    /// Whether there is anybody who could log in this way, as far as is known.
    fn is_offered(&self) -> bool;
}
