//! The configuration: where settings come from, what is refused and with which line, and what is shown.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use berth::config::{Anonymous, Config, ConfigError, IndexUrl, LoadArgs, Loaded, Origin, StorageUrl, reference};
use proptest::prelude::*;

/// Loads `text` as the file `berth.toml` in a fresh directory, with these variables. What the error says of
/// the directory is replaced by `DIR`.
fn load(text: &str, environment: &[(&str, &str)]) -> Result<Loaded, String> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("berth.toml");
    fs::write(directory.path().join("secret"), "hunter2\n").unwrap();
    let place = |text: &str| text.replace("DIR", directory.path().to_str().unwrap());
    fs::write(&file, place(text)).unwrap();
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), place(value)));
    Config::load(LoadArgs { config: Some(file) }, environment)
        .map_err(|error| error.to_string().replace(directory.path().to_str().unwrap(), "DIR"))
}

fn config(text: &str, environment: &[(&str, &str)]) -> Config {
    load(text, environment).unwrap().config
}

#[test]
fn defaults_are_a_registry_for_this_machine() {
    let config = config("", &[]);
    assert_eq!(config.server.listen[..], ["127.0.0.1:5000".parse().unwrap()]);
    assert_eq!(config.auth.anonymous, Anonymous::Admin);
    assert_eq!(config.index_directory(), Some(PathBuf::from("berth-data/.index")));
    assert_eq!(config.limits.header_timeout.as_secs(), 10);
}

#[test]
fn the_environment_wins_over_the_file_and_the_file_over_the_default() {
    let text = "[limits]\nrequests = 5\nconnections = 7\n";
    let Loaded { config, sources } = load(text, &[("BERTH_LIMITS__REQUESTS", "9")]).unwrap();
    assert_eq!(config.limits.requests.get(), 9);
    assert_eq!(config.limits.connections.get(), 7);
    assert_eq!(config.tags.history.get(), 10);
    assert_eq!(*sources.of("limits.requests"), Origin::Variable("BERTH_LIMITS__REQUESTS".to_owned()));
    assert!(matches!(sources.of("limits.connections"), Origin::File { line: 3, .. }));
    assert_eq!(*sources.of("tags.history"), Origin::Default);
}

#[test]
fn the_command_line_names_the_file_before_the_environment() {
    let directory = tempfile::tempdir().unwrap();
    let (one, two) = (directory.path().join("one"), directory.path().join("two"));
    fs::write(&one, "log.access = false").unwrap();
    fs::write(&two, "log.access = true").unwrap();
    let environment = || [("BERTH_CONFIG".to_owned(), one.to_str().unwrap().to_owned())];
    let load = |config| Config::load(LoadArgs { config }, environment()).unwrap().config.log.access;
    assert!(load(Some(two)));
    assert!(!load(None));
    let missing = LoadArgs { config: Some("/nowhere/berth.toml".into()) };
    assert_eq!(
        Config::load(missing, environment()).unwrap_err().to_string(),
        "/nowhere/berth.toml (named by --config): cannot be read: No such file or directory (os error 2)"
    );
}

#[test]
fn every_kind_of_value_comes_from_the_environment() {
    let config = config(
        "",
        &[
            ("BERTH_SERVER__LISTEN", "127.0.0.1:1, [::1]:2"),
            ("BERTH_SERVER__CORS_ORIGINS", "*,https://ui.example.com"),
            ("BERTH_SERVER__PUBLIC_URL", "https://r.example.com/"),
            ("BERTH_SERVER__TRUSTED_PROXIES", "10.0.0.0/8, ::1"),
            ("BERTH_STORAGE__URL", "file:/data"),
            ("BERTH_STORAGE__SYNC", "false"),
            ("BERTH_TAGS__HISTORY", "3"),
            ("BERTH_AUTH__GROUPS__DEV", "alice,account:ci"),
            ("BERTH_AUTH__RULES__CI__WHO", "everyone"),
            ("BERTH_AUTH__RULES__CI__ROLE", "creator"),
            ("BERTH_AUTH__RULES__CI__REPOSITORIES", "team/*,ci/**"),
        ],
    );
    assert_eq!(config.server.listen.len(), 2);
    assert_eq!(config.server.cors_origins.len(), 2);
    assert_eq!(config.server.public_url.unwrap().as_str(), "https://r.example.com");
    assert_eq!(config.server.trusted_proxies.len(), 2);
    assert_eq!(*config.storage.url, StorageUrl::File("/data".into()));
    assert!(!config.storage.sync);
    assert_eq!(config.tags.history.get(), 3);
    assert_eq!(config.auth.groups["dev"].len(), 2);
    assert_eq!(config.auth.rules["ci"].repositories.len(), 2);
    assert_eq!(config.auth.anonymous, Anonymous::None);
}

