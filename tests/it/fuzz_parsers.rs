//! The checks of the fuzz targets, on inputs that proptest makes up: text that is nearly right, which a
//! fuzzer takes hours to come to, and text that is anything. `fuzz/README.md` says how to go on from here.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../fuzz/checks.rs"]
mod checks;

use berth::{
    index::facts::{
        self, AttemptFact, CollectionFact, DataFact, DataState, FinishedRound, Found, Hint, IntendedManifest,
        IntentFact, LinkFact, ManifestFact, RoundFact, TagFact, TagState, Target, TrashFact, UploadFact, UploadState,
        WorkFact,
    },
    oci::{Algorithm, Digest, Hasher},
    storage::{
        DataKey, Key, MultipartId, Revision, StoreTime,
        key::{EpochNumber, RosterList},
    },
};
use http::Method;
use proptest::{prelude::*, sample::select};
use ulid::Ulid;

/// `good` with a few of its characters removed, doubled or replaced.
fn nearly(good: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    let odd = select(vec![
        '/', '.', '-', '_', ':', '%', '+', '0', 'A', 'g', ' ', '\0', '\n', '"', '{', '[', ',', '*', '\u{e9}',
        '\u{ff10}',
    ]);
    let edits = prop::collection::vec((any::<prop::sample::Index>(), 0..3_u8, odd), 0..4);
    (good, edits).prop_map(|(good, edits)| {
        let mut text: Vec<char> = good.chars().collect();
        for (at, edit, odd) in edits.into_iter().filter(|_| !good.is_empty()) {
            if text.is_empty() {
                break;
            }
            let at = at.index(text.len());
            match edit {
                0 => drop(text.remove(at)),
                1 => text.insert(at, text[at]),
                _ => text[at] = odd,
            }
        }
        text.into_iter().collect()
    })
}

fn digest() -> impl Strategy<Value = String> {
    let algorithm = select(vec![Algorithm::Sha256, Algorithm::Sha512]);
    (algorithm, any::<[u8; 4]>()).prop_map(|(algorithm, bytes)| Digest::of(algorithm, &bytes).to_string())
}

fn repository() -> impl Strategy<Value = String> {
    "[a-z0-9]{1,3}((\\.|_|__|-{1,3})[a-z0-9]{1,2}){0,2}(/(blobs|tags|manifests|uploads|[a-z0-9]{1,3})){0,3}"
}

fn tag() -> impl Strategy<Value = String> {
    "[A-Za-z0-9_][A-Za-z0-9_.-]{0,8}"
}

fn ulid() -> impl Strategy<Value = Ulid> {
    any::<u128>().prop_map(Ulid::from)
}

fn revision() -> impl Strategy<Value = Revision> {
    (any::<u32>(), any::<u32>(), any::<u64>())
        .prop_map(|(generation, random, counter)| Revision { epoch: EpochNumber { generation, random }, counter })
}

fn key() -> impl Strategy<Value = Key> {
    let names = (repository(), tag(), digest());
    (names, ulid(), ulid(), revision(), any::<u32>(), 0..8_u8).prop_map(|(names, one, two, revision, number, kind)| {
        let repository = names.0.parse().unwrap();
        let digest: Digest = names.2.parse().unwrap();
        // Milliseconds of some thirty years from now on: thirteen digits.
        let deadline = StoreTime(1_700_000_000_000 + u64::from(number) * 240);
        let tag = names.1.parse().unwrap();
        let entry = format!("entry-{number}").parse().unwrap();
        match kind {
            0 => Key::Data(DataKey(one)),
            1 => Key::Link { repository, digest, link: one, data: DataKey(two), size: number.into() },
            2 => Key::Manifest { repository, digest, object: one },
            3 => Key::Tag { repository, tag, revision, deadline, to: Some(digest) },
            4 => Key::Tag { repository, tag, revision, deadline, to: None },
            5 => Key::Entry { roster: RosterList::Accounts, name: entry, revision, deadline, deleted: false },
            6 => Key::Entry { roster: RosterList::Rules, name: entry, revision, deadline, deleted: true },
            7 => Key::Checkpoint { endpoint: entry, checkpoint: one },
            _ => Key::Epoch(revision.epoch),
        }
    })
}

