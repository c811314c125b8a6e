//! The arrows between the host's rooms (ARCHITECTURE.md) as a test: which room may name which other room, and which
//! library stays inside which room. Comments, strings and `#[cfg(test)]` modules don't count.

use std::fs;
use std::path::{Path, PathBuf};

/// (room, the rooms that it must not name). Whoever isn't listed may name any: `node` wires them, `cli` uses it.
const FORBIDDEN_ROOMS: &[(&str, &[&str])] = &[
    ("http", &["raft", "log", "state_machine", "guest", "cli", "node"]),
    ("batcher", &["http", "log", "state_machine", "guest", "cli", "node"]),
    ("raft", &["http", "guest", "cli", "node"]),
    ("log", &["http", "batcher", "state_machine", "guest", "cli", "node"]),
    ("state_machine", &["http", "batcher", "log", "cli", "node"]),
    ("guest", &["http", "batcher", "raft", "log", "state_machine", "cli", "node"]),
];

/// What an entry is: the words that log and state machine share.
const SHARED: &[&str] = &["raft::types", "raft::codec"];

/// (library, the beginnings of the paths, below `host/src`, that may name it).
const LIBRARIES: &[(&str, &[&str])] = &[
    ("sled", &["log/"]),
    ("wasmtime", &["guest/"]),
    ("hyper", &["http/", "raft/network", "cli/http"]),
    ("hyper_util", &["http/", "raft/network", "cli/http"]),
];

#[test]
fn the_host_keeps_its_arrows() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("host/src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    assert!(files.len() > 3, "host/src has moved");
    let violations: Vec<String> = files
        .iter()
        .flat_map(|file| {
            let path = file.strip_prefix(&root).unwrap().to_str().unwrap().replace('\\', "/");
            violations(&path, &fs::read_to_string(file).unwrap())
        })
        .collect();
    assert!(violations.is_empty(), "arrows that must not be:\n{}", violations.join("\n"));
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
}

/// What is wrong with the file at `path` (below `host/src`).
fn violations(path: &str, source: &str) -> Vec<String> {
    // A file of tests alone may use whatever it tests with.
    if path.ends_with("tests.rs") || path.contains("/tests/") {
        return Vec::new();
    }
    let code = without_tests(&tokens(source));
    let room = path.split('/').next().unwrap().trim_end_matches(".rs");
    let mut found = Vec::new();
    for (library, homes) in LIBRARIES {
        if names_library(&code, library) && !homes.iter().any(|home| path.starts_with(home)) {
            found.push(format!("{path} names {library}, which belongs to {}", homes.join(", ")));
        }
    }
    let forbidden = FORBIDDEN_ROOMS.iter().find(|(name, _)| *name == room).map_or(&[][..], |(_, rooms)| rooms);
    for import in imports(&code, depth(path)) {
        let target = import.split("::").next().unwrap();
        if forbidden.contains(&target) && !SHARED.iter().any(|s| import == *s || import.starts_with(&format!("{s}::")))
        {
            found.push(format!("{path} names crate::{import}, which the room {room} must not know"));
        }
    }
    found
}

/// A path that begins with the library (`sled::Db`), or an import of the library itself (`use ::sled;`).
fn names_library(code: &[String], library: &str) -> bool {
    let before = |at: usize, steps: usize| at.checked_sub(steps).map_or("", |at| code[at].as_str());
    let is_word = |token: &str| token.starts_with(|c: char| c.is_alphanumeric() || c == '_');
    (0..code.len()).filter(|&at| code[at] == library).any(|at| {
        let leading = before(at, 1) == "::";
        let starter = if leading { before(at, 2) } else { before(at, 1) };
        let is_first = !leading || starter == "use" || !is_word(starter);
        is_first && (starter == "use" || code.get(at + 1).is_some_and(|next| next == "::"))
    })
}

/// How many `super`s lead from the file's module to the crate's root.
fn depth(path: &str) -> usize {
    let parts = path.trim_end_matches(".rs").split('/').filter(|part| !["mod", "lib", "main"].contains(part));
    parts.count()
}

