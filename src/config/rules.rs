//! What must hold between settings, and the defaults that depend on other settings.

mod events;

use std::{net::SocketAddr, ops::RangeInclusive, time::Duration};

use super::{
    Sources,
    address::{IndexUrl, Listen, StorageUrl},
    azure::Azure,
    error::ConfigError,
    gcs::Gcs,
    redis_url::RedisLayout,
    text::Written,
    tree::{Anonymous, CdnKind, Config, S3, S3Encryption, TlsVersion},
    units::Size,
    who::Who,
};

/// The least and the most that `auth.token.ttl` may be. The token specification has clients take a minute
/// for granted; a day is what somebody who was let go could still do.
const SHORTEST_TOKEN: Duration = Duration::from_secs(60);
const LONGEST_TOKEN: Duration = Duration::from_secs(24 * 3600);

/// How long a URL for a redirect may live. Below ten seconds a slow client would find it dead; seven days is the
/// most that S3 and GCS sign for: <https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html>.
const REDIRECT_TTL: RangeInclusive<Duration> = Duration::from_secs(10)..=Duration::from_secs(7 * 24 * 3600);

/// How often the bucket may be looked through. Less than a second would be one look that never ends; in more than
/// thirty days nobody would still know why the bucket is that large.
const COLLECT_PERIOD: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(30 * 24 * 3600);

/// Fills in the defaults that depend on other settings.
pub(super) fn settle(config: &mut Config, sources: &Sources) {
    if !sources.any_under("auth") && config.server.listen.is_loopback() {
        config.auth.anonymous = Anonymous::Admin;
    }
}

/// Says the first rule that is broken.
pub(super) fn check(config: &Config, sources: &Sources) -> Result<(), ConfigError> {
    check_rules_are_whole(config, sources)?;
    check_somebody_may_enter(config, sources)?;
    check_issuers(config, sources)?;
    check_token_issuers(config, sources)?;
    check_token_lives(config, sources)?;
    check_token_keys(config, sources)?;
    check_tls(config, sources)?;
    check_index(config, sources)?;
    check_stores(config, sources)?;
    check_s3(config, sources)?;
    check_azure(config, sources)?;
    check_proxy(config, sources)?;
    check_redirect(config, sources)?;
    check_collect(config, sources)?;
    events::check(config, sources)?;
    check_upload_memory(config, sources)
}

/// One line about the value of a key.
fn refuse(sources: &Sources, key: &str, found: String, allowed: &str) -> Result<(), ConfigError> {
    let origin = sources.of(key).clone();
    Err(ConfigError::Value { key: key.to_owned(), origin, found, allowed: allowed.to_owned() })
}

fn check_rules_are_whole(config: &Config, sources: &Sources) -> Result<(), ConfigError> {
    for (name, rule) in &config.auth.rules {
        for (key, empty) in [("who", rule.who.is_empty()), ("repositories", rule.repositories.is_empty())] {
            if empty {
                let key = super::source::dotted(&["auth", "rules", name, key].map(str::to_owned));
                return refuse(sources, &key, "found an empty list".to_owned(), "want at least one");
            }
        }
    }
    Ok(())
}

/// An issuer without an audience would let in tokens that were meant for anybody; a rule about an issuer that
/// isn't there is a typing mistake.
fn check_issuers(config: &Config, sources: &Sources) -> Result<(), ConfigError> {
    for (name, issuer) in &config.auth.oidc {
        if issuer.audience.is_empty() {
            let key = super::source::dotted(&["auth", "oidc", name, "audience"].map(str::to_owned));
            return refuse(sources, &key, "found an empty list".to_owned(), "want at least one");
        }
    }
    for (name, rule) in &config.auth.rules {
        for who in &rule.who {
            let Who::Federated { issuer, .. } = &**who else { continue };
            if !config.auth.oidc.contains_key(issuer) {
                let key = super::source::dotted(&["auth", "rules", name, "who"].map(str::to_owned));
                return refuse(sources, &key, format!("found \"{who}\""), "want an issuer of [auth.oidc]");
            }
        }
    }
    Ok(())
}

