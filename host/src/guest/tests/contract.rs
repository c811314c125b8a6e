//! Modules that break the contract in what they call and what they answer.

use super::assemble::{Guest, mark_and};
use super::*;

#[test]
fn a_module_that_never_calls_begin_gets_no_reply_through() {
    let silent = Guest { begin: String::new(), ..Guest::new("(i32.const 0)") };
    assert_eq!(silent.run(Limits::default(), 3).0, "III");
    // Queries need not.
    let replies =
        silent.module(Limits::default()).query(&CONTEXT, valid(&batch_of(3)), &[], Shelf::default(), LONG).unwrap();
    assert_eq!(letters(&replies), "...");
}

#[test]
fn writing_before_begin_is_refused() {
    let early = Guest { before: "(call $mark (i32.const 99))".into(), ..mark_and(&[], "") };
    let (replies, shelf) = early.run(Limits::default(), 2);
    assert_eq!((replies.as_str(), shelf), ("TT", Shelf::default()));
}

#[test]
fn begin_has_one_order() {
    let shifted = "(call $begin (i32.add (local.get $at) (i32.const 1)))";
    let twice = "(call $begin (local.get $at)) (call $begin (local.get $at))";
    for begin in [shifted, twice] {
        let (replies, shelf) = Guest { begin: begin.into(), ..mark_and(&[], "") }.run(Limits::default(), 3);
        assert_eq!((replies.as_str(), shelf), ("TTT", Shelf::default()), "{begin}");
    }
}

#[test]
fn the_number_of_replies_is_checked() {
    for surplus in [-1, 1] {
        let (replies, shelf) = Guest { surplus, ..mark_and(&[], "") }.run(Limits::default(), 3);
        assert_eq!((replies.as_str(), shelf), ("III", Shelf::default()), "{surplus}");
    }
}

#[test]
fn one_command_that_ends_the_batch_early_is_found() {
    let guest = mark_and(&[1], "(return (i32.const 1))");
    let (replies, shelf) = guest.run(Limits::default(), 3);
    assert_eq!(replies, ".I.");
    assert_eq!(shelf.keys(), [0, 2]);
}

#[test]
fn a_status_that_http_lacks_is_refused() {
    let (replies, shelf) = Guest { status: 99, ..mark_and(&[], "") }.run(Limits::default(), 2);
    assert_eq!((replies.as_str(), shelf), ("II", Shelf::default()));
}

#[test]
fn an_answer_that_is_no_archive_is_refused() {
    // The archives are overwritten while the module runs.
    let fill = "(memory.fill (i32.const 0x101004) (i32.const 0xff) (i32.const 0xff0))".to_string();
    let (replies, shelf) = Guest { before: fill, ..mark_and(&[], "") }.run(Limits::default(), 1);
    assert_eq!((replies.as_str(), shelf), ("I", Shelf::default()));
}

#[test]
fn pointers_out_of_memory_are_the_modules_fault() {
    let list = "(drop (call $set (i32.const -8) (i32.const 64) (i32.const 16) (i32.const 4)))";
    assert_eq!(mark_and(&[1], list).run(Limits::default(), 3).0, ".T.");
    let text = "(call $log (i32.const 2) (i32.const -8) (i32.const 64))";
    assert_eq!(mark_and(&[1], text).run(Limits::default(), 3).0, ".T.");
    let level = "(call $log (i32.const 9) (i32.const 16) (i32.const 4))";
    assert_eq!(mark_and(&[1], level).run(Limits::default(), 3).0, ".T.");
    let not_utf8 = "(i32.store (i32.const 16) (i32.const -1)) (call $log (i32.const 2) (i32.const 16) (i32.const 4))";
    assert_eq!(mark_and(&[1], not_utf8).run(Limits::default(), 3).0, ".T.");
    let returned = "(call $get (i32.const 16) (i32.const 4) (i32.const -4))";
    assert_eq!(mark_and(&[1], returned).run(Limits::default(), 3).0, ".T.");
    let option = "(drop (call $delete_range (i32.const 7) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)))";
    assert_eq!(mark_and(&[1], option).run(Limits::default(), 3).0, ".T.");
    // The allocator hands out what is not there: it is asked for a value that `get` found.
    let realloc = "(global.set $heap (i32.const -64)) (call $get (i32.const 16) (i32.const 4) (i32.const 32))";
    assert_eq!(mark_and(&[1], realloc).run(Limits::default(), 3).0, ".T.");
}

