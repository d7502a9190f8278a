//! The configuration from outside: text in, settings or problems out.

use std::{fs, time::Duration};

use super::*;
use crate::name::Name;

const FILE: &str = "landline.toml";

fn pairs(env: &[(&str, &str)]) -> Vec<(String, String)> {
    env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn flags(flags: &[(&'static str, &str)]) -> Vec<(&'static str, String)> {
    flags.iter().map(|(name, value)| (*name, (*value).to_owned())).collect()
}

#[track_caller]
fn file(text: &str) -> Loaded {
    resolve(Some(text), FILE, &[], &[]).unwrap()
}

#[track_caller]
fn env(variables: &[(&str, &str)]) -> Loaded {
    resolve(None, FILE, &pairs(variables), &[]).unwrap()
}

#[track_caller]
fn problems(text: &str) -> Vec<String> {
    resolve(Some(text), FILE, &[], &[]).unwrap_err().problems
}

#[track_caller]
fn assert_problem(text: &str, expected: &str) {
    assert_eq!(problems(text), [expected], "in the file {text:?}");
}

fn effective<'a>(loaded: &'a Loaded, key: &str) -> &'a Effective {
    loaded.effective.iter().find(|effective| effective.key == key).unwrap()
}

#[test]
fn nothing_said_is_the_default() {
    let loaded = resolve(None, FILE, &[], &[]).unwrap();
    assert_eq!(loaded.config, Config::default());
    assert!(loaded.warnings.is_empty());
    assert!(loaded.effective.iter().all(|effective| effective.origin == Origin::Default));
    assert_eq!(file("").config, Config::default());
}

#[test]
fn every_type_is_read_from_the_file() {
    let config = file(
        "listen = \"localhost:80\"\nallow_anonymous = true\nwriters = 3\nlog_level = \"debug\"\n\
         log_file = \"/var/log/landline.log\"\nmax_message = \"1MB\"\nmax_outbox = \"2MiB\"\n\
         heartbeat = \"1m30s\"\nheartbeat_timeout = \"1h\"\nmax_events = 1_000\nmax_age = \"7d\"\n\
         allowed_origins = [\"https://Panel.example:443\", \"http://[::1]:3000\"]\n",
    )
    .config;
    assert_eq!(config.listen, ["localhost:80"]);
    assert!(config.allow_anonymous);
    assert_eq!(config.writers, 3);
    assert_eq!(config.log.level, LogLevel::Debug);
    assert_eq!(config.log.file, Some("/var/log/landline.log".into()));
    assert_eq!(config.connections.max_message, 1_000_000);
    assert_eq!(config.connections.max_outbox, 2 << 20);
    assert_eq!(config.connections.heartbeat, Duration::from_secs(90));
    assert_eq!(config.topics.default_policy.max_events, 1_000);
    assert_eq!(config.topics.default_policy.max_age, Some(Duration::from_secs(7 * 86_400)));
    assert_eq!(config.origins.allowed_origins, ["https://panel.example", "http://[::1]:3000"]);
}

#[test]
fn every_type_is_read_from_the_environment() {
    let config = env(&[
        ("LANDLINE_LISTEN", " [::1]:1 , localhost:2,"),
        ("LANDLINE_WRITERS", "3"),
        ("LANDLINE_LOG_LEVEL", "trace"),
        ("LANDLINE_LOG_FILE", "relay.log"),
        ("LANDLINE_MAX_MEMORY", "1GiB"),
        ("LANDLINE_DRAIN", "500ms"),
        ("LANDLINE_ALLOW_ANONYMOUS", "true"),
        ("LANDLINE_ALLOWED_HOSTS", "Relay.example"),
        ("LANDLINE_MAX_AGE", "10m"),
    ])
    .config;
    assert_eq!(config.listen, ["[::1]:1", "localhost:2"]);
    assert_eq!(config.writers, 3);
    assert_eq!(config.log.level, LogLevel::Trace);
    assert_eq!(config.log.file, Some("relay.log".into()));
    assert_eq!(config.topics.max_memory, 1 << 30);
    assert_eq!(config.drain, Duration::from_millis(500));
    assert!(config.allow_anonymous);
    assert_eq!(config.origins.allowed_hosts, ["relay.example"]);
    assert_eq!(config.topics.default_policy.max_age, Some(Duration::from_secs(600)));
}

#[test]
fn flags_win_over_the_environment_over_the_file_over_defaults() {
    let text = "writers = 2\ndrain = \"2s\"\nheartbeat = \"2s\"\nlisten = [\"[::1]:1\"]\n";
    let variables = pairs(&[("LANDLINE_DRAIN", "3s"), ("LANDLINE_HEARTBEAT", "3s")]);
    let given = flags(&[("heartbeat", "4s"), ("listen", "localhost:1"), ("listen", "[::1]:2")]);
    let loaded = resolve(Some(text), FILE, &variables, &given).unwrap();
    assert_eq!(loaded.config.writers, 2);
    assert_eq!(loaded.config.drain, Duration::from_secs(3));
    assert_eq!(loaded.config.connections.heartbeat, Duration::from_secs(4));
    assert_eq!(loaded.config.listen, ["localhost:1", "[::1]:2"]);
    for (key, line) in [
        ("writers", "writers = 2 # landline.toml:1"),
        ("drain", "drain = \"3s\" # LANDLINE_DRAIN"),
        ("heartbeat", "heartbeat = \"4s\" # --heartbeat"),
        ("listen", "listen = [\"localhost:1\", \"[::1]:2\"] # --listen"),
        ("log_file", "log_file = false # default"),
    ] {
        assert_eq!(effective(&loaded, key).to_string(), line);
    }
}

#[test]
fn off_can_be_said_over_a_value_of_a_weaker_layer() {
    let text =
        "max_age = \"7d\"\nlog_file = \"x\"\nallowed_hosts = \"a\"\nallow_anonymous = true\n";
    let given = flags(&[("log_file", "false"), ("allowed_hosts", "")]);
    let variables = pairs(&[("LANDLINE_MAX_AGE", "false"), ("LANDLINE_ALLOW_ANONYMOUS", "false")]);
    let config = resolve(Some(text), FILE, &variables, &given).unwrap().config;
    assert_eq!(config, Config::default());
}

#[test]
fn an_empty_variable_counts_as_none() {
    assert_eq!(
        env(&[("LANDLINE_WRITERS", ""), ("LANDLINE_NONSENSE", "")]).config,
        Config::default()
    );
}

#[test]
fn an_unknown_variable_is_a_warning_unless_others_own_it() {
    let warnings = env(&[
        ("LANDLINE_WRITER", "2"),
        ("LANDLINE_PORT", "tcp://10.0.0.1:5263"),
        ("LANDLINE_CONFIG", "x"),
        ("LANDLINE_URL", "x"),
        ("LANDLINE_OUTPUT", "x"),
        ("LANDLINE_TOKEN", "x"),
        ("LANDLINE_TOKEN_FILE", "x"),
        ("PATH", "x"),
    ])
    .warnings;
    assert_eq!(
        warnings,
        [
            "LANDLINE_WRITER: no such setting, the variable is ignored; did you mean \
             LANDLINE_WRITERS?",
            "LANDLINE_PORT: no such setting, the variable is ignored",
        ]
    );
}

#[test]
fn an_unknown_key_is_a_problem_with_its_place() {
    for (text, expected) in [
        (
            "drain = \"1s\"\n  hartbeat = \"25s\"\n",
            "landline.toml:2:3: unknown key \"hartbeat\"; did you mean \"heartbeat\"?",
        ),
        (
            "max-message = 1",
            "landline.toml:1:1: unknown key \"max-message\"; did you mean \"max_message\"?",
        ),
        ("topic = []", "landline.toml:1:1: unknown key \"topic\"; did you mean \"topics\"?"),
        ("port = 80", "landline.toml:1:1: unknown key \"port\"; docs/config.md lists the keys"),
        (
            "\n[server]\nheartbeat = \"25s\"\n",
            "landline.toml:2:2: unknown key \"server\"; keys stand at the top of the file, not in \
             sections",
        ),
        (
            "[[topics]]\npattern = \"#\"\nmax_event = 5\n",
            "landline.toml:3:1: unknown key \"max_event\" in [[topics]]; did you mean \
             \"max_events\"?",
        ),
        (
            "[[topics]]\npattern = \"#\"\nheartbeat = \"5s\"\n",
            "landline.toml:3:1: unknown key \"heartbeat\" in [[topics]]; it is a key of the relay: \
             move it above the first [[topics]]",
        ),
        (
            "[[topics]]\npattern = \"#\"\nretain = true\n",
            "landline.toml:3:1: unknown key \"retain\" in [[topics]]; keys are max_events, \
             max_bytes, max_age, durable, sync, sync_interval, max_tail, pattern",
        ),
    ] {
        assert_problem(text, expected);
    }
}

#[test]
fn a_syntax_error_has_line_and_column() {
    let found = problems("drain = \"1s\"\nwriters = = 4\n");
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("landline.toml:2:11: "), "{found:?}");

    let found = problems("drain = \"1s\"\nlog_file = \"Küche\ndrain = \"2s\"\n");
    assert!(found[0].starts_with("landline.toml:2:"), "{found:?}");

    let found = problems("drain = \"1s\"\ndrain = \"2s\"\n");
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("landline.toml:2:1: duplicate key"), "{found:?}");
}

