//! What a client may do next, drawn at random.

use berth::oci::Algorithm;
use proptest::{prelude::*, sample::select};

use super::contents::{BLOBS, LASTS, MANIFESTS, REPOSITORIES, TAGS};

/// One call, and which of the two servers it is sent to.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) server: usize,
    pub(super) what: What,
}

/// The place of a repository, blob, manifest, tag or upload in its list.
pub(super) type Place = usize;

/// A blob by one of its digests.
pub(super) type BlobName = (Place, Algorithm);

#[derive(Clone, Debug)]
pub(super) enum What {
    Start {
        repository: Place,
        algorithm: Algorithm,
    },
    Append {
        upload: Place,
        url: Url,
        chunk: Place,
        at: At,
    },
    Finish {
        upload: Place,
        url: Url,
        chunk: Place,
        at: At,
        name: Name,
    },
    Status {
        upload: Place,
        url: Url,
    },
    Cancel {
        upload: Place,
        url: Url,
    },
    PushBlob {
        repository: Place,
        blob: Place,
        name: Name,
    },
    Mount {
        repository: Place,
        blob: BlobName,
        from: Option<Place>,
    },
    ReadBlob {
        repository: Place,
        blob: BlobName,
        read: Read,
    },
    DeleteBlob {
        repository: Place,
        blob: BlobName,
    },
    /// All blobs that a manifest needs, then the manifest.
    PushImage {
        repository: Place,
        manifest: Place,
        under: Under,
    },
    PushManifest {
        repository: Place,
        manifest: Place,
        under: Under,
        tags: Vec<Place>,
        said: Said,
    },
    ReadManifest {
        repository: Place,
        reference: Reference,
        read: Read,
    },
    DeleteManifest {
        repository: Place,
        reference: Reference,
    },
    Tags {
        repository: Place,
        page: Page,
    },
    Catalog {
        page: Page,
    },
    Referrers {
        repository: Place,
        subject: (Place, Algorithm),
        kind: Option<&'static str>,
        page: Page,
    },
    /// What servers do by themselves.
    Work,
}

/// By which of the URLs that an upload has had it is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Url {
    Newest,
    Oldest,
    WithoutState,
    OfAnotherRepository,
}

/// Where a chunk says that it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    Unsaid,
    End,
    Beginning,
    BehindEnd,
    WrongLength,
    Garbled,
}

/// What bytes are said to hash to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name {
    Right(Algorithm),
    Another(BlobName),
    Garbled,
}

/// How something is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    Head,
    Get,
    /// By who has it already.
    Again,
    /// `first-last`
    Range(u64, u64),
    /// `first-`
    Behind(u64),
    /// `-length`
    Last(u64),
}

/// What a manifest is pushed as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Under {
    Tag(Place),
    Digest(Algorithm),
    AnothersDigest,
}

/// What a manifest's Content-Type is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    Nothing,
    Right,
    Wrong,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reference {
    Tag(Place),
    Digest(Place, Algorithm),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) limit: Option<usize>,
    pub(super) after: Place,
}

/// The whole of a list.
pub(super) const ALL: Page = Page { limit: None, after: 0 };

/// The types by which referrers are asked for, as they stand in a query and as they are.
pub(super) const KINDS: [&str; 4] = ["x/one+json", "application/vnd.oci.image.config.v1+json", "", "x/none"];

pub(super) fn calls() -> impl Strategy<Value = Vec<Call>> {
    let call = (0..2_usize, what()).prop_map(|(server, what)| Call { server, what });
    prop::collection::vec(call, 1..80)
}

fn what() -> impl Strategy<Value = What> {
    prop_oneof![14 => uploading(), 10 => blobs(), 16 => manifests(), 6 => lists(), 1 => Just(What::Work)]
}

fn uploading() -> impl Strategy<Value = What> {
    prop_oneof![
        3 => (repository(), algorithm()).prop_map(|(repository, algorithm)| What::Start { repository, algorithm }),
        4 => (upload(), url(), blob(), at()).prop_map(|(upload, url, chunk, at)| What::Append { upload, url, chunk, at }),
        4 => (upload(), url(), blob(), at(), name())
            .prop_map(|(upload, url, chunk, at, name)| What::Finish { upload, url, chunk, at, name }),
        1 => (upload(), url()).prop_map(|(upload, url)| What::Status { upload, url }),
        1 => (upload(), url()).prop_map(|(upload, url)| What::Cancel { upload, url }),
    ]
}

fn blobs() -> impl Strategy<Value = What> {
    prop_oneof![
        3 => (repository(), blob(), name())
            .prop_map(|(repository, blob, name)| What::PushBlob { repository, blob, name }),
        3 => (repository(), blob_name(), prop::option::weighted(0.9, repository()))
            .prop_map(|(repository, blob, from)| What::Mount { repository, blob, from }),
        2 => (repository(), blob_name(), read())
            .prop_map(|(repository, blob, read)| What::ReadBlob { repository, blob, read }),
        2 => (repository(), blob_name()).prop_map(|(repository, blob)| What::DeleteBlob { repository, blob }),
    ]
}