/// A value of each kind that the index keeps.
fn fact() -> impl Strategy<Value = Vec<u8>> {
    let names = (repository(), tag(), digest());
    (names, ulid(), revision(), any::<u64>(), 0..14_u8).prop_map(|(names, ulid, revision, number, kind)| {
        let (repository, tag): (berth::oci::RepositoryName, _) = (names.0.parse().unwrap(), names.1);
        let digest: Digest = names.2.parse().unwrap();
        let (at, data, by) = (StoreTime(number), DataKey(ulid), tag.clone());
        let target = Target { digest: digest.clone(), media_type: by.clone(), size: number };
        let state = TagState { to: Some(target), at, by: by.clone() };
        let intended = Some(IntendedManifest { digest: digest.clone(), object: ulid });
        let user = Some((data, repository.clone(), ulid));
        let bytes = match kind {
            0 => facts::encode(&LinkFact { link: ulid, data, size: number, renewed: at }),
            1 => facts::encode(&ManifestFact { object: ulid, media_type: by, size: number, content_size: number, at }),
            2 => facts::encode(&state),
            3 => TagFact { revision, state }.encode(),
            4 | 5 => {
                let (tags, needs) = (vec![tag.parse().unwrap()], vec![digest]);
                let intent =
                    IntentFact { repository, tags, deadline: at, manifest: intended, needs, at, by, request: None };
                let counter = if kind == 4 { String::new() } else { format!("{number:016x}") };
                [counter.as_bytes(), &facts::encode(&intent)].concat().into()
            }
            6 => facts::encode(&UploadFact { repository, touched: at, state: UploadState::Finished(digest) }),
            7 => facts::encode(&Hint { data, size: number }),
            8 => facts::encode(&AttemptFact { repository, data }),
            9 => facts::encode(&TrashFact {
                keys: vec![by],
                multipart: Some((data, MultipartId(tag))),
                user,
                data: Some(data),
                size: number,
            }),
            10 => facts::encode(&DataFact { digest, size: number, state: DataState::Live }),
            11 => facts::encode(&WorkFact { owner: ulid, until: at }),
            12 => {
                let by = WorkFact { owner: ulid, until: at };
                let (began, found) = (at, Found { bytes: number, ..Found::default() });
                let last = Some(FinishedRound { began, ended: at, found });
                facts::encode(&CollectionFact { round: Some(RoundFact { by, began, after: tag, found }), last })
            }
            _ => Hasher::new(digest.algorithm()).save().into(),
        };
        bytes.to_vec()
    })
}

