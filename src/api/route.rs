//! What a request asks for: its method, path and query, parsed once, by hand, from the raw path.
//!
//! A repository's name may have any component (`blobs`, `tags/list`), so a path is read from its end. The
//! name is taken literally: nothing encoded can become a slash or a dot in it after somebody has looked.
//! Nothing here knows whether anything exists.

use http::{HeaderMap, Method, header::USER_AGENT};

use super::query::{Query, decode};
use crate::{
    auth::Action,
    error::{Code, Error},
    oci::{Algorithm, Digest, Reference, RepositoryName, Tag},
    upload::Proof,
};

/// The most entries on a page of a list; who asks for more gets this many, and a `Link` to the rest.
pub const MAX_PAGE: usize = 1000;

/// The most tags that one push may set. The spec wants ten at least.
pub const MAX_TAGS: usize = 100;

/// One page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// How many entries at most, up to [`MAX_PAGE`].
    pub limit: usize,
    /// The last entry of the page before.
    pub after: Option<String>,
}

/// How much of a thing is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// What it is.
    Head,
    /// That, and its bytes.
    Get,
}

/// What a list of tags looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TagsForm {
    /// As the distribution spec says.
    Plain,
    /// As GCR and Artifact Registry do it: with what each tag points at, and the repositories below.
    Gcr,
}

/// How an upload starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// The bytes come later; hashed with this algorithm unless the end names another.
    Session(Algorithm),
    /// The bytes are in this request.
    Whole(Digest),
    /// The bytes may be in the registry already. Without a repository to look in, they are not looked for.
    Mount {
        /// What is wanted.
        digest: Digest,
        /// Where it is said to be.
        from: Option<RepositoryName>,
    },
}

/// An upload as a URL names it; [`crate::registry::Repository::upload_id`] says whether it is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadUrl {
    /// The id as text.
    pub id: String,
    /// The proof of how far it is.
    pub proof: Option<Proof>,
    /// What its bytes are hashed with.
    pub algorithm: Algorithm,
}

/// Everything that can be asked for.
#[expect(missing_docs, reason = "each variant's fields are what its own line speaks of")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// Is this a registry, and may I do anything in it?
    Ping,
    /// The names of repositories.
    Catalog { page: Page },
    /// The tags of a repository.
    Tags { repository: RepositoryName, page: Page, form: TagsForm },
    /// A manifest, by tag or digest.
    ReadManifest { repository: RepositoryName, reference: Reference, read: Read },
    /// A manifest comes in, and becomes what these tags point at.
    PushManifest { repository: RepositoryName, reference: Reference, tags: Vec<Tag> },
    /// A tag, or a manifest with all its tags, goes.
    DeleteManifest { repository: RepositoryName, reference: Reference },
    /// A blob.
    ReadBlob { repository: RepositoryName, digest: Digest, read: Read },
    /// A blob goes.
    DeleteBlob { repository: RepositoryName, digest: Digest },
    /// A blob begins to come in.
    StartUpload { repository: RepositoryName, start: Start },
    /// How far is this upload?
    UploadStatus { repository: RepositoryName, upload: UploadUrl },
    /// More bytes of an upload.
    Append { repository: RepositoryName, upload: UploadUrl },
    /// The last bytes of an upload, often none; it is a blob now.
    Finish { repository: RepositoryName, upload: UploadUrl, digest: Digest },
    /// An upload is given up.
    Cancel { repository: RepositoryName, upload: UploadUrl },
    /// The manifests that have this subject.
    Referrers { repository: RepositoryName, subject: Digest, artifact_type: Option<String>, page: Page },
}

/// What a route needs to be allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access<'a> {
    /// Any right at all, whatever for.
    Any,
    /// Any right at all; what is shown is filtered by what may be pulled.
    Catalog,
    /// This action in this repository.
    Repository(&'a RepositoryName, Action),
}