fn manifests() -> impl Strategy<Value = What> {
    let under = prop_oneof![
        4 => tag().prop_map(Under::Tag),
        3 => algorithm().prop_map(Under::Digest),
        1 => Just(Under::AnothersDigest),
    ];
    let said = prop_oneof![2 => Just(Said::Nothing), 6 => Just(Said::Right), 1 => Just(Said::Wrong)];
    prop_oneof![
        4 => (repository(), manifest(), under.clone())
            .prop_map(|(repository, manifest, under)| What::PushImage { repository, manifest, under }),
        4 => (repository(), manifest(), under, prop::collection::vec(tag(), 0..3), said).prop_map(
            |(repository, manifest, under, tags, said)| What::PushManifest { repository, manifest, under, tags, said }
        ),
        3 => (repository(), reference(), prop_oneof![Just(Read::Head), Just(Read::Get), Just(Read::Again)])
            .prop_map(|(repository, reference, read)| What::ReadManifest { repository, reference, read }),
        3 => (repository(), reference())
            .prop_map(|(repository, reference)| What::DeleteManifest { repository, reference }),
    ]
}

fn lists() -> impl Strategy<Value = What> {
    prop_oneof![
        2 => (repository(), page()).prop_map(|(repository, page)| What::Tags { repository, page }),
        1 => page().prop_map(|page| What::Catalog { page }),
        2 => (repository(), (manifest(), algorithm()), prop::option::of(select(&KINDS[..])), page()).prop_map(
            |(repository, subject, kind, page)| What::Referrers {
                repository,
                // Most are about the first.
                subject: (subject.0 / 4, subject.1),
                kind,
                page,
            }
        ),
    ]
}

fn repository() -> impl Strategy<Value = Place> {
    // Most in one, so that something comes together there.
    prop_oneof![1 => Just(0), 1 => 0..REPOSITORIES.len()]
}

fn tag() -> impl Strategy<Value = Place> {
    0..TAGS.len()
}

fn upload() -> impl Strategy<Value = Place> {
    // The last ones to be started are the likeliest to be open.
    prop_oneof![4 => 0..2_usize, 1 => 0..100_usize]
}

fn blob() -> impl Strategy<Value = Place> {
    // The first are what manifests need.
    prop_oneof![1 => 0..2_usize, 1 => 0..BLOBS.len()]
}

fn manifest() -> impl Strategy<Value = Place> {
    // The first is what others are about.
    prop_oneof![1 => Just(0), 2 => 0..MANIFESTS.len()]
}

fn algorithm() -> impl Strategy<Value = Algorithm> {
    prop_oneof![3 => Just(Algorithm::Sha256), 1 => Just(Algorithm::Sha512)]
}

fn blob_name() -> impl Strategy<Value = BlobName> {
    (blob(), algorithm())
}

fn name() -> impl Strategy<Value = Name> {
    prop_oneof![
        8 => algorithm().prop_map(Name::Right),
        1 => blob_name().prop_map(Name::Another),
        1 => Just(Name::Garbled),
    ]
}

fn url() -> impl Strategy<Value = Url> {
    prop_oneof![
        8 => Just(Url::Newest),
        2 => Just(Url::Oldest),
        1 => Just(Url::WithoutState),
        1 => Just(Url::OfAnotherRepository),
    ]
}

fn at() -> impl Strategy<Value = At> {
    prop_oneof![
        4 => Just(At::Unsaid),
        4 => Just(At::End),
        1 => Just(At::Beginning),
        1 => Just(At::BehindEnd),
        1 => Just(At::WrongLength),
        1 => Just(At::Garbled),
    ]
}

fn read() -> impl Strategy<Value = Read> {
    let byte = || select(vec![0_u64, 1, 5, 65_535, 65_536, 149_999, 150_000, u64::MAX]);
    prop_oneof![
        Just(Read::Head),
        Just(Read::Get),
        Just(Read::Again),
        (byte(), byte()).prop_map(|(first, last)| Read::Range(first, last)),
        byte().prop_map(Read::Behind),
        byte().prop_map(Read::Last),
    ]
}

fn reference() -> impl Strategy<Value = Reference> {
    prop_oneof![
        tag().prop_map(Reference::Tag),
        (manifest(), algorithm()).prop_map(|(manifest, algorithm)| Reference::Digest(manifest, algorithm)),
    ]
}

fn page() -> impl Strategy<Value = Page> {
    (prop::option::weighted(0.8, 0..4_usize), 0..LASTS.len()).prop_map(|(limit, after)| Page { limit, after })
}
