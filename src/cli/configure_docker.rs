//! `berth configure-docker`: tells Docker that logging in to a registry is `docker-credential-berth`'s affair.

use std::{env, path::PathBuf};

use serde_json::{Value, json};

use super::{
    Failure,
    credential::{Trouble, host_of, private_file, source::Source, store::Store},
};

/// The helper's name as Docker writes it: what stands behind `docker-credential-`.
const HELPER: &str = "berth";

/// `berth configure-docker`
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The registries, as images are named: r.example.com, or with a port.
    #[arg(required = true, value_name = "HOST")]
    hosts: Vec<String>,
    /// Where their credential comes from: key:FILE; github, gitlab or kubernetes, where :AUDIENCE, :VARIABLE or :FILE may follow.
    /// [default: what `docker login` is told]
    #[arg(long, value_name = "SOURCE")]
    token_source: Option<Source>,
}

/// Writes `credHelpers` into Docker's configuration, and the source into the helper's own.
pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let hosts: Result<Vec<String>, Trouble> = arguments.hosts.iter().map(|host| host_of(host)).collect();
    let hosts = hosts.map_err(|trouble| Failure::Argument(trouble.to_string()))?;
    configure(&hosts, arguments.token_source.as_ref())
        .map_err(|trouble| Failure::Io(std::io::Error::other(trouble.to_string())))
}

fn configure(hosts: &[String], source: Option<&Source>) -> Result<(), Trouble> {
    if let Some(source) = source {
        for host in hosts {
            Store::open()?.set(host, Some(source.clone()))?;
        }
    }
    let path = docker_config()?;
    private_file::update(&path, |config| {
        let helpers = config.as_object_mut().map(|config| config.entry("credHelpers").or_insert_with(|| json!({})));
        let helpers = helpers.and_then(Value::as_object_mut);
        let helpers =
            helpers.ok_or_else(|| Trouble::Told(format!("{}: not a configuration of Docker's", path.display())))?;
        helpers.extend(hosts.iter().map(|host| (host.clone(), json!(HELPER))));
        Ok(())
    })
}

/// Docker's configuration: in `$DOCKER_CONFIG`, else in `~/.docker`.
fn docker_config() -> Result<PathBuf, Trouble> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let directory = set("DOCKER_CONFIG").or_else(|| Some(set("HOME")?.join(".docker")));
    let directory = directory.ok_or_else(|| Trouble::Told("neither DOCKER_CONFIG nor HOME is set".to_owned()))?;
    Ok(directory.join("config.json"))
}
