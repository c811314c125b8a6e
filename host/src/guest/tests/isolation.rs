//! A failing command takes nobody with it, and leaves nothing behind.

use super::assemble::{Guest, mark_and};
use super::*;

const TRAP: &str = "unreachable";

#[test]
fn a_batch_without_failures_is_applied() {
    let (replies, shelf) = mark_and(&[], "").run(Limits::default(), 3);
    assert_eq!(replies, "...");
    assert_eq!(shelf.keys(), [0, 1, 2]);
}

#[test]
fn a_trap_hurts_one_command() {
    let (replies, shelf) = mark_and(&[1], TRAP).run(Limits::default(), 4);
    assert_eq!(replies, ".T..");
    assert_eq!(shelf.keys(), [0, 2, 3]);
}

#[test]
fn several_traps_in_one_batch() {
    let (replies, shelf) = mark_and(&[0, 3, 5], TRAP).run(Limits::default(), 6);
    assert_eq!(replies, "T..T.T");
    assert_eq!(shelf.keys(), [1, 2, 4]);
}

#[test]
fn more_culprits_than_are_left_out_one_by_one() {
    let culprits: Vec<usize> = (0..20).filter(|position| position % 2 == 1).collect();
    assert!(culprits.len() > CULPRITS_MAX);
    let (replies, shelf) = mark_and(&culprits, TRAP).run(Limits::default(), 20);
    assert_eq!(replies, ".T".repeat(10));
    assert_eq!(shelf.keys(), (0..20).step_by(2).collect::<Vec<u32>>());
}

#[test]
fn all_commands_may_fail() {
    let all: Vec<usize> = (0..12).collect();
    let (replies, shelf) = mark_and(&all, TRAP).run(Limits::default(), 12);
    assert_eq!(replies, "T".repeat(12));
    assert_eq!(shelf, Shelf::default());
}

#[test]
fn effects_are_as_if_the_culprit_had_never_been_there() {
    // Position 2 traps if 1 has left its key behind, and 1 always traps.
    let sees_1 = "(i32.store (i32.const 16) (i32.const 1))
        (call $get (i32.const 16) (i32.const 4) (i32.const 32))
        (if (i32.load8_u (i32.const 32)) (then unreachable))";
    let guest = Guest::new(&format!(
        "(if (i32.eq (local.get $at) (i32.const 2)) (then {sees_1}))
         (call $mark (local.get $at))
         (if (i32.eq (local.get $at) (i32.const 1)) (then unreachable)) (i32.const 0)"
    ));
    let (replies, shelf) = guest.run(Limits::default(), 3);
    assert_eq!(replies, ".T.");
    assert_eq!(shelf.keys(), [0, 2]);
}

#[test]
fn only_the_positions_of_run_are_run() {
    let module = mark_and(&[3], TRAP).module(Limits::default());
    let (replies, shelf) = module.apply(&CONTEXT, valid(&batch_of(6)), &[1, 3, 4], Shelf::default()).unwrap();
    assert_eq!(letters(&replies), ".T.");
    assert_eq!(shelf.keys(), [1, 4]);
    for wrong in [&[6][..], &[2, 1], &[1, 1]] {
        assert!(module.apply(&CONTEXT, valid(&batch_of(6)), wrong, Shelf::default()).is_err());
    }
}

#[test]
fn no_static_survives_a_batch() {
    let guest = Guest::new(
        "(global.set $static (i32.add (global.get $static) (i32.const 1)))
         (i32.store (i32.const 256) (i32.add (i32.load (i32.const 256)) (i32.const 1)))
         (call $mark (global.get $static)) (call $mark (i32.add (i32.load (i32.const 256)) (i32.const 100))) (i32.const 0)",
    );
    let module = guest.module(Limits::default());
    let mut shelf = Shelf::default();
    for _ in 0..50 {
        let (replies, after) = module.apply(&CONTEXT, valid(&batch_of(1)), &[], shelf).unwrap();
        assert_eq!(letters(&replies), ".");
        shelf = after;
    }
    assert_eq!(shelf.keys(), [1, 101]);
}

#[test]
fn the_store_that_was_there_stays() {
    let module = mark_and(&[1], TRAP).module(Limits::default());
    let (_, shelf) = module.apply(&CONTEXT, valid(&batch_of(2)), &[], Shelf::of([50])).unwrap();
    assert_eq!(shelf.keys(), [0, 50]);
}

#[test]
fn rollback_undoes_one_command() {
    let guest = mark_and(&[1], "(call $rollback)");
    let (replies, shelf) = guest.run(Limits::default(), 3);
    assert_eq!(replies, "...");
    assert_eq!(shelf.keys(), [0, 2]);
}

#[test]
fn a_query_reads_and_cannot_write() {
    let batch = batch_of(2);
    let reading = Guest::new("(call $get (i32.const 16) (i32.const 4) (i32.const 32)) (i32.const 0)");
    let replies = reading.module(Limits::default()).query(&CONTEXT, valid(&batch), &[], Shelf::of([1]), LONG).unwrap();
    assert_eq!(letters(&replies), "..");
    let writing = mark_and(&[], "").module(Limits::default());
    let replies = writing.query(&CONTEXT, valid(&batch), &[], Shelf::default(), LONG).unwrap();
    assert_eq!(letters(&replies), "TT");
    let first = failure(&replies.into_each()[0]);
    assert!(first.contains("a query tried to write"), "{first}");
}

#[test]
fn a_query_is_cut_by_the_clock_and_the_others_answered() {
    let limits = Limits { fuel_per_command: 1 << 50, fuel_per_batch: 1 << 60, ..Limits::default() };
    let endless = Guest::new("(if (i32.eq (local.get $at) (i32.const 1)) (then (call $forever))) (i32.const 0)");
    let module = endless.module(limits);
    let within = QueryBounds { within: Duration::from_millis(50), ..LONG };
    let replies = module.query(&CONTEXT, valid(&batch_of(2)), &[1], Shelf::default(), within).unwrap();
    assert_eq!(letters(&replies), "Q");
    let replies = module.query(&CONTEXT, valid(&batch_of(2)), &[0], Shelf::default(), LONG).unwrap();
    assert_eq!(letters(&replies), ".");
    // With fuel to stop it in time, the neighbour is answered.
    let short = endless.module(Limits { fuel_per_command: 1_000_000, ..Limits::default() });
    let replies = short.query(&CONTEXT, valid(&batch_of(3)), &[], Shelf::default(), LONG).unwrap();
    assert_eq!(letters(&replies), ".F.");
}