/// All paths from the crate's root that the code names, `use` trees unfolded, without `crate::`.
fn imports(code: &[String], depth: usize) -> Vec<String> {
    let mut found = Vec::new();
    for at in 0..code.len() {
        let starts_path = at == 0 || code[at - 1] != "::";
        let mut rest = at;
        if starts_path && code[at] == "crate" {
            rest = at + 1;
        } else if starts_path && code[at] == "super" {
            let supers = (0..).take_while(|n| code.get(at + 2 * n).is_some_and(|t| t == "super")).count();
            if supers < depth {
                continue;
            }
            rest = at + 2 * supers - 1;
        }
        if rest > at && code.get(rest).is_some_and(|t| t == "::") {
            unfold(code, rest + 1, String::new(), &mut found);
        }
    }
    found
}

/// Reads one branch of a path or `use` tree; returns where it ends.
fn unfold(code: &[String], mut at: usize, mut path: String, found: &mut Vec<String>) -> usize {
    loop {
        match code.get(at).map(String::as_str) {
            Some("{") => {
                at += 1;
                while code.get(at).is_some_and(|t| t != "}") {
                    at = if code[at] == "," { at + 1 } else { unfold(code, at, path.clone(), found).max(at + 1) };
                }
                return at + 1;
            }
            Some(word) if word.starts_with(|c: char| c.is_alphanumeric() || c == '_') => {
                path = if path.is_empty() { word.into() } else { format!("{path}::{word}") };
                at += 1;
            }
            _ => break,
        }
        if code.get(at).is_none_or(|t| t != "::") {
            break;
        }
        at += 1;
    }
    if !path.is_empty() {
        found.push(path);
    }
    at
}

/// The code without `#[cfg(test)]` items that have a body.
fn without_tests(code: &[String]) -> Vec<String> {
    let attribute = ["#", "[", "cfg", "(", "test", ")", "]"];
    let mut out = Vec::new();
    let mut at = 0;
    while at < code.len() {
        if !code[at..].iter().map(String::as_str).take(attribute.len()).eq(attribute) {
            out.push(code[at].clone());
            at += 1;
            continue;
        }
        at += attribute.len();
        let mut open = 0;
        while at < code.len() {
            let token = code[at].as_str();
            at += 1;
            match token {
                "{" => open += 1,
                "}" => open -= 1,
                _ => {}
            }
            if open == 0 && (token == "}" || token == ";") {
                break;
            }
        }
    }
    out
}

/// Words, `::` and single signs. Comments, strings and characters are left out.
fn tokens(source: &str) -> Vec<String> {
    let text: Vec<char> = source.chars().collect();
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut out: Vec<String> = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let two: String = text[at..].iter().take(2).collect();
        match text[at] {
            _ if two == "//" => at += text[at..].iter().position(|&c| c == '\n').unwrap_or(text.len() - at),
            _ if two == "/*" => at = after_block_comment(&text, at),
            '"' => {
                let raw = out.last().is_some_and(|t| ["r", "br", "cr"].contains(&t.as_str()))
                    && at > 0
                    && text[at - 1] != ' ';
                at = if raw { after_raw_string(&text, at, 0) } else { after_quote(&text, at, '"') };
            }
            '#' if out.last().is_some_and(|t| ["r", "br", "cr"].contains(&t.as_str())) => {
                let hashes = text[at..].iter().take_while(|&&c| c == '#').count();
                let string = text.get(at + hashes) == Some(&'"');
                at = if string { after_raw_string(&text, at + hashes, hashes) } else { at + hashes };
            }
            // A lifetime, or a character.
            '\'' if text.get(at + 2) != Some(&'\'') && text.get(at + 1) != Some(&'\\') => at += 1,
            '\'' => at = after_quote(&text, at, '\''),
            _ if two == "::" => {
                out.push(two);
                at += 2;
            }
            c if is_word(c) => {
                let word: String = text[at..].iter().take_while(|&&c| is_word(c)).collect();
                at += word.chars().count();
                out.push(word);
            }
            c => {
                if !c.is_whitespace() {
                    out.push(c.to_string());
                }
                at += 1;
            }
        }
    }
    out
}

