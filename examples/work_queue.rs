//! Work that is done once each, although a worker dies in the middle of it.
//!
//! Run: `cargo run --release --example work_queue`
//!
//! Three nodes. Two producers push orders; a worker takes the first one and its node is cut off from the others before it has
//! finished. Two other workers finish everything, each order together with its receipt, at one revision; the order of the lost
//! worker is given out again when its time to live is over. What the lost worker acknowledges late is refused. The history
//! shows that every receipt was written once. Prints who does what, and `ok`; exits non-zero if a step is not as it should be.

use std::time::Duration;

use quorate::{Cluster, Error, Formation, MemoryNetwork, Peer, Timing, put};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const TTL: Duration = Duration::from_secs(2);
const ORDERS: u32 = 12;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let network = MemoryNetwork::new();
    let peers: Vec<Peer> = ["alpha", "beta", "gamma"].map(|name| Peer::new(name, "")).into();
    let mut nodes = Vec::new();
    for peer in &peers {
        let builder = Cluster::builder(&peer.name)
            .in_memory()
            .transport(network.transport(&peer.name))
            .timing(Timing::fast())
            .formation(Formation::Peers(peers.clone()));
        nodes.push(builder.await?);
    }
    for node in &nodes {
        node.ready().await?;
    }
    // The one that will be lost is not the leader, so that the others go on without a pause.
    let lost = nodes.iter().position(|node| !node.status().is_leader).ok_or("everybody leads")?;
    let lost = nodes.swap_remove(lost);

    let producers = nodes.iter().zip([0..ORDERS / 2, ORDERS / 2..ORDERS]).map(|(node, orders)| {
        let orders_queue = node.queue::<u32>("orders");
        tokio::spawn(async move {
            for order in orders {
                orders_queue.push(&order).await?;
            }
            Ok::<_, Error>(())
        })
    });
    for producer in producers.collect::<Vec<_>>() {
        producer.await??;
    }
    println!("{} orders wait", lost.queue::<u32>("orders").len().await?);

    let unfinished = lost.queue::<u32>("orders").ttl(TTL).pop().await?;
    println!("{} takes order {} and is cut off", lost.status().name, unfinished.value()?);
    network.isolate(&lost.status().name);

    let workers: Vec<_> = nodes.iter().map(|node| tokio::spawn(work(node.clone()))).collect();
    for worker in workers {
        worker.await??;
    }
    network.heal();
    let order = unfinished.value()?;
    match unfinished.ack().then(put(receipt(order), &"by the lost one".to_string())).await {
        Err(Error::Fenced { held, .. }) => println!("the late acknowledgement is refused: fence {held} is superseded"),
        other => return Err(format!("the late acknowledgement was not refused: {other:?}").into()),
    }

    for order in 0..ORDERS {
        let history = lost.explain::<String>(receipt(order)).await?;
        check(history.len() == 1, &format!("order {order} was done {} times", history.len()))?;
    }
    check(lost.queue::<u32>("orders").is_empty().await?, "orders are left over")?;
    for node in nodes.iter().chain([&lost]) {
        node.shutdown().await?;
    }
    println!("ok");
    Ok(())
}

/// Does what there is to do until nothing is left.
async fn work(node: Cluster) -> Result<(), Error> {
    let (name, orders) = (node.status().name, node.queue::<u32>("orders").ttl(TTL));
    while !orders.is_empty().await? {
        // What the lost worker holds is not free yet: look again after a while.
        let order = match orders.clone().timeout(TTL).pop().await {
            Ok(order) => order,
            Err(Error::NotApplied { .. }) => continue,
            Err(error) => return Err(error),
        };
        let number = order.value()?;
        println!("{name} does order {number}, given out for the {}. time", order.deliveries());
        order.ack().then(put(receipt(number), &format!("by {name}"))).await?;
    }
    Ok(())
}

fn receipt(order: u32) -> String {
    format!("receipts/{order}")
}

fn check(holds: bool, otherwise: &str) -> Result<(), Failure> {
    if holds { Ok(()) } else { Err(otherwise.into()) }
}
