//! The settings themselves: one tree of structs. A field's doc comment is what the JSON Schema and the
//! reference in `docs/` say of the key, so it is written for whoever runs Berth.

use std::{collections::BTreeMap, net::SocketAddr, num::NonZeroU32, path::PathBuf, time::Duration};

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    address::{
        CorsOrigin, IndexUrl, IssuerUrl, KeyPlace, Listen, Namespace, ProxyUrl, Realm, Site, StorageUrl, UrlStart,
    },
    azure::Azure,
    events::Events,
    gcs::Gcs,
    pattern::{AgentPattern, ClaimPattern, RepositoryPattern, TagPattern},
    text::{CdnKey, FilePath, KeyName, Keys, PrivateKey, Secret, StorageClass, Text, Word},
    units::{Ceiling, LogFilter, Size},
    who::{Member, Who},
};

/// All of Berth's settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where clients reach the registry.
    pub server: Server,
    /// The listener for those who run Berth: metrics, health and the admin API.
    pub admin: Admin,
    /// The bucket: where the bytes are, and the truth.
    pub storage: Storage,
    /// The proxy through which Berth reaches what is outside.
    pub proxy: Proxy,
    /// Whether clients fetch the bytes of blobs from Berth, or by its leave from the bucket itself.
    pub redirect: Redirect,
    /// The index, which makes answers fast. All that is in it can be rebuilt from the bucket.
    pub index: Index,
    /// TLS, where Berth speaks it itself and no proxy in front does.
    pub tls: Tls,
    /// Who may do what.
    pub auth: Auth,
    /// What may happen to tags.
    pub tags: Tags,
    /// When what nothing needs leaves the bucket.
    pub collect: Collect,
    /// Who is told of what happens.
    pub events: Events,
    /// Limits that keep memory and time bounded, whatever clients send.
    pub limits: Limits,
    /// What is logged, and how. Logs go to standard error.
    pub log: Log,
}

/// `[server]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    /// The address to listen on, or a list of several. Where it is not set and `PORT` is: that port, on
    /// `0.0.0.0` once anything in `[auth]` is set, else on `127.0.0.1`.
    pub listen: Listen,
    /// The URL by which every client reaches the registry, where a proxy in front doesn't say it: each
    /// `Location` and the address of the token service begin with it. Where it is not set, the latter begins
    /// with what the client asked for, and a `Location` is relative.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_url: Option<Text<Site>>,
    /// The addresses of the proxies in front, as networks (`10.0.0.0/8`) or single ones. What they say of their
    /// client in `X-Forwarded-For`, `X-Forwarded-Proto` and `X-Forwarded-Host`, or where all of these are
    /// missing in `Forwarded`, is believed; from anybody else it is ignored.
    pub trusted_proxies: Vec<Text<IpNet>>,
    /// The origins whose pages may call the registry from a browser; `*` is any.
    pub cors_origins: Vec<Text<CorsOrigin>>,
}

/// `[admin]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Admin {
    /// The address to listen on. Metrics and health are for anyone who reaches it; the admin API asks
    /// who it is, unless the address is a loopback address.
    pub listen: Text<SocketAddr>,
    /// Whether it speaks TLS, with the certificate of `[tls]`.
    pub tls: bool,
}

/// `[storage]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Storage {
    /// Where the bucket is: `file:PATH` is a local directory (a relative path starts at the working
    /// directory), `s3://BUCKET/PREFIX` a bucket of S3 or of a store that speaks its protocol, `gs://BUCKET/PREFIX`
    /// one of Google Cloud Storage, `az://CONTAINER/PREFIX` a container of Azure Blob Storage.
    pub url: Text<StorageUrl>,
    /// Whether a write to a local directory is on disk (fsync) before it is acknowledged. Without it a power
    /// failure can lose pushes that were acknowledged.
    pub sync: bool,
    /// How to reach an S3-compatible store. Only for an `s3://` URL.
    pub s3: S3,
    /// How to reach Google Cloud Storage. Only for a `gs://` URL.
    pub gcs: Gcs,
    /// How to reach Azure Blob Storage. Only for an `az://` URL.
    pub azure: Azure,
}

