//! A DNS server inside the service: registered instances are found by name, with nothing beside the replicas to run.
//!
//! Run: `cargo run --release --example dns`; to ask it yourself, `cargo run --release --example dns -- 127.0.0.1:5300` and then
//! `dig @127.0.0.1 -p 5300 web.quorate.test SRV`, `_web._tcp.quorate.test SRV`, `web-1.web.quorate.test`, also with `+tcp`.
//!
//! Instances register through two nodes. The third answers A, AAAA, CNAME and SRV queries from its own memory, without asking
//! anybody: it follows the registry by a mirror. Prints what a resolver asks and is told, that an instance that deregisters or
//! dies is found no more, and `ok`; exits non-zero if an answer is not as it should be. With an address it then serves on.

mod zone;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use domain::base::{Message, MessageBuilder, Name, Rtype};
use domain::rdata::ZoneRecordData;
use quorate::{Cluster, Instance, Mirror, Registered, SERVICES};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use zone::By;

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Registry = Mirror<Registered, (String, String)>;

/// TCP connections at a time; whoever comes beyond them waits.
const CONNECTIONS_MAX: usize = 64;
const PATIENCE: Duration = Duration::from_secs(5);

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let asked_for: Option<SocketAddr> = std::env::args().nth(1).map(|address| address.parse()).transpose()?;
    let nodes = Cluster::local(3).await?;
    let (services, elsewhere) = (nodes[0].services(), nodes[1].services());
    let second = Duration::from_secs(1);
    let one = Instance::new("10.0.0.1:8080").weight(60);
    let one = services.register("web", one).id("web-1").ttl(second * 3).refresh(second).await?;
    let _two =
        elsewhere.register("web", Instance::new("[fd00::2]:8080").weight(40)).id("web-2").ttl(second * 3).await?;
    let spare = Instance::new("web.example.com:80").priority(20);
    let mut spare = elsewhere.register_for("web", "spare", spare).ttl(second * 3).await?;
    let registrar = tokio::spawn(async move {
        while spare.renew().await.is_ok() {
            tokio::time::sleep(second).await;
        }
    });

    let registry = nodes[2].table(SERVICES).mirror(..).await?;
    let udp = UdpSocket::bind(asked_for.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)))).await?;
    let address = udp.local_addr()?;
    let tcp = TcpListener::bind(address).await?;
    let server = tokio::spawn(serve_udp(udp, registry.clone()));
    tokio::spawn(serve_tcp(tcp, registry));
    println!("answering for {} on {address}", zone::APEX);

    told(address, "web-1.web", Rtype::A, &["A 10.0.0.1"]).await?;
    told(address, "WEB-2.web", Rtype::AAAA, &["AAAA fd00::2"]).await?;
    told(address, "web-2.web", Rtype::A, &[]).await?;
    told(address, "spare.web", Rtype::A, &["CNAME web.example.com"]).await?;
    told(address, "web", Rtype::A, &["A 10.0.0.1"]).await?;
    let srv = ["SRV 10 60 8080 web-1.web.quorate.test", "SRV 10 40 8080 web-2.web.quorate.test"];
    told(address, "_web._tcp", Rtype::SRV, &[srv[0], srv[1], "SRV 20 10 80 web.example.com"]).await?;
    told(address, "nobody", Rtype::A, &["NXDOMAIN"]).await?;

    println!("web-1 leaves, and nobody renews the spare one any more");
    one.deregister().await?;
    registrar.abort();
    told(address, "web-1.web", Rtype::A, &["NXDOMAIN"]).await?;
    told(address, "_web._tcp", Rtype::SRV, &[srv[1]]).await?;

    if asked_for.is_some() {
        server.await??;
    }
    for node in &nodes {
        node.shutdown().await?;
    }
    println!("ok");
    Ok(())
}

/// Answers datagrams for ever.
async fn serve_udp(socket: UdpSocket, registry: Registry) -> Result<(), Failure> {
    let mut question = [0; 4096];
    loop {
        let (len, from) = socket.recv_from(&mut question).await?;
        if let Some(answer) = zone::answer(&question[..len], By::Udp, &registry.load()) {
            // An answer that does not arrive is asked for again.
            let _ = socket.send_to(&answer, from).await;
        }
    }
}

/// Answers connections for ever, for whom a datagram was too small.
async fn serve_tcp(listener: TcpListener, registry: Registry) {
    let free = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = free.clone().acquire_owned().await.expect("it is never closed");
        let Ok((mut stream, _)) = listener.accept().await else { continue };
        let registry = registry.clone();
        tokio::spawn(async move {
            // Every message is led by its length (RFC 1035, 4.2.2).
            while let Ok(Ok(question)) = timeout(PATIENCE, read_framed(&mut stream)).await {
                let Some(answer) = zone::answer(&question, By::Tcp, &registry.load()) else { break };
                let framed = [&(answer.len() as u16).to_be_bytes(), &answer[..]].concat();
                if !matches!(timeout(PATIENCE, stream.write_all(&framed)).await, Ok(Ok(()))) {
                    break;
                }
            }
            drop(place);
        });
    }
}

async fn read_framed(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut message = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// Asks, by UDP and by TCP, until the answer is this one: the registry of the third node follows at its own pace.
async fn told(server: SocketAddr, front: &str, rtype: Rtype, expected: &[&str]) -> Result<(), Failure> {
    let mut expected: Vec<&str> = expected.to_vec();
    expected.sort_unstable();
    let name: Name<Vec<u8>> = format!("{front}.{}.", zone::APEX).parse()?;
    let mut question = MessageBuilder::new_vec().question();
    question.push((&name, rtype))?;
    let question = question.finish();
    let began = Instant::now();
    loop {
        let answers = [ask_udp(server, &question).await?, ask_tcp(server, &question).await?];
        if answers.iter().all(|answer| *answer == expected) {
            break;
        }
        if began.elapsed() > PATIENCE * 4 {
            return Err(format!("{name} {rtype} should be {expected:?}, but is {answers:?}").into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!(
        "{name} {rtype}? {}",
        if expected.is_empty() { "nothing of that kind".into() } else { expected.join(", ") }
    );
    Ok(())
}

async fn ask_udp(server: SocketAddr, question: &[u8]) -> Result<Vec<String>, Failure> {
    let socket = UdpSocket::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    socket.send_to(question, server).await?;
    let mut answer = vec![0; 4096];
    let len = timeout(PATIENCE, socket.recv(&mut answer)).await??;
    shown(&answer[..len])
}

async fn ask_tcp(server: SocketAddr, question: &[u8]) -> Result<Vec<String>, Failure> {
    let mut stream = TcpStream::connect(server).await?;
    stream.write_all(&[&(question.len() as u16).to_be_bytes(), question].concat()).await?;
    let answer = timeout(PATIENCE, read_framed(&mut stream)).await??;
    shown(&answer)
}

/// The records of the answer section, sorted; an error code instead, if there is one.
fn shown(answer: &[u8]) -> Result<Vec<String>, Failure> {
    let answer = Message::from_octets(answer)?;
    if !answer.no_error() {
        return Ok(vec![answer.header().rcode().to_string()]);
    }
    let records = answer.answer()?.limit_to::<ZoneRecordData<_, _>>();
    let mut shown = Vec::new();
    for record in records {
        let record = record?;
        shown.push(format!("{} {}", record.rtype(), record.data()).trim_end_matches('.').to_owned());
    }
    shown.sort_unstable();
    Ok(shown)
}
