//! `raftlet snapshot`: backups of a running cluster, and new clusters from them. What a snapshot is, is
//! `state_machine/snapshot/`; how a folder is made from one, `restore.rs`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::http::{Head, StatusCode, Url};
use super::out::{complain, say};
use crate::restore::Restore;
use crate::state_machine::snapshot::{Summary, verify};

/// Longer than a node may take to make a snapshot.
const ANSWER_WITHIN: Duration = Duration::from_secs(660);
/// No byte for this long: the node is gone, or stands still.
const SILENCE: Duration = Duration::from_secs(60);

#[derive(Subcommand, Debug)]
pub enum SnapshotCommand {
    Save(SaveArgs),
    Verify(VerifyArgs),
    Restore(RestoreArgs),
}

/// Save the state of a running cluster to a file
///
/// The file has everything that was acknowledged before the command began. It is written beside FILE, verified, and
/// then renamed: FILE is whole, or as it was before.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  raftlet snapshot save monday.snapshot --admin 127.0.0.1:7080")]
pub struct SaveArgs {
    /// The file to write
    pub file: PathBuf,
    /// Admin listener of any node (node start --admin-listen; cluster start shows its nodes')
    #[arg(long, env = "RAFTLET_ADMIN", default_value = "127.0.0.1:7080", value_name = "HOST:PORT")]
    pub admin: Url,
    /// Replace FILE if it is there
    #[arg(long)]
    pub force: bool,
}

/// Read a snapshot's file, check all of it, and say what is in it
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  raftlet snapshot verify monday.snapshot --json")]
pub struct VerifyArgs {
    /// A file that `snapshot save` wrote, or one of a node's folder
    pub file: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Make the first folder of a new cluster from a snapshot's file
///
/// The new cluster has the state of the snapshot and identities of its own; the cluster that the snapshot comes from
/// is not touched. Node N is then started on DIR with all its peers, which are started on empty folders.
#[derive(Args, Debug)]
#[command(
    after_help = "Example, the first of three machines:\n  raftlet snapshot restore monday.snapshot --id 1 --dir /var/lib/raftlet --address 10.0.0.1:9080\n  raftlet node start --id 1 --dir /var/lib/raftlet --peer-listen 10.0.0.1:9080 \\\n      --peers 1=10.0.0.1:9080,2=10.0.0.2:9080,3=10.0.0.3:9080\n\nA local cluster: raftlet cluster start --restore monday.snapshot --dir new"
)]
pub struct RestoreArgs {
    /// A file that `snapshot save` wrote
    pub file: PathBuf,
    /// The node's folder: absent or empty
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// The node's id, 1 or more
    #[arg(long, value_name = "N")]
    pub id: u64,
    /// Where its peers will reach it
    #[arg(long, default_value = "127.0.0.1:9080", value_name = "HOST:PORT")]
    pub address: String,
}

impl SnapshotCommand {
    pub fn run(self) -> anyhow::Result<()> {
        match self {
            SnapshotCommand::Save(args) => super::on_this_thread(save(args)),
            SnapshotCommand::Verify(args) => show(&args),
            SnapshotCommand::Restore(args) => super::on_this_thread(restore(args)),
        }
    }
}

async fn save(args: SaveArgs) -> anyhow::Result<()> {
    let file = &args.file;
    let shown = file.display();
    if file.is_dir() {
        bail!("{shown} is a directory; give the name of a file in it");
    }
    if file.exists() && !args.force {
        bail!("{shown} is there already; give another name, or --force to replace it");
    }
    let name = file.file_name().ok_or_else(|| anyhow!("{shown} has no file name"))?;
    let mut partial = name.to_owned();
    partial.push(".partial");
    let partial = file.with_file_name(partial);
    let saved = save_to(&args.admin, &partial, file).await;
    if saved.is_err() {
        // What is not whole is of no use; that it can't be removed either changes nothing about the error.
        drop(fs::remove_file(&partial));
    }
    let summary = saved?;
    say(format_args!("saved {shown}: {}", in_short(&summary)));
    Ok(())
}