/// `[storage.s3]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct S3 {
    /// The store's URL, where it is not Amazon's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Text<Site>>,
    /// The URL at which clients reach the store, where it is not the one that Berth uses itself. Only what
    /// clients are redirected to names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_endpoint: Option<Text<Site>>,
    /// The region. Where it is not set, what AWS' own tools would use counts (`AWS_REGION`, the profile, the
    /// machine's own region), else `us-east-1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<Text<Word>>,
    /// Whether the bucket is named in the path of a request and not in the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-default" = "`true` where the store is not Amazon's own, else `false`"))]
    pub path_style: Option<bool>,
    /// The id of the access key. Where it is not set, whatever AWS' own tools would find counts: the
    /// environment, a profile (also SSO, an assumed role, a process), a web identity, the role of a container
    /// or of the machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_key_id: Option<Text<Word>>,
    /// The secret of the access key. It goes with `storage.s3.access_key_id`: both or neither.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-secret" = true))]
    pub secret_access_key: Option<Text<Secret>>,
    /// The session token, where the access key is a temporary one. It is not renewed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-secret" = true))]
    pub session_token: Option<Text<Secret>>,
    /// How the store encrypts what Berth writes: `bucket` as the bucket is set up, `s3` with keys that S3
    /// manages (SSE-S3), `kms` with a key of the key management service (SSE-KMS).
    pub encryption: S3Encryption,
    /// The id or ARN of the key for `encryption = "kms"`. Where it is not set, the account's own key for S3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kms_key: Option<Text<Word>>,
    /// Whether S3 uses one data key for many objects, which makes `encryption = "kms"` cheaper. Where it is
    /// not set, as the bucket is set up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bucket_key: Option<bool>,
    /// The storage class of blobs. Where it is not set, the store's own. What Berth keeps beside them is small,
    /// and always in the store's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_class: Option<Text<StorageClass>>,
    /// What is sent along with bytes for the store to check: `sha256`, or `none` for a store that refuses it.
    /// With `sha256` a store that keeps it also notices a part of an upload that was overwritten by one with
    /// the same MD5.
    pub checksum: S3Checksum,
    /// A file of certificates in PEM that are trusted beside the system's own. Where it is not set,
    /// `AWS_CA_BUNDLE` counts. It is read at the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_bundle: Option<Text<PathBuf>>,
}

/// How the store encrypts what is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum S3Encryption {
    /// As the bucket is set up.
    #[default]
    Bucket,
    /// SSE-S3.
    S3,
    /// SSE-KMS.
    Kms,
}

/// What is sent along for the store to check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum S3Checksum {
    /// The SHA-256 of each object and each part.
    #[default]
    Sha256,
    /// Nothing.
    None,
}

/// `[proxy]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Proxy {
    /// The proxy's URL. Where it is not set, `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` count;
    /// where it is, they don't. This machine and what is only on its link are reached without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-secret" = true))]
    pub url: Option<Text<ProxyUrl>>,
    /// Hosts that are reached without it: names (with all names below them), addresses and networks.
    pub no_proxy: Vec<Text<Word>>,
}

/// `[redirect]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Redirect {
    /// Whether a client that pulls a blob is sent (307) to the bucket for its bytes, by a URL that is signed for
    /// it. Clients must be able to reach the bucket then: see the `public_endpoint` of each kind of store. A local directory
    /// has no such URLs, and Berth sends the bytes itself.
    pub enabled: bool,
    /// For how long such a URL can be fetched, `10s` to `168h`, the most that S3 and GCS take. For as long, at most,
    /// one who has lost the right to pull can still fetch a blob by a URL that was given out before.
    pub ttl: Text<Duration>,
    /// Berth sends the bytes of smaller blobs itself.
    pub min_size: Text<Size>,
    /// Networks (`10.0.0.0/8`) or single addresses of clients to which Berth sends the bytes itself.
    pub except_networks: Vec<Text<IpNet>>,
    /// Patterns of the `User-Agent` of clients to which Berth sends the bytes itself; `*` stands for any
    /// characters. Separate several by commas in the environment, where one can't have a comma in it.
    pub except_user_agents: Vec<Text<AgentPattern>>,
    /// Patterns of repositories whose blobs Berth sends itself: `*` is any one component of a name, `**` any
    /// number, also none.
    pub except_repositories: Vec<Text<RepositoryPattern>>,
    /// The CDN in front of the bucket, where there is one: clients are then sent there.
    pub cdn: Cdn,
}