/// What two say who can't be told apart is refused, and a token service that nobody would believe.
fn check_token_issuers(config: &Config, sources: &Sources) -> Result<(), ConfigError> {
    let auth = &config.auth;
    if auth.token.realm.is_some() && auth.token_issuers.is_empty() {
        let found = "found while [auth.token_issuers] is empty".to_owned();
        return refuse(sources, "auth.token.realm", found, "want an issuer there whose tokens count");
    }
    let ours = auth.token.issuer.as_ref().map(ToString::to_string);
    let url = config.server.public_url.as_ref().map(|url| url.as_str().to_owned());
    let mut seen = vec![ours.or(url).unwrap_or_else(|| "berth".to_owned())];
    for (name, issuer) in &auth.token_issuers {
        let key = |last: &str| super::source::dotted(&["auth", "token_issuers", name, last].map(str::to_owned));
        if auth.oidc.contains_key(name) {
            let found = format!("found beside an auth.oidc.{name}");
            return refuse(sources, &key("issuer"), found, "want another name, since histories tell who pushed by it");
        }
        let called = issuer.issuer.to_string();
        if seen.contains(&called) {
            let found = format!("found \"{called}\", which another one is called");
            return refuse(sources, &key("issuer"), found, "want each issuer once, and auth.token.issuer another");
        }
        seen.push(called);
    }
    Ok(())
}

fn check_token_lives(config: &Config, sources: &Sources) -> Result<(), ConfigError> {
    let token = &config.auth.token;
    if !(SHORTEST_TOKEN..=LONGEST_TOKEN).contains(&*token.ttl) {
        return refuse(sources, "auth.token.ttl", format!("found \"{}\"", token.ttl), "want \"1m\" to \"24h\"");
    }
    if *token.refresh_ttl < *token.ttl {
        let found = format!("found \"{}\" with an auth.token.ttl of \"{}\"", token.refresh_ttl, token.ttl);
        return refuse(sources, "auth.token.refresh_ttl", found, "want at least as much");
    }
    Ok(())
}

/// Replicas over a bucket have to share keys. Where anybody may do anything, nobody needs a token, and where
/// others issue them, nobody needs a key.
fn check_token_keys(config: &Config, sources: &Sources) -> Result<(), ConfigError> {
    let is_remote = !config.storage.url.is_directory();
    let token = &config.auth.token;
    let needs_none = token.keys.is_some() || token.realm.is_some() || config.auth.anonymous == Anonymous::Admin;
    if !is_remote || needs_none {
        return Ok(());
    }
    let found = format!("found nothing, and storage.url ({}) is no directory to make keys in", config.storage.url);
    let allowed =
        "want what `berth keys new` prints, in a file that auth.token.keys_file names, the same for each replica";
    refuse(sources, "auth.token.keys", found, allowed)
}

fn check_somebody_may_enter(config: &Config, sources: &Sources) -> Result<(), ConfigError> {
    // Whoever sets anything there has decided: those who may enter can also be named at run time.
    let undecided = !sources.any_under("auth");
    let Some(address) = config.server.listen.outside().filter(|_| undecided) else { return Ok(()) };
    let found = format!("found {address}, which other machines can reach, while nothing in [auth] says who may enter");
    let allowed = "set auth.anonymous (none, reader, creator, writer, admin), auth.htpasswd or a rule in auth.rules, or listen on 127.0.0.1";
    refuse(sources, "server.listen", found, allowed)
}

fn check_tls(config: &Config, sources: &Sources) -> Result<(), ConfigError> {
    let tls = &config.tls;
    let (given, missing) = match (&tls.certificate, &tls.key) {
        (Some(_), Some(_)) => return Ok(()),
        (Some(_), None) => ("tls.certificate", "tls.key"),
        (None, Some(_)) => ("tls.key", "tls.certificate"),
        (None, None) if config.admin.tls => ("admin.tls", "tls.certificate"),
        (None, None) if tls.min_version == TlsVersion::Tls13 => ("tls.min_version", "tls.certificate"),
        (None, None) => return Ok(()),
    };
    refuse(sources, given, format!("found without {missing}"), "want both or neither")
}

fn check_index(config: &Config, sources: &Sources) -> Result<(), ConfigError> {
    let index = &config.index;
    if *index.url == IndexUrl::Embedded && !config.storage.url.is_directory() {
        let found =
            format!("found \"embedded\", and storage.url ({}) is no directory to keep it in", config.storage.url);
        return refuse(sources, "index.url", found, "want \"embedded:PATH\" or \"redis://HOST:PORT/DATABASE\"");
    }
    if *index.write_deadline <= *index.margin * 2 {
        let found = format!("found \"{}\" with an index.margin of \"{}\"", index.write_deadline, index.margin);
        return refuse(sources, "index.write_deadline", found, "want more than twice index.margin");
    }
    check_sentinel(config, sources)?;
    check_index_tls(config, sources)
}

