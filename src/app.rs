//! The wiring: from the configuration to a running registry. The only place that knows all parts.

mod access;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use axum::Router;
use ulid::Ulid;

use self::access::Access;
pub use self::access::{AccessError, Reload, key_file_in};
use crate::{
    api::{
        self,
        admin::{AdminApi, Trust},
        cors::Origins,
        health::Readiness,
        observe::Observer,
        origin::Proxies,
    },
    auth::{
        AccessRules, Authority, Logins, UnusableCa,
        oidc::{Issuers, Pace},
    },
    config::{self, Ceiling, Config, IndexUrl, StorageUrl, TlsVersion},
    delivery::{Deliverer, Endpoints, UnusableEndpoint},
    epoch::{Leases, Standing, Timing},
    error::Error,
    index::{
        Connect, IndexError,
        embedded::Embedded,
        metered::MeteredConnect,
        redis::{Login, Redis, Tls as IndexTls},
    },
    inspect::Inspector,
    outbound::Proxy,
    reconcile,
    redirect::{Redirects, cloudfront::UnfitKey},
    registry::{Options, OtherIndex, Registry},
    roster::{AccountLogins, Roster},
    server::{self, Drain, End, Listener, Tls},
    storage::{
        StorageError, Store,
        azure::{self, Azure, AzureOptions},
        contract::Subject,
        gcs::{self, Gcs, GcsOptions},
        key::EpochNumber,
        local::{Local, OpenError},
        metered::MeteredStore,
        s3::{S3, S3Options, signed_url_client},
    },
    telemetry::{EventMetrics, Metrics},
    worker,
};