/// `[redirect.cdn]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Cdn {
    /// Whose CDN it is, and so how its URLs are signed. `redirect.cdn.url` goes with it, and for `cloudfront`
    /// `key_pair_id` and `private_key`, for `cloud-cdn` `key_name` and `key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<CdnKind>,
    /// What its URLs begin with, up to where the bucket's own keys begin (`data/…`): with the prefix of
    /// `storage.url`, unless the CDN adds that itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<Text<UrlStart>>,
    /// The id that CloudFront gave to the public key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_pair_id: Option<Text<Word>>,
    /// The private key that signs for CloudFront, in PEM: RSA of 2048 bits, or ECDSA on P-256.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-secret" = true))]
    pub private_key: Option<Text<PrivateKey>>,
    /// The name that the key has in Cloud CDN.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_name: Option<Text<KeyName>>,
    /// The key that signs for Cloud CDN: the 16 bytes that it was given, in base64 for URLs.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-secret" = true))]
    pub key: Option<Text<CdnKey>>,
}

/// Whose CDN is in front of the bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum CdnKind {
    /// Amazon's.
    CloudFront,
    /// Google's.
    #[serde(rename = "cloud-cdn")]
    CloudCdn,
}

/// `[index]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Index {
    /// Where the index is: `embedded` is a database in `.index` in the directory of a `file:` bucket,
    /// `embedded:PATH` one in a directory of its own, for a single replica; several replicas share a
    /// `redis://` server, the master that Sentinels name (`redis-sentinel://`), or a cluster (`redis-cluster://`);
    /// each with `rediss` by TLS. A URL with a password is best read from a file.
    #[schemars(extend("x-secret" = true))]
    pub url: Text<IndexUrl>,
    /// What each key in Redis begins with. Registries that share a server have one each.
    pub namespace: Text<Namespace>,
    /// The file of certificates, in PEM, that vouch for the servers of a `rediss` URL. Where it is not set, the system's do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<Text<PathBuf>>,
    /// The file with the certificate, in PEM, by which Berth says to the servers of a `rediss` URL who it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<Text<PathBuf>>,
    /// The file with the certificate's private key, in PEM. It goes with `index.certificate`: both or neither.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<Text<PathBuf>>,
    /// Who Berth is to Sentinels. Only for a `redis-sentinel://` URL.
    pub sentinel: Sentinel,
    /// For how long a replica believes the index without looking again at the bucket.
    pub lease: Text<Duration>,
    /// How long a write to the bucket may take before it no longer counts. More than twice `index.margin`.
    pub write_deadline: Text<Duration>,
    /// How far the store's clock may be off, and how long a small object that it received may take to become
    /// visible.
    pub margin: Text<Duration>,
}

/// `[index.sentinel]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Sentinel {
    /// The user that logs in to the Sentinels, where it is not `default`. The one in `index.url` logs in to Redis.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<Text<Word>>,
    /// The password for the Sentinels. Where it is not set they ask for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-secret" = true))]
    pub password: Option<Text<Secret>>,
}

/// `[tls]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// The file with the server's certificate, in PEM, followed by those between it and a root. Where it is
    /// set, every address of `server.listen` speaks TLS and nothing else. When this file or that of the key
    /// changes, new connections get the new certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<Text<FilePath>>,
    /// The file with the certificate's private key, in PEM. It goes with `tls.certificate`: both or neither.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<Text<FilePath>>,
    /// The oldest version of TLS that clients may speak.
    pub min_version: TlsVersion,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[schemars(inline)]
pub enum TlsVersion {
    /// TLS 1.2.
    #[default]
    #[serde(rename = "1.2")]
    Tls12,
    /// TLS 1.3.
    #[serde(rename = "1.3")]
    Tls13,
}