/// Why a request is no [`Route`].
#[derive(Clone, Debug)]
pub enum Unroutable {
    /// There is such a thing, but this can't be done with it; what can, as `Allow` says it.
    Method(&'static str),
    /// Something in it is malformed, or there is no such thing.
    Refused(Error),
}

impl<E: Into<Error>> From<E> for Unroutable {
    fn from(error: E) -> Self {
        Self::Refused(error.into())
    }
}

/// What a path names, before anything is checked.
enum Resource<'a> {
    Ping,
    Catalog,
    Tags(&'a str),
    Manifest(&'a str, &'a str),
    Blob(&'a str, &'a str),
    Uploads(&'a str),
    Upload(&'a str, &'a str),
    Referrers(&'a str, &'a str),
}

impl Route {
    /// Reads a request; `path` and `query` are raw, as they came.
    pub fn parse(method: &Method, path: &str, query: Option<&str>, headers: &HeaderMap) -> Result<Self, Unroutable> {
        let query = Query::new(query);
        match Resource::of(path).ok_or_else(no_such_page)? {
            Resource::Ping => read_only(method).map(|_| Self::Ping),
            Resource::Catalog => {
                read_only(method)?;
                Ok(Self::Catalog { page: page(query)? })
            }
            Resource::Tags(name) => {
                read_only(method)?;
                Ok(Self::Tags { repository: name.parse()?, page: page(query)?, form: tags_form(query, headers) })
            }
            Resource::Manifest(name, reference) => manifest(method, name.parse()?, &decode(reference), query),
            Resource::Blob(name, digest) => blob(method, name.parse()?, decode(digest).parse()?),
            Resource::Uploads(name) => match *method {
                Method::POST => Ok(Self::StartUpload { repository: name.parse()?, start: start(query)? }),
                _ => Err(Unroutable::Method("POST")),
            },
            Resource::Upload(name, id) => upload(method, name.parse()?, decode(id).into_owned(), query),
            Resource::Referrers(name, subject) => {
                read_only(method)?;
                Ok(Self::Referrers {
                    repository: name.parse()?,
                    subject: decode(subject).parse()?,
                    artifact_type: query.get("artifactType").map(|text| text.into_owned()),
                    page: page(query)?,
                })
            }
        }
    }

    /// What must be allowed before anything of it is done.
    pub fn access(&self) -> Access<'_> {
        match self {
            Self::Ping => Access::Any,
            Self::Catalog { .. } => Access::Catalog,
            Self::Tags { repository, .. }
            | Self::ReadManifest { repository, .. }
            | Self::ReadBlob { repository, .. }
            | Self::Referrers { repository, .. } => Access::Repository(repository, Action::Pull),
            Self::PushManifest { repository, .. }
            | Self::StartUpload { repository, .. }
            | Self::UploadStatus { repository, .. }
            | Self::Append { repository, .. }
            | Self::Finish { repository, .. }
            // Who may push may also think better of it: clients complain where that takes more.
            | Self::Cancel { repository, .. } => Access::Repository(repository, Action::Push),
            Self::DeleteManifest { repository, .. } | Self::DeleteBlob { repository, .. } => {
                Access::Repository(repository, Action::Delete)
            }
        }
    }

    /// Its name, for metrics and the log.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Catalog { .. } => "catalog",
            Self::Tags { .. } => "tags",
            Self::ReadManifest { .. } => "manifest_read",
            Self::PushManifest { .. } => "manifest_push",
            Self::DeleteManifest { .. } => "manifest_delete",
            Self::ReadBlob { .. } => "blob_read",
            Self::DeleteBlob { .. } => "blob_delete",
            Self::StartUpload { .. } => "upload_start",
            Self::UploadStatus { .. } => "upload_status",
            Self::Append { .. } => "upload_append",
            Self::Finish { .. } => "upload_finish",
            Self::Cancel { .. } => "upload_cancel",
            Self::Referrers { .. } => "referrers",
        }
    }

    /// The repository that it is about, if it is about one.
    pub fn repository(&self) -> Option<&RepositoryName> {
        match self.access() {
            Access::Repository(repository, _) => Some(repository),
            Access::Any | Access::Catalog => None,
        }
    }

    /// The tag or digest that it is about, if it is about one.
    pub fn reference(&self) -> Option<&str> {
        match self {
            Self::ReadManifest { reference, .. }
            | Self::PushManifest { reference, .. }
            | Self::DeleteManifest { reference, .. } => Some(match reference {
                Reference::Tag(tag) => tag.as_str(),
                Reference::Digest(digest) => digest.as_str(),
            }),
            Self::ReadBlob { digest, .. }
            | Self::DeleteBlob { digest, .. }
            | Self::Finish { digest, .. }
            | Self::Referrers { subject: digest, .. }
            | Self::StartUpload { start: Start::Whole(digest) | Start::Mount { digest, .. }, .. } => {
                Some(digest.as_str())
            }
            _ => None,
        }
    }

    /// Whether it changes anything. Such a thing goes on to its end, even if the client leaves.
    pub fn is_write(&self) -> bool {
        match self {
            Self::Ping
            | Self::Catalog { .. }
            | Self::Tags { .. }
            | Self::ReadManifest { .. }
            | Self::ReadBlob { .. }
            | Self::UploadStatus { .. }
            | Self::Referrers { .. } => false,
            // A plain start writes nothing: its upload exists once bytes come.
            Self::StartUpload { start, .. } => !matches!(start, Start::Session(_)),
            Self::PushManifest { .. }
            | Self::DeleteManifest { .. }
            | Self::DeleteBlob { .. }
            | Self::Append { .. }
            | Self::Finish { .. }
            | Self::Cancel { .. } => true,
        }
    }
}

