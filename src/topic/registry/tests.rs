//! Bounds of the registry, and who hears of a new topic.

use std::thread;

use super::*;
use crate::{config::TopicRule, name::Filter, wire::position::From};

const DAY: Duration = Duration::from_secs(86_400);

fn registry(settings: TopicSettings) -> (Registry, Clock) {
    let clock = Clock::manual(1_000_000);
    (Registry::new(settings, 2, clock.clone(), Arc::default(), None), clock)
}

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

fn open(registry: &Registry, topic: &str) -> Arc<Topic> {
    registry.open(&name(topic), |_, _| {}).unwrap().0
}

fn publish(registry: &Registry, topic: &Topic, data: &str) -> Option<Publication> {
    let draft = Draft { user: None, name: None, data, key: None };
    registry.publish(topic, &draft, registry.clock.unix_ms(), None)
}

#[test]
fn a_topic_beyond_the_limit_is_refused_and_the_others_stay() {
    let (registry, _) = registry(TopicSettings { max_topics: 2, ..TopicSettings::default() });
    ["a", "b"].iter().for_each(|topic| _ = publish(&registry, &open(&registry, topic), "1"));
    let refused = registry.open(&name("c"), |_, _| {});
    assert_eq!(refused.err(), Some(RegistryError::Full { max: 2 }));
    open(&registry, "a");
    assert_eq!(registry.len(), 2);
}

#[test]
fn names_that_were_only_asked_for_make_room_for_others() {
    let (registry, _) = registry(TopicSettings { max_topics: 3, ..TopicSettings::default() });
    let (followed, published) = (open(&registry, "followed"), open(&registry, "published"));
    assert!(followed.follow(0));
    publish(&registry, &published, "1");
    open(&registry, "asked for");
    open(&registry, "new");
    let names = registry.list(None, 9).iter().map(|t| t.name().to_string()).collect::<Vec<_>>();
    assert_eq!(names, ["followed", "new", "published"]);
}

#[test]
fn a_pattern_hears_of_each_matching_topic_once_now_or_when_it_comes() {
    let (registry, _) = registry(TopicSettings::default());
    open(&registry, "a/1");
    open(&registry, "b/1");
    let follower = Follower { writer: 1, connection: 5, subscription: 2 };
    let pattern = Pattern::parse("a/#").unwrap();
    let now = registry.follow_pattern(&pattern, follower);
    assert_eq!(now.iter().map(|topic| topic.name().as_str()).collect::<Vec<_>>(), ["a/1"]);
    let mut told = Vec::new();
    for topic in ["a/1", "a/2", "b/2", "a/2"] {
        registry.open(&name(topic), |who, topic| told.push((who, topic.name().clone()))).unwrap();
    }
    assert_eq!(told, [(follower, name("a/2"))]);
    registry.unfollow_pattern(&pattern, follower);
    registry.open(&name("a/3"), |_, _| unreachable!("nobody follows any more")).unwrap();
}

#[test]
fn a_topic_that_is_created_meanwhile_is_heard_of_exactly_once() {
    for _ in 0..20 {
        let settings = TopicSettings { max_topics: 10_000, ..TopicSettings::default() };
        let (registry, _) = registry(settings);
        let pattern = Pattern::parse("a/#").unwrap();
        let (mut heard, told) = thread::scope(|scope| {
            let creator = scope.spawn(|| {
                let mut told = Vec::new();
                for number in 0..500 {
                    let topic = name(&format!("a/{number}"));
                    registry.open(&topic, |who, _| told.push((who.connection, number))).unwrap();
                }
                told
            });
            let mut heard = Vec::new();
            for connection in 0..10 {
                let follower = Follower { writer: 0, connection, subscription: 1 };
                for topic in registry.follow_pattern(&pattern, follower) {
                    let number: u64 = topic.name().as_str()[2..].parse().unwrap();
                    heard.push((connection, number));
                }
            }
            (heard, creator.join().unwrap())
        });
        heard.extend(told);
        heard.sort_unstable();
        let each: Vec<(u64, u64)> =
            (0..10).flat_map(|connection| (0..500).map(move |n| (connection, n))).collect();
        assert_eq!(heard, each);
    }
}

#[test]
fn the_first_rule_that_matches_decides() {
    let rule = |filter: &str, max_events| TopicRule {
        filter: Filter::parse(filter).unwrap(),
        policy: Policy { max_events, ..Policy::default() },
    };
    let rules = vec![rule("a/b", 1), rule("a/#", 2)];
    let (registry, _) = registry(TopicSettings { rules, ..TopicSettings::default() });
    let kept = |topic: &str| {
        let topic = open(&registry, topic);
        (0..5).for_each(|_| _ = publish(&registry, &topic, "1"));
        topic.look(|log| log.len())
    };
    assert_eq!([kept("a/b"), kept("a/c"), kept("x")], [1, 2, 5]);
}