/// `[auth]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Auth {
    /// What anybody may do with every repository without logging in. Berth does not start on an address that
    /// other machines reach while nothing in `[auth]` says who may enter.
    #[schemars(extend("x-default" = "`\"admin\"` where every address of `server.listen` is a loopback address and nothing else in `[auth]` is set, else `\"none\"`"))]
    pub anonymous: Anonymous,
    /// The file of users and their passwords, as `htpasswd -B` writes it: hashes by bcrypt or argon2, and no
    /// others. It is read again when it changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub htpasswd: Option<Text<FilePath>>,
    /// Groups that rules can name, each with a list of who is in it.
    pub groups: BTreeMap<String, Vec<Text<Member>>>,
    /// OpenID Connect issuers whose ID tokens are passwords here, by a name of your own, which rules name them
    /// by: `oidc:NAME:SUBJECT`.
    pub oidc: BTreeMap<String, Oidc>,
    /// The tokens that Berth issues.
    pub token: Token,
    /// Other token services whose tokens count here, by a name of your own: what such a token says of access
    /// holds as it is.
    pub token_issuers: BTreeMap<String, TokenIssuer>,
    /// Rules, by a name of your own. They only add up: what one grants, no other takes away.
    pub rules: BTreeMap<String, Rule>,
}

/// `[auth.oidc.<name>]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Oidc {
    /// The issuer, exactly as its tokens name it in `iss`. Its keys are found by way of
    /// `/.well-known/openid-configuration` below it.
    pub issuer: Text<IssuerUrl>,
    /// Whom a token must be meant for: one of these stands in its `aud`. Choose a name that no other service
    /// takes, such as the URL of this registry, or a token that was meant for them opens this one.
    pub audience: Vec<Text<Word>>,
    /// Claims that a token must have, each with patterns of which its value matches one; `*` is any
    /// characters. A claim that is a list matches with any of its items.
    #[serde(default)]
    pub claims: BTreeMap<String, Vec<Text<ClaimPattern>>>,
    /// The claim that says who it is: SUBJECT in `oidc:NAME:SUBJECT`.
    #[serde(default = "subject_claim")]
    #[schemars(extend("x-default" = "`\"sub\"`"))]
    pub subject: Text<Word>,
    /// Claims that name groups. A group is called by the issuer and the value: rules name it
    /// `group:NAME:VALUE`.
    #[serde(default)]
    pub groups: Vec<Text<Word>>,
    /// The file of certificates, in PEM, by which the issuer is known where a public authority doesn't vouch
    /// for it. Only these count then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<Text<FilePath>>,
}

fn subject_claim() -> Text<Word> {
    Text(Word::literal("sub"))
}

/// `[auth.token]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Token {
    /// The name in each token of who issued it. Where others shall trust the tokens, it is Berth's own URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-default" = "`server.public_url` where it is set, else `\"berth\"`"))]
    pub issuer: Option<Text<Word>>,
    /// The name in each token of whom it is for, also in those of `[auth.token_issuers]`; clients are told it,
    /// and say it when they ask for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-default" = "the host of `server.public_url` where it is set, else `\"berth\"`"))]
    pub service: Option<Text<Word>>,
    /// The token service that clients are sent to, where it is another one, of `[auth.token_issuers]`. Berth
    /// issues no tokens then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub realm: Option<Text<Realm>>,
    /// How long a token is good for, from one minute, below which clients ask for one again and again, to a
    /// day. A right that is taken away, or an account that is disabled, lives on for as long.
    pub ttl: Text<Duration>,
    /// How long a client that asks for a refresh token (`docker login` does) can go on without its password.
    /// It ends earlier when the password changes.
    pub refresh_ttl: Text<Duration>,
    /// The private keys that sign tokens: Ed25519, P-256 or RSA, in PEM. The newest signs, all verify. Where it
    /// is not set and the bucket is a local directory, they are made there, in `.keys`. Replicas share them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-secret" = true))]
    pub keys: Option<Text<Keys>>,
}

