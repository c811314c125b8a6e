//! The copy of the workspace in which bugs are planted: its source, and what was compiled of the registry's crates.
//! Never writes to the workspace.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Leaves a file alone that is the same: cargo goes by the time of its last change.
pub(super) fn copy_if_other(from: &Path, to: &Path) -> Result<()> {
    let bytes = fs::read(from).with_context(|| format!("{} can't be read", from.display()))?;
    if fs::read(to).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(to, bytes).with_context(|| format!("{} can't be written", to.display()))
}

/// Removes from the copy what the workspace doesn't have any more.
pub(super) fn remove_others(source: &Path, folder: &Path, files: &BTreeSet<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            remove_others(source, &path, files)?;
        } else if !files.contains(path.strip_prefix(source)?) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// The names of the workspace's own packages.
pub(super) fn packages(root: &Path, files: &BTreeSet<PathBuf>) -> Result<BTreeSet<String>> {
    let manifests = files.iter().filter(|file| file.ends_with("Cargo.toml"));
    let name = |file: &PathBuf| -> Result<Option<String>> {
        let table: toml::Table = fs::read_to_string(root.join(file))?.parse()?;
        Ok(table.get("package").and_then(|p| p.get("name")).and_then(toml::Value::as_str).map(String::from))
    };
    manifests.map(name).filter_map(Result::transpose).collect()
}

/// Links everything that was compiled of packages that aren't `ours`. cargo's own notes are copied: it writes them in
/// place, and the workspace's must stay as they are.
pub(super) fn take_over(from: &Path, to: &Path, ours: &BTreeSet<String>) -> Result<()> {
    let mut hashes = BTreeSet::new();
    for entry in fs::read_dir(from.join(".fingerprint"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let Some((package, hash)) = name.rsplit_once('-') else { continue };
        if ours.contains(package) {
            continue;
        }
        hashes.insert(hash.to_owned());
        copy_tree(&from.join(".fingerprint").join(&name), &to.join(".fingerprint").join(&name), false)?;
        let built = from.join("build").join(&name);
        if built.is_dir() {
            copy_tree(&built, &to.join("build").join(&name), true)?;
        }
    }
    fs::create_dir_all(to.join("deps"))?;
    for entry in fs::read_dir(from.join("deps"))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let stem = name.split('.').next().unwrap_or_default();
        if stem.rsplit_once('-').is_some_and(|(_, hash)| hashes.contains(hash)) {
            fs::hard_link(entry.path(), to.join("deps").join(&name))?;
        }
    }
    Ok(())
}

fn copy_tree(from: &Path, to: &Path, link: bool) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target, link)?;
        } else if link {
            fs::hard_link(entry.path(), target)?;
        } else {
            fs::copy(entry.path(), &target)?;
            // cargo compares times.
            fs::File::options().write(true).open(&target)?.set_modified(entry.metadata()?.modified()?)?;
        }
    }
    Ok(())
}
