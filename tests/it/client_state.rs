//! The client changes and reads the shared state, and says so when it cannot know what it did.

use std::{sync::Arc, time::Duration};

use landline::{
    base::{
        clock::Clock,
        lifecycle::{Crew, Panics, Stop},
        sync::atomic::Ordering,
    },
    client::{Change, Client, ClientError, Durability, Options},
};
use serde_json::json;

use crate::{
    client_support::{LIMIT, Peer, Proxy, Relay, Scripted},
    support::wait::wait_until,
};

fn quick() -> Options {
    Options::default().backoff(Duration::from_millis(10), Duration::from_millis(100))
}

fn connect(url: &str) -> Client {
    Client::connect(url, quick()).expect("the relay is there")
}

#[test]
fn a_key_is_set_read_and_deleted() {
    let relay = Relay::start();
    let client = Client::connect(&relay.url(), quick().user("anna")).unwrap();

    assert_eq!(client.get("home/lamp").unwrap(), None);
    let stored = client.set("home/lamp", &json!({"on": true})).unwrap();
    let value = client.get("home/lamp").unwrap().expect("it was set");
    let deleted = client.delete("home/lamp").unwrap();

    assert_eq!((stored.version, stored.durability), (1, Durability::Memory));
    assert_eq!((value.key.as_str(), value.version), ("home/lamp", 1));
    assert_eq!((&*value.data, value.user.as_deref()), ("{\"on\":true}", Some("anna")));
    assert!(0 < value.time);
    assert_eq!(value.json::<serde_json::Value>().unwrap(), json!({"on": true}));
    assert_eq!((deleted.version, deleted.epoch), (2, stored.epoch));
    assert_eq!(client.get("home/lamp").unwrap(), None);
    let again = client.delete("home/lamp").unwrap_err();
    assert!(matches!(&again, ClientError::Refused(why) if why.code == "not_found"), "{again}");
}

#[test]
fn comparing_and_setting_finds_what_others_did() {
    let relay = Relay::start();
    let (one, other) = (connect(&relay.url()), connect(&relay.url()));

    let first = one.compare_and_set("count", 0, &1).unwrap();
    let there = other.compare_and_set("count", 0, &1).unwrap_err();
    other.compare_and_set("count", first.version, &2).unwrap();
    let stale = one.compare_and_set("count", first.version, &2).unwrap_err();
    let gone = one.apply(Change::delete("count").if_version(1)).unwrap_err();

    for (error, expected) in [(there, (0, 1)), (stale, (1, 2)), (gone, (1, 2))] {
        let ClientError::Conflict { key, wanted, found } = error else { panic!("{error}") };
        assert_eq!((key.as_str(), (wanted, found)), ("count", expected));
    }
    assert_eq!(one.get("count").unwrap().unwrap().json::<u64>().unwrap(), 2);
}

#[test]
fn values_come_in_pages_and_keys_that_live_for_a_time_go() {
    let relay = Relay::start();
    let client = connect(&relay.url());
    for key in ["a/2", "a/1", "b/1", "a/3"] {
        client.set(key, key).unwrap();
    }
    client.apply(Change::set("a/4", &4).ttl(Duration::from_millis(20))).unwrap();
    wait_until("the key to go", LIMIT, || client.get("a/4").unwrap().is_none());

    let first = client.values("a/+", None, 2).unwrap();
    let second = client.values("a/+", first.next.as_deref(), 2).unwrap();

    let keys = |page: &landline::client::Values| -> Vec<String> {
        page.values.iter().map(|value| value.key.to_string()).collect()
    };
    assert_eq!(
        (keys(&first), first.next.as_deref()),
        (vec!["a/1".into(), "a/2".into()], Some("a/2"))
    );
    assert_eq!((keys(&second), second.next), (vec!["a/3".to_owned()], None));
    assert_eq!(first.version, 6, "four were set, one came and went");
}

#[test]
fn what_breaks_a_rule_is_refused_before_it_is_sent() {
    let relay = Relay::start();
    let client = connect(&relay.url());
    assert!(matches!(client.set("a//b", &1), Err(ClientError::Name { .. })));
    assert!(matches!(client.get("a/+"), Err(ClientError::Name { .. })));
    assert!(matches!(client.values("a/#/b", None, 1), Err(ClientError::Name { .. })));
    let ttl = Change::set("a", &1).ttl(Duration::from_micros(999));
    assert!(matches!(client.apply(ttl), Err(ClientError::Invalid(_))));
    for key in ["$presence/hall/anna", "$other"] {
        match client.set(key, &1) {
            Err(ClientError::Refused(refused)) => assert_eq!(refused.code, "forbidden"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_plain_set_is_sent_again_and_one_with_a_condition_is_not() {
    let script = Scripted::start(|listener| {
        for expected in [3, 1] {
            let mut peer = Peer::welcome(listener, 0);
            let mut asked: Vec<_> = (0..expected).map(|_| peer.next().expect("a change")).collect();
            asked.sort_by_key(|one| one["key"].to_string());
            let keys: Vec<_> = asked.iter().map(|one| one["key"].as_str().unwrap()).collect();
            assert_eq!(keys, ["compared", "deleted", "plain"][3 - expected..]);
            if expected == 1 {
                peer.say(&format!(
                    r#"{{"type":"stored","id":{},"version":9,"epoch":"0123456789abcdef",
                        "durability":"memory"}}"#,
                    asked[0]["id"]
                ));
                while peer.next().is_some() {}
            }
        }
    });
    let client = connect(&script.url());
    let panics = Panics::default();
    let crew = Crew::new(Stop::default(), Arc::clone(&panics));
    let start = |body: Box<dyn FnOnce(&Client) + Send>| {
        let client = client.clone();
        crew.spawn("change".to_owned(), 512 * 1024, move || body(&client)).unwrap();
    };
    start(Box::new(|client| assert_eq!(client.set("plain", &1).unwrap().version, 9)));
    start(Box::new(|client| {
        let outcome = client.compare_and_set("compared", 7, &1);
        assert!(matches!(outcome, Err(ClientError::Unknown)), "{outcome:?}");
    }));
    start(Box::new(|client| {
        let outcome = client.delete("deleted");
        assert!(matches!(outcome, Err(ClientError::Unknown)), "{outcome:?}");
    }));
    let clock = Clock::default();
    assert_eq!(crew.join(&clock, clock.now() + LIMIT), 0);
    assert_eq!(panics.load(Ordering::Relaxed), 0);
    drop(client);
    script.finish();
}

#[test]
fn counting_through_a_connection_that_breaks_counts_every_confirmed_step() {
    let relay = Relay::start();
    let proxy = Proxy::start(relay.address);
    let (client, sure) = (connect(&proxy.url()), connect(&relay.url()));
    let (mut confirmed, mut unknown) = (0, 0);
    let mut version = 0;
    while confirmed < 300 {
        if confirmed % 20 == 19 {
            proxy.cut();
        }
        let count = sure.get("count").unwrap().map_or(0, |value| value.json::<u64>().unwrap());
        match client.compare_and_set("count", version, &(count + 1)) {
            Ok(stored) => (confirmed, version) = (confirmed + 1, stored.version),
            Err(ClientError::Conflict { found, .. }) => version = found,
            Err(ClientError::Unknown) => unknown += 1,
            Err(error) => panic!("{error}"),
        }
    }
    let count = sure.get("count").unwrap().unwrap().json::<u64>().unwrap();
    assert!((confirmed..=confirmed + unknown).contains(&count), "{count} {confirmed} {unknown}");
}