/// `[auth.token_issuers.<name>]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenIssuer {
    /// The issuer, exactly as its tokens name it in `iss`.
    pub issuer: Text<Word>,
    /// Its public keys: the URL of a JSON Web Key Set, or a file that holds one, or the keys or certificates
    /// themselves in PEM. They are read again when a token names one that isn't known.
    pub jwks: Text<KeyPlace>,
    /// The file of certificates, in PEM, by which the server of that URL is known where a public authority
    /// doesn't vouch for it. Only these count then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<Text<FilePath>>,
}

/// What someone who has not logged in may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum Anonymous {
    /// Nothing but what a rule grants.
    #[default]
    None,
    /// As [`Role::Reader`].
    Reader,
    /// As [`Role::Creator`].
    Creator,
    /// As [`Role::Writer`].
    Writer,
    /// As [`Role::Admin`].
    Admin,
}

impl Anonymous {
    /// The role, if there is one.
    pub fn role(self) -> Option<Role> {
        match self {
            Self::None => None,
            Self::Reader => Some(Role::Reader),
            Self::Creator => Some(Role::Creator),
            Self::Writer => Some(Role::Writer),
            Self::Admin => Some(Role::Admin),
        }
    }
}

/// `[auth.rules.<name>]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Whom the rule is about: users, service accounts, groups, those whom an issuer vouches for (`*` in the
    /// subject is any characters); `anonymous` is whoever has not logged in, `everyone` is anybody at all.
    pub who: Vec<Text<Who>>,
    /// What they may do: a `reader` pulls, a `creator` also pushes but moves no tag that exists, a `writer`
    /// pushes anything, an `admin` also deletes.
    pub role: Role,
    /// Patterns of repositories: `*` is any one component of a name, `**` any number, also none.
    pub repositories: Vec<Text<RepositoryPattern>>,
}

/// What one may do; each role may do what the one before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum Role {
    /// Pull.
    Reader,
    /// Push, but move no tag that exists.
    Creator,
    /// Push.
    Writer,
    /// Delete.
    Admin,
}

/// `[tags]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Tags {
    /// Patterns of tags that are never moved once they exist; `*` stands for any characters.
    pub immutable: Vec<Text<TagPattern>>,
    /// How many revisions of each tag are kept, the present one among them.
    pub history: NonZeroU32,
}

/// `[collect]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Collect {
    /// How old a thing that nothing needs must be before it is collected: a blob that no manifest of its repository
    /// refers to, since a push last asked for it; an object that the index knows nothing of, since it was written.
    /// Also how long a deleted tag is remembered. At least `limits.upload_expiry`, `index.write_deadline` and twice
    /// `index.margin` together: what a push that is still going on has written may look like garbage for as long.
    pub grace: Text<Duration>,
    /// How often all objects of the bucket are looked through for garbage, `1s` to `720h`. A round lists the whole
    /// bucket, a request for each 500 objects. What nothing needs is gone once the grace, a period and a round have
    /// passed.
    pub period: Text<Duration>,
}

/// `[limits]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// How many connections are open at once; one more waits to be accepted.
    pub connections: NonZeroU32,
    /// How many requests are in flight at once.
    pub requests: NonZeroU32,
    /// How much memory all uploads together use for bytes on their way to the bucket, beside 64 KiB for each.
    /// At least two parts: `32MiB` for a bucket, `8MiB` for a directory.
    pub upload_memory: Text<Size>,
    /// A directory, made if it is missing, for bytes on their way to the bucket that `limits.upload_memory` has no
    /// room for: at most one part (16 MiB for a bucket) of each upload in progress. A client that sends slowly then keeps
    /// no memory from the others. Without it uploads wait for each other's memory, the slow ones first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upload_scratch: Option<PathBuf>,
    /// The largest blob that may be pushed.
    pub blob_size: Text<Ceiling>,
    /// How long a client may take to send the head of a request.
    pub header_timeout: Text<Duration>,
    /// How long a connection is kept open without a request.
    pub idle_timeout: Text<Duration>,
    /// How long the body of a request may stand still.
    pub body_idle_timeout: Text<Duration>,
    /// How long requests in flight may go on once Berth was told to stop.
    pub drain_timeout: Text<Duration>,
    /// How long an upload may lie unfinished before it is dropped.
    pub upload_expiry: Text<Duration>,
    /// How much memory holds manifests that were read lately.
    pub manifest_cache: Text<Size>,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// `text` is for people, `json` for machines: one object a line.
    pub format: LogFormat,
    /// The least severe level that is logged, or one for each part of Berth.
    pub level: Text<LogFilter>,
    /// Whether each request leaves a line.
    pub access: bool,
}

