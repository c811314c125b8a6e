//! Fuel, memory and sizes: each limit obeyed and violated.

use super::assemble::{Guest, mark_and};
use super::*;

const FEW: Limits = Limits {
    fuel_per_command: 100_000,
    fuel_per_batch: 1_000_000,
    fuel_frame: 200_000,
    memory_bytes_max: 8 << 20,
    key_bytes_max: 8,
    value_bytes_max: 8,
    reply_bytes_max: 4 << 10,
};

#[test]
fn an_endless_loop_costs_one_command() {
    let (replies, shelf) = mark_and(&[1], "(call $forever)").run(FEW, 4);
    assert_eq!(replies, ".F..");
    assert_eq!(shelf.keys(), [0, 2, 3]);
    let (replies, _) = mark_and(&[3], "(call $forever)").run(FEW, 4);
    assert_eq!(replies, "...F");
}

#[test]
fn what_is_beyond_the_batch_is_not_run() {
    // About 30,000 each, 100,000 in all.
    let work = "(local $i i32) (call $mark (local.get $at)) (local.set $i (i32.const 3500))
        (loop $again (br_if $again (local.tee $i (i32.sub (local.get $i) (i32.const 1))))) (i32.const 0)";
    let limits = Limits { fuel_per_batch: 100_000, ..FEW };
    let (replies, shelf) = Guest::new(work).run(limits, 10);
    let done = replies.chars().take_while(|letter| *letter == '.').count();
    assert!((2..=8).contains(&done), "{replies}");
    assert_eq!(replies, ".".repeat(done) + &"B".repeat(10 - done));
    assert_eq!(shelf.keys(), (0..done as u32).collect::<Vec<_>>());
    assert_eq!(Guest::new(work).run(Limits { fuel_per_batch: 1 << 40, ..FEW }, 10).0, ".".repeat(10));
}

#[test]
fn culprits_pay_out_of_the_batch() {
    // Ten endless loops burn 100,000 each; nothing is left for the last two.
    let loops: Vec<usize> = (0..10).collect();
    let (replies, _) = mark_and(&loops, "(call $forever)").run(FEW, 12);
    assert_eq!(replies, "FFFFFFFFFFBB");
}

#[test]
fn a_light_run_waits_for_nobody_who_reads_the_log() {
    let guest = mark_and(&[1], "(call $log (i32.const 0) (i32.const 16) (i32.const 4))");
    let light = || {
        [guest.module(Limits::default()), guest.component(Limits::default())].map(|module| {
            let done = module.apply_lightly(&CONTEXT, valid(&batch_of(3)), &[], Shelf::default());
            done.map(|(replies, _)| letters(&replies))
        })
    };
    let all = Some("...".to_owned());
    let of_level = |level| tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::sink).finish();
    let quiet = of_level(tracing::level_filters::LevelFilter::OFF);
    assert_eq!(tracing::subscriber::with_default(quiet, light), [all.clone(), all]);
    let read = of_level(tracing::level_filters::LevelFilter::ERROR);
    assert_eq!(tracing::subscriber::with_default(read, light), [None, None]);
}

/// A loop of about so much fuel.
fn burning(fuel: u32) -> String {
    format!(
        "(local $i i32) (call $mark (local.get $at)) (local.set $i (i32.const {}))
         (loop $again (br_if $again (local.tee $i (i32.sub (local.get $i) (i32.const 1))))) (i32.const 0)",
        fuel / 5
    )
}

#[test]
fn a_light_run_ends_soon_or_with_all_commands_done() {
    let light = |guest: &Guest, count| {
        [guest.module(Limits::default()), guest.component(Limits::default())].map(|module| {
            let done = module.apply_lightly(&CONTEXT, valid(&batch_of(count)), &[], Shelf::of([50]));
            done.map(|(replies, shelf)| (letters(&replies), shelf.keys()))
        })
    };
    let all = Some(("...".to_owned(), vec![0, 1, 2, 50]));
    assert_eq!(light(&Guest::new(&burning(100_000)), 3), [all.clone(), all]);
    let much = [
        // Each of them has enough, not all of them together; nor does one whose command or module could have more.
        Guest::new(&burning(500_000)),
        mark_and(&[2], "(call $forever)"),
        Guest { before: "(call $forever)".into(), ..Guest::new("(i32.const 0)") },
        Guest {
            before: "(local.set $i (i32.const 400000))
                (loop $again (br_if $again (local.tee $i (i32.sub (local.get $i) (i32.const 1)))))"
                .into(),
            ..Guest::new("(i32.const 0)")
        },
        // 20 MiB with what it begins with.
        Guest::new("(drop (memory.grow (i32.const 256))) (i32.const 0)"),
        // A failure may be one of having little.
        mark_and(&[1], "unreachable"),
        Guest { status: 99, ..Guest::new("(i32.const 0)") },
    ];
    for guest in &much {
        assert_eq!(light(guest, 3), [None, None]);
    }
}