impl<'a> Resource<'a> {
    /// What `path` names by its shape alone.
    fn of(path: &'a str) -> Option<Self> {
        let rest = match path.strip_prefix("/v2")? {
            "" | "/" => return Some(Self::Ping),
            "/_catalog" => return Some(Self::Catalog),
            rest => rest.strip_prefix('/')?,
        };
        let (before, last) = cut(rest)?;
        let (name, noun) = cut(before).unwrap_or(("", before));
        match (noun, last) {
            ("tags", "list") => Some(Self::Tags(name)),
            ("manifests", _) => Some(Self::Manifest(name, last)),
            ("blobs", "uploads") => Some(Self::Uploads(name)),
            ("blobs", _) => Some(Self::Blob(name, last)),
            ("referrers", _) => Some(Self::Referrers(name, last)),
            ("uploads", _) => match cut(name)? {
                (name, "blobs") if last.is_empty() => Some(Self::Uploads(name)),
                (name, "blobs") => Some(Self::Upload(name, last)),
                _ => None,
            },
            _ => None,
        }
    }
}

/// What stands before and behind the last slash.
fn cut(path: &str) -> Option<(&str, &str)> {
    path.rsplit_once('/')
}

fn read_only(method: &Method) -> Result<Read, Unroutable> {
    read(method).ok_or(Unroutable::Method("GET, HEAD"))
}

fn read(method: &Method) -> Option<Read> {
    match *method {
        Method::GET => Some(Read::Get),
        Method::HEAD => Some(Read::Head),
        _ => None,
    }
}

fn manifest(
    method: &Method,
    repository: RepositoryName,
    reference: &str,
    query: Query<'_>,
) -> Result<Route, Unroutable> {
    if let Some(read) = read(method) {
        // Who only asks is told that there is no such thing, which is as true of what can't exist.
        let reference = parse_reference(reference).map_err(|error| Error { code: Code::ManifestUnknown, ..error })?;
        return Ok(Route::ReadManifest { repository, reference, read });
    }
    match *method {
        Method::PUT => {
            let reference = parse_reference(reference)?;
            let tags = tags_to_push(&reference, query)?;
            Ok(Route::PushManifest { repository, reference, tags })
        }
        Method::DELETE => Ok(Route::DeleteManifest { repository, reference: parse_reference(reference)? }),
        _ => Err(Unroutable::Method("GET, HEAD, PUT, DELETE")),
    }
}

