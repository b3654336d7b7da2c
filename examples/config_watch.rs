//! Shared configuration, followed without I/O, and a new release that gives it another shape.
//!
//! Run: `cargo run --release --example config_watch`
//!
//! A service of three nodes keeps its configuration in a table. The instance on another node than the operator's follows it by a
//! mirror: each request reads it from memory, and a task is told what has changed. Then the instance is released anew, with
//! version 2 of the configuration: it reads what version 1 has written, and writes in the new shape, while a release that
//! knows only version 1 says so instead of misreading it. Prints what was seen, and `ok`; exits non-zero if it was anything
//! else.

use std::time::Duration;

use quorate::{Cluster, Error, Json, MirrorKey, Table, upgrade};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The first release. JSON, so that people can read what is stored.
mod v1 {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    pub struct Config {
        pub pool: u32,
    }

    pub const CONFIG: Table<str, Config, Json> = Table::new("config").schema(1, &[]);
}

/// The second one: connections have a limit of time, too.
mod v2 {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    pub struct Config {
        pub pool: u32,
        pub idle: Duration,
    }

    impl From<v1::Config> for Config {
        fn from(old: v1::Config) -> Self {
            Config { pool: old.pool, idle: Duration::from_secs(60) }
        }
    }

    pub const CONFIG: Table<str, Config, Json> = Table::new("config").schema(2, &[upgrade::<v1::Config, Config>(1)]);
}

/// What stands for serving one request: the configuration is at hand.
fn serve(config: &MirrorKey<v1::Config>) -> Result<u32, Failure> {
    let config = config.load()?.ok_or("no configuration")?;
    Ok(config.pool)
}

async fn first_release(operator: &Cluster, node: &Cluster) -> Result<(), Failure> {
    operator.table(v1::CONFIG).set("web", &v1::Config { pool: 10 }).await?;
    // It begins with what was written before, whichever node it is opened on.
    let mut config = node.table(v1::CONFIG).mirror_key("web").await?;
    println!("version 1: the pool has {} connections", serve(&config)?);
    check(serve(&config)? == 10, "the mirror should begin with what was acknowledged")?;

    operator.table(v1::CONFIG).set("web", &v1::Config { pool: 20 }).await?;
    let changed = timeout(Duration::from_secs(10), config.changed()).await??.ok_or("it is gone")?;
    println!("version 1: changed to {} at revision {}", changed.pool, changed.modified);
    check(serve(&config)? == 20, "the mirror should show the change")
}

async fn second_release(operator: &Cluster, node: &Cluster) -> Result<(), Failure> {
    let config = node.table(v2::CONFIG).mirror(..).await?;
    let read = config.load().get("web")?.cloned().ok_or("no configuration")?;
    println!("version 2: reads {:?}", read.value);
    let upgraded = v2::Config { pool: 20, idle: Duration::from_secs(60) };
    check(read.value == upgraded, "the old value should be read as a new one")?;

    let mut old = operator.table(v1::CONFIG).mirror_key("web").await?;
    let wanted = v2::Config { pool: 20, idle: Duration::from_secs(5) };
    let written = node.table(v2::CONFIG).set("web", &wanted).await?;
    // One's own write, in one's own mirror.
    let now = config.at_least(written.revision).await?;
    println!("version 2: wrote {:?}", now.get("web")?.ok_or("it is gone")?.value);
    check(now.get("web")?.is_some_and(|now| now.value == wanted), "the new value should be there")?;

    let refused = timeout(Duration::from_secs(10), old.changed()).await?;
    println!("version 1: {}", refused.as_ref().err().ok_or("version 1 has read what it does not know")?);
    check(matches!(refused, Err(Error::Codec { version: 2, .. })), "version 1 should name the version it met")
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let nodes = Cluster::local(3).await?;
    first_release(&nodes[0], &nodes[1]).await?;
    second_release(&nodes[0], &nodes[2]).await?;
    for node in &nodes {
        node.shutdown().await?;
    }
    println!("ok");
    Ok(())
}

fn check(holds: bool, otherwise: &str) -> Result<(), Failure> {
    if holds { Ok(()) } else { Err(otherwise.into()) }
}
