//! The stacks that there are: those embedded in the binary, and a person's own folder. Reading happens here alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::markers::Markers;
use crate::{Fragment, Pattern, StackError, StackName, Toolchains};

const MARKERS: &str = "markers";
const UPSTREAM: &str = "Dockerfile.fragment";
const DISTRO: &str = "Dockerfile.fragment.distro";
/// A stack's files are small; toolchains are downloaded by the fragment.
const FOLDER_LIMIT_BYTES: u64 = 16 << 20;

struct EmbeddedStack {
    name: &'static str,
    files: &'static [(&'static str, &'static [u8])],
}

const EMBEDDED: &[EmbeddedStack] = include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

/// Whose stack it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Part of the binary.
    BuiltIn,
    /// Read from this folder.
    Own(PathBuf),
}

/// A file that a fragment may `COPY`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Relative to the stack's folder, `/` between parts, never `..`.
    pub path: String,
    /// What is in it.
    pub contents: Vec<u8>,
    /// Whether it is executable.
    pub executable: bool,
}

/// A language's overlay on the base image.
#[derive(Debug, Clone)]
pub struct Stack {
    name: StackName,
    origin: Origin,
    markers: Markers,
    upstream: Fragment,
    distro: Fragment,
    files: Vec<File>,
}

impl Stack {
    /// Its name.
    pub fn name(&self) -> &StackName {
        &self.name
    }

    /// Built in, or a person's own.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The checked fragment for this choice of toolchains.
    pub fn fragment(&self, toolchains: Toolchains) -> &Fragment {
        match toolchains {
            Toolchains::Upstream => &self.upstream,
            Toolchains::Distro => &self.distro,
        }
    }

    /// The other files of the folder, sorted by path: the context that a fragment's `COPY` sees.
    pub fn files(&self) -> &[File] {
        &self.files
    }

    /// The file names at a project's root that speak for this stack.
    pub fn patterns(&self) -> &[Pattern] {
        &self.markers.patterns
    }

    fn assemble(
        name: StackName,
        origin: Origin,
        at: &Path,
        mut files: BTreeMap<String, File>,
    ) -> Result<Self, StackError> {
        let mut take = |file: &str| files.remove(file).ok_or_else(|| StackError::Missing { path: at.join(file) });
        let (markers, upstream, distro) = (take(MARKERS)?, take(UPSTREAM)?, take(DISTRO)?);
        let names: BTreeSet<String> = files.keys().cloned().collect();
        let markers = Markers::parse(&String::from_utf8_lossy(&markers.contents))
            .map_err(|(line, fault)| StackError::Markers { path: at.join(MARKERS), line, fault })?;
        let fragment = |file: &File| {
            Fragment::parse(&file.contents, &names).map_err(|(line, fault)| StackError::Fragment {
                path: at.join(&file.path),
                line,
                fault,
            })
        };
        Ok(Self {
            name,
            origin,
            markers,
            upstream: fragment(&upstream)?,
            distro: fragment(&distro)?,
            files: files.into_values().collect(),
        })
    }
}

/// All stacks that a gateway knows.
#[derive(Debug, Clone)]
pub struct Stacks {
    by_name: BTreeMap<StackName, Stack>,
}

impl Stacks {
    /// Those that are part of the binary.
    ///
    /// # Panics
    /// When an embedded folder is bad; a test of this crate reads them all.
    pub fn builtin() -> Self {
        let by_name = EMBEDDED
            .iter()
            .map(|embedded| {
                let name: StackName = embedded.name.parse().expect("a folder of this crate has a stack's name");
                let files = embedded.files.iter().map(|&(path, contents)| {
                    // An embedded file has no mode; a script is known by its first two bytes, as the kernel knows it.
                    let executable = contents.starts_with(b"#!");
                    (path.to_owned(), File { path: path.to_owned(), contents: contents.to_vec(), executable })
                });
                let stack = Stack::assemble(name.clone(), Origin::BuiltIn, Path::new(embedded.name), files.collect())
                    .expect("the embedded stacks are valid");
                (name, stack)
            })
            .collect();
        Self { by_name }
    }

    /// The built-in stacks and those in `own`, a folder of stack folders. A folder that does not exist holds none;
    /// names that begin with `.` are skipped.
    pub fn load(own: Option<&Path>) -> Result<Self, StackError> {
        let mut stacks = Self::builtin();
        let Some(own) = own.filter(|folder| folder.exists()) else { return Ok(stacks) };
        for path in entries(own)? {
            let file_name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if file_name.starts_with('.') || !path.is_dir() {
                continue;
            }
            let name: StackName =
                file_name.parse().map_err(|source| StackError::Name { path: path.clone(), source })?;
            if stacks.by_name.contains_key(&name) {
                return Err(StackError::Shadows { path, name });
            }
            let mut files = BTreeMap::new();
            let mut budget = FOLDER_LIMIT_BYTES;
            read_folder(&path, &path, &mut budget, &mut files)?;
            let stack = Stack::assemble(name.clone(), Origin::Own(path.clone()), &path, files)?;
            stacks.by_name.insert(name, stack);
        }
        Ok(stacks)
    }

    /// The stack of this name.
    pub fn get(&self, name: &StackName) -> Option<&Stack> {
        self.by_name.get(name)
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &StackName> {
        self.by_name.keys()
    }

    /// All stacks, the preferred ones first; equal priorities by name.
    pub(crate) fn by_preference(&self) -> impl Iterator<Item = &Stack> {
        let mut stacks: Vec<&Stack> = self.by_name.values().collect();
        stacks.sort_by_key(|stack| stack.markers.priority);
        stacks.into_iter()
    }
}

fn unreadable(path: &Path) -> impl FnOnce(std::io::Error) -> StackError {
    move |source| StackError::Unreadable { path: path.to_owned(), source }
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, StackError> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable(folder))? {
        paths.push(entry.map_err(unreadable(folder))?.path());
    }
    paths.sort();
    Ok(paths)
}

fn read_folder(
    root: &Path,
    folder: &Path,
    budget: &mut u64,
    files: &mut BTreeMap<String, File>,
) -> Result<(), StackError> {
    for path in entries(folder)? {
        let metadata = fs::symlink_metadata(&path).map_err(unreadable(&path))?;
        if metadata.is_dir() {
            read_folder(root, &path, budget, files)?;
            continue;
        }
        let Some(relative) = path.strip_prefix(root).ok().and_then(Path::to_str).filter(|_| metadata.is_file()) else {
            return Err(StackError::NotAFile { path });
        };
        *budget = budget
            .checked_sub(metadata.len())
            .ok_or_else(|| StackError::TooLarge { path: root.to_owned(), limit: FOLDER_LIMIT_BYTES })?;
        let contents = fs::read(&path).map_err(unreadable(&path))?;
        let executable = metadata.permissions().mode() & 0o100 != 0;
        files.insert(relative.to_owned(), File { path: relative.to_owned(), contents, executable });
    }
    Ok(())
}
