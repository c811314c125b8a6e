//! `raftlet log inspect` and `verify`: what is in the log of a stopped node, and whether it is whole. Prints what
//! `log/inspect.rs` finds; starts no node, repairs nothing.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use openraft::EntryPayload;
use raftlet_machine::Batch;
use serde_json::{Value, json};

use super::out::say;
use crate::log::{Found, Place, Report, inspect};
use crate::raft::types::{Entry, Kind, LogId};

#[derive(Subcommand, Debug)]
pub enum LogCommand {
    Inspect(InspectArgs),
    Verify(VerifyArgs),
}

const AFTER: &str = "A running node's log is refused: stop the node first. The files are opened as a node's start opens \
    them (sled may write a snapshot of its own into the folder), but nothing is repaired and no entry is changed: to be \
    sure, look at a copy.";

/// Show what is in a stopped node's log
///
/// The bounds, the vote, and each entry: index, term, kind, batch id, time, commands, bytes, and how it lies on the disk.
/// Goes on after damage and names it. The exit code is 1 if there is any.
#[derive(Args, Debug)]
#[command(after_help = AFTER)]
pub struct InspectArgs {
    #[command(flatten)]
    which: Which,
    /// Show entries from this index on
    #[arg(long, value_name = "INDEX", default_value_t = 0)]
    from: u64,
    /// Show entries up to this index [default: the last one]
    #[arg(long, value_name = "INDEX")]
    to: Option<u64>,
    /// Show at most so many entries; all in the range are counted and checked
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: u64,
    /// Show the commands of each batch: method, path and bytes of the body
    #[arg(long)]
    commands: bool,
}

/// Read a stopped node's whole log and say whether all of it is there
///
/// The exit code is 1, with a list, if anything is missing or damaged: such a node would refuse to start.
#[derive(Args, Debug)]
#[command(after_help = AFTER)]
pub struct VerifyArgs {
    #[command(flatten)]
    which: Which,
}

#[derive(Args, Debug)]
struct Which {
    /// The node's directory, or the raft-log folder in it
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Print one JSON document per line
    #[arg(long)]
    json: bool,
}

impl LogCommand {
    pub fn run(self) -> anyhow::Result<()> {
        // sled panics over damaged files; that is caught and told in words.
        std::panic::set_hook(Box::new(|_| {}));
        let report = match &self {
            LogCommand::Inspect(args) => args.run()?,
            LogCommand::Verify(VerifyArgs { which }) => {
                let report = inspect(&which.log_dir()?, 0..u64::MAX, |_| {})?;
                which.show(&report);
                report
            }
        };
        if report.damage.is_empty() {
            return Ok(());
        }
        bail!("the log is damaged in {} places; a node doesn't start with it", report.damage.len())
    }
}

impl Which {
    fn log_dir(&self) -> anyhow::Result<PathBuf> {
        let inner = self.dir.join("raft-log");
        let dir = if inner.is_dir() { inner } else { self.dir.clone() };
        dir.metadata().with_context(|| format!("there is no {}", dir.display()))?;
        Ok(dir)
    }

    fn show(&self, report: &Report) {
        if self.json {
            return say(summary(report));
        }
        let id =
            |id: Option<LogId>| id.map_or("none".into(), |id| format!("{} (term {})", id.index, id.leader_id.term));
        if let Some(b) = &report.bounds {
            say(format_args!("commit     {}", b.sequence));
            say(format_args!("purged     {}", id(b.purged)));
            say(format_args!("first      {}", b.first));
            say(format_args!("last       {}", id(b.last)));
            say(format_args!("committed  {}", id(b.committed)));
            match b.vote {
                Some(vote) => {
                    let (node, kind) = (vote.leader_id.voted_for, if vote.committed { "elected" } else { "voted for" });
                    say(format_args!("vote       term {}, {kind} node {node}", vote.leader_id.term));
                }
                None => say("vote       none"),
            }
        }
        say(format_args!("entries    {} of {} bytes", report.entries, report.bytes));
        say(format_args!("values     {} groups, {} pieces of large entries", report.groups, report.chunks));
        if report.purged_values > 0 {
            say(format_args!("purged and not deleted yet: {} values", report.purged_values));
        }
        if report.values_beyond > 0 {
            say(format_args!("behind the last entry, never acknowledged: {} values", report.values_beyond));
        }
        for damage in &report.damage {
            say(format_args!("damage     {damage}"));
        }
    }
}