async fn save_to(admin: &Url, partial: &Path, file: &Path) -> anyhow::Result<Summary> {
    let open = OpenOptions::new().write(true).create(true).truncate(true).open(partial);
    let mut out = open.with_context(|| format!("can't write {}", partial.display()))?;
    let bar = ProgressBar::hidden();
    if io::stderr().is_terminal() {
        bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
        let template = "saving {bar:30} {bytes} of {total_bytes} ({bytes_per_sec}, {eta} left)";
        bar.set_style(ProgressStyle::with_template(template).expect("a constant template"));
    }
    let head = admin.download("/_/snapshot", ANSWER_WITHIN, SILENCE, |head, piece| {
        bar.set_length(head.bytes.unwrap_or(0));
        if head.status == StatusCode::OK {
            out.write_all(piece).with_context(|| format!("can't write {}", partial.display()))?;
            bar.inc(piece.len() as u64);
        }
        Ok(())
    });
    let head = head.await?;
    bar.finish_and_clear();
    if head.status != StatusCode::OK {
        bail!("{admin} made no snapshot: {}", why(&head));
    }
    out.sync_all().with_context(|| format!("can't write {}", partial.display()))?;
    let summary = verify(partial).context("what arrived can't be used")?;
    fs::rename(partial, file).with_context(|| format!("can't rename {} to {}", partial.display(), file.display()))?;
    let folder = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|f| f.sync_all()).with_context(|| format!("can't sync {}", folder.display()))?;
    Ok(summary)
}

/// What a node's refusal says.
fn why(head: &Head) -> String {
    let detail = serde_json::from_slice::<serde_json::Value>(&head.refusal).ok();
    let detail = detail.and_then(|d| d["detail"].as_str().map(str::to_owned));
    let hint = if head.status == StatusCode::NOT_FOUND { " (is this a node's admin listener?)" } else { "" };
    format!("{}: {}{hint}", head.status, detail.unwrap_or_else(|| "no reason was given".into()))
}

fn show(args: &VerifyArgs) -> anyhow::Result<()> {
    let summary = verify(&args.file)?;
    if args.json {
        say(to_json(&args.file, &summary));
    } else {
        say(format_args!("{} is whole: {}", args.file.display(), in_short(&summary)));
        for (what, value) in facts(&summary) {
            say(format_args!("{what:15} {value}"));
        }
    }
    Ok(())
}

fn in_short(summary: &Summary) -> String {
    let Summary { header, keys, bytes, file_bytes, .. } = summary;
    format!("{keys} keys with {bytes} bytes up to entry {}, in a file of {file_bytes} bytes", header.last.index)
}

fn facts(summary: &Summary) -> Vec<(&'static str, String)> {
    let header = &summary.header;
    let time = std::time::UNIX_EPOCH.checked_add(Duration::from_millis(header.time_ms));
    let time = time.map_or_else(|| header.time_ms.to_string(), |t| humantime::format_rfc3339_millis(t).to_string());
    let members: Vec<_> = header.membership.nodes().map(|(id, member)| format!("{id}={}", member.address)).collect();
    let module = header.activation.as_ref().map_or_else(|| "none".into(), |a| hex(&a.digest));
    vec![
        ("last entry", header.last.index.to_string()),
        ("term", header.last.leader_id.term.to_string()),
        ("clock", time),
        ("cluster", format!("{:016x}", header.cluster)),
        ("members", members.join(" ")),
        ("module", module),
        ("next command", header.first_command.to_string()),
        ("idempotency", format!("{} keys", summary.sessions)),
        ("digest", hex(&summary.digest)),
    ]
}

fn to_json(file: &Path, summary: &Summary) -> serde_json::Value {
    let header = &summary.header;
    let members: Vec<_> = header.membership.nodes().collect();
    let members: Vec<_> =
        members.into_iter().map(|(id, member)| json!({ "id": id, "peer_address": member.address })).collect();
    json!({
        "file": file.display().to_string(),
        "file_bytes": summary.file_bytes,
        "index": header.last.index,
        "term": header.last.leader_id.term,
        "time_ms": header.time_ms,
        "cluster_id": format!("{:016x}", header.cluster),
        "members": members,
        "module_digest": header.activation.as_ref().map(|a| hex(&a.digest)),
        "first_command": header.first_command,
        "keys": summary.keys,
        "bytes": summary.bytes,
        "idempotency_keys": summary.sessions,
        "digest": hex(&summary.digest),
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

async fn restore(args: RestoreArgs) -> anyhow::Result<()> {
    let RestoreArgs { file, dir, id, address } = args;
    let restored = Restore { snapshot: file, dir: dir.clone(), node: id, address: address.clone() }.run().await?;
    let (dir, cluster) = (dir.display(), restored.cluster);
    say(format_args!("restored {}", in_short(&restored.summary)));
    say(format_args!("{dir} is node {id} of the new cluster {cluster:016x}. Start it with all its peers:"));
    say(format_args!("  raftlet node start --id {id} --dir {dir} --peer-listen {address} --peers {id}={address},..."));
    complain("note: the peers are started on empty folders; no request is taken before all of --peers have joined");
    Ok(())
}
