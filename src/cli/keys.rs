//! `berth keys`: the keys that sign tokens.

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};

use super::{Failure, print};
use crate::{
    app::key_file_in,
    auth::{
        key_file,
        keys::{self, KeyRing, Kind, SETTLES},
        now,
    },
    config::{Loaded, StorageUrl},
};

/// See, make and change the keys that sign tokens.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Print the keys, oldest first: id, algorithm, when it was made, and what it is used for.
    List,
    /// Add a new key to the file of keys, and drop those whose tokens are all gone. Servers read the file
    /// again by themselves; the new key signs two minutes later, and the old ones go on verifying.
    Rotate {
        /// How the new key signs.
        #[arg(long, value_enum, default_value_t)]
        algorithm: Algorithm,
    },
    /// Print a new key, for a file or a secret store of your own. Needs no configuration.
    New {
        /// How the key signs.
        #[arg(long, value_enum, default_value_t)]
        algorithm: Algorithm,
    },
}

/// How a key signs.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(super) enum Algorithm {
    /// Ed25519, short and fast.
    #[default]
    #[value(name = "EdDSA")]
    EdDsa,
    /// ECDSA on P-256.
    #[value(name = "ES256")]
    Es256,
    /// RSA of 2048 bits, which every verifier knows.
    #[value(name = "RS256")]
    Rs256,
}

impl From<Algorithm> for Kind {
    fn from(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::EdDsa => Self::EdDsa,
            Algorithm::Es256 => Self::Es256,
            Algorithm::Rs256 => Self::Rs256,
        }
    }
}

/// Does one of them; `load` reads the configuration, where one is needed.
pub(super) fn run(command: &Command, load: impl FnOnce() -> Result<Loaded, Failure>) -> Result<(), Failure> {
    match command {
        Command::List => list(&load()?),
        Command::Rotate { algorithm } => rotate(&load()?, (*algorithm).into()),
        Command::New { algorithm } => {
            print(KeyRing::make((*algorithm).into(), now()).map_err(failed)?.text().as_bytes())
        }
    }
}

fn list(loaded: &Loaded) -> Result<(), Failure> {
    let ring = match &loaded.config.auth.token.keys {
        Some(keys) => KeyRing::read(keys.reveal()).map_err(failed)?,
        None => key_file::read(&file(loaded)?).map_err(failed)?,
    };
    let now = now();
    let signing = &ring.signing(now).id;
    let mut lines = String::new();
    for key in ring.keys() {
        let made = if key.made == 0 { "unknown".to_owned() } else { keys::shown(key.made) };
        let used = match &key.id {
            id if id == signing => "signs".to_owned(),
            _ if key.made.saturating_add(SETTLES) > now => format!("signs from {}", keys::shown(key.made + SETTLES)),
            _ => "verifies".to_owned(),
        };
        lines.push_str(&format!("{} {} made {made} {used}\n", key.id, key.kind.as_str()));
    }
    print(lines.as_bytes())
}

fn rotate(loaded: &Loaded, kind: Kind) -> Result<(), Failure> {
    let path = file(loaded)?;
    let longest = loaded.config.auth.token.refresh_ttl.as_secs();
    let ring = key_file::read(&path).and_then(|ring| {
        let rotated = ring.rotate(kind, now(), longest);
        rotated.map_err(|source| key_file::KeyFileError::Content { path: path.clone(), source })
    });
    let ring = ring.map_err(failed)?;
    key_file::write(&path, &ring).map_err(failed)?;
    let Some(newest) = ring.keys().last() else { return Ok(()) };
    let from = keys::shown(newest.made + SETTLES);
    print(format!("{} {} signs from {from}\n", newest.id, newest.kind.as_str()).as_bytes())
}

/// The file that the keys are in.
fn file(loaded: &Loaded) -> Result<PathBuf, Failure> {
    if let Some(file) = loaded.sources.file_of("auth.token.keys") {
        return Ok(file.to_owned());
    }
    match (&loaded.config.auth.token.keys, &*loaded.config.storage.url) {
        (None, StorageUrl::File(directory)) => Ok(key_file_in(directory)),
        (None, _) => Err(Failure::Argument("there are no keys; `berth keys new` prints one".to_owned())),
        (Some(_), _) => Err(Failure::Argument(
            "the keys are not in a file (auth.token.keys_file): put what `berth keys new` prints behind those that there are"
                .to_owned(),
        )),
    }
}

fn failed(error: impl ToString) -> Failure {
    Failure::Keys(error.to_string())
}
