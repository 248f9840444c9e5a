//! What must hold of each parser, whatever it is given: it doesn't panic, what it takes reads back as the
//! same, and a request never reaches another repository than the one in its path.
//!
//! The fuzz targets feed these checks what libFuzzer makes up, and `tests/it/fuzz_parsers.rs` what proptest
//! does. A check panics where something doesn't hold, and must not look at what an answer is for: that is
//! for the tests beside each parser.

use std::{collections::BTreeSet, fmt::Debug, path::Path, str::FromStr};

use berth::{
    api::{
        query::{self, Query},
        range::{self, Wanted},
        route::{MAX_PAGE, MAX_TAGS, Route},
    },
    config::Config,
    index::facts::{
        self, AttemptFact, CollectionFact, DataFact, Hint, IntentFact, LinkFact, ManifestFact, TagFact, TagState,
        TrashFact, UploadFact, WorkFact,
    },
    oci::{
        Algorithm, Digest, Hasher, Manifest, RepositoryName, Tag,
        manifest::{DOCKER_LIST, DOCKER_MANIFEST, MAX_REFERENCES, OCI_INDEX, OCI_MANIFEST},
    },
    storage::{Key, Revision, key::EpochNumber},
    upload::UploadId,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

/// A request line: its method, raw path, and raw query.
pub(super) fn route(method: &Method, path: &str, query: Option<&str>) {
    let Ok(route) = Route::parse(method, path, query, &HeaderMap::new()) else { return };
    if let Some(repository) = route.repository() {
        let rest = path.strip_prefix(&format!("/v2/{repository}/")).expect("another repository than the path's");
        let pieces: Vec<&str> = rest.split('/').collect();
        let is_known =
            matches!(pieces[..], ["tags", "list"] | ["blobs" | "manifests" | "referrers", _] | ["blobs", "uploads", _]);
        assert!(is_known, "{repository} is not all of the name in {path}");
    }
    match &route {
        Route::Catalog { page } | Route::Tags { page, .. } | Route::Referrers { page, .. } => {
            assert!(page.limit <= MAX_PAGE);
        }
        Route::PushManifest { tags, .. } => assert!(tags.len() <= MAX_TAGS),
        _ => {}
    }
    if *method == Method::GET || *method == Method::HEAD {
        assert!(!route.is_write(), "{method} writes: {route:?}");
    }
}

/// A manifest, and the Content-Type that it came with.
pub(super) fn manifest(bytes: &[u8], content_type: Option<&str>) {
    let Ok(manifest) = Manifest::parse(bytes, content_type) else { return };
    let kinds = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST];
    assert!(kinds.contains(&manifest.media_type.as_str()), "{}", manifest.media_type);
    assert!(manifest.needs.len() + manifest.children.len() <= MAX_REFERENCES);
    for digests in [&manifest.needs, &manifest.children] {
        assert_eq!(BTreeSet::from_iter(digests).len(), digests.len(), "a digest twice");
    }
    for kind in kinds {
        match Manifest::parse(bytes, Some(kind)) {
            Ok(again) => assert_eq!((kind, &again), (manifest.media_type.as_str(), &manifest)),
            Err(_) => assert_ne!(kind, manifest.media_type),
        }
    }
    assert_eq!(Manifest::parse(bytes, None).expect("it was taken with a Content-Type"), manifest);
}

/// What a client wants of a blob of `size` bytes, and what it says that it sends.
pub(super) fn ranges(range: &[u8], validator: &[u8], size: u64) {
    let digest = Digest::of(Algorithm::Sha256, b"");
    let mut headers = HeaderMap::new();
    put(&mut headers, header::RANGE, range);
    check_wanted(range::wanted(&headers, &digest, size), size);
    put(&mut headers, header::IF_RANGE, validator);
    check_wanted(range::wanted(&headers, &digest, size), size);
    put(&mut headers, header::IF_NONE_MATCH, validator);
    let is_named =
        validator.contains(&b'*') || validator.windows(digest.as_str().len()).any(|w| w == digest.as_str().as_bytes());
    assert!(is_named || !range::has_already(&headers, &digest));
    put(&mut headers, header::CONTENT_RANGE, range);
    if let Ok(Some(sent)) = range::sent(&headers) {
        assert!(sent.start < sent.end);
        put(&mut headers, header::CONTENT_RANGE, format!("{}-{}", sent.start, sent.end - 1).as_bytes());
        assert_eq!(range::sent(&headers).ok().flatten(), Some(sent));
    }
}

