//! Bodies: a request's as the rules take it, and an answer's that is as long as was said, or breaks off.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::{BoxError, body::Body};
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, TryStreamExt};
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::{
    error::{Code, Error, Result},
    upload::Incoming,
};

/// Bytes on their way to a client.
pub(super) type Outgoing = Pin<Box<dyn Stream<Item = std::result::Result<Bytes, BoxError>> + Send>>;

/// A request's body for an upload.
pub(super) fn incoming(body: Body) -> Incoming {
    let length = body.size_hint().exact();
    Incoming { stream: Box::pin(body.into_data_stream().map_err(|error| error.to_string())), length }
}

/// Reads a body of at most `limit` bytes whole. A longer one is refused before anything of it is read, if it
/// says so, and else as soon as it has come one chunk too far (CVE-2017-11468).
pub(super) async fn read_whole(body: Body, limit: usize) -> Result<Bytes> {
    let too_large = || Error::new(Code::TooLarge, format!("this body may have {limit} bytes at most"));
    let announced = body.size_hint();
    if announced.lower() > limit as u64 {
        return Err(too_large());
    }
    let mut stream = body.into_data_stream();
    let mut whole = BytesMut::new();
    while let Some(chunk) = stream.try_next().await.map_err(broke_off)? {
        if whole.len() + chunk.len() > limit {
            return Err(too_large());
        }
        if announced.exact() == Some(chunk.len() as u64) {
            // The usual case, one chunk, costs no copy.
            return Ok(chunk);
        }
        if whole.is_empty() {
            whole.reserve(announced.exact().unwrap_or(0) as usize);
        }
        whole.extend_from_slice(&chunk);
    }
    Ok(whole.freeze())
}

fn broke_off(error: axum::Error) -> Error {
    Error::new(Code::SizeInvalid, "the body broke off").because(error)
}

/// A body of exactly `length` bytes. Should the stream have fewer or more, it ends in an error, and the
/// connection with it: a client must never take a part for the whole.
pub(super) fn exact(stream: Outgoing, length: u64) -> Body {
    Body::new(Exact { stream, left: length })
}

struct Exact {
    stream: Outgoing,
    left: u64,
}

impl HttpBody for Exact {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        Poll::Ready(match ready!(this.stream.as_mut().poll_next(cx)) {
            Some(Ok(chunk)) => match this.left.checked_sub(chunk.len() as u64) {
                Some(left) => {
                    this.left = left;
                    Some(Ok(Frame::data(chunk)))
                }
                None => Some(Err(io::Error::other("the stored bytes are more than was said").into())),
            },
            Some(Err(error)) => Some(Err(error)),
            None if this.left > 0 => {
                Some(Err(io::Error::other(format!("the stored bytes ended {} too early", this.left)).into()))
            }
            None => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    fn chunks(sizes: &'static [usize]) -> Outgoing {
        Box::pin(futures_util::stream::iter(sizes.iter().map(|&size| Ok(Bytes::from(vec![0; size])))))
    }

    #[tokio::test]
    async fn a_body_is_as_long_as_was_said_or_an_error() {
        for (sizes, said, is_good) in
            [(&[3, 4][..], 7, true), (&[], 0, true), (&[3, 4], 8, false), (&[3, 4], 6, false), (&[], 1, false)]
        {
            let read = exact(chunks(sizes), said).collect().await;
            assert_eq!(read.is_ok(), is_good, "{sizes:?} {said}");
        }
    }

    #[tokio::test]
    async fn a_body_that_is_too_long_is_not_read_to_its_end() {
        let endless = futures_util::stream::repeat_with(|| Ok::<_, io::Error>(Bytes::from_static(&[0; 10])));
        let error = read_whole(Body::from_stream(endless), 25).await.unwrap_err();
        assert_eq!(error.code, Code::TooLarge);
        assert_eq!(read_whole(Body::from(vec![0; 26]), 25).await.unwrap_err().code, Code::TooLarge);
        assert_eq!(read_whole(Body::from(vec![0; 25]), 25).await.unwrap().len(), 25);
        let three = futures_util::stream::iter([10, 10, 5].map(|size| Ok::<_, io::Error>(Bytes::from(vec![0; size]))));
        assert_eq!(read_whole(Body::from_stream(three), 25).await.unwrap().len(), 25);
    }
}
