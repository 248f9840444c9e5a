//! An S3 server in the test's own process: `s3s` for the protocol and its signatures, and a map in memory
//! for the objects.
//!
//! `s3s-fs` was tried for the objects. It keeps a side file named after the base64 of the key, so that a key
//! of some 165 bytes fails with ENAMETOOLONG, which a link in a repository of twenty characters reaches; it
//! completes an upload without looking at the parts' ETags; and it answers 403 instead of `NoSuchUpload` for
//! an upload that has ended. The contract needs all three right. `Date` is added by hyper.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use s3s::{
    S3, S3Request, S3Response, S3Result,
    auth::SimpleAuth,
    dto::{
        AbortMultipartUploadInput, AbortMultipartUploadOutput, CompleteMultipartUploadInput,
        CompleteMultipartUploadOutput, CreateMultipartUploadInput, CreateMultipartUploadOutput, DeleteObjectInput,
        DeleteObjectOutput, ETag, GetObjectInput, GetObjectOutput, HeadObjectInput, HeadObjectOutput,
        ListMultipartUploadsInput, ListMultipartUploadsOutput, ListObjectsV2Input, ListObjectsV2Output,
        MultipartUpload, Object, PutObjectInput, PutObjectOutput, StreamingBlob, UploadPartInput, UploadPartOutput,
    },
    s3_error,
    service::S3ServiceBuilder,
};
use sha2::{Digest, Sha256};
use tokio::{net::TcpListener, task::JoinHandle};

/// The only bucket.
const BUCKET: &str = "bucket";
/// Who may use it.
const ACCESS_KEY: &str = "test";
/// And with what.
const SECRET_KEY: &str = "test-secret";

/// A running server; it stops when this is dropped.
#[derive(Debug)]
pub(crate) struct S3Server {
    /// `http://127.0.0.1:<port>`, with the bucket in the path.
    pub(crate) endpoint: String,
    pub(crate) bucket: String,
    pub(crate) access_key: String,
    pub(crate) secret_key: String,
    accepting: JoinHandle<()>,
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl S3Server {
    /// What makes Berth keep a registry in the bucket, as environment variables.
    pub(crate) fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            ("BERTH_STORAGE__URL", format!("s3://{}/registry", self.bucket)),
            ("BERTH_STORAGE__S3__ENDPOINT", self.endpoint.clone()),
            ("BERTH_STORAGE__S3__REGION", "us-east-1".to_owned()),
            ("BERTH_STORAGE__S3__ACCESS_KEY_ID", self.access_key.clone()),
            ("BERTH_STORAGE__S3__SECRET_ACCESS_KEY", self.secret_key.clone()),
        ]
    }
}

/// Starts a server with one empty bucket.
pub(crate) async fn start() -> S3Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let endpoint = format!("http://{}", listener.local_addr().expect("address"));
    let mut service = S3ServiceBuilder::new(Memory::default());
    service.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
    let service = service.build();
    let accepting = tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            let service = service.clone();
            // A connection that breaks is the client's to report.
            tokio::spawn(async move { drop(server.serve_connection(TokioIo::new(socket), service).await) });
        }
    });
    let (bucket, access_key, secret_key) = (BUCKET.to_owned(), ACCESS_KEY.to_owned(), SECRET_KEY.to_owned());
    S3Server { endpoint, bucket, access_key, secret_key, accepting }
}

#[derive(Clone)]
struct Stored {
    bytes: Bytes,
    tag: String,
    modified: SystemTime,
}

impl Stored {
    fn new(bytes: Bytes) -> Self {
        let tag = Sha256::digest(&bytes).iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        Self { bytes, tag, modified: SystemTime::now() }
    }

    fn tag(&self) -> Option<ETag> {
        Some(ETag::Strong(self.tag.clone()))
    }
}

#[derive(Default)]
struct Memory {
    objects: Mutex<BTreeMap<String, Stored>>,
    uploads: Mutex<HashMap<String, Upload>>,
    next_upload: AtomicU64,
}

struct Upload {
    key: String,
    since: SystemTime,
    parts: BTreeMap<i32, Stored>,
}

/// The least that a part other than the last may have, as in S3.
const LEAST_PART: usize = 5 << 20;

