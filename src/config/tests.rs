//! The layers and what they refuse, and that the example file is the defaults.

use std::path::Path;

use super::keys::{FORMATS, is_section, variable};
use super::*;

const EXAMPLE: &str = include_str!("../../config.example.toml");

/// Loads with a file of this text, these variables and these `--set`.
fn load(file: &str, env: &[(&str, &str)], sets: &[&str]) -> Result<Config, ConfigError> {
    load_with(file, env, sets, Flags::default())
}

fn load_with(file: &str, env: &[(&str, &str)], sets: &[&str], flags: Flags<'_>) -> Result<Config, ConfigError> {
    let mut draft = Draft::default();
    draft.file(Path::new("tidelog.toml"), file)?;
    draft.variables(env.iter().map(|&(name, value)| (name.into(), value.into())))?;
    draft.sets(&sets.iter().map(|&set| set.into()).collect::<Vec<_>>())?;
    draft.flags(flags)?;
    draft.finish()
}

fn refused(file: &str, env: &[(&str, &str)], sets: &[&str]) -> String {
    load(file, env, sets).expect_err("it is wrong").to_string()
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn nothing_set_is_the_defaults() {
    assert_eq!(load("", &[], &[]).unwrap(), Config::default());
    assert_eq!(load("", &[("PATH", "/bin"), ("TIDELOGX", "1")], &[]).unwrap(), Config::default());
}

#[test]
fn each_layer_lies_over_the_one_before() {
    let (file, env, set) = ("heartbeat = '1s'", ("TIDELOG_HEARTBEAT", "2s"), "heartbeat=3s");
    assert_eq!(load(file, &[], &[]).unwrap().heartbeat, seconds(1));
    assert_eq!(load(file, &[env], &[]).unwrap().heartbeat, seconds(2));
    assert_eq!(load(file, &[env], &[set]).unwrap().heartbeat, seconds(3));
    assert_eq!(load(file, &[env], &[set, "heartbeat=4s"]).unwrap().heartbeat, seconds(4));
    let flags = Flags { listen: Some("[::1]:9"), data: Some(Path::new("/flag")) };
    let flagged = load_with("data = '/file'", &[("TIDELOG_LISTEN", "127.0.0.1:1")], &["data=/set"], flags).unwrap();
    assert_eq!((flagged.listen.to_string().as_str(), flagged.data.to_str()), ("[::1]:9", Some("/flag")));
}

#[test]
fn every_key_can_be_set_in_every_layer_to_what_it_shows() {
    let defaults = Config::default();
    for key in KEYS {
        let value = (key.get)(&defaults);
        // A list is the one value that is written otherwise in a file.
        let quoted = if key.name == "cors.allow_origins" { "[]".into() } else { format!("{value:?}") };
        let in_file = load(&format!("{} = {quoted}", key.name), &[], &[]).unwrap();
        let in_variable = load("", &[(&variable(key.name), &value)], &[]).unwrap();
        let in_set = load("", &[], &[&format!("{}={value}", key.name)]).unwrap();
        assert_eq!([in_file, in_variable, in_set], [const { &() }; 3].map(|()| defaults.clone()), "{}", key.name);
    }
}

#[test]
fn nesting_is_written_with_dots_and_double_underscores() {
    let want = 65_536;
    for loaded in [
        load("[limits]\nevent_bytes_max = '64KiB'", &[], &[]),
        load("limits.event_bytes_max = 65536", &[], &[]),
        load("", &[("TIDELOG_LIMITS__EVENT_BYTES_MAX", "64KiB")], &[]),
        load("", &[], &["limits.event_bytes_max=64KiB"]),
    ] {
        assert_eq!(loaded.unwrap().limits.event_bytes_max, want);
    }
}

#[test]
fn all_values_arrive() {
    let all = load(
        r#"
        durability = "interval"
        retry = "500ms"
        drain_timeout = 0
        dedupe_window = "1h"
        dedupe_keys_max = 5
        limits = { topics_max = 7, connections_max = 8, batch_events_max = 9 }
        cors.allow_origins = ["https://b.example", "http://A.example:3000"]
        log = { format = "json", level = "warn,tidelog::store=debug" }
        [retention]
        max_events = 1_000
        max_age = "7d"
        max_bytes = "10GiB"
        [[retention.topics]]
        pattern = "orders.**"
        max_age = "15m"
        [[retention.topics]]
        pattern = "orders.eu"
        "#,
        &[],
        &[],
    )
    .unwrap();
    assert_eq!(all.durability, Durability::Interval);
    assert_eq!((all.retry, all.drain_timeout, all.dedupe_window), (seconds(1) / 2, seconds(0), seconds(3600)));
    assert_eq!(all.dedupe_keys_max, 5);
    assert_eq!(
        all.retention.limits,
        Limits { max_events: 1000, max_age: 604_800_000, max_bytes: 10 << 30, ..Limits::default() }
    );
    assert_eq!((all.limits.topics_max, all.limits.connections_max, all.limits.batch_events_max), (7, 8, 9));
    assert_eq!(all.cors.allow_origins, ["http://a.example:3000", "https://b.example"]);
    assert_eq!(all.log, Logging { format: LogFormat::Json, level: "warn,tidelog::store=debug".into() });
    let rule = |pattern, max_age| RetentionRule {
        pattern: Pattern::parse(pattern).unwrap(),
        limits: Limits { max_age, ..Limits::default() },
    };
    assert_eq!(all.retention.topics, [rule("orders.**", 900_000), rule("orders.eu", 0)], "in their order");
}

#[test]
fn an_unknown_key_is_refused_in_every_layer_with_the_nearest_name() {
    assert_eq!(
        refused("listen = '127.0.0.1:1'\n\nhartbeat = '1s'", &[], &[]),
        "there is no setting hartbeat (tidelog.toml, line 3); did you mean heartbeat?"
    );
    assert_eq!(
        refused("event_bytes_max = 1", &[], &[]),
        "there is no setting event_bytes_max (tidelog.toml, line 1); did you mean limits.event_bytes_max?"
    );
    assert_eq!(
        refused("[colours]\nx = 1", &[], &[]),
        "there is no setting colours (tidelog.toml, line 1); all settings are listed by `tidelog serve --help`"
    );
    assert_eq!(
        refused("", &[("TIDELOG_LIMITS_EVENT_BYTES_MAX", "1")], &[]),
        "there is no setting for the variable TIDELOG_LIMITS_EVENT_BYTES_MAX; did you mean \
         TIDELOG_LIMITS__EVENT_BYTES_MAX?"
    );
    assert!(refused("", &[("TIDELOG_Listen", "x")], &[]).ends_with("did you mean TIDELOG_LISTEN?"));
    assert!(refused("", &[("TIDELOG_PORT_4242_TCP", "tcp://10.0.0.1")], &[]).contains("enableServiceLinks"));
    assert!(refused("", &[("TIDELOG_", "")], &[]).starts_with("there is no setting for the variable TIDELOG_;"));
    assert_eq!(refused("", &[], &["dta=/x"]), "there is no setting dta (--set); did you mean data?");
    assert!(refused("", &[], &["limits=1"]).starts_with("there is no setting limits (--set)"));
    let rule = refused("[[retention.topics]]\npattern = 'a'\nmax_evnts = 1", &[], &[]);
    assert!(
        rule.starts_with("there is no setting retention.topics.max_evnts (tidelog.toml, line 3); a rule"),
        "{rule}"
    );
}

#[test]
fn a_value_that_is_not_allowed_is_told_with_its_key_its_place_and_what_is() {
    assert_eq!(
        refused("\nheartbeat = '0s'", &[], &[]),
        "heartbeat is \"0s\" (tidelog.toml, line 2), but it must be a duration from 1ms to 1d, with its unit, such as \
         15s, 10m or 7d"
    );
    assert_eq!(
        refused("", &[("TIDELOG_DURABILITY", "always")], &[]),
        "durability is \"always\" (the variable TIDELOG_DURABILITY), but it must be one of sync, interval, os"
    );
    assert_eq!(
        refused("", &[], &["limits.batch_events_max=many"]),
        "limits.batch_events_max is \"many\" (--set), but it must be a whole number from 1 to 1000000"
    );
    let flags = Flags { listen: Some("4242"), data: None };
    let flagged = load_with("", &[], &[], flags).unwrap_err().to_string();
    assert!(flagged.starts_with("listen is \"4242\" (--listen), but it must be an address and a port"), "{flagged}");
    let flags = Flags { listen: None, data: Some(Path::new("")) };
    let flagged = load_with("", &[], &[], flags).unwrap_err().to_string();
    assert_eq!(flagged, "data is \"\" (--data), but it must be the path of a directory");
    for (file, told) in [
        ("heartbeat = 15", "heartbeat is 15 (tidelog.toml, line 1), but it must be a duration"),
        ("heartbeat = 1.5", "heartbeat is 1.5 (tidelog.toml, line 1)"),
        ("heartbeat = { s = 1 }", "heartbeat is a table (tidelog.toml, line 1)"),
        ("data = true", "data is true (tidelog.toml, line 1), but it must be the path of a directory"),
        ("limits = 5", "limits is 5 (tidelog.toml, line 1), but it must be a table, written [limits]"),
        ("[[limits]]", "limits is [a table] (tidelog.toml, line 1), but it must be a table, written [limits]"),
        ("cors.allow_origins = ['https://a/b']", "cors.allow_origins is [\"https://a/b\"] (tidelog.toml, line 1), but"),
        ("retention.max_events = -1", "retention.max_events is -1 (tidelog.toml, line 1), but it must be 0 (no limit)"),
        ("log.level = 'debgu'", "log.level is \"debgu\" (tidelog.toml, line 1), but it must be off, error,"),
        ("log.level = 'tidelog=loud'", "log.level is \"tidelog=loud\""),
        ("[retention.topics]", "retention.topics is a table (tidelog.toml, line 1), but it must be a list of tables"),
        ("retention.topics = [1]", "retention.topics is 1 (tidelog.toml, line 1), but it must be a list of tables"),
        ("\n[[retention.topics]]\n", "retention.topics.pattern is missing (tidelog.toml, line 2), but it must be"),
        (
            "[[retention.topics]]\npattern='a.**.b'",
            "retention.topics.pattern is \"a.**.b\" (tidelog.toml, line 2), but",
        ),
        (
            "[[retention.topics]]\ntrim_to_snapshot='yes'",
            "retention.topics.trim_to_snapshot is \"yes\" (tidelog.toml, line 2), but it must be true or false",
        ),
        ("[[retention.topics]]\nmax_age=5", "retention.topics.max_age is 5 (tidelog.toml, line 2), but it must be 0"),
    ] {
        let error = refused(file, &[], &[]);
        assert!(error.starts_with(told), "{file}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn rules_are_written_in_a_file_alone() {
    for error in [
        refused("", &[("TIDELOG_RETENTION__TOPICS", "[]")], &[]),
        refused("", &[("TIDELOG_RETENTION__TOPICS__0__PATTERN", "a")], &[]),
        refused("", &[], &["retention.topics=a"]),
    ] {
        assert!(error.contains("can only be written in a file (--config)"), "{error}");
    }
}

#[test]
fn what_is_not_an_assignment_or_not_toml_is_told() {
    assert!(refused("", &[], &["heartbeat"]).starts_with("--set takes KEY=VALUE"));
    let error = refused("listen = '127.0.0.1:1'\nheartbeat = = 1", &[], &[]);
    assert!(error.starts_with("tidelog.toml, line 2 is not valid TOML: ") && !error.contains('\n'), "{error}");
    let error = Config::load(Some(Path::new("/no/such/file")), [], &[], Flags::default()).unwrap_err().to_string();
    assert!(error.starts_with("cannot read the configuration file /no/such/file: "), "{error}");
}

#[test]
fn the_limits_of_an_event_and_of_a_batch_agree() {
    let limits = |sets: &[&str]| {
        let SizeLimits { event_bytes_max, batch_bytes_max, .. } = load("", &[], sets).unwrap().limits;
        (event_bytes_max, batch_bytes_max)
    };
    assert_eq!(limits(&["limits.event_bytes_max=32MiB"]), (32 << 20, 32 << 20));
    assert_eq!(limits(&["limits.batch_bytes_max=64KiB"]), (65_536, 65_536));
    assert_eq!(limits(&["limits.event_bytes_max=1KiB", "limits.batch_bytes_max=1KiB"]), (1024, 1024));
    assert_eq!(
        refused("limits.event_bytes_max = '2MiB'", &[], &["limits.batch_bytes_max=1MiB"]),
        "limits.event_bytes_max is 2MiB (tidelog.toml, line 1), but it must be at most limits.batch_bytes_max, which is \
         1MiB (--set), since a single event is a batch of one"
    );
}

#[test]
fn the_example_is_the_defaults_and_has_every_key() {
    let mut draft = Draft::default();
    draft.file(Path::new("config.example.toml"), EXAMPLE).unwrap();
    for key in KEYS {
        assert!(draft.sources.contains_key(key.name), "{} is not in config.example.toml", key.name);
    }
    assert_eq!(draft.finish().unwrap(), Config::default());
}

#[test]
fn what_the_example_shows_in_comments_is_valid_too() {
    // A comment that looks like TOML, `#[[…` or `#key = …` with no space, is meant to be uncommented.
    let uncommented: String = EXAMPLE
        .lines()
        .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line))
        .flat_map(|line| [line, "\n"])
        .collect();
    let loaded = load(&uncommented, &[], &[]).unwrap();
    assert!(!loaded.retention.topics.is_empty());
}

#[test]
fn the_help_names_every_key_with_its_default() {
    let help = describe();
    for key in KEYS {
        let line = help.lines().find(|line| line.trim_start().starts_with(key.name)).unwrap();
        assert!(line.chars().count() <= 100, "it fits a terminal: {line}");
    }
    assert!(help.contains("127.0.0.1:4242") && help.contains("16MiB"), "{help}");
    assert!(is_section("limits") && !is_section("lim") && !is_section("listen"));
    assert_eq!(FORMATS.len(), 2);
}