/// How a line of the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For machines.
    Json,
}

impl Config {
    /// The directory of the embedded index; `None` where the index is a server.
    pub fn index_directory(&self) -> Option<PathBuf> {
        match (&*self.index.url, &*self.storage.url) {
            (IndexUrl::EmbeddedAt(path), _) => Some(path.clone()),
            (IndexUrl::Embedded, StorageUrl::File(path)) => Some(path.join(".index")),
            (IndexUrl::Embedded, _) | (IndexUrl::Redis(_), _) => None,
        }
    }
}

impl Default for Server {
    fn default() -> Self {
        Self {
            listen: Listen::one(([127, 0, 0, 1], 5000).into()),
            public_url: None,
            trusted_proxies: Vec::new(),
            cors_origins: Vec::new(),
        }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self { listen: Text(([127, 0, 0, 1], 5001).into()), tls: false }
    }
}

impl Default for Token {
    /// 5 minutes: long enough for some hundred requests, short enough to wait for. 30 days for a login, as
    /// the longest that people go between two uses of a machine that they still want to be logged in on.
    fn default() -> Self {
        Self {
            issuer: None,
            service: None,
            realm: None,
            ttl: seconds(300),
            refresh_ttl: seconds(30 * 24 * 3600),
            keys: None,
        }
    }
}

impl Default for Storage {
    fn default() -> Self {
        Self {
            url: Text(StorageUrl::File("berth-data".into())),
            sync: true,
            s3: S3::default(),
            gcs: Gcs::default(),
            azure: Azure::default(),
        }
    }
}

impl Default for Redirect {
    /// 20 minutes: a client begins to fetch within moments, but after a break it may come back to the same URL;
    /// and no right that was taken away lives on for much longer.
    fn default() -> Self {
        Self {
            enabled: true,
            ttl: seconds(20 * 60),
            min_size: Text(Size(0)),
            except_networks: Vec::new(),
            except_user_agents: Vec::new(),
            except_repositories: Vec::new(),
            cdn: Cdn::default(),
        }
    }
}

impl Default for Index {
    fn default() -> Self {
        Self {
            url: Text(IndexUrl::Embedded),
            namespace: Text(Namespace::default()),
            ca: None,
            certificate: None,
            key: None,
            sentinel: Sentinel::default(),
            lease: seconds(5),
            write_deadline: seconds(10),
            margin: seconds(3),
        }
    }
}

/// Enough to go back past a bad week of releases, and little to list.
const HISTORY: NonZeroU32 = NonZeroU32::new(10).expect("ten is not zero");
/// Far below what a process may open as files, with two descriptors a connection.
const CONNECTIONS: NonZeroU32 = NonZeroU32::new(10_000).expect("ten thousand is not zero");
/// Ten connections wait for each request that is served: clients keep theirs open between requests.
const REQUESTS: NonZeroU32 = NonZeroU32::new(1_000).expect("a thousand is not zero");

impl Default for Tags {
    fn default() -> Self {
        Self { immutable: Vec::new(), history: HISTORY }
    }
}

impl Default for Collect {
    fn default() -> Self {
        Self { grace: seconds(48 * 3600), period: seconds(24 * 3600) }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: CONNECTIONS,
            requests: REQUESTS,
            upload_memory: mebibytes(256),
            upload_scratch: None,
            blob_size: Text(Ceiling::None),
            header_timeout: seconds(10),
            idle_timeout: seconds(75),
            body_idle_timeout: seconds(60),
            drain_timeout: seconds(30),
            upload_expiry: seconds(24 * 3600),
            manifest_cache: mebibytes(64),
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: Text(LogFilter::default()), access: true }
    }
}

fn seconds(seconds: u64) -> Text<Duration> {
    Text(Duration::from_secs(seconds))
}

fn mebibytes(mebibytes: u64) -> Text<Size> {
    Text(Size(mebibytes << 20))
}
