//! What a writer says of its connections.

use super::*;

fn ask(rig: &mut Rig, connections: &[u64]) -> Vec<Option<Findings>> {
    let (reply, answer) = lane::open(lane::REPLIES);
    rig.writer.obey(Command::Survey(Box::new(Survey { connections: connections.into(), reply })));
    answer.try_recv().unwrap()
}

#[test]
fn a_survey_counts_subscriptions_watches_and_what_is_behind() {
    let mut rig = rig();
    let topic = topic("t");
    publish(&topic, 10, 10);
    let _clients = [rig.attach(1, None), rig.attach(2, None)];
    rig.follow(1, &topic, 4, NAME);
    rig.follow(2, &topic, 10, NAME);
    let (pattern, filter) = (Pattern::parse("a/+").unwrap(), Filter::parse("k").unwrap());
    let slow = SlowPolicy::Gap;
    rig.writer.obey(Command::OpenPattern(Box::new(OpenPattern {
        connection: 2,
        subscription: 1,
        pattern,
        slow,
        window: None,
    })));
    let order = WatchOrder { connection: 2, request: None, filter, from: None };
    rig.writer.obey(Command::Watch(Which::Shared, Box::new(order)));

    let behind = Findings { subscriptions: 1, watches: 0, lag: 6 };
    let ahead = Findings { subscriptions: 2, watches: 1, lag: 0 };
    assert_eq!(ask(&mut rig, &[2, 9, 1]), [Some(ahead), None, Some(behind)]);
    rig.turn();
    assert_eq!(ask(&mut rig, &[1]), [Some(Findings { lag: 0, ..behind })]);
}

#[test]
fn a_survey_of_many_cursors_is_answered_in_parts() {
    let mut rig = rig();
    let _clients = [rig.attach(1, None), rig.attach(2, None), rig.attach(3, None)];
    for number in 0..20_000 {
        let topic = topic(&format!("t/{number}"));
        publish(&topic, 1, 1);
        rig.follow(1, &topic, 0, NAME);
    }
    let many = Some(Findings { subscriptions: 20_000, watches: 0, lag: 20_000 });
    let none = Some(Findings::default());
    assert_eq!(ask(&mut rig, &[1, 2, 3]), [many]);
    assert_eq!(ask(&mut rig, &[2, 1, 3]), [none, many]);
    assert_eq!(ask(&mut rig, &[2, 3]), [none, none]);
}