#[test]
fn columns_count_characters() {
    assert_problem(
        "topics = [{ pattern = \"Küche\", max_events = 0 }]",
        "landline.toml:1:45: max_events of [[topics]] \"Küche\" is 0, allowed is 1 to 1000000000",
    );
}

#[test]
fn a_value_of_the_wrong_type_is_told_the_right_one() {
    for (text, expected) in [
        ("writers = \"4\"", "writers is \"4\", expected a whole number, 1 to 64"),
        ("writers = 2.5", "writers is 2.5, expected a whole number, 1 to 64"),
        ("allow_anonymous = 1", "allow_anonymous is 1, expected true or false"),
        ("drain = true", "drain is true, expected a duration such as \"25s\", 100ms to 10m"),
        (
            "max_age = true",
            "max_age is true, expected a duration such as \"7d\", 1s to 3650d, or false for any \
             age",
        ),
        (
            "max_message = [1]",
            "max_message is [1], expected a size such as \"256KiB\", 1KiB to 64MiB",
        ),
        (
            "log_level = \"INFO\"",
            "log_level is \"INFO\", expected error, warn, info, debug or trace",
        ),
        ("log_level = 3", "log_level is 3, expected error, warn, info, debug or trace"),
        ("log_file = \"\"", "log_file is \"\", expected a path, or false for none"),
        ("log_file = true", "log_file is true, expected a path, or false for none"),
        (
            "listen = 5263",
            "listen is 5263, expected a list of texts of the form HOST:PORT, at least 1",
        ),
        ("listen = []", "listen is [], expected a list of texts of the form HOST:PORT, at least 1"),
        ("allowed_hosts = [1]", "allowed_hosts is [1], expected a list of texts of the form HOST"),
        ("topics = 5", "topics is 5, expected a [[topics]] table for each rule"),
        ("topics = [1]", "topics is [1], expected a [[topics]] table for each rule"),
        ("log_level = {}", "log_level is a table, expected error, warn, info, debug or trace"),
    ] {
        let column = text.find('=').unwrap() + 3;
        assert_problem(text, &format!("landline.toml:1:{column}: {expected}"));
    }
}

