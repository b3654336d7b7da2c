use quorate::*;
use std::time::{Duration, Instant};
#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let t = Instant::now();
    let nodes = Cluster::local(3).await?;
    println!("formed {:?} leader {:?}", t.elapsed(), nodes[0].leader());
    let t = Instant::now();
    println!("{:?}", nodes[1].set("a", &1u32).await?);
    println!("set {:?}", t.elapsed());
    let t = Instant::now();
    println!("{:?}", nodes[2].get::<u32>("a").await?);
    println!("get {:?}", t.elapsed());
    for n in &nodes {
        println!("{:?}", n.status());
    }
    nodes[0].set("ttl", &"x".to_string()).ttl(Duration::from_millis(300)).await?;
    println!("{:?}", nodes[1].remaining("ttl").await?);
    tokio::time::sleep(Duration::from_millis(500)).await;
    println!("{:?}", nodes[1].get::<String>("ttl").await?);
    for n in &nodes {
        n.shutdown().await?;
    }
    Ok(())
}