impl Memory {
    fn object(&self, bucket: &str, key: &str) -> S3Result<Stored> {
        known(bucket)?;
        self.objects.lock().expect("lock").get(key).cloned().ok_or_else(|| s3_error!(NoSuchKey))
    }

    fn completed(&self, input: &CompleteMultipartUploadInput) -> S3Result<Bytes> {
        let uploads = self.uploads.lock().expect("lock");
        let upload = uploads.get(&input.upload_id).filter(|upload| upload.key == input.key);
        let upload = upload.ok_or_else(|| s3_error!(NoSuchUpload))?;
        let named = input.multipart_upload.as_ref().and_then(|parts| parts.parts.as_ref());
        let named = named.filter(|parts| !parts.is_empty()).ok_or_else(|| s3_error!(MalformedXML))?;
        let (mut whole, mut last) = (BytesMut::new(), 0);
        for (index, part) in named.iter().enumerate() {
            let number = part.part_number.ok_or_else(|| s3_error!(MalformedXML))?;
            if number <= last {
                return Err(s3_error!(InvalidPartOrder));
            }
            last = number;
            let stored = upload.parts.get(&number).ok_or_else(|| s3_error!(InvalidPart))?;
            if part.e_tag.as_ref().map(ETag::value) != Some(&stored.tag) {
                return Err(s3_error!(InvalidPart));
            }
            if index + 1 < named.len() && stored.bytes.len() < LEAST_PART {
                return Err(s3_error!(EntityTooSmall));
            }
            whole.extend_from_slice(&stored.bytes);
        }
        Ok(whole.freeze())
    }
}

fn known(bucket: &str) -> S3Result<()> {
    if bucket == BUCKET { Ok(()) } else { Err(s3_error!(NoSuchBucket)) }
}

async fn collect(body: Option<StreamingBlob>) -> S3Result<Bytes> {
    let Some(mut body) = body else { return Ok(Bytes::new()) };
    let mut whole = BytesMut::new();
    while let Some(chunk) = body.try_next().await.map_err(|_| s3_error!(IncompleteBody))? {
        whole.extend_from_slice(&chunk);
    }
    Ok(whole.freeze())
}

#[async_trait::async_trait]
impl S3 for Memory {
    async fn put_object(&self, request: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let input = request.input;
        known(&input.bucket)?;
        let stored = Stored::new(collect(input.body).await?);
        let output = PutObjectOutput { e_tag: stored.tag(), ..Default::default() };
        self.objects.lock().expect("lock").insert(input.key, stored);
        Ok(S3Response::new(output))
    }

    async fn get_object(&self, request: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let input = request.input;
        let object = self.object(&input.bucket, &input.key)?;
        let size = object.bytes.len() as u64;
        let (bytes, content_range) = match input.range {
            None => (object.bytes.clone(), None),
            Some(range) => {
                let range = range.check(size)?;
                let text = format!("bytes {}-{}/{size}", range.start, range.end - 1);
                (object.bytes.slice(range.start as usize..range.end as usize), Some(text))
            }
        };
        let content_length = Some(bytes.len() as i64);
        let chunks = bytes.chunks(64 << 10).map(|chunk| Ok::<_, std::io::Error>(bytes.slice_ref(chunk)));
        let body = futures_util::stream::iter(chunks.collect::<Vec<_>>());
        Ok(S3Response::new(GetObjectOutput {
            body: Some(StreamingBlob::wrap(body)),
            content_length,
            content_range,
            content_type: input.response_content_type,
            cache_control: input.response_cache_control,
            content_disposition: input.response_content_disposition,
            e_tag: object.tag(),
            last_modified: Some(object.modified.into()),
            ..Default::default()
        }))
    }

    async fn head_object(&self, request: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let object = self.object(&request.input.bucket, &request.input.key)?;
        Ok(S3Response::new(HeadObjectOutput {
            content_length: Some(object.bytes.len() as i64),
            e_tag: object.tag(),
            last_modified: Some(object.modified.into()),
            ..Default::default()
        }))
    }

