//! A build's context as a tar stream: small files from memory, large ones from the disk as they are read.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use tokio_util::io::{ReaderStream, SyncIoBridge};

use crate::layers::{Contents, ContextFile};

const CHUNK: usize = 256 << 10;

/// The tar of a Dockerfile and the files beside it. A fault in the middle ends the stream with an error.
pub(crate) fn stream(
    dockerfile: String,
    files: Vec<ContextFile>,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let (writer, reader) = tokio::io::duplex(CHUNK);
    let writing = tokio::task::spawn_blocking(move || {
        let mut writer = SyncIoBridge::new(writer);
        let written = write(&dockerfile, files, &mut writer);
        // Whatever came of it, the reader must see the end.
        writer.shutdown().and(written)
    });
    let end = futures_util::stream::once(writing).filter_map(|joined| {
        let failed = match joined {
            Ok(written) => written.err(),
            Err(panicked) => Some(io::Error::other(panicked)),
        };
        std::future::ready(failed.map(Err))
    });
    ReaderStream::with_capacity(reader, CHUNK).chain(end)
}

fn write(dockerfile: &str, files: Vec<ContextFile>, writer: &mut impl Write) -> io::Result<()> {
    let mut tar = tar::Builder::new(writer);
    append(&mut tar, "Dockerfile", 0o644, dockerfile.len() as u64, dockerfile.as_bytes())?;
    for file in files {
        match file.contents {
            Contents::Bytes(bytes) => append(&mut tar, &file.path, file.mode, bytes.len() as u64, bytes.as_slice())?,
            Contents::Host { file: host, size, .. } => {
                append(&mut tar, &file.path, file.mode, size, FromStart { file: host, at: 0 }.take(size))?;
            }
        }
    }
    tar.into_inner()?.flush()
}

/// No times, no owners: the same files are the same bytes.
fn append(
    tar: &mut tar::Builder<impl Write>,
    path: &str,
    mode: u32,
    size: u64,
    mut contents: impl Read,
) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(mode);
    header.set_size(size);
    let mut counted = Counted { inner: &mut contents, read: 0 };
    tar.append_data(&mut header, path, &mut counted)?;
    if counted.read == size {
        Ok(())
    } else {
        Err(io::Error::other(format!("{path} has become shorter while it was sent")))
    }
}

struct Counted<'a, R> {
    inner: &'a mut R,
    read: u64,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.read += n as u64;
        Ok(n)
    }
}

/// Reads a shared file from its start without moving its position, which other builds share.
struct FromStart {
    file: Arc<File>,
    at: u64,
}

impl Read for FromStart {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(buffer, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::TryStreamExt as _;

    use super::*;

    fn host(contents: &[u8], size: u64) -> ContextFile {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(contents).expect("a write");
        ContextFile {
            path: "sled".to_owned(),
            mode: 0o755,
            contents: Contents::Host { file: Arc::new(file), size, sha256: [0; 32] },
        }
    }

    async fn collect(files: Vec<ContextFile>) -> io::Result<Vec<u8>> {
        let chunks: Vec<Bytes> = stream("FROM x\n".to_owned(), files).try_collect().await?;
        Ok(chunks.concat())
    }

    #[tokio::test]
    async fn the_tar_holds_the_files_and_nothing_of_the_moment() {
        let large = vec![7; 3 * CHUNK + 5];
        let files = vec![ContextFile::text("a/b", 0o644, "small"), host(&large, large.len() as u64)];
        let bytes = collect(files.clone()).await.expect("a tar");
        assert_eq!(bytes, collect(files).await.expect("the same tar"));
        let mut archive = tar::Archive::new(bytes.as_slice());
        let entries: Vec<_> = archive
            .entries()
            .expect("entries")
            .map(|entry| {
                let mut entry = entry.expect("an entry");
                let mut contents = Vec::new();
                entry.read_to_end(&mut contents).expect("contents");
                (entry.path().expect("a path").display().to_string(), entry.header().mode().expect("a mode"), contents)
            })
            .collect();
        assert_eq!(entries[0], ("Dockerfile".to_owned(), 0o644, b"FROM x\n".to_vec()));
        assert_eq!(entries[1], ("a/b".to_owned(), 0o644, b"small".to_vec()));
        assert_eq!(entries[2], ("sled".to_owned(), 0o755, large));
    }

    #[tokio::test]
    async fn a_file_that_became_shorter_is_an_error_and_no_short_tar() {
        let error = collect(vec![host(b"short", 4096)]).await.expect_err("a fault");
        assert_eq!(error.to_string(), "sled has become shorter while it was sent");
    }
}
