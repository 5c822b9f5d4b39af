//! Lists the stack folders beside this file, so that a new folder is built in without any code.
//!
//! A stack is a folder that holds a `markers` file; every regular file in it is embedded. The folders are read
//! and checked by `src/`, not here.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let variable = |name: &str| {
        env::var_os(name).map(PathBuf::from).ok_or_else(|| io::Error::other(format!("cargo did not set {name}")))
    };
    let root = variable("CARGO_MANIFEST_DIR")?;
    println!("cargo::rerun-if-changed={}", root.display());

    let mut code = String::from("&[\n");
    for folder in sorted_entries(&root)? {
        if !folder.join("markers").is_file() {
            continue;
        }
        let _ = writeln!(
            code,
            "    EmbeddedStack {{ name: {:?}, files: &[",
            text(&folder, folder.file_name().map(Path::new))?
        );
        let mut files = Vec::new();
        list_files(&folder, &mut files)?;
        for file in files {
            let relative = text(&file, file.strip_prefix(&folder).ok())?;
            let _ = writeln!(code, "        ({relative:?}, include_bytes!({:?})),", text(&file, Some(&file))?);
        }
        code.push_str("    ] },\n");
    }
    code.push_str("]\n");
    fs::write(variable("OUT_DIR")?.join("embedded.rs"), code)
}

fn list_files(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    println!("cargo::rerun-if-changed={}", folder.display());
    for entry in sorted_entries(folder)? {
        if entry.is_dir() {
            list_files(&entry, files)?;
        } else {
            println!("cargo::rerun-if-changed={}", entry.display());
            files.push(entry);
        }
    }
    Ok(())
}

fn sorted_entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut entries = fs::read_dir(folder)?.map(|entry| entry.map(|e| e.path())).collect::<io::Result<Vec<_>>>()?;
    entries.sort();
    Ok(entries)
}

fn text<'a>(full: &Path, part: Option<&'a Path>) -> io::Result<&'a str> {
    part.and_then(Path::to_str)
        .ok_or_else(|| io::Error::other(format!("{} has a name that is not text", full.display())))
}