fn check_wanted(wanted: Wanted, size: u64) {
    let ranges = match wanted {
        Wanted::Whole | Wanted::Nothing => return,
        Wanted::One(range) => vec![range],
        Wanted::Several(ranges) => ranges,
    };
    assert!(ranges.iter().all(|range| range.start < range.end && range.end <= size), "{ranges:?} of {size}");
    let sum: u64 = ranges.iter().map(|range| range.end - range.start).sum();
    assert!(sum <= size, "{sum} bytes of {size}");
}

fn put(headers: &mut HeaderMap, name: HeaderName, value: &[u8]) {
    if let Ok(value) = HeaderValue::from_bytes(value) {
        headers.insert(name, value);
    }
}

/// Every kind of name that a client sends as text.
pub(super) fn names(text: &str) {
    reads_back::<Digest>(text);
    reads_back::<RepositoryName>(text);
    reads_back::<Tag>(text);
    reads_back::<EpochNumber>(text);
    reads_back::<Revision>(text);
    if let Ok(name) = text.parse::<RepositoryName>() {
        assert!(name.as_str().split('/').all(|component| !component.starts_with(['_', '.', '-']) && component != ".."));
    }
    upload_id(text);
    let encoded = query::encode(text).into_owned();
    assert!(encoded.is_ascii() && !encoded.contains(['&', '=', '+', '#', ' ', '<', '>', '"', '\r', '\n']));
    assert_eq!(query::decode(&encoded), text);
    assert_eq!(Query::new(Some(&format!("x=1&name={encoded}"))).get("name").as_deref(), Some(text));
}

/// Nobody has the key, so no text is an id; and an id that was given out is one's own alone.
fn upload_id(text: &str) {
    let [mine, other] = ["a/b", "a"].map(|name| name.parse::<RepositoryName>().expect("a name"));
    assert_eq!(UploadId::verify(b"key", &mine, "me", text), None, "a forged id");
    let id = UploadId::new(b"key", &mine, text, ulid_of(text));
    let sent = id.to_string();
    assert_eq!(UploadId::verify(b"key", &other, text, &sent), None);
    assert_eq!(UploadId::verify(b"key", &mine, text, &sent), Some(id));
}

fn ulid_of(text: &str) -> ulid::Ulid {
    ulid::Ulid::from_string(text.get(..26).unwrap_or_default()).unwrap_or_default()
}

fn reads_back<T: FromStr + ToString>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        assert_eq!(value.to_string(), text);
    }
}

/// A key of the bucket: what is one is spelled in one way only.
pub(super) fn key(text: &str) {
    if let Some(key) = Key::parse(text) {
        assert_eq!(key.to_string(), text, "{key:?}");
    }
}

/// A value of the index, as each kind of record.
pub(super) fn facts(bytes: &[u8]) {
    record::<LinkFact>(bytes);
    record::<ManifestFact>(bytes);
    record::<TagState>(bytes);
    record::<IntentFact>(bytes);
    record::<UploadFact>(bytes);
    record::<Hint>(bytes);
    record::<AttemptFact>(bytes);
    record::<TrashFact>(bytes);
    record::<DataFact>(bytes);
    record::<WorkFact>(bytes);
    record::<CollectionFact>(bytes);
    if let Ok(tag) = TagFact::decode(bytes) {
        assert_eq!(TagFact::decode(&tag.encode()).expect("what was written is read"), tag);
    }
    if let Ok((counter, intent)) = IntentFact::decode(bytes) {
        let written = [format!("{counter:016x}").as_bytes(), &facts::encode(&intent)].concat();
        assert_eq!(IntentFact::decode(&written).expect("what was written is read"), (counter, intent));
    }
    if let Some(hasher) = Hasher::restore(bytes) {
        let again = Hasher::restore(&hasher.save()).expect("what was written is read");
        assert_eq!(again.finish(), hasher.finish());
    }
}

fn record<T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    if let Ok(record) = facts::decode::<T>(bytes) {
        assert_eq!(facts::decode::<T>(&facts::encode(&record)).expect("what was written is read"), record);
    }
}

/// A configuration file: it is taken, or refused in one line.
pub(super) fn config(text: &str) {
    // Such a key reads a file, which might never end.
    if text.contains("_file") {
        return;
    }
    if let Err(error) = Config::parse(Path::new("berth.toml"), text) {
        let line = error.to_string();
        assert!(!line.contains(['\n', '\r']), "{line}");
    }
}