    async fn delete_object(&self, request: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        known(&request.input.bucket)?;
        self.objects.lock().expect("lock").remove(&request.input.key);
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = request.input;
        known(&input.bucket)?;
        if input.delimiter.is_some() {
            return Err(s3_error!(NotImplemented, "no test lists by delimiter"));
        }
        let prefix = input.prefix.clone().unwrap_or_default();
        // A continuation token is the last key of the page before it.
        let after = input.continuation_token.clone().or(input.start_after.clone()).unwrap_or_default();
        let limit = input.max_keys.map_or(1000, |keys| keys.clamp(0, 1000) as usize);
        let objects = self.objects.lock().expect("lock");
        let from = if after < prefix { Bound::Included(&prefix) } else { Bound::Excluded(&after) };
        let wanted =
            objects.range::<String, _>((from, Bound::Unbounded)).take_while(|(key, _)| key.starts_with(&prefix));
        let mut contents: Vec<Object> = wanted
            .take(limit + 1)
            .map(|(key, object)| Object {
                key: Some(key.clone()),
                size: Some(object.bytes.len() as i64),
                e_tag: object.tag(),
                last_modified: Some(object.modified.into()),
                ..Default::default()
            })
            .collect();
        let truncated = contents.len() > limit;
        contents.truncate(limit);
        let next = contents.last().and_then(|object| object.key.clone()).filter(|_| truncated);
        Ok(S3Response::new(ListObjectsV2Output {
            name: Some(input.bucket),
            key_count: Some(contents.len() as i32),
            max_keys: Some(limit as i32),
            is_truncated: Some(truncated),
            contents: Some(contents),
            next_continuation_token: next,
            prefix: input.prefix,
            start_after: input.start_after,
            continuation_token: input.continuation_token,
            ..Default::default()
        }))
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let input = request.input;
        known(&input.bucket)?;
        let id = format!("upload-{}", self.next_upload.fetch_add(1, Ordering::Relaxed));
        let upload = Upload { key: input.key.clone(), since: SystemTime::now(), parts: BTreeMap::new() };
        self.uploads.lock().expect("lock").insert(id.clone(), upload);
        Ok(S3Response::new(CreateMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(id),
            ..Default::default()
        }))
    }

    async fn upload_part(&self, request: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        let input = request.input;
        let stored = Stored::new(collect(input.body).await?);
        let output = UploadPartOutput { e_tag: stored.tag(), ..Default::default() };
        let mut uploads = self.uploads.lock().expect("lock");
        let upload = uploads.get_mut(&input.upload_id).filter(|upload| upload.key == input.key);
        upload.ok_or_else(|| s3_error!(NoSuchUpload))?.parts.insert(input.part_number, stored);
        Ok(S3Response::new(output))
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let input = request.input;
        let stored = Stored::new(self.completed(&input)?);
        let e_tag = stored.tag();
        self.objects.lock().expect("lock").insert(input.key.clone(), stored);
        self.uploads.lock().expect("lock").remove(&input.upload_id);
        Ok(S3Response::new(CompleteMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            e_tag,
            ..Default::default()
        }))
    }

    async fn list_multipart_uploads(
        &self,
        request: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        let input = request.input;
        known(&input.bucket)?;
        let prefix = input.prefix.unwrap_or_default();
        let after = (input.key_marker.unwrap_or_default(), input.upload_id_marker.unwrap_or_default());
        let limit = input.max_uploads.map_or(1000, |uploads| uploads.clamp(0, 1000) as usize);
        let uploads = self.uploads.lock().expect("lock");
        let mut wanted: Vec<_> = uploads
            .iter()
            .map(|(id, upload)| ((upload.key.clone(), id.clone()), upload.since))
            .filter(|(name, _)| name.0.starts_with(&prefix) && *name > after)
            .collect();
        wanted.sort();
        let is_truncated = wanted.len() > limit;
        let shown = wanted.into_iter().take(limit).map(|((key, id), since)| MultipartUpload {
            key: Some(key),
            upload_id: Some(id),
            initiated: Some(since.into()),
            ..Default::default()
        });
        Ok(S3Response::new(ListMultipartUploadsOutput {
            bucket: Some(input.bucket),
            is_truncated: Some(is_truncated),
            uploads: Some(shown.collect()),
            ..Default::default()
        }))
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        match self.uploads.lock().expect("lock").remove(&request.input.upload_id) {
            Some(_) => Ok(S3Response::new(AbortMultipartUploadOutput::default())),
            None => Err(s3_error!(NoSuchUpload)),
        }
    }
}
