//! How Redis may be reached: by TLS, as a user with few rights, beside other things in one server.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, path::Path, sync::Arc};

use berth::{
    config::RedisUrl,
    index::{
        Ask, Batch, Check, Connect, Fact, Index, IndexError, Outcome, Shard, Write,
        redis::{Login, Redis, Tls},
    },
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;

use crate::{
    berth::{Setup, free_port, own_address},
    redis_fleet::{Cluster, SERVICE, sentinel},
    redis_server::{self, RedisServer},
};

/// What a user may do that Berth logs in as, as docs/redis.md has it.
const RIGHTS: &str = "resetkeys ~berth:* resetchannels &berth:* -@all +info +select +script|load +evalsha +multi +exec +hget +hset +hdel +hincrby +zadd +zrem +zrange +zcard +exists +publish +subscribe";

/// What it needs beside these in a cluster.
const CLUSTER_RIGHTS: &str = "+cluster|slots +asking";

/// The options of a server that knows this user.
fn with_user() -> Vec<&'static str> {
    ["--user", "berth", "on", ">secret"].into_iter().chain(RIGHTS.split(' ')).collect()
}

/// One of each call that an index has.
async fn works(index: &Arc<dyn Index>) {
    let (shard, fact) = (Shard(3), Fact::new("group", "member"));
    let batch = Batch {
        checks: vec![Check::Absent(fact.clone()), Check::Empty("other".to_owned())],
        sequence: Some(Fact::new("counters", "one")),
        writes: vec![
            Write::Put(fact.clone(), "1".into()),
            Write::Raise(fact.clone(), "2".into()),
            Write::PutNumbered(Fact::new("group", "numbered"), "x".into()),
            Write::Delete(Fact::new("group", "gone")),
        ],
        reads: vec![Ask::First("group".to_owned())],
    };
    let committed = index.commit(shard, batch).await.unwrap();
    assert_eq!(committed, Outcome::Committed { sequence: 1, reads: vec![None] });
    assert_eq!(index.get(shard, &[Ask::Count("group".to_owned())]).await.unwrap(), [Some("2".into())]);
    let both = index.get(shard, &[Ask::Value(fact.clone()), Ask::First("group".to_owned())]).await.unwrap();
    assert_eq!(both, [Some("2".into()), Some("member".into())]);
    assert_eq!(index.get(shard, &[Ask::Value(fact)]).await.unwrap(), [Some("2".into())]);
    assert_eq!(index.scan(shard, "group", None, 9).await.unwrap().len(), 2);
    let waking = async {
        // Until it is heard: who waits subscribes first.
        loop {
            index.notify(shard, "topic").await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = index.wait(shard, "topic", std::time::Duration::from_secs(3600)) => {}
        () = waking => {}
    }
    index.identity().await.unwrap();
}

#[tokio::test]
async fn a_user_with_the_documented_rights_is_enough() {
    let server = redis_server::start_with(&with_user()).await;
    let url = server.url().replace("redis://", "redis://berth:secret@");
    works(&Redis::new(&url, "berth:").unwrap().connect().await.unwrap()).await;
    assert!(include_str!("../../docs/redis.md").contains(&format!("ACL SETUSER berth on >PASSWORD {RIGHTS}\n")));
    // Each right is needed: without it some call is refused.
    let mut operator = server.operator().await;
    for right in RIGHTS.split(' ').filter(|right| right.starts_with('+') && *right != "+select") {
        let fewer = RIGHTS.replacen(&format!(" {right}"), "", 1);
        let mut command = ::redis::cmd("ACL");
        command.arg("SETUSER").arg("berth").arg("reset").arg("on").arg(">secret");
        for word in fewer.split(' ') {
            command.arg(word);
        }
        command.exec_async(&mut operator).await.unwrap();
        ::redis::cmd("FLUSHALL").exec_async(&mut operator).await.unwrap();
        let Ok(index) = Redis::new(&url, "berth:").unwrap().connect().await else { continue };
        // Who can't subscribe waits to the end of its patience instead.
        if right == "+subscribe" {
            continue;
        }
        let tried = tokio::spawn(async move { works(&index).await }).await;
        assert!(tried.is_err(), "{right} is not needed");
    }
}

/// A server's keys and channels that are not ours stay as they are.
#[tokio::test]
async fn a_user_of_one_namespace_reaches_no_other() {
    let server = redis_server::start_with(&with_user()).await;
    let url = server.url().replace("redis://", "redis://berth:secret@");
    let index = Redis::new(&url, "other:").unwrap().connect().await.unwrap();
    let refused = index.get(Shard(0), &[Ask::Value(Fact::new("group", "member"))]).await;
    assert!(matches!(&refused, Err(IndexError::Broken(why)) if why.contains("NoPerm")), "{refused:?}");
}

/// A certificate authority, and what it signed for the server and for one client.
struct Authority {
    directory: TempDir,
}

impl Authority {
    fn new() -> Self {
        Self::of("127.0.0.1")
    }

    /// For servers that are reached by this name or address.
    fn of(host: &str) -> Self {
        let directory = TempDir::new().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "an authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        fs::write(directory.path().join("ca.pem"), issuer.pem()).unwrap();
        for name in ["server", "client"] {
            let key = KeyPair::generate().unwrap();
            let names = vec!["localhost".to_owned(), host.to_owned()];
            let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
            fs::write(directory.path().join(format!("{name}.pem")), certificate.pem()).unwrap();
            fs::write(directory.path().join(format!("{name}-key.pem")), key.serialize_pem()).unwrap();
        }
        Self { directory }
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(Path::new(&self.path(name))).unwrap()
    }

    fn own(&self) -> Option<(Vec<u8>, Vec<u8>)> {
        Some((self.read("client.pem"), self.read("client-key.pem")))
    }
}

/// A server that speaks TLS alone to whom the authority vouches for, on a port of its own.
async fn with_tls(authority: &Authority) -> (redis_server::RedisServer, u16) {
    let port = free_port();
    let text = port.to_string();
    let (certificate, key, ca) =
        (authority.path("server.pem"), authority.path("server-key.pem"), authority.path("ca.pem"));
    let arguments = ["--tls-port", &text, "--tls-cert-file", &certificate, "--tls-key-file", &key];
    let arguments = [&arguments[..], &["--tls-ca-cert-file", &ca, "--tls-auth-clients", "yes"]].concat();
    (redis_server::start_with(&arguments).await, port)
}

#[tokio::test]
async fn a_connection_by_tls_is_checked_on_both_sides() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let (_server, port) = with_tls(&authority).await;
    let connect = async |ca: Option<Vec<u8>>, own| {
        let url = RedisUrl::parse(&format!("rediss://localhost:{port}/")).unwrap();
        Redis::with(&url, "berth:", Some(&Tls { ca, own }), &Login::default()).unwrap().connect().await
    };
    works(&connect(Some(authority.read("ca.pem")), authority.own()).await.unwrap()).await;
    for (what, ca, own) in [
        ("a server that a stranger vouches for", Some(stranger.read("ca.pem")), authority.own()),
        ("a server that the system doesn't know", None, authority.own()),
    ] {
        let refused = connect(ca, own).await;
        assert!(
            matches!(&refused, Err(IndexError::Broken(why)) if why.contains("peer certificate")),
            "{what}: {refused:?}"
        );
    }
    for (what, own) in [("no certificate", None), ("a stranger's", stranger.own())] {
        let refused = connect(Some(authority.read("ca.pem")), own).await;
        assert!(matches!(&refused, Err(IndexError::Broken(_))), "{what}: {refused:?}");
    }
}

