//! Which modules are hosted at all, and what they say about themselves; the real guests.

use wit_component::StringEncoding;

use super::assemble::{CONTRACT, Guest, mark_and};
use super::*;

fn refusal(bytes: &[u8]) -> String {
    Module::compile(&ENGINE, bytes, Limits::default()).unwrap_err().to_string()
}

#[test]
fn a_core_module_and_its_component_are_both_hosted() {
    let core = mark_and(&[], "").core();
    let component = inspect::encode(&core).unwrap();
    for (bytes, is_core) in [(&core, true), (&component, false)] {
        let module = Module::compile(&ENGINE, bytes, Limits::default()).unwrap();
        assert_eq!(module.inspection().is_core, is_core);
        assert_eq!(module.digest(), blake3::hash(bytes).as_bytes());
        assert_eq!((module.description().name.as_str(), module.description().schema), ("test", 9));
        let (replies, _) = module.apply(&CONTEXT, valid(&batch_of(2)), &[], Shelf::default()).unwrap();
        assert_eq!(letters(&replies), "..");
    }
}

#[test]
fn a_core_module_of_another_shape_is_made_a_component() {
    // wit-component has it called before anything else.
    let initialized = "(func (export \"_initialize\") (i32.store (i32.const 144) (i32.const 5)))";
    let guest = Guest { more: initialized.into(), ..mark_and(&[], "") };
    assert_eq!(guest.run(Limits::default(), 2).0, "..");
    let special = "(func (export \"canonical_abi_realloc\") (param i32 i32 i32 i32) (result i32) unreachable)";
    let special = Guest { more: special.into(), ..mark_and(&[], "") };
    for (guest, runs_as_it_is) in [(mark_and(&[], ""), true), (guest, false), (special, false)] {
        let core = core_module::CoreEntrance::new(ENGINE.apply(), &guest.core(), "apply").unwrap();
        assert_eq!(core.is_some(), runs_as_it_is);
    }
}

#[test]
fn strings_that_are_not_utf8_are_for_a_component() {
    for (strings, is_utf8) in [(StringEncoding::UTF8, true), (StringEncoding::UTF16, false)] {
        let core = mark_and(&[], "").core_of(CONTRACT, strings);
        assert_eq!(inspect::is_utf8(&inspect::encode(&core).unwrap()).unwrap(), is_utf8);
    }
}

/// Flat they are the contract's.
#[test]
fn other_types_of_the_same_shape_are_refused() {
    let other = CONTRACT.replace("batch: list<u8>", "batch: string");
    assert_ne!(other, CONTRACT);
    let core = mark_and(&[], "").core_of(&other, StringEncoding::UTF8);
    assert!(matches!(Module::compile(&ENGINE, &core, Limits::default()), Err(ModuleError::Types(_))));
}

#[test]
fn a_description_is_bounded_and_utf8() {
    // Two routes, of three strings each that are all the same 3 MiB: more than twice the memory there may be.
    let routes = "(i32.store (i32.const 148) (i32.const 256)) (i32.store (i32.const 152) (i32.const 2))";
    let strings: String =
        (0..6).map(|at| format!("(i32.store (i32.const {}) (i32.const 0x300000))", 260 + 8 * at)).collect();
    let limits = Limits { memory_bytes_max: 8 << 20, ..Limits::default() };
    let not_utf8 = "(i32.store (i32.const 1024) (i32.const -1))";
    for (more, fits) in [("", true), (routes, true), (&format!("{routes} {strings}"), false), (not_utf8, false)] {
        let guest = Guest { describe: more.into(), ..mark_and(&[], "") };
        let core = guest.core();
        for bytes in [&core, &inspect::encode(&core).unwrap()] {
            let described = Module::compile(&ENGINE, bytes, limits);
            assert_eq!(described.is_ok(), fits, "{more}: {:?}", described.err());
        }
    }
}

#[test]
fn a_forbidden_import_is_named() {
    let core = wat::parse_str("(module (import \"wasi_snapshot_preview1\" \"fd_write\" (func)))").unwrap();
    assert!(refusal(&core).contains("wasi_snapshot_preview1"), "{}", refusal(&core));
    let component = wat::parse_str("(component (import \"wasi:clocks/wall-clock@0.2.0\" (instance)))").unwrap();
    assert!(refusal(&component).contains("wasi:clocks/wall-clock@0.2.0"), "{}", refusal(&component));
}

#[test]
fn missing_exports_are_named() {
    let component = wat::parse_str("(component)").unwrap();
    assert!(refusal(&component).contains("describe, apply, query, migrate"), "{}", refusal(&component));
}

#[test]
fn wrong_types_are_refused() {
    let core = "(core module $m (func (export \"f\"))) (core instance $i (instantiate $m))
        (func $f (canon lift (core func $i \"f\")))";
    let exports: String =
        ["describe", "apply", "query", "migrate"].map(|name| format!("(export \"{name}\" (func $f))")).concat();
    let component = wat::parse_str(format!("(component {core} {exports})")).unwrap();
    assert!(matches!(Module::compile(&ENGINE, &component, Limits::default()), Err(ModuleError::Types(_))));
}

#[test]
fn bytes_that_are_no_module_are_refused() {
    let whole = mark_and(&[], "").core();
    let mut damaged = whole.clone();
    damaged[40] ^= 0xff;
    for bytes in [&b""[..], b"hello", b"\0asm", &whole[..whole.len() / 2], &damaged] {
        assert!(Module::compile(&ENGINE, bytes, Limits::default()).is_err());
    }
    // Any cut is an error, never a panic.
    for len in (0..whole.len().min(600)).step_by(7) {
        assert!(Module::compile(&ENGINE, &whole[..len], Limits::default()).is_err(), "{len}");
    }
}

#[test]
fn threads_and_relaxed_simd_are_refused() {
    let shared = Guest { memory: "(memory (export \"memory\") 64 64 shared)".into(), ..mark_and(&[], "") };
    let relaxed = "(func (result v128) (i8x16.relaxed_swizzle (v128.const i64x2 0 0) (v128.const i64x2 0 0)))";
    let relaxed = Guest { more: relaxed.into(), ..mark_and(&[], "") };
    for guest in [shared, relaxed] {
        assert!(Module::compile(&ENGINE, &guest.core(), Limits::default()).is_err());
    }
}

#[test]
fn limits_that_no_node_can_keep_are_refused() {
    let limits = Limits { memory_bytes_max: MEMORY_BYTES_CAP + 1, ..Limits::default() };
    assert!(matches!(Module::compile(&ENGINE, &mark_and(&[], "").core(), limits), Err(ModuleError::Limits(_))));
}

#[test]
fn a_module_that_needs_more_memory_than_it_may_have_is_refused() {
    let limits = Limits { memory_bytes_max: 1 << 20, ..Limits::default() };
    let refused = Module::compile(&ENGINE, &mark_and(&[], "").core(), limits);
    assert_eq!(refused.unwrap_err(), ModuleError::Describe(Failure::OutOfMemory));
}