#[test]
fn a_table_in_the_place_of_a_value_is_called_one() {
    let expected = "topics is a table, expected a [[topics]] table for each rule";
    assert_problem("[topics]\npattern = \"a\"", &format!("landline.toml:1:1: {expected}"));
    let expected = "drain is a table, expected a duration such as \"25s\", 100ms to 10m";
    assert_problem("drain.after = \"1s\"", &format!("landline.toml:1:1: {expected}"));
}

#[test]
fn a_long_value_is_shown_on_one_line_and_cut() {
    let items = "  \"127.0.0.1:x\",\n".repeat(20);
    let found = problems(&format!("listen = [\n{items}]"));
    let start = "landline.toml:1:10: listen is [ \"127.0.0.1:x\", \"127.0.0.1:x\"";
    assert!(found[0].starts_with(start), "{found:?}");
    assert!(found[0].contains("..., where"), "{found:?}");
}

#[test]
fn no_text_makes_it_panic() {
    let pieces: Vec<_> =
        "[[topics]]\n|pattern = \"a/#\"\n|drain = \"5s\"\n|writers|max_age|\n|=|\"|\
                          \"\"\"|'| 5 |\u{e9}|\u{feff}|\0|{|}|[|]|,|.|#|true"
            .split('|')
            .collect();
    let mut state = 1_u64;
    for round in 0..5_000 {
        let mut text = String::new();
        for _ in 0..round % 16 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            text.push_str(pieces[usize::try_from(state >> 33).unwrap() % pieces.len()]);
        }
        let variables = pairs(&[("LANDLINE_MAX_AGE", &text), ("LANDLINE_LISTEN", &text)]);
        drop(resolve(Some(&text), FILE, &variables, &[]));
    }
}

