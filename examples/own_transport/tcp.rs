//! A transport over loopback TCP, written against quorate's public API only.
//!
//! One request at a time per connection; connections are pooled per peer and lane, so that a snapshot on its way never
//! stands before a heartbeat. A frame is a lane byte, a length, and the bytes; an answer is a length and the bytes.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate::transport::{BoxFuture, Bytes, FRAME_BYTES_MAX, Inbound, Lane, Peer, Transport, TransportError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Connections that nobody uses now, by address and lane.
type Idle = HashMap<(String, Lane), Vec<TcpStream>>;

#[derive(Clone)]
pub struct Tcp {
    listener: Arc<std::net::TcpListener>,
    idle: Arc<Mutex<Idle>>,
    server: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl Tcp {
    /// Listens at `address` at once, so that peers can connect before the node is up.
    pub fn bind(address: &str) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(Tcp { listener: Arc::new(listener), idle: Arc::default(), server: Arc::default() })
    }

    pub fn address(&self) -> String {
        self.listener.local_addr().expect("it is bound").to_string()
    }

    async fn exchange(&self, to: &Peer, lane: Lane, frame: Bytes) -> io::Result<Bytes> {
        let key = (to.address.clone(), lane);
        let pooled = self.idle.lock().expect("no panic while held").get_mut(&key).and_then(Vec::pop);
        let mut stream = match pooled {
            Some(stream) => stream,
            None => TcpStream::connect(&to.address).await?,
        };
        stream.set_nodelay(true)?;
        stream.write_u8(lane as u8).await?;
        write_frame(&mut stream, &frame).await?;
        let answer = read_frame(&mut stream).await?;
        // Only a connection whose answer was read to its end goes back; a dropped call drops its connection.
        self.idle.lock().expect("no panic while held").entry(key).or_default().push(stream);
        Ok(answer)
    }
}

impl Transport for Tcp {
    fn start(&self, inbound: Inbound) {
        let listener = self.listener.try_clone().and_then(TcpListener::from_std).expect("a bound socket can be served");
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, inbound.clone()));
            }
        });
        if let Some(former) = self.server.lock().expect("no panic while held").replace(server) {
            former.abort();
        }
    }

    fn call<'a>(
        &'a self,
        to: &'a Peer,
        lane: Lane,
        frame: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Bytes, TransportError>> {
        Box::pin(async move {
            match tokio::time::timeout(timeout, self.exchange(to, lane, frame)).await {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(_)) => Err(TransportError::Unreachable),
                Err(_) => Err(TransportError::TimedOut),
            }
        })
    }
}

/// Serves one connection until the peer hangs up. A frame the node refuses ends it: the caller sees that as an error.
async fn serve(mut stream: TcpStream, inbound: Inbound) -> io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let lane = stream.read_u8().await?;
        let lane = Lane::try_from(lane).map_err(io::Error::other)?;
        let frame = read_frame(&mut stream).await?;
        let answer = inbound.receive(lane, frame).await.map_err(io::Error::other)?;
        write_frame(&mut stream, &answer).await?;
    }
}

async fn write_frame(stream: &mut TcpStream, frame: &[u8]) -> io::Result<()> {
    stream.write_u32(frame.len() as u32).await?;
    stream.write_all(frame).await
}

async fn read_frame(stream: &mut TcpStream) -> io::Result<Bytes> {
    let len = stream.read_u32().await? as usize;
    if len > FRAME_BYTES_MAX {
        return Err(io::Error::other("the frame is too large"));
    }
    let mut frame = vec![0; len];
    stream.read_exact(&mut frame).await?;
    Ok(frame.into())
}
