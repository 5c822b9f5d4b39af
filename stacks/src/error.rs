//! Why a stack is refused: always with the file, and with the line where there is one.

use std::io;
use std::path::PathBuf;

use crate::StackName;

/// A stack that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StackError {
    /// The folder or one of its files cannot be read.
    #[error("{} cannot be read: {source}", path.display())]
    Unreadable {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The folder's name cannot be a stack's name.
    #[error("{}: {source}", path.display())]
    Name {
        /// The folder.
        path: PathBuf,
        /// What is wrong with the name.
        source: crate::BadStackName,
    },
    /// The folder would hide a built-in stack.
    #[error("{}: a stack named {name} is built in; rename the folder", path.display())]
    Shadows {
        /// The folder.
        path: PathBuf,
        /// The built-in stack.
        name: StackName,
    },
    /// One of the three files that a stack is made of is missing.
    #[error("{} is missing: a stack is a folder with Dockerfile.fragment, Dockerfile.fragment.distro and markers", path.display())]
    Missing {
        /// The file that is not there.
        path: PathBuf,
    },
    /// A line of `markers` is wrong.
    #[error("{}:{line}: {fault}", path.display())]
    Markers {
        /// The `markers` file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        fault: MarkersFault,
    },
    /// A line of a Dockerfile fragment is wrong.
    #[error("{}:{line}: {fault}", path.display())]
    Fragment {
        /// The fragment.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        fault: FragmentFault,
    },
    /// Something in the folder is neither a regular file nor a folder.
    #[error("{} is neither a regular file nor a folder", path.display())]
    NotAFile {
        /// The link, socket or device.
        path: PathBuf,
    },
    /// The folder holds more than an image's context may.
    #[error("{} holds more than {limit} bytes; a stack's own files are small", path.display())]
    TooLarge {
        /// The folder.
        path: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },
}

/// What is wrong with a line of `markers`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MarkersFault {
    /// The first line that counts is not the priority.
    #[error("the first line must be `priority = <number>` (the lower is preferred)")]
    NoPriority,
    /// There is no pattern at all.
    #[error("no file name is listed")]
    NoPattern,
    /// The pattern could never match a file at the root, or could match anything.
    #[error("{0:?} is no file name: visible ASCII without `/`, with `*` for any run of characters, and not `*` alone")]
    Pattern(String),
    /// A setting that does not exist, or the priority a second time.
    #[error("there is no setting {0:?} here; there are server and missing, alone or with .upstream or .distro")]
    Setting(String),
    /// A setting without a value, or with one that cannot be shown in a line.
    #[error("{0} needs at most 200 printable ASCII characters after the `=`")]
    Value(String),
    /// A setting that was given before.
    #[error("{0} is given twice for the same toolchains")]
    Twice(String),
}

/// What is wrong with a line of a fragment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FragmentFault {
    /// A character that is not printable ASCII (or a tab).
    #[error("only printable ASCII is allowed, found {0:?}")]
    Character(char),
    /// The file is not text.
    #[error("the file is not UTF-8 text")]
    NotText,
    /// `# syntax=`, `# escape=` and the like.
    #[error("the parser directive {0:?} is not allowed; begin the comment with another word")]
    Directive(String),
    /// An instruction of Docker that a stack may not use.
    #[error("{0} is not allowed in a stack; use RUN, ENV, ARG or COPY")]
    Forbidden(String),
    /// A word that is no instruction.
    #[error("{0:?} is no instruction; a stack uses RUN, ENV, ARG and COPY")]
    Unknown(String),
    /// An instruction without anything after it.
    #[error("{0} needs something after it")]
    Empty(&'static str),
    /// `RUN --mount`, `COPY --from` and the like.
    #[error("{0} takes no flags in a stack, found {1:?}")]
    Flag(&'static str, String),
    /// A here-document, which engines without `BuildKit` do not know.
    #[error("here-documents are not allowed; write one RUN with `;` and line ends escaped")]
    HereDocument,
    /// A COPY whose source is not in the folder.
    #[error("COPY source {0:?} is not a file or folder of this stack")]
    Source(String),
    /// `COPY ["a", "b"]`.
    #[error("COPY takes plain words: COPY <source>... <destination>")]
    CopyForm,
    /// The last line ends with a `\`.
    #[error("the file ends within an instruction")]
    Unfinished,
    /// Nothing but comments.
    #[error("there is no instruction")]
    NoInstruction,
}
