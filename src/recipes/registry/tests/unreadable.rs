//! Records that this release cannot read: the next one wrote them, or somebody who should not have.

use super::*;
use crate::Table;
use crate::api::testing::Trio;
use crate::recipes::testing::TTL;
use crate::rt;

/// The table as somebody sees it who writes other values there, or other keys.
const OTHER_VALUES: Table<(&str, &str), u64> = Table::new(SERVICES.name());
const OTHER_KEYS: Table<str, Registered, crate::Json> = Table::new(SERVICES.name());

#[tokio::test(start_paused = true)]
async fn one_record_that_cannot_be_read_keeps_none_of_the_others_from_being_listed() {
    let trio = Trio::start().await;
    let services = trio.nodes[0].services();
    let mut kept = Vec::new();
    for id in ["web-1", "web-3"] {
        kept.push(services.register("web", at(80)).id(id).ttl(TTL).await.expect("registers"));
    }
    trio.nodes[1].table(OTHER_VALUES).set(("web", "web-2"), &7).await.expect("sets");
    trio.nodes[1].table(OTHER_VALUES).set(("api", "api-1"), &7).await.expect("sets");
    trio.nodes[1].table(OTHER_KEYS).set("vvv", &Registered::default()).await.expect("sets");
    let listed = services.list("web").await.expect("reads");
    assert_eq!(listed.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["web-1", "web-3"]);
    assert_eq!(services.endpoints("web").await.expect("reads").len(), 2);
    assert_eq!(services.list("api").await, Ok(vec![]));
    assert_eq!(services.names().await, Ok(BTreeSet::from(["web".to_string()])));
    trio.stop().await;
}
