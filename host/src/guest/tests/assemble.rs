//! Writes modules as text. A guest does what its command says for each position of `run`; its replies are archives
//! that were made here, one for each possible count.

use raftlet_machine::{Replies, Reply};
use wit_component::{StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

use super::*;

/// Where the archives of replies are; a page for each count.
const ARCHIVES_AT: usize = 0x10_0000;
const PAGE: usize = 0x1000;
pub const COUNT_MAX: usize = 40;
pub const CONTRACT: &str = include_str!("../../../../wit/wit/machine.wit");

/// What differs between the guests. All are WebAssembly text.
#[derive(Clone)]
pub struct Guest {
    /// Body of `(func $command (param $at i32) (result i32)`: 0 goes on, else the whole batch ends without replies.
    pub command: String,
    /// Runs before the first command.
    pub before: String,
    pub begin: String,
    /// How many replies more than commands.
    pub surplus: i32,
    pub status: u16,
    pub memory: String,
    /// Runs whenever the host asks for memory.
    pub realloc: String,
    /// Runs before `describe` returns: its result is at 128.
    pub describe: String,
    pub more: String,
}

impl Guest {
    pub fn new(command: &str) -> Self {
        Guest {
            command: command.into(),
            before: String::new(),
            begin: "(call $begin (local.get $at))".into(),
            surplus: 0,
            status: 200,
            memory: "(memory (export \"memory\") 64)".into(),
            realloc: String::new(),
            describe: String::new(),
            more: String::new(),
        }
    }

    /// As a core module with the contract's types in a custom section, as wit-bindgen makes it.
    pub fn core(&self) -> Vec<u8> {
        self.core_of(CONTRACT, StringEncoding::UTF8)
    }

    /// With another world in its metadata.
    pub fn core_of(&self, wit: &str, strings: StringEncoding) -> Vec<u8> {
        let mut module = wat::parse_str(self.text()).unwrap();
        let mut resolve = Resolve::default();
        let package = resolve.push_str("machine.wit", wit).unwrap();
        let world = resolve.select_world(&[package], Some("state-machine")).unwrap();
        embed_component_metadata(&mut module, &resolve, world, strings).unwrap();
        module
    }

    pub fn module(&self, limits: Limits) -> Module {
        Module::compile(&ENGINE, &self.core(), limits).unwrap()
    }

    /// The same, made a component.
    pub fn component(&self, limits: Limits) -> Module {
        Module::compile(&ENGINE, &inspect::encode(&self.core()).unwrap(), limits).unwrap()
    }

    /// The letters of a batch of `count`, and the store afterwards. Run as it is and as a component, which must be the
    /// same, and so must a light run that says anything.
    pub fn run(&self, limits: Limits, count: usize) -> (String, Shelf) {
        let [core, component] = [self.module(limits), self.component(limits)].map(|module| {
            let batch = batch_of(count);
            let (replies, shelf) = module.apply(&CONTEXT, valid(&batch), &[], Shelf::default()).unwrap();
            let letters = letters(&replies);
            if let Some((light, after)) = module.apply_lightly(&CONTEXT, valid(&batch), &[], Shelf::default()) {
                let (BatchReplies::Whole(light), BatchReplies::Whole(replies)) = (light, replies) else {
                    panic!("a light run and a whole one give different replies: {letters}");
                };
                assert_eq!((light.archive(), &after), (replies.archive(), &shelf), "a light run");
            }
            (letters, shelf)
        });
        assert_eq!(core, component, "run as it is, and as a component");
        core
    }

    fn text(&self) -> String {
        let Guest { command, before, begin, surplus, memory, realloc, describe, more, .. } = self;
        let archives: String = (0..=COUNT_MAX).map(|count| self.archive(count)).collect();
        format!(
            r#"(module
  (import "raftlet:machine/store@0.1.0" "set" (func $set (param i32 i32 i32 i32) (result i32)))
  (import "raftlet:machine/store@0.1.0" "get" (func $get (param i32 i32 i32)))
  (import "raftlet:machine/store@0.1.0" "begin" (func $begin (param i32)))
  (import "raftlet:machine/store@0.1.0" "rollback" (func $rollback))
  (import "raftlet:machine/store@0.1.0" "delete-range" (func $delete_range (param i32 i32 i32 i32 i32 i32 i32) (result i64)))
  (import "raftlet:machine/store@0.1.0" "scan" (func $scan (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32)))
  (import "raftlet:machine/log@0.1.0" "write" (func $log (param i32 i32 i32)))
  {memory}
  (global $heap (mut i32) (i32.const 0x200000))
  (global $static (mut i32) (i32.const 0))
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
    (local $at i32)
    {realloc}
    (local.set $at (i32.and (i32.add (global.get $heap) (i32.const 7)) (i32.const -8)))
    (global.set $heap (i32.add (local.get $at) (local.get 3)))
    (local.get $at))
  ;; Sets the key that is the position to the value that is the position.
  (func $mark (param $at i32)
    (i32.store (i32.const 16) (local.get $at))
    (drop (call $set (i32.const 16) (i32.const 4) (i32.const 16) (i32.const 4))))
  (func $forever (loop $again (br $again)))
  {more}
  (func $command (param $at i32) (result i32) {command})
  (func $batch (param i64 i64 i64 i64 i64) (param $batch i32) (param $len i32) (param $run i32) (param $listed i32) (result i32)
    (local $i i32) (local $n i32) (local $at i32)
    {before}
    (local.set $n (local.get $listed))
    (if (i32.eqz (local.get $n))
      (then (local.set $n (i32.load (i32.add (local.get $batch) (i32.sub (local.get $len) (i32.const 4)))))))
    (block $end (loop $next
      (br_if $end (i32.ge_u (local.get $i) (local.get $n)))
      (local.set $at (local.get $i))
      (if (local.get $listed)
        (then (local.set $at (i32.load (i32.add (local.get $run) (i32.shl (local.get $i) (i32.const 2)))))))
      {begin}
      (if (call $command (local.get $at)) (then (local.set $n (i32.const 0)) (br $end)))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br $next)))
    (local.set $n (i32.add (local.get $n) (i32.const {surplus})))
    (local.set $at (i32.add (i32.const {ARCHIVES_AT}) (i32.mul (local.get $n) (i32.const {PAGE}))))
    (i32.store (i32.const 8) (i32.add (local.get $at) (i32.const 4)))
    (i32.store (i32.const 12) (i32.load (local.get $at)))
    (i32.const 8))
  (export "apply" (func $batch))
  (export "query" (func $batch))
  (func (export "migrate") (param i32) (result i32) (i32.const 64))
  (func (export "describe") (result i32)
    (i32.store (i32.const 128) (i32.const 1024)) (i32.store (i32.const 132) (i32.const 4))
    (i32.store (i32.const 136) (i32.const 1024)) (i32.store (i32.const 140) (i32.const 1))
    (i32.store (i32.const 144) (i32.const 9))
    (i32.store (i32.const 148) (i32.const 0)) (i32.store (i32.const 152) (i32.const 0))
    {describe}
    (i32.const 128))
  (data (i32.const 1024) "test")
  {archives}
)"#
        )
    }

    /// Length and bytes of `count` replies.
    fn archive(&self, count: usize) -> String {
        let reply = Reply { status: self.status, content_type: String::new(), headers: vec![], body: vec![] };
        let archive = Replies { replies: vec![reply; count] }.to_bytes();
        assert!(archive.len() + 4 <= PAGE);
        let bytes = (archive.len() as u32).to_le_bytes().into_iter().chain(archive);
        let text: String = bytes.map(|byte| format!("\\{byte:02x}")).collect();
        format!("(data (i32.const {}) \"{text}\")\n", ARCHIVES_AT + count * PAGE)
    }
}

/// Text that is true at one position.
pub fn at(position: usize) -> String {
    format!("(i32.eq (local.get $at) (i32.const {position}))")
}

/// Marks each position, and does `what` at those in `positions` after it.
pub fn mark_and(positions: &[usize], what: &str) -> Guest {
    let cases: String = positions.iter().map(|position| format!("(if {} (then {what}))", at(*position))).collect();
    Guest::new(&format!("(call $mark (local.get $at)) {cases} (i32.const 0)"))
}