#[test]
fn a_value_out_of_range_is_told_the_range() {
    for (text, expected) in [
        ("writers = 0", "writers is 0, allowed is 1 to 64"),
        ("writers = -1", "writers is -1, allowed is 1 to 64"),
        ("writers = 0x41", "writers is 0x41, allowed is 1 to 64"),
        ("drain = \"1h\"", "drain is \"1h\", allowed is 100ms to 10m"),
        ("max_message = \"1GiB\"", "max_message is \"1GiB\", allowed is 1KiB to 64MiB"),
        ("max_age = \"0s\"", "max_age is \"0s\", allowed is 1s to 3650d"),
    ] {
        let column = text.find('=').unwrap() + 3;
        assert_problem(text, &format!("landline.toml:1:{column}: {expected}"));
    }
}

#[test]
fn a_number_without_a_unit_is_told_which_unit_is_missing() {
    for text in ["drain = 25", "drain = \"25\"", "max_age = 25"] {
        let found = problems(text);
        assert!(
            found[0].contains("which has no unit: write \"25s\" if it means seconds"),
            "{found:?}"
        );
    }
    for text in ["max_message = 4096", "max_message = \"4096\""] {
        let found = problems(text);
        assert!(
            found[0].contains("which has no unit: write \"4096B\" if it means bytes"),
            "{found:?}"
        );
    }
    let found = resolve(None, FILE, &pairs(&[("LANDLINE_DRAIN", "25")]), &[]).unwrap_err();
    assert_eq!(
        found.to_string(),
        "LANDLINE_DRAIN: drain is \"25\", which has no unit: write \"25s\" if it means seconds, or \
         use ms, m, h or d"
    );
}

#[test]
fn every_wrong_entry_of_a_list_is_named() {
    assert_problem(
        "listen = [\"localhost\", \"127.0.0.1:1\", \"::1:2\"]",
        "landline.toml:1:10: listen is [\"localhost\", \"127.0.0.1:1\", \"::1:2\"], where \
         \"localhost\" has no port: write host:port, such as 127.0.0.1:5263; \"::1:2\" is an IPv6 \
         address without brackets: write it as [::1]:5263",
    );
    let found = problems("allowed_origins = \"https://panel.example/\"");
    assert!(
        found[0].contains("where \"https://panel.example/\" goes on after the host"),
        "{found:?}"
    );
}

