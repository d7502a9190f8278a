//! Publishes one event and follows its topic: the example of the README, which a test compares.

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use landline::client::{Client, Delivery, From, Options, SubscribeOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::connect("http://127.0.0.1:5263", Options::default())?;
    client.publish("door/front", &serde_json::json!({"open": true}))?;
    for delivery in client.subscribe("door/#", From::Start, SubscribeOptions::default())? {
        if let Delivery::Event(event) = delivery? {
            println!("{} {} {}", event.topic, event.seq, event.data);
        }
    }
    Ok(())
}
