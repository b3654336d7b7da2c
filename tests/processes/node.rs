//! The program of one node: a process that opens its part of the cluster, puts load on it, and writes down what it was told.
//!
//! It is this test's own binary, started again with its arguments in an environment variable. Commands come as lines on
//! its standard input, and each is answered with a line on its standard output; when the input ends, so does the process.

use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate::sim::check::Recorder;
use quorate::{Cluster, Formation, Peer, StartError, Timing, internals};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use crate::tcp::Tcp;
use crate::{audit, workload};

/// Holds the [`Args`] of a process that is to be a node.
pub const ARGS: &str = "QUORATE_TEST_NODE";
/// What every answer begins with; anything else on the output is not for the supervisor.
pub const ANSWER: &str = "@ ";
/// Longest time a store operation of the load may take.
pub const TIMEOUT: Duration = Duration::from_millis(1500);

/// What a node is told when it is started.
#[derive(Debug, Serialize, Deserialize)]
pub struct Args {
    pub name: String,
    pub directory: PathBuf,
    /// Where to keep journals of the disk, if at all.
    pub journals: Option<PathBuf>,
    /// Where to say at which address this node listens.
    pub listens: PathBuf,
    /// Where to put what this life of the process was told.
    pub told: PathBuf,
    /// All nodes, with the addresses at which this one reaches them.
    pub peers: Vec<(String, String)>,
    /// Clients of this life are numbered from here; no other life has the same numbers.
    pub first_client: u64,
    pub seed: u64,
}

/// What the supervisor asks of a node. Answered when it is done.
#[derive(Debug, Serialize, Deserialize)]
pub enum Command {
    /// Wait until the node serves, however often that is refused at first.
    Ready,
    /// Stop the load, and wait until nothing is under way.
    Quiet,
    /// Settle what became of writes whose outcome is not known. To be found in the history.
    Resolve(Vec<quorate::Ticket>),
    /// Write everything that was ever committed to this file.
    Dump(PathBuf),
}

/// The clock of all processes on this machine: nanoseconds since it was started.
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Is a node until the standard input ends.
pub fn run(args: &str) {
    let args: Args = serde_json::from_str(args).expect("the supervisor wrote the arguments");
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(false).init();
    let default = std::panic::take_hook();
    // A panic of any task is the end of the process, where the supervisor sees it.
    std::panic::set_hook(Box::new(move |panic| {
        default(panic);
        std::process::exit(101);
    }));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(serve(args)).unwrap_or_else(|error| panic!("{error}"));
}

async fn serve(args: Args) -> Result<(), Box<dyn std::error::Error>> {
    let cluster = open(&args).await?;
    let file = std::fs::File::create(args.told.join("history.jsonl"))?;
    let recorder: Recorder = Recorder::new(now_ns).write_to(file);
    let (quiet, load) = watch::channel(false);
    let load = workload::start(&cluster, &recorder, &args, load);
    let mut commands = commands();
    let mut load = Some(load);
    while let Some(command) = commands.recv().await {
        match command {
            Command::Ready => ready(&cluster).await,
            Command::Quiet => {
                quiet.send_replace(true);
                futures::future::join_all(load.take().unwrap_or_default()).await;
            }
            Command::Resolve(tickets) => audit::resolve(&cluster, &recorder, args.first_client, tickets).await,
            Command::Dump(path) => audit::dump(&cluster, &path).await?,
        }
        // On a line of its own: the test harness may have begun one.
        println!("\n{ANSWER}done");
        io::stdout().flush()?;
    }
    if let Some(error) = recorder.write_error() {
        return Err(error.into());
    }
    cluster.shutdown().await?;
    Ok(())
}

async fn open(args: &Args) -> Result<Cluster, StartError> {
    let io = |source| StartError::Io { path: args.listens.clone(), source };
    let tcp = Tcp::bind("127.0.0.1:0").map_err(io)?;
    put(&args.listens, &tcp.address()).map_err(io)?;
    let peers = args.peers.iter().map(|(name, address)| Peer::new(name, address)).collect();
    let builder = Cluster::builder(&args.name)
        .transport(tcp)
        .formation(Formation::Peers(peers))
        .timing(timing())
        .timeout(Duration::from_secs(5));
    match &args.journals {
        None => builder.storage(&args.directory).await,
        Some(journals) => internals::journaled(builder, &args.directory, journals)?.await,
    }
}

/// Patient enough for several debug builds on a small machine.
fn timing() -> Timing {
    Timing {
        heartbeat: Duration::from_millis(60),
        election_min: Duration::from_millis(300),
        election_max: Duration::from_millis(600),
    }
}

/// The shortest time to live that a lock may have with this timing, and a little.
pub fn lock_ttl() -> Duration {
    timing().election_max * 3 + Duration::from_millis(200)
}

/// Puts a file in its place at once: readers see the old one or the whole new one.
fn put(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, text)?;
    std::fs::rename(new, path)
}

async fn ready(cluster: &Cluster) {
    // The supervisor knows how long that may take.
    while let Err(error) = cluster.get::<String>("ready").timeout(TIMEOUT).await {
        tracing::info!(%error, "not ready yet");
    }
}

/// The lines of standard input. Reading them needs a thread: it cannot be interrupted.
fn commands() -> mpsc::Receiver<Command> {
    let (send, receive) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines() {
            let line = line.expect("standard input is readable");
            let command = serde_json::from_str(&line).expect("the supervisor wrote the command");
            if send.blocking_send(command).is_err() {
                return;
            }
        }
    });
    receive
}
