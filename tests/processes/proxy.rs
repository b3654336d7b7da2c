//! Sockets between nodes that a test can cut.
//!
//! Every ordered pair of nodes has a link of its own: the caller connects to the link, the link to wherever the other one
//! listens just now. A link passes bytes on, keeps them (as a network does that loses packets which are sent again later),
//! or is cut. Each direction of its connections can be kept by itself.

use std::io;
use std::path::{Path, PathBuf};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// What becomes of the bytes of one direction.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Pass {
    /// They are passed on.
    Open,
    /// They are kept, and passed on late, when the direction opens again.
    Held,
    /// Connections end, and no new one is made.
    Cut,
}

/// The links between all nodes.
pub struct Net {
    /// By caller, then by who is called.
    links: Vec<Vec<Link>>,
    // Ends the tasks of the links with the net.
    _runtime: Runtime,
}

struct Link {
    address: String,
    requests: watch::Sender<Pass>,
    answers: watch::Sender<Pass>,
}

impl Net {
    /// Links between `nodes` nodes; `listens(n)` is the file where node `n` says at which address it listens.
    pub fn new(nodes: usize, listens: impl Fn(usize) -> PathBuf) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let _inside = runtime.enter();
        let link = |to| Link::new(listens(to));
        let links = (0..nodes).map(|_| (0..nodes).map(link).collect()).collect::<io::Result<_>>()?;
        drop(_inside);
        Ok(Net { links, _runtime: runtime })
    }

    /// Where `from` reaches `to`.
    pub fn address(&self, from: usize, to: usize) -> &str {
        &self.links[from][to].address
    }

    /// What becomes of everything that `from` sends to `to`, in whichever of their connections.
    pub fn set(&self, from: usize, to: usize, pass: Pass) {
        self.links[from][to].requests.send_replace(pass);
        self.links[to][from].answers.send_replace(pass);
    }

    /// Opens everything.
    pub fn heal(&self) {
        for link in self.links.iter().flatten() {
            link.requests.send_replace(Pass::Open);
            link.answers.send_replace(Pass::Open);
        }
    }
}

impl Link {
    fn new(listens: PathBuf) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?.to_string();
        let (requests, answers) = (watch::Sender::new(Pass::Open), watch::Sender::new(Pass::Open));
        let passes = (requests.subscribe(), answers.subscribe());
        tokio::spawn(accept(TcpListener::from_std(listener)?, listens, passes));
        Ok(Link { address, requests, answers })
    }
}

type Passes = (watch::Receiver<Pass>, watch::Receiver<Pass>);

async fn accept(listener: TcpListener, listens: PathBuf, (requests, answers): Passes) {
    while let Ok((caller, _)) = listener.accept().await {
        let (requests, answers, listens) = (requests.clone(), answers.clone(), listens.clone());
        // A connection that ends with an error ends like any other.
        tokio::spawn(async move { carry(caller, &listens, (requests, answers)).await.ok() });
    }
}

/// Passes bytes between a caller and whoever listens now, until one of them hangs up or the link is cut.
async fn carry(caller: TcpStream, listens: &Path, (requests, answers): Passes) -> io::Result<()> {
    if *requests.borrow() == Pass::Cut || *answers.borrow() == Pass::Cut {
        return Ok(());
    }
    let called = TcpStream::connect(tokio::fs::read_to_string(listens).await?).await?;
    caller.set_nodelay(true)?;
    called.set_nodelay(true)?;
    let ((caller_reads, caller_writes), (called_reads, called_writes)) = (caller.into_split(), called.into_split());
    tokio::select! {
        ended = copy(caller_reads, called_writes, requests) => ended,
        ended = copy(called_reads, caller_writes, answers) => ended,
    }
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut pass: watch::Receiver<Pass>,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    let mut cut = pass.clone();
    let copying = async {
        loop {
            let read = from.read(&mut buffer).await?;
            if read == 0 {
                return Ok(());
            }
            // The sender is gone with the net: so is the connection.
            pass.wait_for(|pass| *pass == Pass::Open).await.map_err(io::Error::other)?;
            to.write_all(&buffer[..read]).await?;
        }
    };
    tokio::select! {
        ended = copying => ended,
        _ = cut.wait_for(|pass| *pass == Pass::Cut) => Ok(()),
    }
}
