//! The transport of the example `own_transport` keeps the contract, over real sockets.

#[path = "../examples/own_transport/tcp.rs"]
mod tcp;

use quorate::Peer;
use quorate::transport::contract::{Endpoint, check};
use tcp::Tcp;

fn endpoint(name: &str) -> Endpoint {
    let tcp = Tcp::bind("127.0.0.1:0").expect("loopback has free ports");
    let peer = Peer::new(name, tcp.address());
    Endpoint::new(tcp, peer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_examples_tcp_transport_keeps_the_contract() {
    // A port that was free a moment ago and that nobody listens on.
    let absent = Tcp::bind("127.0.0.1:0").expect("loopback has free ports").address();
    let report = check(endpoint("a"), endpoint("b"), Peer::new("absent", absent)).await;
    let report = report.unwrap_or_else(|violation| panic!("{violation}"));
    assert!(report.restartable, "{report:?}");
}