#[test]
fn pointers_to_results_are_aligned() {
    let unaligned = "(call $get (i32.const 16) (i32.const 4) (i32.const 33))";
    assert_eq!(mark_and(&[1], unaligned).run(Limits::default(), 3).0, ".T.");
    // What `get` found is bytes, so an allocator may hand out any place for them; a list of entries needs one that is a multiple of four.
    let odd = "(if (i32.and (i32.gt_u (local.get 2) (i32.const 1)) (i32.gt_u (local.get 3) (i32.const 16)))
        (then (return (i32.const 0x300001))))";
    let scan = "(call $scan (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 9) (i32.const 99) (i32.const 32))";
    assert_eq!(Guest { realloc: odd.into(), ..mark_and(&[1], scan) }.run(Limits::default(), 3).0, ".T.");
}

#[test]
fn a_guest_that_allocates_for_the_host_cannot_call_it() {
    let begin = "(call $begin (i32.const 0))";
    let set = "(drop (call $set (i32.const 16) (i32.const 4) (i32.const 16) (i32.const 4)))";
    let get = "(call $get (i32.const 16) (i32.const 4) (i32.const 32))";
    for call in [begin, "(call $rollback)", set, get] {
        // The batch itself is the first thing that the host asks memory for.
        let guest = Guest { realloc: call.into(), ..mark_and(&[], "") };
        assert_eq!(guest.run(Limits::default(), 2).0, "TT", "{call}");
        // For what a command gets.
        let later = format!("(if (i32.eq (local.get 3) (i32.const 4)) (then {call}))");
        let guest = Guest { realloc: later, ..mark_and(&[1], get) };
        let (replies, shelf) = guest.run(Limits::default(), 3);
        assert_eq!((replies.as_str(), shelf.keys()), (".T.", vec![0, 2]), "{call}");
    }
}

#[test]
fn what_is_read_arrives() {
    // The key is the position, and so is its value: found, not found, all of them, those from 1 on, backwards.
    let get = "(call $get (i32.const 16) (i32.const 4) (i32.const 32))
        (if (i32.ne (i32.load8_u (i32.const 32)) (i32.const 1)) (then unreachable))
        (if (i32.ne (i32.load (i32.load (i32.const 36))) (local.get $at)) (then unreachable))
        (if (i32.ne (i32.load (i32.const 40)) (i32.const 4)) (then unreachable))";
    let nothing = "(call $get (i32.const 16) (i32.const 3) (i32.const 32))
        (if (i32.load8_u (i32.const 32)) (then unreachable))";
    let all = "(call $scan (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 9) (i32.const 99) (i32.const 32))
        (if (i32.ne (i32.load (i32.const 36)) (i32.add (local.get $at) (i32.const 1))) (then unreachable))";
    let from_one_backwards = "(i32.store (i32.const 20) (i32.const 1))
        (call $scan (i32.const 1) (i32.const 20) (i32.const 4) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 9) (i32.const 99) (i32.const 32))
        (if (i32.ne (i32.load (i32.const 36)) (local.get $at)) (then unreachable))
        (if (local.get $at) (then
          (if (i32.ne (i32.load (i32.load (i32.load (i32.const 32)))) (local.get $at)) (then unreachable))
          (if (i32.ne (i32.load offset=4 (i32.load (i32.const 32))) (i32.const 4)) (then unreachable))
          (if (i32.ne (i32.load (i32.load offset=8 (i32.load (i32.const 32)))) (local.get $at)) (then unreachable))
          (if (i32.ne (i32.load offset=12 (i32.load (i32.const 32))) (i32.const 4)) (then unreachable))))";
    for read in [get, nothing, all, from_one_backwards] {
        assert_eq!(mark_and(&[0, 1, 2], read).run(Limits::default(), 3).0, "...", "{read}");
    }
}

#[test]
fn nans_are_canonical() {
    // 0/0 with a sign that the processor would keep.
    let nan = "(i64.store (i32.const 16) (i64.reinterpret_f64 (f64.neg (f64.div (f64.const 0) (f64.const 0)))))
        (i64.store (i32.const 24) (i64.reinterpret_f64 (f64.add (f64.reinterpret_i64 (i64.const 0xfff8000000001234)) (f64.const 1))))
        (drop (call $set (i32.const 16) (i32.const 4) (i32.const 24) (i32.const 8))) (i32.const 0)";
    let (replies, shelf) = Guest::new(nan).run(Limits::default(), 1);
    assert_eq!(replies, ".");
    let value = shelf.now.values().next().unwrap();
    assert_eq!(u64::from_le_bytes(value.as_slice().try_into().unwrap()), 0x7ff8_0000_0000_0000);
}

#[test]
fn messages_are_no_effect() {
    let guest = mark_and(&[0], "(call $log (i32.const 2) (i32.const 1024) (i32.const 4))");
    assert_eq!(guest.run(Limits::default(), 1).0, ".");
}