#[test]
fn all_problems_of_all_layers_come_at_once() {
    let text = "writers = 0\nhartbeat = \"1s\"\nlisten = \"0.0.0.0:1\"\n\
                [[topics]]\nmax_events = 0\n[[topics]]\npattern = \"a//b\"\n";
    let variables = pairs(&[("LANDLINE_WRITERS", "many"), ("LANDLINE_HEARTBEAT", "1h")]);
    let given = flags(&[("max_message", "1"), ("colour", "red")]);
    let error = resolve(Some(text), FILE, &variables, &given).unwrap_err();
    let starts = [
        "landline.toml:2:1: unknown key \"hartbeat\"",
        "landline.toml:4:1: [[topics]] has no pattern",
        "landline.toml:7:11: pattern of [[topics]] is \"a//b\", which has an empty segment",
        "landline.toml:1:11: writers is 0",
        "LANDLINE_WRITERS: writers is \"many\", expected a whole number",
        "--max-message: max_message is \"1\", which has no unit",
        "flags: unknown key \"colour\" with the value \"red\"",
        "landline.toml:5:14: max_events of [[topics]] \"?\" is 0",
        "heartbeat is \"1h\" (LANDLINE_HEARTBEAT), heartbeat_timeout is \"54s\" (default): \
         heartbeat must be shorter",
        "listen is [\"0.0.0.0:1\"] (landline.toml:3), allow_anonymous is false (default): other",
    ];
    assert_eq!(error.problems.len(), starts.len(), "{error}");
    for (problem, start) in error.problems.iter().zip(starts) {
        assert!(problem.starts_with(start), "{problem}\nshould start with\n{start}");
    }
    assert_eq!(error.to_string().lines().count(), starts.len());
}

#[test]
fn a_wrong_value_is_a_problem_also_where_a_flag_overrides_it() {
    let found = resolve(Some("writers = 0"), FILE, &[], &flags(&[("writers", "2")])).unwrap_err();
    assert_eq!(found.problems, ["landline.toml:1:11: writers is 0, allowed is 1 to 64"]);
}

#[test]
fn relations_are_not_checked_with_values_that_nobody_wanted() {
    // Compared with the default of 54s, the heartbeat would look too long.
    let found = problems("heartbeat = \"5m\"\nheartbeat_timeout = 600\n");
    assert_eq!(found.len(), 1, "{found:?}");
    let given = flags(&[("heartbeat", "5m")]);
    let found = resolve(Some("heartbeat_timeout ="), FILE, &[], &given).unwrap_err();
    assert_eq!(found.problems.len(), 1, "{found}");
}

#[test]
fn the_heartbeat_is_shorter_than_its_timeout() {
    file("heartbeat = \"53s\"");
    for text in ["heartbeat = \"54s\"", "heartbeat_timeout = \"25s\"", "heartbeat = \"1h\""] {
        assert!(problems(text)[0].contains("heartbeat must be shorter than"), "{text}");
    }
}

#[test]
fn a_reply_with_the_largest_event_fits_the_outbox() {
    file("max_message = \"1020KiB\"");
    for text in ["max_message = \"1021KiB\"", "max_outbox = \"259KiB\""] {
        let found = problems(text);
        assert!(found[0].contains("max_outbox must be at least 4KiB larger"), "{found:?}");
    }
}

#[test]
fn the_largest_event_can_be_kept() {
    file("max_bytes = \"256KiB\"");
    assert_problem(
        "max_bytes = \"255KiB\"",
        "max_bytes is \"255KiB\" (landline.toml:1), max_message is \"256KiB\" (default): max_bytes \
         must be at least max_message, or the largest event cannot be kept",
    );
    assert_problem(
        "[[topics]]\npattern = \"a\"\nmax_bytes = \"255KiB\"",
        "max_bytes of [[topics]] \"a\" is \"255KiB\" (landline.toml:3), max_message is \"256KiB\" \
         (default): max_bytes must be at least max_message, or the largest event cannot be kept",
    );
    let found = problems("max_message = \"2MiB\"\nmax_outbox = \"3MiB\"\nmax_memory = \"1MiB\"");
    assert!(found[0].contains("max_memory must be at least max_message"), "{found:?}");
    // An inherited max_bytes is reported once, where it stands.
    let found = problems("max_bytes = \"1KiB\"\n[[topics]]\npattern = \"a\"\nmax_events = 1");
    assert_eq!(found.len(), 1, "{found:?}");
}

