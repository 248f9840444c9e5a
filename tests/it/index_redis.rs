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
    berth::{Setup, free_port},
    redis_server,
};

/// What a user may do that Berth logs in as, as docs/redis.md has it.
pub(crate) const RIGHTS: &str = "resetkeys ~berth:* resetchannels &berth:* -@all +info +select +script|load +evalsha +multi +exec +hget +hset +hdel +hincrby +zadd +zrem +zrange +exists +publish +subscribe";

/// What it needs beside these in a cluster.
pub(crate) const CLUSTER_RIGHTS: &str = "+cluster|slots +asking";

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
pub(crate) struct Authority {
    directory: TempDir,
}

impl Authority {
    fn new() -> Self {
        Self::of("127.0.0.1")
    }

    /// For servers that are reached by this name or address.
    pub(crate) fn of(host: &str) -> Self {
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

    pub(crate) fn path(&self, name: &str) -> String {
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
