//! One connection to a registry: HTTP/1.1 by hand, because the generator shares the machine with what it
//! measures and has to be much cheaper than that.
//!
//! It knows only what the two registries answer: a length that is announced, and no chunks. Anything else is an
//! error that ends the run, never a wrong figure.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Room for an answer's head, and for a small body in the same read.
const SMALL: usize = 64 << 10;

/// What a large body is read by.
const LARGE: usize = 1 << 20;

/// A kept connection.
#[derive(Debug)]
pub(crate) struct Client {
    stream: TcpStream,
    address: SocketAddr,
    buffer: Vec<u8>,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Where to go on, as path and query.
    pub(crate) location: Option<String>,
    /// The length of the body that came, in bytes.
    pub(crate) length: u64,
}

impl Client {
    /// Connects.
    pub(crate) async fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, address, buffer: vec![0; SMALL] })
    }

    /// Sends a request without a body and reads the answer to its end.
    pub(crate) async fn ask(&mut self, method: &str, target: &str) -> Result<Answer> {
        let head = request(self.address, method, target, "", 0);
        self.exchange(head.as_bytes()).await
    }

    /// Sends a small body, in one write with its head.
    pub(crate) async fn send(&mut self, method: &str, target: &str, media_type: &str, body: &[u8]) -> Result<Answer> {
        let mut bytes = request(self.address, method, target, media_type, body.len() as u64).into_bytes();
        bytes.extend_from_slice(body);
        self.exchange(&bytes).await
    }

    /// Sends a large body in pieces.
    pub(crate) async fn stream(&mut self, method: &str, target: &str, pieces: &[&[u8]]) -> Result<Answer> {
        let length = pieces.iter().map(|piece| piece.len() as u64).sum();
        let head = request(self.address, method, target, "application/octet-stream", length);
        self.stream.write_all(head.as_bytes()).await?;
        for piece in pieces {
            self.stream.write_all(piece).await?;
        }
        self.answer(false).await
    }

    /// Sends what was made by [`request`] and reads the answer to its end.
    pub(crate) async fn exchange(&mut self, request: &[u8]) -> Result<Answer> {
        self.stream.write_all(request).await?;
        self.answer(request.starts_with(b"HEAD ")).await
    }

    /// Sends what was made by [`request`], and gives back the body of the answer, which must be 200 and small.
    pub(crate) async fn fetch(&mut self, request: &[u8]) -> Result<Vec<u8>> {
        self.stream.write_all(request).await?;
        let mut filled = 0;
        loop {
            let read = self.stream.read(&mut self.buffer[filled..]).await?;
            ensure!(read > 0, "the server hung up, or its answer is longer than {SMALL} bytes");
            filled += read;
            let Some(head) = end_of_head(&self.buffer[..filled]) else { continue };
            let answer = parse(std::str::from_utf8(&self.buffer[..head])?)?;
            ensure!(answer.status == 200, "the answer was {}", answer.status);
            if (filled - head) as u64 >= answer.length {
                return Ok(self.buffer[head..filled].to_vec());
            }
        }
    }

    /// The answer to a HEAD announces a length, but nothing follows.
    async fn answer(&mut self, is_head: bool) -> Result<Answer> {
        let mut filled = 0;
        let head = loop {
            let read = self.stream.read(&mut self.buffer[filled..]).await?;
            ensure!(read > 0, "the server hung up, or its head is longer than {SMALL} bytes");
            filled += read;
            if let Some(end) = end_of_head(&self.buffer[..filled]) {
                break end;
            }
        };
        let mut answer = parse(std::str::from_utf8(&self.buffer[..head])?)?;
        if is_head {
            answer.length = 0;
        }
        let mut left = answer.length.checked_sub((filled - head) as u64).context("more came than was announced")?;
        if left > SMALL as u64 && self.buffer.len() < LARGE {
            self.buffer.resize(LARGE, 0);
        }
        while left > 0 {
            let room = self.buffer.len().min(left as usize);
            let read = self.stream.read(&mut self.buffer[..room]).await?;
            ensure!(read > 0, "the body broke off");
            left -= read as u64;
        }
        Ok(answer)
    }
}

/// What clients say that they can read; Distribution gives an OCI manifest to nobody who doesn't name it.
const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, */*";

/// A request's head.
pub(crate) fn request(address: SocketAddr, method: &str, target: &str, media_type: &str, length: u64) -> String {
    let mut head =
        format!("{method} {target} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: loadtest\r\nAccept: {ACCEPT}\r\n");
    if matches!(method, "POST" | "PUT" | "PATCH") {
        head.push_str(&format!("Content-Length: {length}\r\n"));
    }
    if !media_type.is_empty() {
        head.push_str(&format!("Content-Type: {media_type}\r\n"));
    }
    head + "\r\n"
}

/// A request's head that also says who asks.
pub(crate) fn authorized(head: &str, authorization: &str) -> String {
    format!("{}Authorization: {authorization}\r\n\r\n", head.trim_end_matches("\r\n").to_owned() + "\r\n")
}

fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

/// Reads a head.
fn parse(head: &str) -> Result<Answer> {
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).context("no status line")?.parse()?;
    let (mut location, mut length) = (None, None);
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("content-length") {
            length = Some(value.trim().parse()?);
        } else if name.eq_ignore_ascii_case("location") {
            location = Some(path_of(value.trim()).to_owned());
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            bail!("the answer comes in chunks, which this client doesn't read");
        }
    }
    let length = if status == 204 { 0 } else { length.context("the answer doesn't say how long it is")? };
    Ok(Answer { status, location, length })
}

/// Path and query of a URL, which may lack scheme and host.
fn path_of(url: &str) -> &str {
    let Some((_, rest)) = url.split_once("://") else { return url };
    rest.find('/').map_or("/", |start| &rest[start..])
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read() {
        let head = "HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\nLocation: http://127.0.0.1:5000/v2/a?b=c\r\n\r\n";
        assert_eq!(end_of_head(head.as_bytes()), Some(head.len()));
        let answer = parse(head).unwrap();
        assert_eq!((answer.status, answer.length, answer.location.as_deref()), (202, 0, Some("/v2/a?b=c")));
    }

    #[test]
    fn who_asks_is_one_more_line() {
        let head = request("127.0.0.1:1".parse().unwrap(), "GET", "/v2/", "", 0);
        let lines = |text: &str| text.split("\r\n").map(str::to_owned).collect::<Vec<_>>();
        let mut expected = lines(&head);
        expected.insert(expected.len() - 2, "Authorization: Bearer x".to_owned());
        assert_eq!(lines(&authorized(&head, "Bearer x")), expected);
    }

    #[test]
    fn what_it_cannot_read_is_an_error() {
        assert!(parse("HTTP/1.1 200 OK\r\n\r\n").is_err());
        assert!(parse("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").is_err());
    }
}
