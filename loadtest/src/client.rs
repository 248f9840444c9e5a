//! One connection to a registry: HTTP/1.1 by hand, because the generator shares the machine with what it
//! measures and has to be much cheaper than that.
//!
//! It logs in where it is asked to, and follows a redirect where it is told to. It speaks no TLS. What it can't
//! read is an error that ends the run, never a wrong figure.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use anyhow::{Context, Result, bail, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::login::{self, Login};

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
    login: Option<Arc<Login>>,
    /// What was said to be let in, by the part of a path that rights are given for.
    authorizations: HashMap<String, String>,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Where to go on, as path and query.
    pub(crate) location: Option<String>,
    /// Where to go on, as the answer has it.
    url: Option<String>,
    /// How to log in.
    challenge: Option<String>,
    /// The length of the body that came, in bytes.
    pub(crate) length: u64,
    is_chunked: bool,
}

impl Client {
    /// Connects.
    pub(crate) async fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, address, buffer: vec![0; SMALL], login: None, authorizations: HashMap::new() })
    }

    /// The same, logging in where that is asked for.
    pub(crate) fn with_login(mut self, login: Option<Arc<Login>>) -> Self {
        self.login = login;
        self
    }

    /// Sends a request without a body and reads the answer to its end.
    pub(crate) async fn ask(&mut self, method: &str, target: &str) -> Result<Answer> {
        self.send(method, target, "", &[]).await
    }

    /// Sends a small body, in one write with its head.
    pub(crate) async fn send(&mut self, method: &str, target: &str, media_type: &str, body: &[u8]) -> Result<Answer> {
        let bytes = self.bytes(method, target, media_type, body);
        let answer = self.exchange(&bytes).await?;
        if answer.status != 401 || !self.log_in(target, &answer).await? {
            return Ok(answer);
        }
        let bytes = self.bytes(method, target, media_type, body);
        self.exchange(&bytes).await
    }

    /// Makes a request once, and gives back its bytes for [`Self::exchange`], with what the server wants to let it
    /// in; with the answer.
    pub(crate) async fn prepare(
        &mut self,
        method: &str,
        target: &str,
        media_type: &str,
        body: &[u8],
    ) -> Result<(Vec<u8>, Answer)> {
        let answer = self.send(method, target, media_type, body).await?;
        Ok((self.bytes(method, target, media_type, body), answer))
    }

    /// A request with all that is known to be needed.
    fn bytes(&self, method: &str, target: &str, media_type: &str, body: &[u8]) -> Vec<u8> {
        let mut bytes = self.head(method, target, media_type, body.len() as u64).into_bytes();
        bytes.extend_from_slice(body);
        bytes
    }

    fn head(&self, method: &str, target: &str, media_type: &str, length: u64) -> String {
        let head = request(self.address, method, target, media_type, length);
        match self.authorizations.get(login::place(target)) {
            Some(authorization) => authorized(&head, authorization),
            None => head,
        }
    }

    /// Does what a 401 asks for; false where nobody said how.
    async fn log_in(&mut self, target: &str, answer: &Answer) -> Result<bool> {
        let (Some(login), Some(challenge)) = (self.login.clone(), &answer.challenge) else { return Ok(false) };
        // A connection of its own, so that the answer may come from elsewhere.
        let authorization = Box::pin(login.answer(challenge)).await?;
        self.authorizations.insert(login::place(target).to_owned(), authorization);
        Ok(true)
    }

    /// Sends a large body in pieces. An upload's POST has gone before, so who asks is known already.
    pub(crate) async fn stream(&mut self, method: &str, target: &str, pieces: &[&[u8]]) -> Result<Answer> {
        let length = pieces.iter().map(|piece| piece.len() as u64).sum();
        let head = self.head(method, target, "application/octet-stream", length);
        self.flow(&head, pieces).await
    }

    /// Sends a chunk of an upload, which begins at the byte `from`, in pieces.
    pub(crate) async fn patch(&mut self, target: &str, from: u64, pieces: &[&[u8]]) -> Result<Answer> {
        let length = pieces.iter().map(|piece| piece.len() as u64).sum::<u64>();
        let head = self.head("PATCH", target, "application/octet-stream", length);
        self.flow(&with_line(&head, &format!("Content-Range: {from}-{}", from + length - 1)), pieces).await
    }

    async fn flow(&mut self, head: &str, pieces: &[&[u8]]) -> Result<Answer> {
        self.stream.write_all(head.as_bytes()).await?;
        for piece in pieces {
            self.stream.write_all(piece).await?;
        }
        self.receive(false, None).await
    }

    /// Gets what is at `target`, from where a redirect says, if the answer is one.
    pub(crate) async fn pull(&mut self, target: &str) -> Result<Answer> {
        let answer = self.ask("GET", target).await?;
        let Some(url) = answer.url.as_ref().filter(|_| matches!(answer.status, 302 | 303 | 307 | 308)) else {
            return Ok(answer);
        };
        match address_of(url)? {
            // Whatever lets one in here is nobody else's business.
            Some(address) => Self::connect(address).await?.ask("GET", path_of(url)).await,
            None => self.send("GET", path_of(url), "", &[]).await,
        }
    }

    /// Sends what was made by [`request`] and reads the answer to its end.
    pub(crate) async fn exchange(&mut self, request: &[u8]) -> Result<Answer> {
        self.stream.write_all(request).await?;
        self.receive(request.starts_with(b"HEAD "), None).await
    }

    /// Sends what was made by [`request`], and gives back the body of the answer, which must be 200.
    pub(crate) async fn fetch(&mut self, request: &[u8]) -> Result<Vec<u8>> {
        self.stream.write_all(request).await?;
        let mut body = Vec::new();
        let answer = self.receive(false, Some(&mut body)).await?;
        ensure!(answer.status == 200, "the answer was {}", answer.status);
        Ok(body)
    }

    /// Reads an answer, and keeps its body where that is wanted.
    async fn receive(&mut self, is_head: bool, mut body: Option<&mut Vec<u8>>) -> Result<Answer> {
        let mut filled = 0;
        let head = loop {
            let read = self.stream.read(&mut self.buffer[filled..]).await?;
            ensure!(read > 0, "the server hung up, or its head is longer than {SMALL} bytes");
            filled += read;
            if let Some(end) = end_of_head(&self.buffer[..filled]) {
                break end;
            }
        };
        let mut answer = parse(std::str::from_utf8(&self.buffer[..head])?, is_head)?;
        if answer.is_chunked {
            let begun = self.buffer[head..filled].to_vec();
            let whole = self.chunks(begun).await?;
            answer.length = whole.len() as u64;
            body.into_iter().for_each(|body| body.extend_from_slice(&whole));
            return Ok(answer);
        }
        let mut left = answer.length.checked_sub((filled - head) as u64).context("more came than was announced")?;
        if let Some(body) = &mut body {
            body.extend_from_slice(&self.buffer[head..filled]);
        }
        if left > SMALL as u64 && self.buffer.len() < LARGE {
            self.buffer.resize(LARGE, 0);
        }
        while left > 0 {
            let room = self.buffer.len().min(left as usize);
            let read = self.stream.read(&mut self.buffer[..room]).await?;
            ensure!(read > 0, "the body broke off");
            left -= read as u64;
            if let Some(body) = &mut body {
                body.extend_from_slice(&self.buffer[..read]);
            }
        }
        Ok(answer)
    }

    /// The body of an answer that comes in chunks: lists are, in some registries.
    async fn chunks(&mut self, mut raw: Vec<u8>) -> Result<Vec<u8>> {
        let (mut body, mut at) = (Vec::new(), 0);
        loop {
            while let Some((from, to)) = next_chunk(&raw, at)? {
                if from == to {
                    return Ok(body);
                }
                body.extend_from_slice(&raw[from..to]);
                at = to + 2;
            }
            let read = self.stream.read(&mut self.buffer).await?;
            ensure!(read > 0, "the body broke off");
            raw.extend_from_slice(&self.buffer[..read]);
        }
    }
}