/// Why Berth did not start. Each is one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The local directory can't be used.
    #[error("storage.url: {0}")]
    Directory(#[from] OpenError),
    /// A command that looks into a registry found none.
    #[error("storage.url: there is no registry in {}", .0.display())]
    Nothing(PathBuf),
    /// A command that needs the bucket's own index found another, or none.
    #[error("index.url: this isn't the index that the bucket names; `berth index status` says more")]
    OtherIndex,
    /// The store can't be used.
    #[error("storage.url: {0}")]
    Store(#[from] StorageError),
    /// The index can't be used.
    #[error("index.url: {0}")]
    Index(#[from] IndexError),
    /// A file that the configuration names can't be read.
    #[error("{key}: can't read {}: {source}", path.display())]
    File {
        /// Which setting names it.
        key: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that the configuration names is not what it should be.
    #[error("{key}: found something else in {}; want {want}", path.display())]
    NotPem {
        /// Which setting names it.
        key: &'static str,
        /// Which file.
        path: PathBuf,
        /// What it should hold.
        want: &'static str,
    },
    /// The index is there and can't be used.
    #[error("index.url: {}", .0.cause.as_ref().unwrap_or(&.0.message))]
    Unusable(Error),
    /// The registry in that store can't be served.
    #[error("{}", .0.cause.as_ref().unwrap_or(&.0.message))]
    Registry(Error),
    /// An issuer's certificates can't be used.
    #[error(transparent)]
    Issuer(#[from] UnusableCa),
    /// The certificate can't be used.
    #[error(transparent)]
    Tls(#[from] server::TlsError),
    /// A browser's origin is none.
    #[error("server.cors_origins: {0}")]
    Origin(#[from] api::cors::NotAnOrigin),
    /// There is no saying who may do what.
    #[error(transparent)]
    Access(AccessError),
    /// The private key of a CDN can't be used.
    #[error("redirect.cdn.private_key: {0}")]
    Cdn(#[from] UnfitKey),
    /// An endpoint of events can't be used.
    #[error(transparent)]
    Endpoint(#[from] UnusableEndpoint),
    /// An address can't be listened on.
    #[error("can't listen on {address}: {source}")]
    Listen {
        /// Which.
        address: std::net::SocketAddr,
        /// Why.
        source: std::io::Error,
    },
}

impl From<Error> for StartError {
    fn from(error: Error) -> Self {
        if error.is_suspect() { Self::Unusable(error) } else { Self::Registry(error) }
    }
}

/// A registry with all that is around it.
#[derive(Debug)]
pub struct App {
    /// What is served.
    pub registry: Arc<Registry>,
    roster: Arc<Roster>,
    access: Access,
    deliverer: Arc<Deliverer>,
    reload: Option<Reload>,
    config: Config,
    tls: Option<Tls>,
    metrics: Arc<Metrics>,
    readiness: Readiness,
}

/// How often readiness is judged anew.
const LOOK: Duration = Duration::from_secs(5);

impl App {
    /// Opens the store and the index that the configuration names, and the registry in them.
    pub async fn open(config: Config, other: OtherIndex) -> Result<Self, StartError> {
        access::check(&config).map_err(StartError::Access)?;
        let tls = open_tls(&config)?;
        let endpoints = Endpoints::open(&config)?;
        let metrics = Metrics::new(env!("CARGO_PKG_VERSION"));
        let store = Arc::new(MeteredStore::new(open_store(&config, Use::Serve).await?, &metrics.store));
        let index = Arc::new(MeteredConnect::new(open_index(&config)?, &metrics.index));
        let (collected, untold) = (metrics.collected.clone(), metrics.untold.clone());
        let options = Options { collected, untold, ..options(&config) };
        let registry = Registry::open(store, index, options, other).await?;
        let roster = Arc::new(Roster::new(Arc::clone(&registry)));
        let issuers = Issuers::open(&config.auth.oidc, Proxy::of(&config.proxy).as_ref(), Pace::default())?;
        // Kinds of password that cost little are asked first.
        let logins: Vec<Arc<dyn Logins>> = vec![Arc::new(AccountLogins(Arc::clone(&roster))), Arc::new(issuers)];
        let access = Access::open(&config, logins)?;
        roster.govern(&access.authority);
        // Nobody is refused for want of a rule that was made before this start.
        roster.current().await?;
        let (authority, events) = (Arc::clone(&access.authority), metrics.events.clone());
        let deliverer = Deliverer::new(Arc::clone(&registry), authority, events, endpoints);
        let readiness = Readiness::new();
        Ok(Self { registry, roster, access, deliverer, reload: None, config, tls, metrics, readiness })
    }

    /// The same, going by what `reload` finds as it changes, as far as it is about access and events.
    pub fn reloading(self, reload: Reload) -> Self {
        Self { reload: Some(reload), ..self }
    }

    /// Everything that clients reach: the API, and health.
    pub fn router(&self) -> Result<Router, StartError> {
        let origins: Vec<String> = self.config.server.cors_origins.iter().map(ToString::to_string).collect();
        let redirects = Redirects::new(&self.config.redirect)?;
        let api = api::router(Arc::clone(&self.registry), Arc::clone(&self.access.authority), redirects);
        let api = Origins::parse(&origins)?.around(api);
        let limit = self.config.limits.requests.get() as usize;
        let observer = Observer::new(Arc::clone(&self.metrics), limit, self.proxies());
        Ok(observer.around(api.merge(api::health::health_routes(self.readiness.clone()))))
    }

    /// Serves until `drain` is asked for, and works in the background.
    pub async fn serve(self, drain: Drain) -> Result<End, StartError> {
        let router = self.router()?;
        self.deliverer.begin().await;
        let mut listeners = Vec::new();
        for &address in self.config.server.listen.iter() {
            listeners.push(listen(address, server::Role::Public, router.clone(), self.tls.clone()).await?);
        }
        let admin = api::health::admin_router(Arc::clone(&self.metrics), self.readiness.clone());
        let admin = admin.merge(api::admin::router(self.admin_api()));
        let admin_tls = self.tls.clone().filter(|_| self.config.admin.tls);
        listeners.push(listen(*self.config.admin.listen, server::Role::Admin, admin, admin_tls).await?);
        self.announce(&listeners);
        let mut background = vec![
            tokio::spawn(worker::work(Arc::clone(&self.registry))),
            tokio::spawn(worker::collect(Arc::clone(&self.registry))),
            tokio::spawn(reconcile_all(Arc::clone(&self.registry))),
            tokio::spawn(watch(Arc::clone(&self.registry), self.readiness.clone(), Arc::clone(&self.metrics))),
            tokio::spawn(keep_up(Arc::clone(&self.roster))),
            tokio::spawn(Arc::clone(&self.deliverer).run()),
        ];
        background.extend(self.tls.clone().map(|tls| tokio::spawn(tls.follow_files())));
        if let Some(reload) = self.reload.clone() {
            background.push(tokio::spawn(self.access.clone().keep_up(reload, Arc::clone(&self.deliverer))));
        }
        self.readiness.started();
        let limits = &self.config.limits;
        let options = server::Options {
            connections: limits.connections.get() as usize,
            head_timeout: *limits.header_timeout,
            idle_timeout: *limits.idle_timeout,
            body_idle_timeout: *limits.body_idle_timeout,
            drain_timeout: *limits.drain_timeout,
        };
        let end = server::serve(listeners, options, drain, self.readiness.clone(), Arc::clone(&self.metrics)).await;
        for task in background {
            task.abort();
        }
        Ok(end)
    }

    fn admin_api(&self) -> Arc<AdminApi> {
        let is_loopback = self.config.admin.listen.ip().to_canonical().is_loopback();
        let trust = if is_loopback { Trust::Machine } else { Trust::Nobody };
        let (roster, authority) = (Arc::clone(&self.roster), Arc::clone(&self.access.authority));
        Arc::new(AdminApi { roster, authority, deliverer: Arc::clone(&self.deliverer), trust })
    }

    /// Whom the configuration believes on who a client is.
    fn proxies(&self) -> Proxies {
        let server = &self.config.server;
        let trusted = server.trusted_proxies.iter().map(|network| network.0);
        Proxies::new(trusted, server.public_url.as_ref().map(|url| url.as_str()))
    }

    fn announce(&self, listeners: &[Listener]) {
        let data = match &*self.config.storage.url {
            StorageUrl::File(path) => absolute(path).display().to_string(),
            StorageUrl::S3 { .. } | StorageUrl::Gcs { .. } | StorageUrl::Azure { .. } => {
                self.config.storage.url.to_string()
            }
        };
        for listener in listeners {
            if let Ok(address) = listener.address() {
                tracing::info!(%address, role = listener.role(), scheme = listener.scheme(), data, "listening");
            }
        }
    }
}

/// Opens the store and the index to manage accounts and rules, beside running replicas or without any. Makes
/// both where there are none yet.
pub async fn open_admin_api(config: &Config) -> Result<AdminApi, StartError> {
    let (store, index) = (open_store(config, Use::Serve).await?, open_index(config)?);
    let registry = Registry::open(store, index, options(config), OtherIndex::Refuse).await?;
    let authority = Authority::of_rules(AccessRules::configured(&config.auth))?;
    let roster = Roster::new(Arc::clone(&registry));
    // A sample is signed by the keys that its receiver knows.
    let signs = config.events.endpoints.values().any(|endpoint| endpoint.bearer);
    let speaker = if signs { Access::open(config, Vec::new())?.authority } else { Arc::clone(&authority) };
    roster.govern(&authority);
    let deliverer = Deliverer::new(registry, speaker, EventMetrics::default(), Endpoints::open(config)?);
    Ok(AdminApi { roster: Arc::new(roster), authority, deliverer, trust: Trust::Nobody })
}

/// The configured index, and the bucket that it is to be made the own one of.
#[derive(Debug)]
pub struct Takeover {
    store: Arc<dyn Store>,
    index: Arc<dyn Connect>,
    options: Options,
}

impl Takeover {
    /// Opens both, and changes nothing yet.
    pub async fn open(config: &Config) -> Result<Self, StartError> {
        require_bucket(config)?;
        Ok(Self { store: open_store(config, Use::Serve).await?, index: open_index(config)?, options: options(config) })
    }

    /// What bucket and index say of each other now.
    pub async fn standing(&self) -> Result<Standing, StartError> {
        Ok(self.leases().standing().await?)
    }

    /// Begins the next epoch with this index, empty, whatever it was before. Where other replicas may run, waits until
    /// they have noticed. What it serves then is for servers, or [`Takeover::into_registry`], to fill from the bucket.
    pub async fn begin(&self) -> Result<EpochNumber, StartError> {
        self.leases().begin(self.options.shards).await?;
        match self.standing().await? {
            Standing::Ours(lease) => Ok(lease.epoch),
            _ => Err(StartError::OtherIndex),
        }
    }

    /// The registry over both, to be filled by [`reconcile::walk`].
    pub async fn into_registry(self) -> Result<Arc<Registry>, StartError> {
        Ok(Registry::open(self.store, self.index, self.options, OtherIndex::Refuse).await?)
    }

    fn leases(&self) -> Arc<Leases> {
        let (store, index) = (Arc::clone(&self.store), Arc::clone(&self.index));
        Arc::new(Leases::new(store, index, self.options.timing))
    }
}

/// Opens a place of its own beside the keys of the configured registry, to try there what its store promises. A
/// server may be running.
pub async fn open_subject(config: &Config) -> Result<Subject, StartError> {
    let place = format!("probe/{}", Ulid::r#gen());
    let margin = *config.index.margin;
    match &*config.storage.url {
        StorageUrl::File(path) => {
            let directory = absolute(path).join(place);
            let store = Arc::new(Local::open(&directory, config.storage.sync)?);
            Ok(Subject::in_directory(store, margin, directory))
        }
        StorageUrl::S3 { bucket, prefix } => {
            let options = S3Options::configured(config, bucket, &format!("{}/{place}", prefix.trim_matches('/')));
            let http = signed_url_client(&options)?;
            let store = S3::open(options).await?;
            store.check_rights().await?;
            Ok(Subject::new(Arc::new(store), http, margin))
        }
        StorageUrl::Gcs { bucket, prefix } => {
            let options = GcsOptions::configured(config, bucket, &format!("{}/{place}", prefix.trim_matches('/')));
            let http = gcs::signed_url_client(&options)?;
            let store = Gcs::open(options).await?;
            store.check_rights().await?;
            Ok(Subject::new(Arc::new(store), http, margin))
        }
        StorageUrl::Azure { container, prefix } => {
            let prefix = format!("{}/{place}", prefix.trim_matches('/'));
            let options = AzureOptions::configured(config, container, &prefix);
            let http = azure::signed_url_client(&options)?;
            let store = Azure::open(options).await?;
            store.check_rights().await?;
            Ok(Subject::new(Arc::new(store), http, margin))
        }
    }
}

/// Opens the store and the index to look into them, and makes neither.
pub async fn open_inspector(config: &Config) -> Result<Inspector, StartError> {
    require_bucket(config)?;
    let store = open_store(config, Use::Look).await?;
    let is_there = config.index_directory().is_none_or(|directory| Embedded::exists(&absolute(&directory)));
    let index = if is_there { Some(open_index(config)?) } else { None };
    Ok(Inspector::open(store, index, options(config).timing).await)
}

/// Opens the registry that the configuration names, and makes none: its index must be the bucket's own.
pub async fn open_existing(config: &Config) -> Result<Arc<Registry>, StartError> {
    require_bucket(config)?;
    let (store, index) = (open_store(config, Use::Look).await?, open_index(config)?);
    let standing = Arc::new(Leases::new(Arc::clone(&store), Arc::clone(&index), options(config).timing));
    match standing.standing().await? {
        Standing::Ours(_) => Ok(Registry::open(store, index, options(config), OtherIndex::Refuse).await?),
        Standing::Fresh | Standing::Unserved(_) | Standing::Replaced(..) | Standing::Others(..) => {
            Err(StartError::OtherIndex)
        }
    }
}

/// Refuses a directory that isn't there, which opening it would make.
fn require_bucket(config: &Config) -> Result<(), StartError> {
    match &*config.storage.url {
        StorageUrl::File(path) if !absolute(path).is_dir() => Err(StartError::Nothing(absolute(path))),
        StorageUrl::File(_) | StorageUrl::S3 { .. } | StorageUrl::Gcs { .. } | StorageUrl::Azure { .. } => Ok(()),
    }
}

async fn listen(
    address: std::net::SocketAddr,
    role: server::Role,
    router: Router,
    tls: Option<Tls>,
) -> Result<Listener, StartError> {
    let listener = Listener::bind(address, role, router).await;
    let listener = listener.map_err(|source| StartError::Listen { address, source })?;
    Ok(match tls {
        Some(tls) => listener.with_tls(tls),
        None => listener,
    })
}

/// TLS, where the configuration names a certificate.
fn open_tls(config: &Config) -> Result<Option<Tls>, StartError> {
    let Some((certificate, key)) = config.tls.certificate.as_ref().zip(config.tls.key.as_ref()) else {
        return Ok(None);
    };
    let oldest = match config.tls.min_version {
        TlsVersion::Tls12 => server::Oldest::Tls12,
        TlsVersion::Tls13 => server::Oldest::Tls13,
    };
    let files = server::Files { certificate: absolute(certificate), key: absolute(key) };
    Ok(Some(Tls::open(files, oldest)?))
}

/// What a store is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// To look into it, and change nothing.
    Look,
    /// To serve from it, or to change something: a bucket's rights are tried out, so that a missing one is said at the start.
    Serve,
}

async fn open_store(config: &Config, purpose: Use) -> Result<Arc<dyn Store>, StartError> {
    match &*config.storage.url {
        StorageUrl::File(path) => Ok(Arc::new(Local::open(&absolute(path), config.storage.sync)?)),
        StorageUrl::S3 { bucket, prefix } => {
            let store = S3::open(S3Options::configured(config, bucket, prefix)).await?;
            if purpose == Use::Serve {
                store.check_rights().await?;
            }
            Ok(Arc::new(store))
        }
        StorageUrl::Gcs { bucket, prefix } => {
            let store = Gcs::open(GcsOptions::configured(config, bucket, prefix)).await?;
            if purpose == Use::Serve {
                store.check_rights().await?;
            }
            Ok(Arc::new(store))
        }
        StorageUrl::Azure { container, prefix } => {
            let store = Azure::open(AzureOptions::configured(config, container, prefix)).await?;
            if purpose == Use::Serve {
                store.check_rights().await?;
            }
            Ok(Arc::new(store))
        }
    }
}

fn open_index(config: &Config) -> Result<Arc<dyn Connect>, StartError> {
    if let IndexUrl::Redis(url) = &*config.index.url {
        let tls = if url.is_tls() { Some(index_tls(&config.index)?) } else { None };
        let config::Sentinel { user, password } = &config.index.sentinel;
        let for_sentinels = Login {
            user: user.as_ref().map(ToString::to_string),
            password: password.as_ref().map(|password| password.reveal().to_owned()),
        };
        let namespace = config.index.namespace.to_string();
        return Ok(Arc::new(Redis::with(url, &namespace, tls.as_ref(), &for_sentinels)?));
    }
    let directory = config.index_directory().unwrap_or_default();
    Ok(Arc::new(Embedded::open(&absolute(&directory), config.storage.sync)?))
}

fn index_tls(index: &config::Index) -> Result<IndexTls, StartError> {
    let certificates = |key, path: &Path| read_pem(key, path, IndexTls::is_certificate, "certificates in PEM");
    let private_key = |key, path: &Path| read_pem(key, path, IndexTls::is_key, "a private key in PEM");
    let ca = index.ca.as_ref().map(|path| certificates("index.ca", path)).transpose()?;
    let own = match (&index.certificate, &index.key) {
        (Some(certificate), Some(key)) => {
            Some((certificates("index.certificate", certificate)?, private_key("index.key", key)?))
        }
        _ => None,
    };
    Ok(IndexTls { ca, own })
}

/// Reads a file that the setting `key` names, and refuses it unless it `fits`.
fn read_pem(
    key: &'static str,
    path: &Path,
    fits: fn(&[u8]) -> bool,
    want: &'static str,
) -> Result<Vec<u8>, StartError> {
    let unreadable = |source| StartError::File { key, path: path.to_owned(), source };
    let pem = std::fs::read(path).map_err(unreadable)?;
    if fits(&pem) { Ok(pem) } else { Err(StartError::NotPem { key, path: path.to_owned(), want }) }
}

fn options(config: &Config) -> Options {
    let Config { index, limits, tags, collect, .. } = config;
    Options {
        timing: Timing { lease: *index.lease, deadline: *index.write_deadline, margin: *index.margin },
        upload_memory: limits.upload_memory.0.0 as usize,
        upload_scratch: limits.upload_scratch.clone(),
        blob_size: match *limits.blob_size {
            Ceiling::None => u64::MAX,
            Ceiling::AtMost(size) => size.0,
        },
        manifest_cache: limits.manifest_cache.0.0,
        upload_expiry: *limits.upload_expiry,
        grace: *collect.grace,
        collect_period: *collect.period,
        history: tags.history.get() as usize,
        immutable_tags: tags.immutable.iter().map(|pattern| pattern.0.clone()).collect(),
        ..Options::default()
    }
}

fn absolute(path: &std::path::Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Fills an index that doesn't know the whole bucket yet: at the start, and each time that a new epoch begins.
async fn reconcile_all(registry: Arc<Registry>) {
    let mut said = Instant::now();
    loop {
        match registry.is_settled().await {
            Ok(false) => {}
            settled => {
                if let Err(error) = settled {
                    tracing::debug!(%error, "filling the index has to wait");
                }
                tokio::time::sleep(LOOK).await;
                continue;
            }
        }
        match reconcile::step(&registry).await {
            Ok(reconcile::Step::Went(so_far)) if said.elapsed() > LOOK => {
                said = Instant::now();
                let (repositories, last) =
                    (so_far.walked.repositories, so_far.last.as_ref().map(tracing::field::display));
                tracing::info!(
                    repositories,
                    last,
                    "the index is being filled from the bucket, which answers for the rest"
                );
            }
            Ok(reconcile::Step::Went(_)) => {}
            Ok(reconcile::Step::Over(all)) => report(&all.walked),
            Ok(reconcile::Step::Elsewhere(_)) => tokio::time::sleep(LOOK).await,
            Err(error) => {
                tracing::warn!(%error, "filling the index from the bucket stopped; it will go on");
                tokio::time::sleep(LOOK).await;
            }
        }
    }
}

fn report(walked: &reconcile::Walked) {
    let reconcile::Walked { repositories, adopted, roster: _ } = *walked;
    let reconcile::Adopted { links, manifests, tags, dangling } = adopted;
    if repositories > 0 {
        tracing::info!(repositories, links, manifests, tags, dangling, "the index was filled from the bucket");
    }
}

/// Sees what other replicas change in the roster.
async fn keep_up(roster: Arc<Roster>) {
    roster.watch().await;
}

/// Says through health and metrics whether all, a part or nothing can be served, as soon as that changes.
async fn watch(registry: Arc<Registry>, readiness: Readiness, metrics: Arc<Metrics>) {
    let mut trouble = registry.trouble();
    loop {
        let lease = registry.lease().await;
        metrics.index_believed.set(i64::from(lease.is_ok()));
        metrics.index_settled.set(i64::from(registry.is_settled().await.unwrap_or_default()));
        match lease.map_err(|error| (error.is_suspect(), error.cause.unwrap_or(error.message))) {
            Ok(_) => readiness.set("index", None),
            Err((true, reason)) if registry.check_bucket().await.is_ok() => readiness.degrade("index", reason),
            Err((_, reason)) => readiness.set("index", Some(reason)),
        }
        // The sender lives as long as the registry. An error would only mean to look in intervals.
        drop(tokio::time::timeout(LOOK, trouble.changed()).await);
    }
}
