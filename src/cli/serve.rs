//! `berth serve`: the registry, until it is told to stop.

use super::Failure;
use crate::{
    app::{App, Reload},
    config::{Config, LoadArgs, Loaded, LogFormat, environment},
    registry::OtherIndex,
    server::{Drain, End},
    telemetry::{self, Log},
};

/// Serves until a signal says to stop. The runtime is made here, so that no other command pays for one.
pub(super) fn serve(loaded: Loaded, args: LoadArgs) -> Result<(), Failure> {
    let config = loaded.config;
    // Dropped after the runtime: what that breaks off is in the log as well.
    let _log = log(&config)?;
    let reload = move || Ok(Config::load(args.clone(), environment()?)?.config);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match runtime.block_on(run(config, Reload::new(reload)))? {
        End::Clean => Ok(()),
        End::Cut(connections) => {
            tracing::warn!(connections, "the drain took too long; what was left was cut");
            Ok(())
        }
        End::Forced => Err(Failure::Forced),
    }
}

async fn run(config: Config, reload: Reload) -> Result<End, Failure> {
    let drain = Drain::new();
    drain.ask_at_signals()?;
    let app = App::open(config, OtherIndex::Refuse).await?.reloading(reload);
    Ok(app.serve(drain).await?)
}

/// Turns the log on, as the configuration says.
pub(super) fn log(config: &Config) -> Result<Log, Failure> {
    let format = match config.log.format {
        LogFormat::Text => telemetry::Format::Text,
        LogFormat::Json => telemetry::Format::Json,
    };
    let access = if config.log.access { "" } else { ",access=off" };
    Ok(telemetry::init(format, &format!("{}{access}", config.log.level)).map_err(std::io::Error::other)?)
}
