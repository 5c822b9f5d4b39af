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

    /// Of several stacks that are found in a project, the one with the lowest number is preferred.
    pub fn priority(&self) -> u16 {
        self.markers.priority
    }

    /// The command that starts the language server with these toolchains; it speaks on its standard input and output.
    pub fn server(&self, toolchains: Toolchains) -> Option<&str> {
        self.markers.server.get(toolchains)
    }

    /// What the stack lacks with these toolchains, in words for a person.
    pub fn missing(&self, toolchains: Toolchains) -> Option<&str> {
        self.markers.missing.get(toolchains)
    }

    /// Every fault is told, each of the three files' first one: there is at least one.
    fn assemble(
        name: StackName,
        origin: Origin,
        at: &Path,
        mut files: BTreeMap<String, File>,
    ) -> Result<Self, Vec<StackError>> {
        let mut faults = Vec::new();
        let [markers, upstream, distro] = [MARKERS, UPSTREAM, DISTRO].map(|file| files.remove(file));
        let names: BTreeSet<String> = files.keys().cloned().collect();
        let missing = |file: &str| StackError::Missing { path: at.join(file) };
        let markers = match markers.map(|file| Markers::parse(&String::from_utf8_lossy(&file.contents))) {
            Some(Ok(markers)) => Some(markers),
            Some(Err((line, fault))) => {
                faults.push(StackError::Markers { path: at.join(MARKERS), line, fault });
                None
            }
            None => {
                faults.push(missing(MARKERS));
                None
            }
        };
        let mut fragment =
            |file: Option<File>, called: &str| match file.map(|file| Fragment::parse(&file.contents, &names)) {
                Some(Ok(fragment)) => Some(fragment),
                Some(Err((line, fault))) => {
                    faults.push(StackError::Fragment { path: at.join(called), line, fault });
                    None
                }
                None => {
                    faults.push(missing(called));
                    None
                }
            };
        match (markers, fragment(upstream, UPSTREAM), fragment(distro, DISTRO)) {
            (Some(markers), Some(upstream), Some(distro)) => {
                Ok(Self { name, origin, markers, upstream, distro, files: files.into_values().collect() })
            }
            _ => Err(faults),
        }
    }

    /// Reads a person's own stack; there is at least one fault when it is bad.
    fn read(path: &Path, builtin: &Stacks) -> Result<Self, Vec<StackError>> {
        let alone = |error| vec![error];
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name: StackName =
            name.parse().map_err(|source| alone(StackError::Name { path: path.to_owned(), source }))?;
        if builtin.by_name.get(&name).is_some_and(|stack| stack.origin == Origin::BuiltIn) {
            return Err(alone(StackError::Shadows { path: path.to_owned(), name }));
        }
        let mut files = BTreeMap::new();
        let mut budget = FOLDER_LIMIT_BYTES;
        read_folder(path, path, &mut budget, &mut files).map_err(alone)?;
        Self::assemble(name, Origin::Own(path.to_owned()), path, files)
    }
}

/// What [`Stacks::check`] found of one folder.
#[derive(Debug)]
pub struct Checked {
    /// The folder.
    pub path: PathBuf,
    /// The stack, or all that is wrong with it.
    pub result: Result<Stack, Vec<StackError>>,
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
    ///
    /// # Errors
    /// The first fault of the first bad stack; [`Stacks::check`] tells all.
    ///
    /// # Panics
    /// As [`Stacks::builtin`].
    pub fn load(own: Option<&Path>) -> Result<Self, StackError> {
        let mut stacks = Self::builtin();
        let Some(own) = own else { return Ok(stacks) };
        for path in stack_folders(own)? {
            let stack = Stack::read(&path, &stacks)
                .map_err(|faults| faults.into_iter().next().expect("a bad stack has a fault"))?;
            stacks.by_name.insert(stack.name.clone(), stack);
        }
        Ok(stacks)
    }

    /// Reads every stack folder in `own`, one for each, whatever is wrong with the others.
    ///
    /// # Errors
    /// When `own` itself cannot be read.
    pub fn check(own: &Path) -> Result<Vec<Checked>, StackError> {
        let builtin = Self::builtin();
        let folders = stack_folders(own)?.into_iter();
        Ok(folders.map(|path| Checked { result: Stack::read(&path, &builtin), path }).collect())
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
    pub fn by_preference(&self) -> impl Iterator<Item = &Stack> {
        let mut stacks: Vec<&Stack> = self.by_name.values().collect();
        stacks.sort_by_key(|stack| stack.markers.priority);
        stacks.into_iter()
    }
}

/// The folders in a folder of stacks; none where that is not there.
fn stack_folders(own: &Path) -> Result<Vec<PathBuf>, StackError> {
    if !own.exists() {
        return Ok(Vec::new());
    }
    let hidden = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
    Ok(entries(own)?.into_iter().filter(|path| path.is_dir() && !hidden(path)).collect())
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