#[test]
fn a_variable_finds_the_table_that_the_file_named() {
    let text = "[auth.rules.\"My-rule.1\"]\nwho = [\"everyone\"]\nrole = \"reader\"\nrepositories = [\"**\"]\n";
    let config = config(text, &[("BERTH_AUTH__RULES__MY_RULE_1__ROLE", "writer")]);
    assert_eq!(config.auth.rules.len(), 1);
    assert_eq!(config.auth.rules["My-rule.1"].role, berth::config::Role::Writer);
}

#[test]
fn what_kubernetes_sets_for_a_service_called_berth_is_no_setting() {
    let environment = [
        ("BERTH_SERVICE_HOST", "10.0.0.1"),
        ("BERTH_SERVICE_PORT", "5000"),
        ("BERTH_SERVICE_PORT_HTTP", "5000"),
        ("BERTH_PORT", "tcp://10.0.0.1:5000"),
        ("BERTH_PORT_5000_TCP", "tcp://10.0.0.1:5000"),
        ("BERTH_PORT_5000_TCP_ADDR", "10.0.0.1"),
        ("BERTH_ADMIN_SERVICE_HOST", "10.0.0.2"),
    ];
    load("", &environment).unwrap();
    assert!(load("", &[("BERTH_PORT", "5000")]).is_err());
}

/// The file, the environment, and the line.
type Mistake<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str);

