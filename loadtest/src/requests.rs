//! Requests that are made before anything is measured, and in which order they are asked.

use anyhow::{Result, ensure};

use crate::{client::Client, random::Random, server::Server};

/// How long the order is before it repeats: more than a connection asks in a round.
const ORDER: usize = 1 << 16;

/// A request, ready to be sent, and the status that its answer must have.
#[derive(Debug)]
pub(crate) struct Asked {
    bytes: Vec<u8>,
    status: u16,
}

impl Asked {
    /// Makes it on a connection.
    pub(crate) async fn make(&self, client: &mut Client) -> Result<()> {
        let status = client.exchange(&self.bytes).await?.status;
        ensure!(status == self.status, "the answer was {status} instead of {}", self.status);
        Ok(())
    }
}

/// What a load asks for.
#[derive(Debug)]
pub(crate) struct Requests {
    all: Vec<Asked>,
    /// Which of them, one after the other.
    order: Vec<u32>,
}

/// One request, over and over, whose answer is 200.
impl From<Vec<u8>> for Requests {
    fn from(bytes: Vec<u8>) -> Self {
        Self { all: vec![Asked { bytes, status: 200 }], order: vec![0] }
    }
}

impl Requests {
    /// These, in an order that `pick` makes: it is given random numbers and how many requests there are.
    pub(crate) fn picked(all: Vec<Asked>, mut pick: impl FnMut(&mut Random, usize) -> usize) -> Self {
        let (mut random, count) = (Random::new(1), all.len());
        let order = (0..ORDER).map(|_| pick(&mut random, count) as u32).collect();
        Self { all, order }
    }

    /// One after the other.
    pub(crate) fn in_turn(all: Vec<Asked>) -> Self {
        let order = (0..all.len() as u32).collect();
        Self { all, order }
    }

    /// One of them.
    pub(crate) fn first(&self) -> &Asked {
        self.at(0)
    }

    /// Which request is the `place`-th of all.
    pub(crate) fn at(&self, place: usize) -> &Asked {
        &self.all[self.order[place % self.order.len()] as usize]
    }

    /// The requests of a client, without end. Each begins somewhere else, so that they don't go side by side.
    pub(crate) fn walk(&self, client: usize) -> impl Iterator<Item = &Asked> {
        (client * 7919..).map(|place| self.at(place))
    }
}

/// Makes requests once, each, so that they carry what lets them in; every answer must be the one that is expected.
#[derive(Debug)]
pub(crate) struct Preparation {
    client: Client,
    ready: Vec<Asked>,
}

impl Preparation {
    /// For a server.
    pub(crate) async fn of(server: &Server) -> Result<Self> {
        Ok(Self { client: server.connect().await?, ready: Vec::new() })
    }

    /// One without a body.
    pub(crate) async fn add(&mut self, method: &str, target: &str, status: u16) -> Result<()> {
        self.add_with(method, target, ("", &[]), status).await
    }

    /// One with a body of a media type.
    pub(crate) async fn add_with(
        &mut self,
        method: &str,
        target: &str,
        (media_type, body): (&str, &[u8]),
        status: u16,
    ) -> Result<()> {
        let (bytes, answer) = self.client.prepare(method, target, media_type, body).await?;
        ensure!(answer.status == status, "{method} {target} was answered by {} instead of {status}", answer.status);
        self.ready.push(Asked { bytes, status });
        Ok(())
    }

    /// All of them.
    pub(crate) fn ready(self) -> Vec<Asked> {
        self.ready
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_repeats() {
        let asked = |name: &str| Asked { bytes: name.as_bytes().to_vec(), status: 200 };
        let requests = Requests::in_turn(vec![asked("a"), asked("b"), asked("c")]);
        let names: Vec<&[u8]> = requests.walk(0).take(4).map(|asked| &asked.bytes[..]).collect();
        assert_eq!(names, [b"a", b"b", b"c", b"a"]);
        let picked = Requests::picked(vec![asked("a"), asked("b")], |_, count| count - 1);
        assert_eq!(picked.at(5).bytes, b"b");
    }
}