/// No tag has a colon, and every digest has one.
fn parse_reference(text: &str) -> Result<Reference, Error> {
    Ok(match text.contains(':') {
        true => Reference::Digest(text.parse()?),
        false => Reference::Tag(text.parse()?),
    })
}

/// The tag of the path and those of the query, each once.
fn tags_to_push(reference: &Reference, query: Query<'_>) -> Result<Vec<Tag>, Error> {
    let mut tags = Vec::new();
    if let Reference::Tag(tag) = reference {
        tags.push(tag.clone());
    }
    for text in query.all("tag") {
        let tag = text.parse()?;
        if tags.contains(&tag) {
            continue;
        }
        if tags.len() == MAX_TAGS {
            return Err(Error::new(Code::TooManyTags, format!("one push may set {MAX_TAGS} tags at most")));
        }
        tags.push(tag);
    }
    Ok(tags)
}

fn blob(method: &Method, repository: RepositoryName, digest: Digest) -> Result<Route, Unroutable> {
    if let Some(read) = read(method) {
        return Ok(Route::ReadBlob { repository, digest, read });
    }
    match *method {
        Method::DELETE => Ok(Route::DeleteBlob { repository, digest }),
        _ => Err(Unroutable::Method("GET, HEAD, DELETE")),
    }
}

fn start(query: Query<'_>) -> Result<Start, Error> {
    if let Some(digest) = query.filled("mount") {
        // A name that can't exist is one that doesn't.
        let from = query.get("from").and_then(|name| name.parse().ok());
        return Ok(Start::Mount { digest: digest.parse()?, from });
    }
    if let Some(digest) = query.filled("digest") {
        return Ok(Start::Whole(digest.parse()?));
    }
    Ok(Start::Session(algorithm(query)?))
}

fn upload(method: &Method, repository: RepositoryName, id: String, query: Query<'_>) -> Result<Route, Unroutable> {
    let proof = query.get("_state").map(|text| Proof::sent(&text));
    let upload = UploadUrl { id, proof, algorithm: algorithm(query)? };
    match *method {
        Method::GET | Method::HEAD => Ok(Route::UploadStatus { repository, upload }),
        Method::PATCH => Ok(Route::Append { repository, upload }),
        Method::PUT => {
            let digest = query.get("digest").unwrap_or_default().parse()?;
            Ok(Route::Finish { repository, upload, digest })
        }
        Method::DELETE => Ok(Route::Cancel { repository, upload }),
        _ => Err(Unroutable::Method("GET, HEAD, PATCH, PUT, DELETE")),
    }
}

fn algorithm(query: Query<'_>) -> Result<Algorithm, Error> {
    Ok(query.filled("digest-algorithm").map_or(Ok(Algorithm::Sha256), |text| text.parse())?)
}

/// `n` and `last`. However large `n` is, it costs nothing (CVE-2023-2253).
fn page(query: Query<'_>) -> Result<Page, Error> {
    let after = query.filled("last").map(|last| last.into_owned());
    let Some(n) = query.filled("n") else { return Ok(Page { limit: MAX_PAGE, after }) };
    if !n.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Error::new(Code::PaginationNumberInvalid, "n must be a number of entries, 0 or more"));
    }
    // All digits, so what can't be parsed is too large.
    let limit = n.parse().unwrap_or(usize::MAX).min(MAX_PAGE);
    Ok(Page { limit, after })
}

/// GCR's form is for those who ask, and for its own client, which can't.
fn tags_form(query: Query<'_>, headers: &HeaderMap) -> TagsForm {
    let agent = headers.get(USER_AGENT).is_some_and(|agent| agent.as_bytes().starts_with(b"gcrane"));
    if agent || query.get("gcr").is_some_and(|value| value == "true") { TagsForm::Gcr } else { TagsForm::Plain }
}

fn no_such_page() -> Unroutable {
    Error::new(Code::NameUnknown, "there is no such page").into()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