/// Each mistake and its one line.
#[test]
fn each_mistake_is_one_line() {
    let rule = "[auth.rules.ci]\nwho = [\"everyone\"]\nrole = \"reader\"\nrepositories = [\"**\"]\n";
    let collision = format!("{rule}{}", rule.replace("rules.ci", "rules.CI"));
    let cases: &[Mistake<'_>] = &[
        ("[storage]\nulr = \"x\"", &[], "storage.ulr (DIR/berth.toml:2): no such key; did you mean storage.url?"),
        (
            "listen = \"127.0.0.1:5000\"",
            &[],
            "listen (DIR/berth.toml:1): no such key; did you mean admin.listen or server.listen?",
        ),
        ("[sever]\nlisten = 5", &[], "sever (DIR/berth.toml:1): no such key; did you mean server?"),
        (
            "[storage]\nbanana = 1",
            &[],
            "storage.banana (DIR/berth.toml:2): no such key; `berth config schema` lists what there is",
        ),
        ("\"a\\nb\" = 1", &[], "\"a\\nb\" (DIR/berth.toml:1): no such key; `berth config schema` lists what there is"),
        (
            "[auth.rules.ci]\nrol = \"reader\"",
            &[],
            "auth.rules.ci.rol (DIR/berth.toml:2): no such key; did you mean auth.rules.ci.role?",
        ),
        (
            "",
            &[("BERTH_STORAGE_URL", "file:x")],
            "BERTH_STORAGE_URL: no such setting; did you mean BERTH_STORAGE__URL?",
        ),
        (
            "",
            &[("BERTH_AUTH__RULES__CI__ROL", "reader")],
            "BERTH_AUTH__RULES__CI__ROL: no such setting; did you mean BERTH_AUTH__RULES__CI__ROLE?",
        ),
        ("", &[("BERTH_NONSENSE", "1")], "BERTH_NONSENSE: no such setting; `berth config schema` lists what there is"),
        (
            "[storage]\nurl = \"ftp://x\"",
            &[],
            "storage.url (DIR/berth.toml:2): found \"ftp://x\"; want \"file:PATH\", \"s3://BUCKET/PREFIX\", \"gs://BUCKET/PREFIX\" or \"az://CONTAINER/PREFIX\"",
        ),
        (
            "storage.url = 5",
            &[],
            "storage.url (DIR/berth.toml:1): found 5; want \"file:PATH\", \"s3://BUCKET/PREFIX\", \"gs://BUCKET/PREFIX\" or \"az://CONTAINER/PREFIX\"",
        ),
        ("storage = 5", &[], "storage (DIR/berth.toml:1): found a value; want a table"),
        (
            "[server]\nlisten = \"localhost:5000\"",
            &[],
            "server.listen (DIR/berth.toml:2): found \"localhost:5000\"; want an IP address and a port, such as \"127.0.0.1:5000\" or \"[::]:5000\", or a list of several",
        ),
        (
            "[server]\nlisten = [\"127.0.0.1:1\", \"x\"]",
            &[],
            "server.listen (DIR/berth.toml:2): found [\"127.0.0.1:1\", \"x\"]; want an IP address and a port, such as \"127.0.0.1:5000\" or \"[::]:5000\", or a list of several",
        ),
        (
            "[server]\nlisten = []",
            &[],
            "server.listen (DIR/berth.toml:2): found []; want an IP address and a port, such as \"127.0.0.1:5000\" or \"[::]:5000\", or a list of several",
        ),
        (
            "",
            &[("BERTH_STORAGE__SYNC", "yes")],
            "storage.sync (BERTH_STORAGE__SYNC): found \"yes\"; want true or false",
        ),
        (
            "",
            &[("BERTH_TAGS__HISTORY", "0")],
            "tags.history (BERTH_TAGS__HISTORY): found 0; want a whole number from 1 to 4294967295",
        ),
        (
            "",
            &[("BERTH_COLLECT__GRACE", "1d")],
            "collect.grace (BERTH_COLLECT__GRACE): found \"1d\"; want a span of time longer than zero, such as \"250ms\", \"5s\", \"2m\" or \"1h\"",
        ),
        (
            "[collect]\ngrace = \"24h\"\n",
            &[],
            "collect.grace (DIR/berth.toml:2): found \"24h\"; want at least \"86416s\": limits.upload_expiry, index.write_deadline and twice index.margin together, so that no push in progress is taken for garbage",
        ),
        (
            "",
            &[("BERTH_COLLECT__PERIOD", "1000h")],
            "collect.period (BERTH_COLLECT__PERIOD): found \"1000h\"; want \"1s\" to \"720h\"",
        ),
        (
            "",
            &[("BERTH_LIMITS__UPLOAD_MEMORY", "7MiB")],
            "limits.upload_memory (BERTH_LIMITS__UPLOAD_MEMORY): found \"7MiB\"; want at least \"8MiB\", two parts of a blob in a directory",
        ),
        (
            "storage.url = \"s3://bucket\"\nindex.url = \"redis://r\"\n",
            &[("BERTH_LIMITS__UPLOAD_MEMORY", "31MiB")],
            "limits.upload_memory (BERTH_LIMITS__UPLOAD_MEMORY): found \"31MiB\"; want at least \"32MiB\", two parts of a blob in a bucket",
        ),
        (
            "",
            &[("BERTH_LOG__LEVEL", "inof")],
            "log.level (BERTH_LOG__LEVEL): found \"inof\"; want off, error, warn, info, debug or trace, or a list such as \"info,berth::api=debug\"",
        ),
        (
            "",
            &[("BERTH_LOG__FORMAT", "xml")],
            "log.format (BERTH_LOG__FORMAT): found \"xml\"; want one of \"text\", \"json\"",
        ),
        (
            "",
            &[("BERTH_AUTH__ANONYMOUS", "root")],
            "auth.anonymous (BERTH_AUTH__ANONYMOUS): found \"root\"; want one of \"none\", \"reader\", \"creator\", \"writer\", \"admin\"",
        ),
        (
            "",
            &[("BERTH_TAGS__IMMUTABLE", "v*,a/b")],
            "tags.immutable (BERTH_TAGS__IMMUTABLE): found \"a/b\"; want a list, and in it letters, digits, '_', '.' and '-', where * is any characters, such as \"v*\"",
        ),
        (
            "[auth.rules.ci]",
            &[],
            "auth.rules.ci.who (DIR/berth.toml:1): found nothing; want a list, and in it \"user:NAME\", \"account:NAME\", \"group:NAME\", \"oidc:ISSUER:SUBJECT\", \"anonymous\" or \"everyone\"",
        ),
        (
            "[auth.rules.ci]\nwho = [\"bob\"]\nrole = \"reader\"\nrepositories = [\"**\"]",
            &[],
            "auth.rules.ci.who (DIR/berth.toml:2): found \"bob\"; want a list, and in it \"user:NAME\", \"account:NAME\", \"group:NAME\", \"oidc:ISSUER:SUBJECT\", \"anonymous\" or \"everyone\"",
        ),
        (
            "[auth.rules.ci]\nwho = []\nrole = \"reader\"\nrepositories = [\"**\"]",
            &[],
            "auth.rules.ci.who (DIR/berth.toml:2): found an empty list; want at least one",
        ),
        (
            "[auth.rules.a__b]",
            &[],
            "auth.rules.a__b (DIR/berth.toml:1): found the name \"a__b\"; want letters and digits with single '-', '.' or '_' between them",
        ),
        (
            &collision,
            &[],
            "auth.rules.ci (DIR/berth.toml:1): found a name that in the environment is the same as auth.rules.CI; want names that differ in BERTH_AUTH__RULES__CI",
        ),
        (
            "",
            &[("BERTH_SERVER__LISTEN", "0.0.0.0:5000")],
            "server.listen (BERTH_SERVER__LISTEN): found 0.0.0.0:5000, which other machines can reach, while nothing in [auth] says who may enter; set auth.anonymous (none, reader, creator, writer, admin), auth.htpasswd or a rule in auth.rules, or listen on 127.0.0.1",
        ),
        (
            "",
            &[("BERTH_STORAGE__URL", "s3://b")],
            "index.url (default): found \"embedded\", and storage.url (s3://b) is no directory to keep it in; want \"embedded:PATH\" or \"redis://HOST:PORT/DATABASE\"",
        ),
        (
            "[index]\nmargin = \"5s\"",
            &[],
            "index.write_deadline (default): found \"10s\" with an index.margin of \"5s\"; want more than twice index.margin",
        ),
        (
            "",
            &[("BERTH_STORAGE__S3__REGION", "eu")],
            "storage.s3.region (BERTH_STORAGE__S3__REGION): found while storage.url is \"file:berth-data\"; want an s3:// URL in storage.url, or nothing in [storage.s3]",
        ),
        (
            "[index]\nurl = \"embedded:x\"\n[storage]\nurl = \"s3://b\"\ns3.access_key_id = \"k\"",
            &[],
            "storage.s3.access_key_id (DIR/berth.toml:5): found without storage.s3.secret_access_key; want storage.s3.secret_access_key with it",
        ),
        (
            "[index]\nurl = \"embedded:x\"\n[storage]\nurl = \"s3://b\"\ns3.session_token = \"t\"",
            &[],
            "storage.s3.session_token (DIR/berth.toml:5): found without storage.s3.access_key_id; want storage.s3.access_key_id with it",
        ),
        (
            "[index]\nurl = \"embedded:x\"\n[storage]\nurl = \"s3://b\"\ns3.kms_key = \"k\"",
            &[],
            "storage.s3.kms_key (DIR/berth.toml:5): found without storage.s3.encryption = \"kms\"; want storage.s3.encryption = \"kms\" with it",
        ),
        (
            "",
            &[("BERTH_STORAGE__S3__STORAGE_CLASS", "GLACIER")],
            "storage.s3.storage_class (BERTH_STORAGE__S3__STORAGE_CLASS): found \"GLACIER\"; want a storage class whose objects can be read at once, such as \"STANDARD_IA\"",
        ),
        (
            "proxy.no_proxy = [\"10.0.0.0/8\"]",
            &[],
            "proxy.no_proxy (DIR/berth.toml:1): found without proxy.url; want proxy.url with it",
        ),
        (
            "",
            &[("BERTH_PROXY__URL", "socks5://me:pass@proxy")],
            "proxy.url (BERTH_PROXY__URL): found ***; want \"http://[USER:PASSWORD@]HOST:PORT\", or the same with https",
        ),
        (
            "[tls]\ncertificate = \"tls.crt\"",
            &[],
            "tls.certificate (DIR/berth.toml:2): found without tls.key; want both or neither",
        ),
        (
            "[tls]\nmin_version = \"1.3\"",
            &[],
            "tls.min_version (DIR/berth.toml:2): found without tls.certificate; want both or neither",
        ),
        (
            "[tls]\nmin_version = \"1.1\"",
            &[],
            "tls.min_version (DIR/berth.toml:2): found \"1.1\"; want one of \"1.2\", \"1.3\"",
        ),
        (
            "",
            &[("BERTH_SERVER__TRUSTED_PROXIES", "10.0.0.1/8")],
            "server.trusted_proxies (BERTH_SERVER__TRUSTED_PROXIES): found \"10.0.0.1/8\"; want a list, and in it a network such as \"10.0.0.0/8\" or \"fd00::/8\", or a single IP address",
        ),
        (
            "",
            &[("BERTH_INDEX__URL", "redisss://u:pass@h")],
            "index.url (BERTH_INDEX__URL): found ***; want \"embedded\", \"embedded:PATH\", \"redis://[USER:PASSWORD@]HOST:PORT/DATABASE\", \"redis-sentinel://[USER:PASSWORD@]HOST:PORT,HOST:PORT/SERVICE/DATABASE\" or \"redis-cluster://[USER:PASSWORD@]HOST:PORT,HOST:PORT\" (rediss://, rediss-sentinel://, rediss-cluster:// with TLS)",
        ),
        (
            "",
            &[("BERTH_INDEX__URL", "redis://h"), ("BERTH_INDEX__CA", "/ca.pem")],
            "index.ca (BERTH_INDEX__CA): found while index.url is \"redis://h\"; want a rediss URL in index.url, or not this",
        ),
        (
            "",
            &[("BERTH_INDEX__URL", "rediss://h"), ("BERTH_INDEX__KEY", "/key.pem")],
            "index.key (BERTH_INDEX__KEY): found without index.certificate; want both or neither",
        ),
        (
            "",
            &[("BERTH_INDEX__URL", "redis-cluster://a,b"), ("BERTH_INDEX__SENTINEL__PASSWORD", "hunter2")],
            "index.sentinel.password (BERTH_INDEX__SENTINEL__PASSWORD): found while index.url is \"redis-cluster://a,b\"; want a redis-sentinel:// URL in index.url, or nothing in [index.sentinel]",
        ),
        (
            "",
            &[("BERTH_INDEX__URL", "redis-sentinel://a,b/main"), ("BERTH_INDEX__SENTINEL__USER", "me")],
            "index.sentinel.user (BERTH_INDEX__SENTINEL__USER): found without index.sentinel.password; want index.sentinel.password with it",
        ),
        (
            "",
            &[("BERTH_REDIRECT__TTL", "5s")],
            "redirect.ttl (BERTH_REDIRECT__TTL): found \"5s\"; want \"10s\" to \"168h\"",
        ),
        (
            "[redirect]\nttl = \"169h\"",
            &[],
            "redirect.ttl (DIR/berth.toml:2): found \"169h\"; want \"10s\" to \"168h\"",
        ),
        (
            "",
            &[("BERTH_REDIRECT__EXCEPT_NETWORKS", "10.0.0.0/8,10.0.0.1/8")],
            "redirect.except_networks (BERTH_REDIRECT__EXCEPT_NETWORKS): found \"10.0.0.1/8\"; want a list, and in it a network such as \"10.0.0.0/8\" or \"fd00::/8\", or a single IP address",
        ),
        (
            "redirect.cdn.url = \"https://c\"",
            &[],
            "redirect.cdn.url (DIR/berth.toml:1): found without redirect.cdn.kind; want all of kind, url, key_pair_id and private_key, or none",
        ),
        (
            "",
            &[("BERTH_REDIRECT__CDN__KIND", "akamai")],
            "redirect.cdn.kind (BERTH_REDIRECT__CDN__KIND): found \"akamai\"; want one of \"cloudfront\", \"cloud-cdn\"",
        ),
        (
            "[redirect.cdn]\nkind = \"cloudfront\"\nurl = \"https://c\"\nkey_pair_id = \"K\"\nprivate_key = \"-----BEGIN PRIVATE KEY-----\"",
            &[],
            "redirect.cdn.kind (DIR/berth.toml:2): found while storage.url is \"file:berth-data\"; want a bucket in storage.url, or nothing in [redirect.cdn]",
        ),
        (
            "[redirect.cdn]\nkind = \"cloud-cdn\"\nurl = \"https://c\"\nkey_name = \"k\"",
            &[],
            "redirect.cdn.kind (DIR/berth.toml:2): found without redirect.cdn.key; want all of kind, url, key_name and key, or none",
        ),
        (
            "[redirect.cdn]\nkind = \"cloud-cdn\"\nurl = \"https://c\"\nkey_name = \"k\"\nkey = \"AAAAAAAAAAAAAAAAAAAAAA==\"\nkey_pair_id = \"K\"",
            &[],
            "redirect.cdn.key_pair_id (DIR/berth.toml:6): found with a redirect.cdn.kind that has none; want all of kind, url, key_name and key, or none",
        ),
        (
            "",
            &[("BERTH_REDIRECT__CDN__KEY", "c2hvcnQ=")],
            "redirect.cdn.key (BERTH_REDIRECT__CDN__KEY): found ***; want 16 bytes in base64 for URLs: 24 letters, digits, - and _, the last two of them =",
        ),
        (
            "[redirect.cdn]\nkey_name = \"a b\"",
            &[],
            "redirect.cdn.key_name (DIR/berth.toml:2): found \"a b\"; want a key's name: up to 63 letters, digits, _ and -",
        ),
        (
            "storage.url = \"s3://b\"\nindex.url = \"embedded:/i\"\n[storage.azure]\naccount = \"a\"",
            &[],
            "storage.azure.account (DIR/berth.toml:4): found while storage.url is \"s3://b\"; want an az:// URL in storage.url, or nothing in [storage.azure]",
        ),
        (
            "storage.url = \"az://c\"\nindex.url = \"embedded:/i\"\n[storage.azure]\naccount_key = \"a\"\nsas = \"b\"",
            &[],
            "storage.azure.sas (DIR/berth.toml:5): found with storage.azure.account_key; want one of them, or neither",
        ),
        (
            "[storage.gcs]\nsign_as = \"a@b\"",
            &[("BERTH_STORAGE__URL", "s3://b"), ("BERTH_INDEX__URL", "embedded:x")],
            "storage.gcs.sign_as (DIR/berth.toml:2): found while storage.url is \"s3://b\"; want a gs:// URL in storage.url, or nothing in [storage.gcs]",
        ),
        (
            "",
            &[("BERTH_STORAGE__GCS__CREDENTIALS", "/etc/berth/key.json")],
            "storage.gcs.credentials (BERTH_STORAGE__GCS__CREDENTIALS): found ***; want the JSON of a service account's key or of a workload identity, as Google gives it out",
        ),
        (
            "",
            &[("BERTH_STORAGE__URL", "gs://b//p")],
            "storage.url (BERTH_STORAGE__URL): found \"gs://b//p\"; want \"file:PATH\", \"s3://BUCKET/PREFIX\", \"gs://BUCKET/PREFIX\" or \"az://CONTAINER/PREFIX\"",
        ),
        (
            "",
            &[("BERTH_STORAGE__URL", "gs://b")],
            "index.url (default): found \"embedded\", and storage.url (gs://b) is no directory to keep it in; want \"embedded:PATH\" or \"redis://HOST:PORT/DATABASE\"",
        ),
        (
            "[redirect.cdn]\nprivate_key_file = \"DIR/secret\"",
            &[],
            "redirect.cdn.private_key (DIR/berth.toml:2): found ***; want a private key in PEM (-----BEGIN PRIVATE KEY----- and so on)",
        ),
        (
            "",
            &[("BERTH_STORAGE__S3__SECRET_ACCESS_KEY_FILE", "DIR/none")],
            "storage.s3.secret_access_key_file (BERTH_STORAGE__S3__SECRET_ACCESS_KEY_FILE): found \"DIR/none\", which cannot be read (No such file or directory (os error 2)); want the path of a file",
        ),
        (
            "[storage.s3]\nsecret_access_key = \"a\"\nsecret_access_key_file = \"DIR/secret\"",
            &[],
            "storage.s3.secret_access_key_file (DIR/berth.toml:3): found beside storage.s3.secret_access_key; want one of the two",
        ),
        (
            "[storage.s3]\nsecret_access_key = \"a\\u0000b\"",
            &[],
            "storage.s3.secret_access_key (DIR/berth.toml:2): found ***; want text that is not empty, without control characters",
        ),
        ("a = 1\na = 2", &[], "DIR/berth.toml:2: not TOML: duplicate key"),
        ("[x", &[], "DIR/berth.toml:1: not TOML: unclosed table, expected `]`"),
        ("", &[("PORT", "http")], "server.listen (PORT): found \"http\"; want a port number from 1 to 65535"),
    ];
    let mut wrong = String::new();
    for (text, environment, want) in cases {
        let got = load(text, environment).map_or_else(|line| line, |_| "no mistake".to_owned());
        assert!(!got.contains('\n'), "{got}");
        if got != *want {
            wrong.push_str(&format!("{text:?} {environment:?}\n  got  {got}\n  want {want}\n"));
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

#[test]
fn only_loopback_is_open_by_default() {
    for (address, loopback) in [
        ("127.0.0.1:5000", true),
        ("127.0.0.2:5000", true),
        ("[::1]:5000", true),
        ("[::ffff:127.0.0.1]:5000", true),
        ("0.0.0.0:5000", false),
        ("[::]:5000", false),
        ("10.0.0.1:5000", false),
        ("127.0.0.1:5000,[::]:5000", false),
    ] {
        let loaded = load("", &[("BERTH_SERVER__LISTEN", address)]);
        assert_eq!(loaded.is_ok(), loopback, "{address}");
        if let Ok(Loaded { config, .. }) = loaded {
            assert_eq!(config.auth.anonymous, Anonymous::Admin, "{address}");
        }
        let open = [("BERTH_SERVER__LISTEN", address), ("BERTH_AUTH__ANONYMOUS", "reader")];
        assert_eq!(config("", &open).auth.anonymous, Anonymous::Reader, "{address}");
    }
}

#[test]
fn port_counts_where_nothing_else_says_where_to_listen() {
    let listen = |text, environment: &[(&str, &str)]| config(text, environment).server.listen[0].to_string();
    assert_eq!(listen("", &[("PORT", "8080")]), "127.0.0.1:8080");
    assert_eq!(listen("auth.anonymous = \"reader\"", &[("PORT", "8080")]), "0.0.0.0:8080");
    assert_eq!(listen("server.listen = \"127.0.0.1:1\"", &[("PORT", "8080")]), "127.0.0.1:1");
    assert_eq!(listen("", &[("PORT", "8080"), ("BERTH_SERVER__LISTEN", "127.0.0.1:1")]), "127.0.0.1:1");
}

/// A bucket with every secret there is.
const SECRETS: &str = "\
[storage]
url = \"s3://b\"
[storage.s3]
access_key_id = \"key\"
secret_access_key_file = \"DIR/secret\"
session_token = \"hunter4\"
[proxy]
url = \"http://user:hunter5@proxy:3128\"
[index]
url = \"redis://user:hunter3@redis:6379/0\"
";

#[test]
fn a_secret_comes_from_a_file_without_its_line_break() {
    let Loaded { config, sources } = load(SECRETS, &[]).unwrap();
    assert_eq!(config.storage.s3.secret_access_key.as_ref().unwrap().reveal(), "hunter2");
    assert!(matches!(sources.of("storage.s3.secret_access_key"), Origin::File { line: 5, .. }));
    let environment = [("BERTH_STORAGE__S3__SECRET_ACCESS_KEY", "other"), ("BERTH_INDEX__URL_FILE", "DIR/secret")];
    let line = load(SECRETS, &environment).unwrap_err();
    assert!(line.starts_with("index.url (BERTH_INDEX__URL_FILE): "), "{line}");
    let config = self::config(SECRETS, &environment[..1]);
    assert_eq!(config.storage.s3.secret_access_key.as_ref().unwrap().reveal(), "other");
}

#[test]
fn secrets_are_shown_nowhere() {
    let loaded = load(SECRETS, &[]).unwrap();
    let IndexUrl::Redis(url) = &*loaded.config.index.url else { panic!("{loaded:?}") };
    assert_eq!(url.reveal_servers(), ["redis://user:hunter3@redis:6379/0"]);
    for shown in [format!("{loaded:?}"), loaded.render(), toml::to_string(&loaded.config).unwrap()] {
        assert!(!shown.contains("hunter"), "{shown}");
        assert!(shown.contains("***"), "{shown}");
    }
}

#[test]
fn what_check_prints_is_the_same_configuration() {
    let rule = "[auth.rules.\"a.b\"]\nwho = [\"everyone\"]\nrole = \"reader\"\nrepositories = [\"a/*\", \"**\"]\n";
    let several = "[server]\nlisten = [\"127.0.0.1:1\", \"[::1]:2\"]\n";
    for text in ["", rule, several, "[tags]\nimmutable = [\"v*\"]\n[limits]\nblob_size = \"3GiB\"\n"] {
        let loaded = load(text, &[("BERTH_COLLECT__GRACE", "90h")]).unwrap();
        let shown = loaded.render();
        assert_eq!(config(&shown, &[]), loaded.config, "{shown}");
        assert!(shown.contains("grace = \"90h\" # BERTH_COLLECT__GRACE\n"), "{shown}");
        assert!(shown.contains("lease = \"5s\" # default\n"), "{shown}");
    }
}

/// `WRITE_DOCS=1` (which `make docs-config` sets) writes the page instead.
#[test]
fn the_reference_is_what_the_code_says() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    if std::env::var_os("WRITE_DOCS").is_some() {
        fs::write(&page, reference()).unwrap();
    }
    assert_eq!(fs::read_to_string(&page).unwrap(), reference(), "`make docs-config` writes it again");
}

/// Every key of the schema is in the reference, and the other way around.
#[test]
fn the_schema_and_the_reference_have_the_same_keys() {
    fn keys(schema: &serde_json::Value, path: &str, found: &mut Vec<String>) {
        for (key, value) in schema["properties"].as_object().unwrap() {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            assert!(!value["description"].as_str().unwrap_or_default().is_empty(), "{path} has no doc comment");
            if value.get("properties").is_some() {
                keys(value, &path, found);
            } else if value["additionalProperties"]["type"] == "array" {
                found.push(format!("{path}.<name>"));
            } else if value["additionalProperties"].is_object() {
                keys(&value["additionalProperties"], &format!("{path}.<name>"), found);
            } else if !path.ends_with("_file") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    keys(&berth::config::schema(), "", &mut found);
    let page = reference();
    let mut documented: Vec<_> =
        page.lines().filter_map(|line| line.strip_prefix("### `")?.strip_suffix('`')).collect();
    documented.sort_unstable();
    found.sort_unstable();
    assert_eq!(documented, found);
}

fn berth(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
    command.args(arguments).env_clear().envs(environment.iter().copied()).output().unwrap()
}

#[test]
fn a_mistake_in_the_configuration_is_one_line_and_status_2() {
    for command in [&["serve"][..], &["config", "check"]] {
        let output = berth(command, &[("BERTH_LOG__ACCESS", "maybe")]);
        assert_eq!(output.status.code(), Some(2));
        let want = "berth: log.access (BERTH_LOG__ACCESS): found \"maybe\"; want true or false\n";
        assert_eq!(String::from_utf8(output.stderr).unwrap(), want);
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn the_command_shows_what_counts_and_what_there_is() {
    let check = berth(&["config", "check"], &[]);
    assert_eq!(check.status.code(), Some(0));
    assert!(String::from_utf8(check.stdout).unwrap().contains("url = \"file:berth-data\" # default\n"));
    let schema = berth(&["config", "schema"], &[]);
    assert!(serde_json::from_slice::<serde_json::Value>(&schema.stdout).unwrap()["properties"]["tags"].is_object());
    let completions = berth(&["completions", "bash"], &[]);
    assert!(String::from_utf8(completions.stdout).unwrap().contains("berth"));
    let version = berth(&["--version"], &[]);
    assert!(String::from_utf8(version.stdout).unwrap().starts_with(concat!("berth ", env!("CARGO_PKG_VERSION"))));
    let nothing = berth(&[], &[]);
    assert_eq!(nothing.status.code(), Some(2));
    assert!(String::from_utf8(nothing.stderr).unwrap().contains("Examples:"));
}

#[cfg(unix)]
#[test]
fn a_variable_that_is_not_text_is_refused() {
    use std::os::unix::ffi::OsStrExt;

    let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
    let bytes = std::ffi::OsStr::from_bytes(b"\xff");
    let output = command.args(["config", "check"]).env_clear().env("BERTH_LOG__LEVEL", bytes).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let want = "berth: BERTH_LOG__LEVEL (BERTH_LOG__LEVEL): found bytes that are not UTF-8; want text\n";
    assert_eq!(String::from_utf8(output.stderr).unwrap(), want);
}

fn parse(text: &str) -> Result<Loaded, ConfigError> {
    Config::parse(Path::new("berth.toml"), text)
}

proptest! {
    #[test]
    fn arbitrary_text_is_a_configuration_or_one_line(text in "\\PC*|(\\[[a-z.\\[\\]]{0,9}\n|[a-z\"'.]{1,9} *= *[a-z0-9\"'{}\\[\\]:/,-]{0,12}\n){0,6}") {
        if let Err(error) = parse(&text) {
            prop_assert!(!error.to_string().contains(['\n', '\r']));
        }
    }

    #[test]
    fn arbitrary_values_are_allowed_or_one_line(
        key in prop::sample::select(vec!["server.listen", "storage.url", "index.url", "log.level", "tags.immutable", "collect.grace", "auth.rules.a.who"]),
        value in any::<String>(),
    ) {
        if let Err(error) = parse(&format!("{key} = {}", toml::Value::String(value))) {
            prop_assert!(!error.to_string().contains(['\n', '\r']));
        }
    }
}
