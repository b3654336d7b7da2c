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

#[tokio::test(start_paused = true)]
async fn who_registers_where_a_record_cannot_be_read_is_told_that_it_was_replaced() {
    let trio = Trio::start().await;
    let services = trio.nodes[0].services();
    trio.nodes[1].table(OTHER_VALUES).set(("web", "web-1"), &7).await.expect("sets");
    let web = services.register("web", at(80)).id("web-1").ttl(TTL).await.expect("decided");
    assert_eq!(web.state(), RegistrationState::Replaced { by: None });
    let mut target = services.register_for("web", "web-1", at(80)).ttl(TTL).await.expect("decided");
    assert!(target.is_replaced());
    assert_eq!(target.renew().await, Ok(Renewal::Replaced { by: None }));
    rt::sleep(TTL * 2).await;
    let now = trio.nodes[1].table(OTHER_VALUES).get(("web", "web-1")).await.expect("read");
    assert_eq!(now.as_deref(), Some(&7));
    trio.stop().await;
}