#[test]
fn all_logs_together_stay_below_their_limit_at_the_expense_of_the_largest() {
    let max_memory = 100_000;
    let (registry, _) = registry(TopicSettings { max_memory, ..TopicSettings::default() });
    let (small, large) = (open(&registry, "small"), open(&registry, "large"));
    let payload = format!("\"{}\"", "x".repeat(500));
    (0..10).for_each(|_| _ = publish(&registry, &small, &payload));
    for _ in 0..1_000 {
        publish(&registry, &large, &payload);
        assert!(registry.bytes() <= max_memory);
    }
    assert_eq!(small.look(|log| log.len()), 10);
    assert_eq!(registry.bytes(), small.bytes() + large.bytes());
    assert!(max_memory / 2 < large.bytes());
    assert!(0 < registry.metrics.events_evicted.value(Evicted::Memory));
}

#[test]
fn logs_of_one_size_lose_alike() {
    let max_memory = 1_000_000;
    let (registry, _) = registry(TopicSettings { max_memory, ..TopicSettings::default() });
    let topics = ["a", "b", "c", "d"].map(|topic| open(&registry, topic));
    let payload = format!("\"{}\"", "x".repeat(50));
    while registry.metrics.events_evicted.value(Evicted::Memory) == 0 {
        topics.iter().for_each(|topic| _ = publish(&registry, topic, &payload));
    }
    let kept = topics.each_ref().map(|topic| topic.bytes());
    let [least, most] = [kept.iter().min(), kept.iter().max()].map(|bytes| *bytes.unwrap());
    assert!(most - least < 1_000, "{kept:?}");
    assert!(registry.bytes() <= max_memory);
}

#[test]
fn many_topics_of_one_event_stay_below_the_limit() {
    let max_memory = 200_000;
    let settings = TopicSettings { max_memory, max_topics: 5_000, ..TopicSettings::default() };
    let (registry, _) = registry(settings);
    for number in 0..5_000 {
        publish(&registry, &open(&registry, &format!("t/{number}")), "1");
        assert!(registry.bytes() <= max_memory);
    }
    let sum: u64 = registry.list(None, usize::MAX).iter().map(|topic| topic.bytes()).sum();
    assert_eq!(registry.bytes(), sum);
    assert!(max_memory - max_memory / 32 < sum, "no more than needed goes");
}

#[test]
fn a_reload_applies_to_the_topics_that_exist() {
    let (registry, _) = registry(TopicSettings::default());
    let topic = open(&registry, "a");
    (0..50).for_each(|_| _ = publish(&registry, &topic, "1"));
    let default_policy = Policy { max_events: 3, ..Policy::default() };
    registry.apply(TopicSettings { default_policy, ..TopicSettings::default() });
    assert_eq!(topic.look(|log| (log.first(), log.len())), (48, 3));
    assert_eq!(registry.bytes(), topic.bytes());
}

#[test]
fn a_quiet_topic_keeps_its_position_until_it_is_forgotten() {
    let age = Some(Duration::from_secs(1));
    let settings = TopicSettings {
        default_policy: Policy { max_age: age, ..Policy::default() },
        forget_after: Duration::from_secs(100),
        ..TopicSettings::default()
    };
    let (registry, clock) = registry(settings);
    let topic = open(&registry, "a");
    publish(&registry, &topic, "1");
    let epoch = topic.look(|log| log.epoch());
    clock.advance(Duration::from_secs(50));
    registry.sweep(DAY);
    let quiet = registry.find("a").unwrap();
    assert_eq!(
        quiet.look(|log| (log.epoch(), log.len(), log.start(&From::Live).seq)),
        (epoch, 0, 1)
    );
    assert_eq!(registry.bytes(), 0);
    clock.advance(Duration::from_secs(100));
    registry.sweep(DAY);
    assert!(registry.find("a").is_none());
    assert!(publish(&registry, &topic, "2").is_none(), "whoever holds it looks it up again");
    let again = open(&registry, "a");
    assert_ne!(again.look(|log| log.epoch()), epoch);
}

#[test]
fn keys_that_a_duplicate_found_to_forget_are_no_longer_counted() {
    let window = Duration::from_millis(100);
    let (registry, clock) =
        registry(TopicSettings { dedupe_window: window, ..TopicSettings::default() });
    let topic = open(&registry, "a");
    let keyed = |key, now_ms| {
        let draft = Draft { user: None, name: None, data: "1", key: Some(key) };
        registry.publish(&topic, &draft, now_ms, None).unwrap().receipt.duplicate
    };
    assert!(!keyed("old", 1_000));
    clock.advance(Duration::from_millis(60));
    assert!(!keyed("new", 1_000), "the wall clock stands still");
    clock.advance(Duration::from_millis(60));
    assert!(keyed("new", 1_000));
    assert_eq!(registry.bytes(), topic.bytes());
    assert!(!keyed("old", 1_000), "its window has ended");
    clock.advance(Duration::from_millis(100));
    registry.sweep(DAY);
    assert_eq!(registry.bytes(), topic.look(|log| log.bytes()), "no key is left");
}

#[test]
fn topics_are_listed_by_name_and_page() {
    let (registry, _) = registry(TopicSettings::default());
    ["c", "a", "b"].iter().for_each(|topic| drop(open(&registry, topic)));
    let names = |after: Option<&str>, limit| {
        let page = registry.list(after, limit);
        page.iter().map(|topic| topic.name().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(names(None, 2), ["a", "b"]);
    assert_eq!(names(Some("b"), 2), ["c"]);
}
