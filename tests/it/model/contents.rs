//! The little alphabet that calls are made of, so that random ones meet.

use std::sync::LazyLock;

use berth::oci::{
    Algorithm, Digest,
    manifest::{DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST},
};
use bytes::Bytes;
use serde_json::{Value, json};

/// One nested in another, and one that sorts between them where a slash and a dash are taken for the same.
pub(super) const REPOSITORIES: [&str; 3] = ["a", "a/b", "a-b"];

/// Prefixes of each other, which in a key may stand before a dash, a dot or nothing.
pub(super) const TAGS: [&str; 4] = ["1", "1.0", "1-x", "latest"];

/// What a page may come after, ready for a query: some that are there, and some that no name can be.
pub(super) const LASTS: [(&str, &str); 9] = [
    ("", ""),
    ("1", "1"),
    ("1-x", "1-x"),
    ("a", "a"),
    ("a-b", "a-b"),
    ("a%2Fb", "a/b"),
    ("~", "~"),
    ("1%00", "1\0"),
    ("%FF", "\u{fffd}"),
];

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const FOREIGN: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";

/// Bytes of blobs. Some are others put together; the last are more than a part and more than two.
pub(super) static BLOBS: LazyLock<Vec<Bytes>> = LazyLock::new(|| {
    let short = ["{}", "a", "ab", "b", "", "aa", "aab", "{}a", "0123456789"].map(Bytes::from);
    let long =
        [64 << 10, (64 << 10) + 1, 150_000].map(|size: usize| Bytes::from_iter((0..size).map(|at| (at % 251) as u8)));
    short.into_iter().chain(long).collect()
});

/// Both digests of each blob.
static BLOB_DIGESTS: LazyLock<Vec<[Digest; 2]>> = LazyLock::new(|| BLOBS.iter().map(|bytes| both(bytes)).collect());

/// Bodies of manifests.
pub(super) static MANIFESTS: LazyLock<Vec<Body>> = LazyLock::new(bodies);

/// A manifest, and what its sender knows of it.
pub(super) struct Body {
    pub(super) bytes: Bytes,
    pub(super) media_type: &'static str,
    /// What its repository must have; nothing where it is no manifest at all.
    pub(super) needs: Option<Vec<Digest>>,
    /// What is kept for it if it is there.
    pub(super) children: Vec<Digest>,
    pub(super) subject: Option<Digest>,
    pub(super) artifact_type: Option<&'static str>,
    pub(super) annotations: Option<Value>,
    digests: [Digest; 2],
}

impl Body {
    pub(super) fn digest(&self, algorithm: Algorithm) -> &Digest {
        &self.digests[place(algorithm)]
    }

    fn of(body: &Value, media_type: &'static str, needs: &[Digest]) -> Self {
        let bytes = Bytes::from(body.to_string());
        let digests = both(&bytes);
        Self {
            bytes,
            media_type,
            needs: Some(needs.to_vec()),
            children: Vec::new(),
            subject: None,
            artifact_type: None,
            annotations: None,
            digests,
        }
    }

    /// An image of these blobs, the first its config.
    fn image(blobs: &[(usize, Algorithm)], more: &Value) -> Self {
        let needs: Vec<Digest> = blobs.iter().map(|(place, algorithm)| blob(*place, *algorithm).clone()).collect();
        let mut body = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor(CONFIG, &needs[0]),
            "layers": needs[1..].iter().map(|digest| descriptor(LAYER, digest)).collect::<Vec<_>>(),
        });
        add(&mut body, more);
        Self { artifact_type: Some(CONFIG), ..Self::of(&body, OCI_MANIFEST, &needs) }
    }

    fn about(self, subject: &Digest) -> Self {
        Self { subject: Some(subject.clone()), ..self }
    }
}

/// The digest of a blob.
pub(super) fn blob(place: usize, algorithm: Algorithm) -> &'static Digest {
    &BLOB_DIGESTS[place][self::place(algorithm)]
}

/// The place of the blob with this digest.
pub(super) fn blob_of(digest: &Digest) -> Option<usize> {
    BLOB_DIGESTS.iter().position(|both| both.contains(digest))
}

fn place(algorithm: Algorithm) -> usize {
    match algorithm {
        Algorithm::Sha256 => 0,
        Algorithm::Sha512 => 1,
    }
}

fn both(bytes: &[u8]) -> [Digest; 2] {
    [Algorithm::Sha256, Algorithm::Sha512].map(|algorithm| Digest::of(algorithm, bytes))
}

fn descriptor(media_type: &str, digest: &Digest) -> Value {
    json!({ "mediaType": media_type, "digest": digest, "size": 1 })
}

fn add(body: &mut Value, more: &Value) {
    for (key, value) in more.as_object().into_iter().flatten() {
        body[key] = value.clone();
    }
}

fn bodies() -> Vec<Body> {
    use Algorithm::{Sha256, Sha512};
    let none = json!({});
    let plain = Body::image(&[(0, Sha256)], &none);
    let layered = Body::image(&[(0, Sha256), (1, Sha256), (10, Sha256), (1, Sha256)], &none);
    let layered = Body { needs: layered.needs.map(|needs| needs[..3].to_vec()), ..layered };
    let mixed = Body::image(&[(1, Sha256), (0, Sha512), (4, Sha256)], &none);

    let about = |digest: &Digest| json!({ "subject": descriptor(OCI_MANIFEST, digest) });
    let (one, other) = (plain.digest(Sha256).clone(), plain.digest(Sha512).clone());
    let mut signed = about(&one);
    add(&mut signed, &json!({ "artifactType": "x/one+json", "annotations": { "k": "v" } }));
    let signature = Body::image(&[(0, Sha256)], &signed).about(&one);
    let signature = Body { artifact_type: Some("x/one+json"), annotations: Some(json!({ "k": "v" })), ..signature };
    let unnamed = Body::image(&[(0, Sha256), (3, Sha256)], &about(&one)).about(&one);
    let elsewhere = Body::image(&[(0, Sha256), (2, Sha256)], &about(&other)).about(&other);

    let children = [layered.digest(Sha256).clone(), one.clone(), blob(3, Sha256).clone()];
    let index = json!({
        "schemaVersion": 2,
        "manifests": children.iter().map(|digest| descriptor(OCI_MANIFEST, digest)).collect::<Vec<_>>(),
        "subject": descriptor(OCI_MANIFEST, &one),
    });
    let index = Body { children: children.to_vec(), ..Body::of(&index, OCI_INDEX, &[]).about(&one) };
    let docker = json!({
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST,
        "config": { "digest": blob(1, Sha256), "size": 1 },
        "layers": [descriptor(FOREIGN, blob(7, Sha256))],
    });
    let docker = Body::of(&docker, DOCKER_MANIFEST, &[blob(1, Sha256).clone()]);
    let two_kinds = json!({ "schemaVersion": 2, "config": descriptor(CONFIG, blob(0, Sha256)), "manifests": [] });
    let two_kinds = Body { needs: None, ..Body::of(&two_kinds, OCI_INDEX, &[]) };
    vec![plain, layered, mixed, signature, unnamed, elsewhere, index, docker, two_kinds]
}
