//! Tests of `settings.rs`: which source wins, and what a wrong value is told.

use std::time::Duration as StdDuration;

use clap::{CommandFactory as _, Parser};

use super::*;

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    settings: SettingsArgs,
}

fn file(text: &str) -> FileKeys {
    FileKeys::parse(Path::new("my.toml"), text).unwrap()
}

fn flags(given: &[&str]) -> SettingsArgs {
    Command::try_parse_from(["raftlet"].iter().chain(given)).map_err(|e| e.to_string()).unwrap().settings
}

#[test]
fn flag_beats_environment_beats_file_beats_default() {
    const VARIABLE: &str = "RAFTLET_BATCH_MAX_OPS";
    let resolve = |given: &[&str], text: &str| {
        let mut keys = file(text);
        let settings = flags(given).resolve(&mut keys).unwrap();
        keys.finish().unwrap();
        settings.batching.max_ops
    };
    if std::env::var_os(VARIABLE).is_some_and(|v| v == "8") {
        assert_eq!(resolve(&[], "batch-max-ops = 7"), 8);
        assert_eq!(resolve(&["--batch-max-ops", "9"], "batch-max-ops = 7"), 9);
        return;
    }
    assert_eq!(resolve(&[], ""), BatchingConfig::default().max_ops);
    assert_eq!(resolve(&[], "batch-max-ops = 7"), 7);
    assert_eq!(resolve(&["--batch-max-ops", "9"], "batch-max-ops = 7"), 9);
    // The variable would be seen by tests that run beside this one, so it is set for a process of its own.
    let own_name = std::thread::current().name().unwrap().to_string();
    let test_binary = std::env::current_exe().unwrap();
    let output = std::process::Command::new(test_binary).args(["--exact", &own_name]).env(VARIABLE, "8").output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn every_setting_has_the_same_name_as_flag_variable_and_key() {
    let mut names = Vec::new();
    for argument in Command::command().get_arguments().filter(|a| a.get_id() != "config") {
        let name = argument.get_long().unwrap();
        let variable = format!("RAFTLET_{}", name.to_uppercase().replace('-', "_"));
        assert_eq!(argument.get_env().unwrap(), variable.as_str());
        names.push(name.to_string());
    }
    // The flags handed to children carry all of them, and the file accepts what these flags carry.
    let all = Settings::default().to_flags();
    let of_flags: Vec<_> = all.iter().map(|f| f[2..].split_once('=').unwrap().0.to_string()).collect();
    assert_eq!(of_flags, names);
    let lines: Vec<_> =
        all.iter().map(|f| f[2..].split_once('=').unwrap()).map(|(k, v)| format!("{k} = {v:?}")).collect();
    let mut keys = file(&lines.join("\n"));
    assert_eq!(flags(&[]).resolve(&mut keys).unwrap(), Settings::default());
    keys.finish().unwrap();
}

#[test]
fn flags_for_a_child_mean_the_same_settings() {
    let settings =
        flags(&["--batching=off", "--batch-max-bytes=64KiB", "--batch-max-delay=1500us", "--heartbeat=50ms"])
            .resolve(&mut FileKeys::default())
            .unwrap();
    assert_eq!(settings.batching.mode, Batching::Off);
    assert_eq!(settings.batching.max_bytes, 65_536);
    assert_eq!(settings.batching.max_delay, StdDuration::from_micros(1500));
    let handed_on = settings.to_flags();
    let handed_on: Vec<_> = handed_on.iter().map(String::as_str).collect();
    assert_eq!(flags(&handed_on).resolve(&mut FileKeys::default()).unwrap(), settings);
}

#[test]
fn the_defaults_in_the_help_are_those_of_the_configuration() {
    let mut settings = Vec::new();
    for argument in Command::command().get_arguments().filter(|a| a.get_id() != "config") {
        let help = argument.get_help().unwrap().to_string();
        let default = help.split_once("[default: ").unwrap().1.trim_end_matches(']').to_string();
        settings.push(format!("--{}={}", argument.get_long().unwrap(), default.replace("1.2s", "1200ms")));
    }
    let given: Vec<_> = settings.iter().map(String::as_str).collect();
    assert_eq!(flags(&given).resolve(&mut FileKeys::default()).unwrap(), Settings::default());
}

#[test]
fn a_wrong_file_is_told_its_name_and_the_key() {
    let error = |text: &str| {
        let mut keys = file(text);
        let wrong = SettingsArgs::default().resolve(&mut keys).map(drop);
        wrong.and_then(|()| keys.finish()).unwrap_err().to_string()
    };
    let unknown = error("batch-max-op = 5");
    assert!(unknown.starts_with("my.toml: unknown key `batch-max-op`"), "{unknown}");
    assert_eq!(error("batch-max-ops = \"many\""), "my.toml: key `batch-max-ops`: invalid digit found in string");
    assert_eq!(error("batching = \"maybe\""), "my.toml: key `batching`: \"maybe\" is none of on, fixed and off");
    assert!(error("batch-max-delay = 2").contains("key `batch-max-delay`: time unit needed"));
    assert!(error("batch-max-bytes = 1.5").contains("a float can't be used here"));
    assert!(error("batch-max-ops = 0").contains("is not from 1"));
    assert!(FileKeys::parse(Path::new("my.toml"), "batching").unwrap_err().0.contains("my.toml: not valid TOML"));
}

#[test]
fn a_wrong_value_in_the_file_is_an_error_even_where_a_flag_wins() {
    assert!(flags(&["--batching=on"]).resolve(&mut file("batching = 3")).is_err());
}

#[test]
fn what_is_required_names_its_three_sources() {
    let missing = file("").pick_required::<String>(None, "peer-listen").unwrap_err().to_string();
    for source in ["--peer-listen", "RAFTLET_PEER_LISTEN", "`peer-listen` in the --config file"] {
        assert!(missing.contains(source), "{missing}");
    }
}

#[test]
fn peers_are_pairs_or_a_table() {
    let two = Peers([(1, "a:1".to_string()), (2, "b:2".to_string())].into());
    assert_eq!("1=a:1, 2=b:2,".parse(), Ok(two.clone()));
    assert_eq!(two.to_string().parse(), Ok(two.clone()));
    let table = file("peers = { 1 = \"a:1\", 2 = \"b:2\" }").pick_required::<Peers>(None, "peers").unwrap();
    assert_eq!(table, two);
    assert_eq!("".parse(), Ok(Peers(BTreeMap::new())));
    for (text, why) in [("1", "no peer"), ("x=a:1", "no peer"), ("-1=a:1", "no peer"), ("1=a:1,1=b:1", "given twice")] {
        let error = text.parse::<Peers>().unwrap_err().0;
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn sizes_have_units_and_may_not_overflow() {
    assert_eq!("65536".parse(), Ok(ByteSize(65_536)));
    assert_eq!("64KiB".parse(), Ok(ByteSize(65_536)));
    assert_eq!("2 MiB".parse(), Ok(ByteSize(2 << 20)));
    for text in ["", "KiB", "1MB", "-1", "1.5MiB", "99999999999999999999", "18446744073709551615GiB"] {
        assert!(text.parse::<ByteSize>().unwrap_err().0.contains("is no size"), "{text}");
    }
}