/// The same as an operator configures it; what is wrong is one line that says where.
#[tokio::test]
async fn the_settings_of_a_connection_reach_it() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let (_server, port) = with_tls(&authority).await;
    let evicting = redis_server::start_with(&["--maxmemory-policy", "allkeys-lfu"]).await;
    let url = format!("rediss://localhost:{port}/");
    let setup = |url: &str, ca: &str| {
        let (certificate, key) = (authority.path("client.pem"), authority.path("client-key.pem"));
        let tls = [("CA", ca), ("CERTIFICATE", &certificate), ("KEY", &key)];
        let mut setup = Setup::of(&[("BERTH_INDEX__URL", url)]);
        if url.starts_with("rediss") {
            setup.environment.extend(tls.map(|(key, value)| (format!("BERTH_INDEX__{key}"), value.to_owned())));
        }
        setup
    };
    let works = setup(&url, &authority.path("ca.pem"));
    let berth = tokio::task::spawn_blocking(move || works.start()).await.unwrap();
    berth.client().push_blob("team/app", "bytes").await;
    for (setup, said) in [
        (setup(&url, &stranger.path("ca.pem")), "index.url: the index is not usable: invalid peer certificate"),
        (setup(&url, &authority.path("none.pem")), "index.ca: can't read"),
        (setup(&url, &authority.path("client-key.pem")), "index.ca: found something else in"),
        (setup(&evicting.url(), ""), "drops facts at random: set it to noeviction"),
    ] {
        let (status, line) = tokio::task::spawn_blocking(move || setup.refused()).await.unwrap();
        assert!(!status.success() && line.contains(said), "{said}: {line}");
    }
}