fn check_sentinel(config: &Config, sources: &Sources) -> Result<(), ConfigError> {
    let (url, sentinel) = (&config.index.url, &config.index.sentinel);
    let (user, password) = (sentinel.user.is_some(), sentinel.password.is_some());
    let has_sentinels = matches!(&**url, IndexUrl::Redis(url) if matches!(url.layout(), RedisLayout::Sentinel { .. }));
    let given = [("user", user), ("password", password)].into_iter().find(|(_, is_set)| *is_set);
    match given {
        Some((name, _)) if !has_sentinels => {
            let found = format!("found while index.url is \"{url}\"");
            let want = "want a redis-sentinel:// URL in index.url, or nothing in [index.sentinel]";
            refuse(sources, &format!("index.sentinel.{name}"), found, want)
        }
        _ if user && !password => {
            let found = "found without index.sentinel.password".to_owned();
            refuse(sources, "index.sentinel.user", found, "want index.sentinel.password with it")
        }
        _ => Ok(()),
    }
}

fn check_index_tls(config: &Config, sources: &Sources) -> Result<(), ConfigError> {
    let index = &config.index;
    let is_tls = matches!(&*index.url, IndexUrl::Redis(url) if url.is_tls());
    let files = [("ca", &index.ca), ("certificate", &index.certificate), ("key", &index.key)];
    if let Some((name, _)) = files.iter().find(|(_, file)| file.is_some() && !is_tls) {
        let found = format!("found while index.url is \"{}\"", index.url);
        return refuse(sources, &format!("index.{name}"), found, "want a rediss URL in index.url, or not this");
    }
    let (given, missing) = match (&index.certificate, &index.key) {
        (Some(_), None) => ("certificate", "key"),
        (None, Some(_)) => ("key", "certificate"),
        (Some(_), Some(_)) | (None, None) => return Ok(()),
    };
    let found = format!("found without index.{missing}");
    refuse(sources, &format!("index.{given}"), found, "want both or neither")
}

/// A forgotten storage.url would otherwise keep a registry that was meant for a bucket in a directory.
fn check_stores(config: &Config, sources: &Sources) -> Result<(), ConfigError> {
    let storage = &config.storage;
    let stores = [
        ("s3", "an s3://", storage.s3 != S3::default(), matches!(*storage.url, StorageUrl::S3 { .. })),
        ("gcs", "a gs://", storage.gcs != Gcs::default(), matches!(*storage.url, StorageUrl::Gcs { .. })),
        ("azure", "an az://", storage.azure != Azure::default(), matches!(*storage.url, StorageUrl::Azure { .. })),
    ];
    for (name, scheme, is_set, is_used) in stores {
        let set = sources.first_under(&format!("storage.{name}")).filter(|_| is_set && !is_used);
        if let Some(key) = set {
            let found = format!("found while storage.url is \"{}\"", storage.url);
            let allowed = format!("want {scheme} URL in storage.url, or nothing in [storage.{name}]");
            return refuse(sources, &key, found, &allowed);
        }
    }
    Ok(())
}

fn check_s3(config: &Config, sources: &Sources) -> Result<(), ConfigError> {
    let s3 = &config.storage.s3;
    let (id, secret) = (s3.access_key_id.is_some(), s3.secret_access_key.is_some());
    let kms = s3.encryption == S3Encryption::Kms;
    let needs = [
        ("access_key_id", id, "secret_access_key", secret),
        ("secret_access_key", secret, "access_key_id", id),
        ("session_token", s3.session_token.is_some(), "access_key_id", id),
        ("kms_key", s3.kms_key.is_some(), "encryption = \"kms\"", kms),
        ("bucket_key", s3.bucket_key.is_some(), "encryption = \"kms\"", kms),
    ];
    for (key, is_given, needed, is_there) in needs {
        if is_given && !is_there {
            let (key, needed) = (format!("storage.s3.{key}"), format!("storage.s3.{needed}"));
            return refuse(sources, &key, format!("found without {needed}"), &format!("want {needed} with it"));
        }
    }
    Ok(())
}

fn check_azure(config: &Config, sources: &Sources) -> Result<(), ConfigError> {
    let azure = &config.storage.azure;
    if azure.account_key.is_none() || azure.sas.is_none() {
        return Ok(());
    }
    let found = "found with storage.azure.account_key".to_owned();
    refuse(sources, "storage.azure.sas", found, "want one of them, or neither")
}

fn check_proxy(config: &Config, sources: &Sources) -> Result<(), ConfigError> {
    if config.proxy.no_proxy.is_empty() || config.proxy.url.is_some() {
        return Ok(());
    }
    refuse(sources, "proxy.no_proxy", "found without proxy.url".to_owned(), "want proxy.url with it")
}