impl InspectArgs {
    fn run(&self) -> anyhow::Result<Report> {
        let mut shown = 0;
        let range = self.from..self.to.map_or(u64::MAX, |to| to.saturating_add(1));
        let report = inspect(&self.which.log_dir()?, range, |found| {
            let entry = matches!(found, Found::Entry { .. });
            if entry && shown == self.limit {
                return;
            }
            shown += u64::from(entry);
            self.show(&found);
        })?;
        if report.entries > shown && !self.which.json {
            say(format_args!("... and {} more (--limit)", report.entries - shown));
        }
        self.which.show(&report);
        Ok(report)
    }

    fn show(&self, found: &Found) {
        let (entry, bytes, place) = match found {
            Found::Entry { entry, bytes, place } => (entry, *bytes, place),
            Found::Damage(damage) if self.which.json => return say(json!({ "damage": damage.to_string() })),
            Found::Damage(damage) => return say(format_args!("DAMAGE  {damage}")),
        };
        let about = describe(entry, self.commands);
        if self.which.json {
            let mut line = json!({
                "index": entry.log_id.index, "term": entry.log_id.leader_id.term, "bytes": bytes, "checksum": "ok",
            });
            let (how, count) = match place {
                Place::Group(entries) => ("group_of_entries", entries),
                Place::Chunks(chunks) => ("pieces", chunks),
            };
            line[how] = json!(count);
            if let (Value::Object(line), Value::Object(about)) = (&mut line, about) {
                line.extend(about);
            }
            return say(line);
        }
        let text = |key: &str| match &about[key] {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let place = match place {
            Place::Group(entries) => format!("in a group of {entries}"),
            Place::Chunks(chunks) => format!("in {chunks} pieces"),
        };
        let (index, term) = (entry.log_id.index, entry.log_id.leader_id.term);
        let mut line = format!("{index}  term {term}  {}  {bytes} bytes {place}", text("kind"));
        for (key, name) in [("batch", "batch"), ("time", "at"), ("commands", "commands"), ("unreadable", "UNREADABLE")]
        {
            if !about[key].is_null() {
                line += &format!("  {name} {}", text(key));
            }
        }
        say(line);
        for command in about["list"].as_array().into_iter().flatten() {
            let body = &command["body_bytes"];
            say(format_args!("    {} {}  {body} bytes", command["method"].as_str().unwrap_or("?"), command["path"]));
        }
    }
}

/// What an entry is: its kind and, if it is a proposal, its envelope; for a batch its commands.
fn describe(entry: &Entry, commands: bool) -> Value {
    let proposal = match &entry.payload {
        EntryPayload::Blank => return json!({ "kind": "blank" }),
        EntryPayload::Membership(members) => {
            let voters: Vec<u64> = members.voter_ids().collect();
            return json!({ "kind": "membership", "voters": voters });
        }
        EntryPayload::Normal(proposal) => proposal,
    };
    let envelope = &proposal.envelope;
    let id = envelope.id;
    let kind = match envelope.kind {
        Kind::Batch => "batch",
        Kind::ModuleChunk => "module-piece",
        Kind::ActivateModule => "activation",
        Kind::Checkpoint => "checkpoint",
    };
    let at = std::time::UNIX_EPOCH.checked_add(std::time::Duration::from_millis(envelope.time_ms));
    // Times beyond the year 9999 can't be written in that form.
    let at = at.filter(|_| envelope.time_ms < 253_402_300_800_000).map(humantime::format_rfc3339_millis);
    let mut about = json!({
        "kind": kind,
        "batch": format!("{}/{:x}/{}", id.node, id.boot, id.sequence),
        "time": at.map(|at| at.to_string()),
    });
    if envelope.kind != Kind::Batch {
        return about;
    }
    match Batch::access(&proposal.bytes) {
        Ok(batch) => {
            about["commands"] = json!(batch.commands.len());
            if commands {
                let list = batch.commands.iter().map(
                    |c| json!({ "method": format!("{:?}", c.method).to_uppercase(), "path": c.path.as_str(), "body_bytes": c.body.len() }),
                );
                about["list"] = list.collect();
            }
        }
        Err(e) => about["unreadable"] = json!(e.to_string()),
    }
    about
}

fn summary(report: &Report) -> Value {
    let id = |id: Option<LogId>| id.map(|id| json!({ "term": id.leader_id.term, "index": id.index }));
    let bounds = report.bounds.map(|b| {
        let vote = b
            .vote
            .map(|v| json!({ "term": v.leader_id.term, "node": v.leader_id.voted_for, "committed": v.committed }));
        json!({
            "sequence": b.sequence, "purged": id(b.purged), "first": b.first, "last": id(b.last),
            "committed": id(b.committed), "vote": vote,
        })
    });
    json!({
        "bounds": bounds, "entries": report.entries, "bytes": report.bytes, "groups": report.groups,
        "pieces": report.chunks, "purged_values": report.purged_values, "values_beyond": report.values_beyond,
        "damage": report.damage,
    })
}