/// Where the content of the chunk that begins `at` lies, once all of it is there with the line's end behind it.
/// The last one has none. (Trailers, which no registry sends, would make the next answer unreadable.)
fn next_chunk(raw: &[u8], at: usize) -> Result<Option<(usize, usize)>> {
    let rest = raw.get(at..).unwrap_or_default();
    let Some(line) = rest.windows(2).position(|window| window == b"\r\n") else { return Ok(None) };
    let size = std::str::from_utf8(&rest[..line])?;
    let size = size.split(';').next().unwrap_or_default().trim();
    let size = usize::from_str_radix(size, 16).context("a chunk without a length")?;
    let from = at + line + 2;
    Ok((raw.len() >= from + size + 2).then_some((from, from + size)))
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
    with_line(head, &format!("Authorization: {authorization}"))
}

/// A request's head with one more line.
fn with_line(head: &str, line: &str) -> String {
    format!("{}\r\n{line}\r\n\r\n", head.trim_end_matches("\r\n"))
}

fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

/// Reads a head. The answer to a HEAD announces a length, but nothing follows.
fn parse(head: &str, is_head: bool) -> Result<Answer> {
    let mut lines = head.split("\r\n");
    let status: u16 = lines.next().and_then(|line| line.split(' ').nth(1)).context("no status line")?.parse()?;
    let (mut url, mut challenge, mut length, mut is_chunked) = (None, None, None, false);
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            length = Some(value.parse()?);
        } else if name.eq_ignore_ascii_case("location") {
            url = Some(value.to_owned());
        } else if name.eq_ignore_ascii_case("www-authenticate") {
            challenge = Some(value.to_owned());
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            ensure!(value.eq_ignore_ascii_case("chunked"), "the answer comes as {value}");
            is_chunked = true;
        }
    }
    let has_body = !is_head && status != 204 && status != 304;
    let length = match length {
        Some(length) if has_body && !is_chunked => length,
        None if has_body && !is_chunked => bail!("the answer doesn't say how long it is"),
        _ => 0,
    };
    let location = url.as_deref().map(|url| path_of(url).to_owned());
    Ok(Answer { status, location, url, challenge, length, is_chunked: is_chunked && has_body })
}