#[test]
fn before_the_first_command_there_is_fuel_too_but_not_without_end() {
    let endless = Guest { before: "(call $forever)".into(), ..Guest::new("(i32.const 0)") };
    assert_eq!(endless.run(FEW, 3).0, "FFF");
}

#[test]
fn deleting_many_keys_is_paid_before_it_is_done() {
    let all = "(drop (call $delete_range (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))) (i32.const 0)";
    let module = Guest::new(all).module(FEW);
    let (replies, shelf) = module.apply(&CONTEXT, valid(&batch_of(1)), &[], Shelf::of(0..50)).unwrap();
    assert_eq!((letters(&replies).as_str(), shelf.keys().len()), (".", 0));
    let (replies, shelf) = module.apply(&CONTEXT, valid(&batch_of(1)), &[], Shelf::of(0..5_000)).unwrap();
    assert_eq!((letters(&replies).as_str(), shelf.keys().len()), ("F", 5_000));
}

#[test]
fn scanning_is_charged_by_key() {
    let all = "(call $scan (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1) (i32.const -1) (i32.const 32)) (i32.const 0)";
    let module = Guest::new(all).module(FEW);
    let run = |keys| letters(&module.apply(&CONTEXT, valid(&batch_of(1)), &[], Shelf::of(0..keys)).unwrap().0);
    assert_eq!(run(500), ".");
    assert_eq!(run(5_000), "F");
}

#[test]
fn calls_are_charged() {
    let gets = "(loop $again (call $get (i32.const 16) (i32.const 4) (i32.const 32)) (br $again)) (i32.const 0)";
    // Without a price for the call, 100,000 fuel would be over 10,000 calls; the same batch must end long before.
    assert_eq!(Guest::new(gets).run(FEW, 1).0, "F");
    let counted = "(local $i i32) (local.set $i (i32.const 1000))
        (loop $again (call $get (i32.const 16) (i32.const 4) (i32.const 32))
          (br_if $again (local.tee $i (i32.sub (local.get $i) (i32.const 1))))) (i32.const 0)";
    let frame = Limits { fuel_frame: 1, ..FEW };
    // A frame of 1 can't even reach `begin`; what is looked at is the command's own fuel.
    assert_eq!(Guest::new(counted).run(Limits { fuel_frame: 2_000, ..frame }, 1).0, "F");
    assert_eq!(Guest::new(counted).run(Limits { fuel_per_command: 300_000, ..FEW }, 1).0, ".");
}

#[test]
fn memory_is_capped() {
    let grow = |pages: u32| format!("(drop (memory.grow (i32.const {pages})))");
    // It starts with 64 pages, 4 MiB; 8 MiB are allowed.
    assert_eq!(mark_and(&[1], &grow(64)).run(FEW, 3).0, "...");
    let (replies, shelf) = mark_and(&[1], &grow(65)).run(FEW, 3);
    assert_eq!(replies, ".M.");
    assert_eq!(shelf.keys(), [0, 2]);
}

#[test]
fn memory_that_others_took_is_nobodys_fault() {
    // Together they need more than there is, each alone does not.
    let all: Vec<usize> = (0..4).collect();
    let (replies, shelf) = mark_and(&all, "(drop (memory.grow (i32.const 30)))").run(FEW, 4);
    assert_eq!(replies, "....");
    assert_eq!(shelf.keys(), [0, 1, 2, 3]);
}

#[test]
fn a_module_may_limit_its_own_memory() {
    let memory = "(memory (export \"memory\") 64 65)".to_string();
    let asserts = "(if (i32.ne (memory.grow (i32.const 2)) (i32.const -1)) (then unreachable))";
    assert_eq!(Guest { memory, ..mark_and(&[0], asserts) }.run(FEW, 1).0, ".");
    // Beyond what 32 bits can address is beyond the limit too, and not this machine's failure.
    let limits = Limits { fuel_per_command: 100_000_000, fuel_per_batch: 100_000_000, ..FEW };
    assert_eq!(mark_and(&[0], "(drop (memory.grow (i32.const 65535)))").run(limits, 1).0, "M");
}

#[test]
fn a_deep_recursion_is_a_trap() {
    let more = "(func $deep (param i32) (result i32) (i32.add (i32.const 1) (call $deep (i32.add (local.get 0) (i32.const 1)))))";
    let guest = Guest { more: more.into(), ..mark_and(&[1], "(drop (call $deep (i32.const 0)))") };
    assert_eq!(guest.run(Limits::default(), 3).0, ".T.");
}

#[test]
fn keys_and_values_have_a_size() {
    let set = |key: usize, value: usize| {
        Guest::new(&format!(
            "(drop (call $set (i32.const 16) (i32.const {key}) (i32.const 16) (i32.const {value}))) (i32.const 0)"
        ))
    };
    assert_eq!(set(8, 8).run(FEW, 1).0, ".");
    assert_eq!(set(9, 8).run(FEW, 1).0, "T");
    assert_eq!(set(8, 9).run(FEW, 1).0, "T");
}