fn manifest() -> impl Strategy<Value = String> {
    let descriptor =
        || (digest(), any::<u64>()).prop_map(|(digest, size)| format!(r#"{{"digest":"{digest}","size":{size}}}"#));
    let list = || prop::collection::vec(descriptor(), 0..3).prop_map(|list| format!("[{}]", list.join(",")));
    let field = prop_oneof![
        descriptor().prop_map(|to| format!(r#""config":{to}"#)),
        list().prop_map(|list| format!(r#""layers":{list}"#)),
        list().prop_map(|list| format!(r#""manifests":{list}"#)),
        descriptor().prop_map(|to| format!(r#""subject":{to}"#)),
        select(vec![
            r#""mediaType":"application/vnd.oci.image.manifest.v1+json""#,
            r#""mediaType":"application/vnd.oci.image.index.v1+json""#,
            r#""mediaType":"application/vnd.docker.distribution.manifest.list.v2+json""#,
            r#""artifactType":"""#,
            r#""artifactType":"x/y""#,
            r#""annotations":{"a":"b","a":"c"}"#,
            r#""fsLayers":null"#,
            r#""Manifests":[]"#,
        ])
        .prop_map(str::to_owned),
    ];
    prop::collection::vec(field, 0..4).prop_map(|fields| format!(r#"{{"schemaVersion":2,{}}}"#, fields.join(",")))
}

fn path() -> impl Strategy<Value = String> {
    let rest = prop_oneof![
        digest().prop_map(|digest| format!("blobs/{digest}")),
        digest().prop_map(|digest| format!("manifests/{}", digest.replace(':', "%3A"))),
        digest().prop_map(|digest| format!("referrers/{digest}")),
        tag().prop_map(|tag| format!("manifests/{tag}")),
        tag().prop_map(|id| format!("blobs/uploads/{id}")),
        Just("blobs/uploads/".to_owned()),
        Just("tags/list".to_owned()),
    ];
    (repository(), rest).prop_map(|(repository, rest)| format!("/v2/{repository}/{rest}"))
}

fn query() -> impl Strategy<Value = String> {
    let parameter =
        select(vec!["n", "last", "tag", "digest", "mount", "from", "_state", "digest-algorithm", "artifactType"]);
    let value = prop_oneof![digest(), repository(), tag(), "[0-9]{1,25}", "\\PC{0,8}"];
    let parameters = prop::collection::vec((parameter, value), 0..5);
    parameters
        .prop_map(|all| all.into_iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&"))
}

fn method() -> impl Strategy<Value = Method> {
    select(vec![Method::GET, Method::HEAD, Method::PUT, Method::POST, Method::PATCH, Method::DELETE, Method::TRACE])
}

fn range() -> impl Strategy<Value = String> {
    let number = prop_oneof![Just(String::new()), "[0-9]{1,2}", any::<u64>().prop_map(|number| number.to_string())];
    let piece = (number.clone(), number).prop_map(|(first, last)| format!("{first}-{last}"));
    (select(vec!["bytes=", "bytes ", "", "items="]), prop::collection::vec(piece, 0..18), select(vec!["", "/7", "/*"]))
        .prop_map(|(unit, pieces, size)| format!("{unit}{}{size}", pieces.join(",")))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_request_never_reaches_another_repository(
        method in method(),
        path in nearly(path()),
        query in prop::option::of(nearly(query())),
    ) {
        checks::route(&method, &path, query.as_deref());
    }

    #[test]
    fn a_manifest_is_one_kind_or_refused(
        body in prop_oneof![manifest(), nearly(manifest())],
        content_type in prop::option::of(nearly(Just("application/vnd.oci.image.index.v1+json; charset=utf-8".to_owned()))),
    ) {
        checks::manifest(body.as_bytes(), content_type.as_deref());
    }

    #[test]
    fn ranges_stay_inside(
        range in nearly(range()),
        validator in nearly(digest().prop_map(|digest| format!("W/\"{digest}\""))),
        size in prop_oneof![0..20_u64, any::<u64>()],
    ) {
        checks::ranges(range.as_bytes(), validator.as_bytes(), size);
    }

    #[test]
    fn names_read_back(text in prop_oneof![nearly(digest()), nearly(repository()), nearly(tag()), any::<String>()]) {
        checks::names(&text);
    }

    #[test]
    fn keys_read_back(key in key(), nearly in nearly(key().prop_map(|key| key.to_string()))) {
        prop_assert_eq!(Key::parse(&key.to_string()), Some(key));
        checks::key(&nearly);
    }

    #[test]
    fn facts_read_back(whole in fact(), edited in nearly(fact().prop_map(|fact| String::from_utf8_lossy(&fact).into_owned()))) {
        checks::facts(&whole);
        checks::facts(edited.as_bytes());
    }

    #[test]
    fn a_configuration_is_taken_or_refused_in_one_line(text in nearly(Just(CONFIG.to_owned()))) {
        checks::config(&text);
    }
}

/// One of each form that a setting has.
const CONFIG: &str = r#"
[server]
listen = "127.0.0.1:5000"
cors_origins = ["https://a.example.com"]
[storage]
url = "s3://bucket/prefix"
s3.path_style = true
[collect]
grace = "48h"
[auth.rules."a.b"]
who = ["everyone"]
role = "reader"
repositories = ["team/**"]
"#;