#[test]
fn listening_beyond_loopback_must_be_meant() {
    for listen in ["0.0.0.0:5263", "[::]:0", "192.168.1.2:80", "relay.local:5263"] {
        let text = format!("listen = [\"127.0.0.1:1\", {listen:?}]\n");
        let found = problems(&text);
        assert_eq!(
            found,
            [format!(
                "listen is [\"127.0.0.1:1\", {listen:?}] (landline.toml:1), allow_anonymous is \
                 false (default): other machines may reach [{listen:?}], and there is no \
                 authentication yet, so everybody there could read and write everything; set \
                 allow_anonymous = true if that is meant, or listen on 127.0.0.1"
            )]
        );
        let loaded = file(&format!("{text}allow_anonymous = true\n"));
        assert!(loaded.warnings.is_empty());
    }
    file("listen = [\"localhost:1\", \"127.3.2.1:1\", \"[::1]:0\"]");
}

#[test]
fn an_address_is_listened_on_once() {
    let found = problems("listen = [\"127.0.0.1:1\", \"[::1]:1\", \"127.0.0.1:1\"]");
    assert!(
        found[0]
            .ends_with("\"127.0.0.1:1\" is there twice, and an address can be listened on once")
    );
    file("listen = [\"127.0.0.1:0\", \"127.0.0.1:0\"]");
}

#[test]
fn rules_keep_their_order_and_inherit_what_they_leave_out() {
    let text = "max_events = 10\nmax_age = \"1h\"\n\
                [[topics]]\npattern = \"home/door\"\nmax_age = false\n\
                [[topics]]\npattern = \"home/#\"\nmax_bytes = \"1MiB\"\n";
    let given = flags(&[("max_events", "20")]);
    let topics = resolve(Some(text), FILE, &[], &given).unwrap().config.topics;
    let policy = |topic| topics.policy(&Name::parse(topic).unwrap());
    let hour = Some(Duration::from_secs(3_600));
    let expected =
        |max_bytes, max_age| Policy { max_events: 20, max_bytes, max_age, ..Policy::default() };
    assert_eq!(policy("x"), expected(64 << 20, hour));
    assert_eq!(policy("home/door"), expected(64 << 20, None));
    assert_eq!(policy("home/lamp"), expected(1 << 20, hour));
    assert_eq!(policy("$dead/home/lamp"), expected(1 << 20, hour));
}

#[test]
fn a_rule_that_can_never_decide_is_a_warning() {
    let text = "[[topics]]\npattern = \"home/#\"\nmax_events = 5\n\n\
                [[topics]]\npattern = \"home/door\"\nmax_events = 500\n";
    assert_eq!(
        file(text).warnings,
        ["landline.toml:5:1: [[topics]] \"home/door\" is never used, because the earlier \
          \"home/#\" matches all of its topics and the first match decides"]
    );
}

