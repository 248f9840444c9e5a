//! The way from a replica to its Redis: a proxy for each replica, so that each can be sent to another server, be
//! cut off, or be kept waiting.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{io, net::Ipv4Addr};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

use crate::berth::own_address;

const PORT: u16 = 6379;

/// Where connections go, and whether bytes move.
#[derive(Clone, Copy, Debug)]
struct State {
    to: (Ipv4Addr, u16),
    held: bool,
    /// Connections of an earlier one are cut.
    generation: u64,
}

/// A running proxy; it stops taking connections when this is dropped.
#[derive(Debug)]
pub(crate) struct Link {
    address: Ipv4Addr,
    state: watch::Sender<State>,
    accepting: JoinHandle<()>,
}

impl Link {
    pub(crate) async fn start(to: (Ipv4Addr, u16)) -> Self {
        let address = own_address();
        let listener = TcpListener::bind((address, PORT)).await.unwrap();
        let state = watch::Sender::new(State { to, held: false, generation: 0 });
        let watched = state.subscribe();
        let accepting = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                // Whichever end breaks it learns that from its own socket.
                tokio::spawn(pass(socket, watched.clone()));
            }
        });
        Self { address, state, accepting }
    }

    /// To be given out as the server's.
    pub(crate) fn url(&self) -> String {
        format!("redis://{}:{PORT}/", self.address)
    }

    /// From now on connections go there; those that are open are cut.
    pub(crate) fn point(&self, to: (Ipv4Addr, u16)) {
        self.state.send_modify(|state| *state = State { to, generation: state.generation + 1, ..*state });
    }

    /// Cuts all connections.
    pub(crate) fn cut(&self) {
        self.state.send_modify(|state| state.generation += 1);
    }

    /// Keeps all bytes, and lets them go on.
    pub(crate) fn hold(&self, held: bool) {
        self.state.send_modify(|state| state.held = held);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn pass(client: TcpStream, mut state: watch::Receiver<State>) -> io::Result<()> {
    let State { to, generation, .. } = *state.borrow();
    let server = TcpStream::connect(to).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let (there, back) = (state.clone(), state.clone());
    tokio::select! {
        ended = carry(from_client, to_server, there) => ended,
        ended = carry(from_server, to_client, back) => ended,
        _ = state.wait_for(|state| state.generation != generation) => Ok(()),
    }
}

async fn carry(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut state: watch::Receiver<State>,
) -> io::Result<()> {
    let mut bytes = vec![0; 16 << 10];
    loop {
        let read = from.read(&mut bytes).await?;
        if read == 0 {
            return Ok(());
        }
        if state.wait_for(|state| !state.held).await.is_err() {
            return Ok(());
        }
        to.write_all(&bytes[..read]).await?;
    }
}