fn check_redirect(config: &Config, sources: &Sources) -> Result<(), ConfigError> {
    let ttl = *config.redirect.ttl;
    if !REDIRECT_TTL.contains(&ttl) {
        let found = format!("found \"{}\"", config.redirect.ttl);
        let (least, most) = (REDIRECT_TTL.start().write(), REDIRECT_TTL.end().write());
        return refuse(sources, "redirect.ttl", found, &format!("want \"{least}\" to \"{most}\""));
    }
    check_cdn(config, sources)
}

/// A CDN is all there or not at all, with the settings of its own kind and no others.
fn check_cdn(config: &Config, sources: &Sources) -> Result<(), ConfigError> {
    let cdn = &config.redirect.cdn;
    let kind = cdn.kind.unwrap_or(CdnKind::CloudFront);
    let parts = [
        ("kind", cdn.kind.is_some(), true),
        ("url", cdn.url.is_some(), true),
        ("key_pair_id", cdn.key_pair_id.is_some(), kind == CdnKind::CloudFront),
        ("private_key", cdn.private_key.is_some(), kind == CdnKind::CloudFront),
        ("key_name", cdn.key_name.is_some(), kind == CdnKind::CloudCdn),
        ("key", cdn.key.is_some(), kind == CdnKind::CloudCdn),
    ];
    let Some((given, ..)) = parts.iter().find(|(_, is_set, _)| *is_set) else { return Ok(()) };
    let key = format!("redirect.cdn.{given}");
    let all = match kind {
        CdnKind::CloudFront => "want all of kind, url, key_pair_id and private_key, or none",
        CdnKind::CloudCdn => "want all of kind, url, key_name and key, or none",
    };
    if let Some((missing, ..)) = parts.iter().find(|(_, is_set, is_needed)| *is_needed && !is_set) {
        return refuse(sources, &key, format!("found without redirect.cdn.{missing}"), all);
    }
    if let Some((foreign, ..)) = parts.iter().find(|(_, is_set, is_needed)| *is_set && !is_needed) {
        let found = "found with a redirect.cdn.kind that has none".to_owned();
        return refuse(sources, &format!("redirect.cdn.{foreign}"), found, all);
    }
    if !config.storage.url.is_directory() {
        return Ok(());
    }
    let found = format!("found while storage.url is \"{}\"", config.storage.url);
    refuse(sources, &key, found, "want a bucket in storage.url, or nothing in [redirect.cdn]")
}

fn check_collect(config: &Config, sources: &Sources) -> Result<(), ConfigError> {
    let (collect, index) = (&config.collect, &config.index);
    // What an upload puts aside may be in the bucket for as long as the upload is kept before its note says so
    // again; and either clock may be off by the margin.
    let least = *config.limits.upload_expiry + *index.write_deadline + *index.margin * 2;
    if *collect.grace < least {
        let found = format!("found \"{}\"", collect.grace);
        let allowed = format!(
            "want at least \"{}\": limits.upload_expiry, index.write_deadline and twice index.margin together, so that no push in progress is taken for garbage",
            least.write()
        );
        return refuse(sources, "collect.grace", found, &allowed);
    }
    if !COLLECT_PERIOD.contains(&*collect.period) {
        let found = format!("found \"{}\"", collect.period);
        let (least, most) = (COLLECT_PERIOD.start().write(), COLLECT_PERIOD.end().write());
        return refuse(sources, "collect.period", found, &format!("want \"{least}\" to \"{most}\""));
    }
    Ok(())
}

/// Two parts, of the size that the store's blobs are cut into: one is put while the next comes in.
fn check_upload_memory(config: &Config, sources: &Sources) -> Result<(), ConfigError> {
    let (least, allowed) = match *config.storage.url {
        StorageUrl::File(_) => (Size(8 << 20), "want at least \"8MiB\", two parts of a blob in a directory"),
        StorageUrl::S3 { .. } | StorageUrl::Gcs { .. } | StorageUrl::Azure { .. } => {
            (Size(32 << 20), "want at least \"32MiB\", two parts of a blob in a bucket")
        }
    };
    let memory = *config.limits.upload_memory;
    if memory >= least {
        return Ok(());
    }
    refuse(sources, "limits.upload_memory", format!("found \"{}\"", memory.write()), allowed)
}

/// Where to listen when only `PORT` says so. A platform that sets it sends its requests from outside; but as
/// long as nothing was said about access, only this machine may connect.
pub(super) fn listen_on(port: u16, access_is_set: bool) -> Listen {
    let host = if access_is_set { [0, 0, 0, 0] } else { [127, 0, 0, 1] };
    Listen::one(SocketAddr::from((host, port)))
}