#[test]
fn what_is_effective_is_a_file_with_the_same_meaning() {
    let text = "listen = [\"0.0.0.0:1\"]\nallow_anonymous = true\nwriters = 7\ndrain = \"1m1ms\"\n\
                log_level = \"warn\"\nlog_file = \"a \\\"b\\\\\\u0007\"\nmax_connections = 5\n\
                max_message = \"1000B\"\nmax_outbox = \"9MB\"\nallowed_origins = [\"http://a:1\"]\n\
                allowed_hosts = [\"a\", \"b\"]\nmax_memory = \"1GiB\"\nmax_age = \"1d12h\"\n\
                [[topics]]\npattern = \"k\u{fc}che/+\"\nmax_age = false\n\
                [[topics]]\npattern = \"#\"\nmax_events = 1\n";
    let loaded = resolve(Some(&text.replace("1000B", "2000B")), FILE, &[], &[]).unwrap();
    let lines: Vec<_> = loaded.effective.iter().map(Effective::to_string).collect();
    let again = file(&lines.join("\n"));
    assert_eq!(again.config, loaded.config);
    assert_ne!(again.config, Config::default());
    assert_eq!(effective(&loaded, "topics").origin.to_string(), "landline.toml:14");
}

#[test]
fn changes_say_what_a_reload_applies() {
    let old = file("").config;
    assert!(changed(&old, &old).is_empty());
    let new = file(
        "listen = \"localhost:1\"\nwriters = 33\nlog_file = \"x\"\nmax_connections = 7\n\
         drain = \"9s\"\nallowed_hosts = \"a\"\nmax_age = \"1d\"\n[[topics]]\npattern = \"a\"\n",
    )
    .config;
    let changes = changed(&old, &new);
    assert_eq!(changes.restart, ["listen", "writers", "log_file", "max_connections"]);
    assert_eq!(changes.live, ["drain", "allowed_hosts", "max_age", "topics"]);
}

#[test]
fn a_durable_topic_needs_a_directory_and_a_directory_a_durable_topic() {
    let needs = "durable topics need a directory; set data_dir";
    for text in ["durable = true\n", "[[topics]]\npattern = \"a/#\"\ndurable = true\n"] {
        let found = problems(text);
        assert!(found[0].ends_with(needs), "{found:?}");
        assert!(file(&format!("data_dir = \"d\"\n{text}")).warnings.is_empty());
    }
    let found = problems("durable_state = true\n");
    assert!(found[0].ends_with("a durable state needs a directory; set data_dir"), "{found:?}");
    let state = file("data_dir = \"d\"\ndurable_state = true\n");
    assert!(state.config.state.durable && state.warnings.is_empty(), "{:?}", state.warnings);
    assert!(file("data_dir = \"d\"\n").warnings[0].contains("no topic is durable"));
    let text = "data_dir = \"d\"\n[[topics]]\npattern = \"a\"\ndurable = true\nsync = \"os\"\n";
    let topics = file(text).config.topics;
    let policy = |topic| topics.policy(&Name::parse(topic).unwrap());
    assert_eq!((policy("a").durable, policy("a").sync), (true, SyncPolicy::Os));
    assert_eq!((policy("b").durable, policy("b").sync), (false, SyncPolicy::Always));
}

#[test]
fn a_file_is_loaded_with_its_path_as_origin() {
    let path = std::env::temp_dir().join(format!("landline-config-{}.toml", std::process::id()));
    fs::write(&path, "writers = 5\n").unwrap();
    let env = pairs(&[("LANDLINE_DRAIN", "1s")]);
    let loaded = load(&Sources { file: Some(path.clone()), env, flags: flags(&[]) }).unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(loaded.config.writers, 5);
    assert_eq!(loaded.config.drain, Duration::from_secs(1));
    let origin = effective(&loaded, "writers").origin.to_string();
    assert_eq!(origin, format!("{}:1", path.display()));
    assert_eq!(load(&Sources::default()).unwrap().config, Config::default());
}

#[test]
fn a_missing_file_is_named_together_with_the_other_problems() {
    let file = Some("/nowhere/landline.toml".into());
    let flags = flags(&[("writers", "0"), ("heartbeat", "1h")]);
    let error = load(&Sources { file, env: Vec::new(), flags }).unwrap_err();
    assert_eq!(error.problems.len(), 2, "{error}");
    assert!(error.problems[0].starts_with("/nowhere/landline.toml: cannot read the file: "));
    assert!(error.problems[1].starts_with("--writers: writers is \"0\", allowed is 1 to 64"));
}