fn after_quote(text: &[char], start: usize, quote: char) -> usize {
    let mut at = start + 1;
    while at < text.len() && text[at] != quote {
        at += if text[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

fn after_raw_string(text: &[char], quote: usize, hashes: usize) -> usize {
    let closes =
        |at: usize| text[at] == '"' && text[at + 1..].iter().take(hashes).filter(|&&c| c == '#').count() == hashes;
    (quote + 1..text.len()).find(|&at| closes(at)).map_or(text.len(), |at| at + 1 + hashes)
}

fn after_block_comment(text: &[char], start: usize) -> usize {
    let (mut at, mut open) = (start, 0);
    while at + 1 < text.len() {
        match (text[at], text[at + 1]) {
            ('/', '*') => (open, at) = (open + 1, at + 2),
            ('*', '/') => (open, at) = (open - 1, at + 2),
            _ => at += 1,
        }
        if open == 0 {
            return at;
        }
    }
    text.len()
}

#[test]
fn each_way_to_break_an_arrow_is_seen() {
    for (path, source) in [
        ("http/mod.rs", "use crate::raft::Raft;"),
        ("http/server.rs", "use crate::{batcher::Batcher, log};"),
        ("http/server.rs", "fn f() { let x = crate::state_machine::get(); }"),
        ("http.rs", "use super::guest::Engine;"),
        ("log/writer/mod.rs", "use super::super::batcher;"),
        ("log/mod.rs", "use crate::{config::{Config, Log}, http::{self, Server}};"),
        ("guest/mod.rs", "pub(crate) use crate::raft::{types::Entry, network};"),
        ("batcher/seal.rs", "type T = crate::http::Status;"),
        ("guest/mod.rs", "/* no */ use crate::raft::Network; // no"),
        ("state_machine/mod.rs", "const A: &str = \"\\\"\"; use crate::log::Log;"),
        ("state_machine/mod.rs", "const A: &str = r#\" \" \"#; const Q: char = '\"'; use crate::log::Log;"),
        ("guest/mod.rs", "#[cfg(test)] mod tests { fn f() {} } use crate::log::Log;"),
        ("batcher/mod.rs", "use sled::Db;"),
        ("batcher/mod.rs", "use ::sled;"),
        ("state_machine/mod.rs", "fn f(e: wasmtime::Engine) {}"),
        ("cli/status.rs", "use hyper::client;"),
        ("raft/mod.rs", "use hyper_util::rt::TokioIo;"),
    ] {
        assert!(!violations(path, source).is_empty(), "{path}: {source}");
    }
}

#[test]
fn what_is_allowed_is_not_reported() {
    for (path, source) in [
        ("node.rs", "use crate::{http, log, raft, guest};"),
        ("http/mod.rs", "use crate::batcher::Batcher; use crate::outcome::Refusal; use hyper::Request;"),
        ("log/mod.rs", "use crate::raft::{codec, types::{Entry, LogId}}; use sled::Db;"),
        ("http/mod.rs", "use crate::raft::{codec, types::{Entry, LogId}};"),
        ("log/read.rs", "use super::writer; use super::super::raft::types::LogId;"),
        ("raft/network/peer.rs", "use super::super::types; use super::log; use hyper::upgrade;"),
        ("guest/mod.rs", "// crate::raft\n/* crate::log /* sled:: */ */ const A: &str = \"crate::http sled::x\";"),
        ("guest/mod.rs", "#[cfg(test)]\nmod tests { use crate::log::Log; fn f() { sled::open() } }"),
        ("guest/mod.rs", "fn f<'a>(x: &'a str) -> char { '\"' } // crate::log"),
        ("log/tests.rs", "use crate::http::Server;"),
        ("http/mod.rs", "fn f(log: u8) { tracing::log::info(log); self.raft(); }"),
        ("cli/http.rs", "use hyper::client::conn::http1;"),
    ] {
        assert_eq!(violations(path, source), Vec::<String>::new(), "{path}: {source}");
    }
}