/// A user with the documented rights, by TLS, through the settings; and what is wrong is one line.
#[tokio::test]
async fn a_cluster_is_reached_as_it_is_configured() {
    let host = own_address().to_string();
    let authority = Authority::of(&host);
    let path = |name| authority.path(name);
    let (certificate, key, ca) = (path("server.pem"), path("server-key.pem"), path("ca.pem"));
    let tls = ["--tls-cert-file", &certificate, "--tls-key-file", &key, "--tls-ca-cert-file", &ca];
    let mut arguments = tls.to_vec();
    arguments.extend(["--tls-auth-clients", "no", "--user", "berth", "on", ">secret"]);
    arguments.extend(RIGHTS.split(' ').chain(CLUSTER_RIGHTS.split(' ')));
    let _fleet = Cluster::start_with(&host, &arguments).await;
    assert!(include_str!("../../docs/redis.md").contains(CLUSTER_RIGHTS));
    let url = format!("rediss-cluster://berth:secret@{host}:8000,{host}:8004");
    let setup = |url: &str| {
        let mut setup = Setup::of(&[("BERTH_INDEX__URL", url)]);
        if url.starts_with("rediss") {
            setup.environment.push(("BERTH_INDEX__CA".to_owned(), path("ca.pem")));
        }
        setup
    };
    let plain = format!("redis-cluster://berth:secret@{host}:7000");
    for url in [&plain, &url] {
        let setup = setup(url);
        let berth = tokio::task::spawn_blocking(move || setup.start()).await.unwrap();
        berth.client().push_blob("team/app", "bytes").await;
    }
    for (url, said) in [
        (plain.replace("secret", "wrong"), format!("index.url: the index is not usable: {host}:7000: ")),
        (plain.replace("-cluster", ""), "the URL of a cluster is redis-cluster://".to_owned()),
        (url.replace("8000", "7000").replace("8004", "7004"), "index.url: ".to_owned()),
    ] {
        let setup = setup(&url);
        let (status, line) = tokio::task::spawn_blocking(move || setup.refused()).await.unwrap();
        println!("{line}");
        assert!(!status.success() && line.contains(&said), "{said}: {line}");
        assert!(!line.contains("wrong") && !line.contains("secret"), "{line}");
    }
}

/// Each kind of node with TLS, certificates on both sides, and a password of its own; and each mistake is one line.
#[tokio::test]
async fn sentinels_and_servers_have_logins_of_their_own() {
    let host = own_address().to_string();
    let authority = Authority::of(&host);
    let tls = |port: u16| {
        let path = |name| authority.path(name);
        vec![
            ("port", "0".to_owned()),
            ("tls-port", port.to_string()),
            ("tls-cert-file", path("server.pem")),
            ("tls-key-file", path("server-key.pem")),
            ("tls-ca-cert-file", path("ca.pem")),
            ("tls-auth-clients", "yes".to_owned()),
            ("tls-replication", "yes".to_owned()),
        ]
    };
    let arguments = |port| tls(port).into_iter().flat_map(|(name, value)| [format!("--{name}"), value]);
    let users = ["--user", "berth", "on", ">for-redis", "~*", "&*", "+@all", "--requirepass", "other"];
    let mut server: Vec<String> = arguments(7000).collect();
    server.extend(users.map(str::to_owned));
    let server: Vec<&str> = server.iter().map(String::as_str).collect();
    let mut master = RedisServer::stopped(&host, 7000, &server);
    master.restart().await;
    let lines = [
        "user watcher on >for-sentinels -@all +sentinel|get-master-addr-by-name".to_owned(),
        "requirepass another".to_owned(),
        format!("sentinel auth-pass {SERVICE} other"),
    ];
    let mut watcher = sentinel(&host, 7100, (&host, 7000), &lines).with(&arguments(7100).collect::<Vec<_>>());
    watcher.restart().await;
    let url = format!("rediss-sentinel://berth:for-redis@{host}:7100/{SERVICE}");
    let setup = |url: &str, user: &str, password: &str| {
        let (ca, certificate, key) =
            (authority.path("ca.pem"), authority.path("client.pem"), authority.path("client-key.pem"));
        Setup::of(&[
            ("BERTH_INDEX__URL", url),
            ("BERTH_INDEX__SENTINEL__USER", user),
            ("BERTH_INDEX__SENTINEL__PASSWORD", password),
            ("BERTH_INDEX__CA", &ca),
            ("BERTH_INDEX__CERTIFICATE", &certificate),
            ("BERTH_INDEX__KEY", &key),
        ])
    };
    let works = setup(&url, "watcher", "for-sentinels");
    let berth = tokio::task::spawn_blocking(move || works.start()).await.unwrap();
    berth.client().push_blob("team/app", "bytes").await;
    let log = berth.log();
    assert!(log.contains("the Sentinels name this Redis server") && log.contains(&format!("{host}:7000")), "{log}");
    for (setup, said) in [
        (setup(&url, "watcher", "wrong"), format!("{host}:7100: Password authentication failed")),
        (setup(&url.replace("for-redis", "wrong"), "watcher", "for-sentinels"), format!("{host}:7000: ")),
        (setup(&url.replace(SERVICE, "none"), "watcher", "for-sentinels"), format!("{host}:7100 knows no \"none\"")),
    ] {
        let (status, line) = tokio::task::spawn_blocking(move || setup.refused()).await.unwrap();
        println!("{line}");
        assert!(!status.success() && line.contains(&said) && line.contains("index.url"), "{said}: {line}");
        assert!(!line.contains("wrong") && !line.contains("for-"), "{line}");
    }
}