/// Path and query of a URL, which may lack scheme and host.
pub(crate) fn path_of(url: &str) -> &str {
    let Some((_, rest)) = url.split_once("://") else { return url };
    rest.find('/').map_or("/", |start| &rest[start..])
}

/// Whom a URL leads to; nobody else where it has no host. A name isn't looked up but for `localhost`: all runs on
/// this machine.
pub(crate) fn address_of(url: &str) -> Result<Option<SocketAddr>> {
    let Some((scheme, rest)) = url.split_once("://") else { return Ok(None) };
    ensure!(scheme == "http", "{url}: only http is spoken");
    let host = rest.split(['/', '?']).next().unwrap_or_default().replace("localhost", "127.0.0.1");
    let host = if host.contains(':') { host } else { host + ":80" };
    Ok(Some(host.parse().with_context(|| format!("{url}: not an address of this machine"))?))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read() {
        let head = "HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\nLocation: http://127.0.0.1:5000/v2/a?b=c\r\n\r\n";
        assert_eq!(end_of_head(head.as_bytes()), Some(head.len()));
        let answer = parse(head, false).unwrap();
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
        assert!(parse("HTTP/1.1 200 OK\r\n\r\n", false).is_err());
        assert!(parse("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", false).is_err());
        assert!(address_of("https://127.0.0.1/a").is_err());
    }

    #[test]
    fn nothing_follows_the_answer_to_a_head() {
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 1024\r\n\r\n";
        assert_eq!((parse(head, true).unwrap().length, parse(head, false).unwrap().length), (0, 1024));
    }

    #[test]
    fn chunks_are_found_one_by_one() {
        let raw = b"3\r\nabc\r\n0;note\r\n\r\n";
        assert_eq!(next_chunk(raw, 0).unwrap(), Some((3, 6)));
        assert_eq!(next_chunk(raw, 8).unwrap(), Some((16, 16)));
        assert_eq!(next_chunk(&raw[..7], 0).unwrap(), None);
        assert!(next_chunk(b"x\r\n", 0).is_err());
    }

    #[test]
    fn a_redirect_names_a_host_or_stays() {
        assert_eq!(address_of("/v2/a").unwrap(), None);
        assert_eq!(address_of("http://localhost:9000/b?c").unwrap(), Some("127.0.0.1:9000".parse().unwrap()));
    }
}
