//! The URL of an index in Redis: one server, the master that Sentinels name, or a cluster.
//!
//! It is only parsed here; whether anybody answers at it is for the layer that dials it to say.

use std::fmt;

use super::text::MASK;

/// The URL of one Redis server, or of several. It may hold a password: shown, that is masked.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl {
    text: String,
    layout: RedisLayout,
    servers: Vec<String>,
}

/// How the server that has the last word on a fact is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedisLayout {
    /// It is the one that the URL names.
    Single,
    /// By asking the Sentinels that the URL names.
    Sentinel {
        /// What the Sentinels call the master and its replicas (`sentinel monitor NAME …`).
        service: String,
    },
    /// By asking the nodes of a cluster, some of which the URL names.
    Cluster,
}

impl RedisUrl {
    /// Reads one of
    /// - `redis://[[USER]:PASSWORD@]HOST[:PORT][/DATABASE]`,
    /// - `redis-sentinel://[[USER]:PASSWORD@]HOST[:PORT][,HOST[:PORT]…]/SERVICE[/DATABASE]`, whose user and
    ///   password are for Redis and not for the Sentinels,
    /// - `redis-cluster://[[USER]:PASSWORD@]HOST[:PORT][,HOST[:PORT]…]`,
    ///
    /// or the same with `rediss` for TLS. `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let (scheme, kind) = scheme.split_once('-').unwrap_or((scheme, ""));
        let (place, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, hosts) = place.rsplit_once('@').map_or(("", place), |(user, hosts)| (user, hosts));
        let (layout, port, database) = match kind {
            "" => (RedisLayout::Single, "6379", path),
            "sentinel" => {
                let (service, database) = path.split_once('/').unwrap_or((path, ""));
                (RedisLayout::Sentinel { service: is_service(service).then(|| service.to_owned())? }, "26379", database)
            }
            "cluster" => (RedisLayout::Cluster, "6379", path),
            _ => return None,
        };
        let hosts: Vec<&str> = hosts.split(',').collect();
        let good = matches!(scheme, "redis" | "rediss")
            && (hosts.len() == 1 || layout != RedisLayout::Single)
            && hosts.iter().all(|host| is_host(host))
            && user.bytes().all(|byte| byte.is_ascii_graphic())
            && database.bytes().all(|byte| byte.is_ascii_digit())
            // A cluster has only the one.
            && (matches!(database, "" | "0") || layout != RedisLayout::Cluster);
        let user = place.rsplit_once('@').map_or(String::new(), |(user, _)| format!("{user}@"));
        let server = |host: &&str| match host.ends_with(']') || !host.contains(':') {
            true => format!("{scheme}://{user}{host}:{port}/{database}"),
            false => format!("{scheme}://{user}{host}/{database}"),
        };
        good.then(|| Self { text: text.to_owned(), servers: hosts.iter().map(server).collect(), layout })
    }

    /// Each server that the URL names, as a `redis://` or `rediss://` URL with password, port and database, for
    /// the client that connects. Those of Sentinels hold what is meant for Redis.
    pub fn reveal_servers(&self) -> &[String] {
        &self.servers
    }

    /// How the server that has the last word is found.
    pub fn layout(&self) -> &RedisLayout {
        &self.layout
    }

    /// Whether connections are encrypted.
    pub fn is_tls(&self) -> bool {
        self.text.starts_with("rediss")
    }
}

/// What `sentinel monitor` takes for a name.
fn is_service(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    !text.is_empty() && text.bytes().all(good)
}

/// `HOST` or `HOST:PORT`.
fn is_host(text: &str) -> bool {
    text.parse::<http::uri::Authority>().is_ok_and(|host| !host.as_str().ends_with(':') && !text.contains('@'))
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((before, host)) = self.text.rsplit_once('@') else {
            return f.write_str(&self.text);
        };
        let (scheme, user) = before.split_once("://").unwrap_or_default();
        let user = user.split(':').next().unwrap_or_default();
        write!(f, "{scheme}://{user}:{MASK}@{host}")
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_names_its_servers() {
        let service = || RedisLayout::Sentinel { service: "main-1".to_owned() };
        for (text, layout, servers, shown) in [
            ("redis://[::1]", RedisLayout::Single, vec!["redis://[::1]:6379/"], "redis://[::1]"),
            ("redis://redis:7/0", RedisLayout::Single, vec!["redis://redis:7/0"], "redis://redis:7/0"),
            (
                "redis://berth:p@ss:w@redis:7/1",
                RedisLayout::Single,
                vec!["redis://berth:p@ss:w@redis:7/1"],
                "redis://berth:***@redis:7/1",
            ),
            ("redis://:secret@redis", RedisLayout::Single, vec!["redis://:secret@redis:6379/"], "redis://:***@redis"),
            (
                "rediss-sentinel://u:secret@a,[::1]:7/main-1/2",
                service(),
                vec!["rediss://u:secret@a:26379/2", "rediss://u:secret@[::1]:7/2"],
                "rediss-sentinel://u:***@a,[::1]:7/main-1/2",
            ),
            ("redis-sentinel://a/main-1", service(), vec!["redis://a:26379/"], "redis-sentinel://a/main-1"),
            (
                "redis-cluster://:secret@a:1,b",
                RedisLayout::Cluster,
                vec!["redis://:secret@a:1/", "redis://:secret@b:6379/"],
                "redis-cluster://:***@a:1,b",
            ),
        ] {
            let url = RedisUrl::parse(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(
                (url.layout(), url.reveal_servers()),
                (&layout, &*servers.iter().map(ToString::to_string).collect::<Vec<_>>())
            );
            assert_eq!((format!("{url}"), format!("{url:?}")), (shown.to_owned(), shown.to_owned()));
            assert_eq!(url.is_tls(), text.starts_with("rediss"));
        }
    }

    #[test]
    fn what_is_none_is_refused() {
        for bad in [
            "redis:",
            "redis://",
            "redis://h:",
            "redis://h/x",
            "redis://a,b",
            "redis://h/0?x",
            "rediss://h/#insecure",
            "redis-sentinel://h",
            "redis-sentinel://h/",
            "redis-sentinel://h/a b",
            "redis-sentinel://h/main/x",
            "redis-sentinel://h,/main",
            "redis-cluster://a,,b",
            "redis-cluster://a/1",
            "redis-ring://a",
            "redis+cluster://a",
        ] {
            assert!(RedisUrl::parse(bad).is_none(), "{bad}");
        }
    }
}
