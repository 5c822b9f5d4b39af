//! Looking for all secrets at once, in bytes that come by the gigabyte.

use std::{collections::BTreeSet, io, io::Read};

use aho_corasick::{AhoCorasick, AhoCorasickKind};
use anyhow::{Context as _, Result};

use super::{Form, Kind};

/// How much is looked at in one go.
const CHUNK: usize = 1 << 20;

/// Finds secrets.
pub struct Matcher {
    automaton: AhoCorasick,
    /// What each pattern is.
    meanings: Vec<(Kind, Form)>,
    longest: usize,
}

impl Matcher {
    pub(super) fn new(patterns: &[(Vec<u8>, Kind, Form)]) -> Result<Self> {
        let automaton = AhoCorasick::builder()
            // Small enough to stay in the processor's cache, and soon made.
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            .build(patterns.iter().map(|(pattern, ..)| pattern))
            .context("the secrets are too many")?;
        let meanings = patterns.iter().map(|(_, kind, form)| (*kind, *form)).collect();
        let longest = patterns.iter().map(|(pattern, ..)| pattern.len()).max().unwrap_or(1);
        Ok(Self { automaton, meanings, longest })
    }

    /// What is in `bytes`.
    pub fn bytes(&self, bytes: &[u8]) -> BTreeSet<(Kind, Form)> {
        self.automaton.find_iter(bytes).map(|found| self.meanings[found.pattern().as_usize()]).collect()
    }

    /// What is in all that the reader gives, and how many bytes that was.
    pub fn stream(&self, mut reader: impl Read) -> io::Result<(BTreeSet<(Kind, Form)>, u64)> {
        let (mut found, mut total) = (BTreeSet::new(), 0);
        // The end of one chunk may be the beginning of a secret.
        let (mut buffer, mut kept) = (vec![0; CHUNK + self.longest], 0);
        loop {
            let mut filled = kept;
            while filled < buffer.len() {
                match reader.read(&mut buffer[filled..]) {
                    Ok(0) => break,
                    Ok(count) => filled += count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            found.append(&mut self.bytes(&buffer[..filled]));
            total += (filled - kept) as u64;
            if filled < buffer.len() {
                return Ok((found, total));
            }
            kept = self.longest - 1;
            buffer.copy_within(filled - kept..filled, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its bytes in small and odd pieces.
    struct Drip<'a>(&'a [u8]);

    impl Read for Drip<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let count = self.0.len().min(into.len()).min(70_001);
            into[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    #[test]
    fn a_secret_is_found_at_every_edge_of_a_chunk() -> Result<()> {
        let (first, second) = (b"first-secret-of-two", b"the-second-which-is-longer");
        let patterns = [(first.to_vec(), Kind::GitToken, Form::Plain), (second.to_vec(), Kind::ModelKey, Form::Base64)];
        let matcher = Matcher::new(&patterns)?;
        let edge = CHUNK + matcher.longest;
        for (secret, expected) in
            [(&first[..], (Kind::GitToken, Form::Plain)), (&second[..], (Kind::ModelKey, Form::Base64))]
        {
            for at in (0..=secret.len()).map(|before| edge - before).chain([0, 2 * edge]) {
                let mut bytes = vec![b'-'; 2 * edge + 40];
                bytes[at..at + secret.len()].copy_from_slice(secret);
                let (found, total) = matcher.stream(Drip(&bytes))?;
                assert_eq!((found, total), (BTreeSet::from([expected]), bytes.len() as u64), "at {at}");
            }
        }
        let nothing = vec![b'-'; edge];
        assert_eq!(matcher.stream(&nothing[..])?, (BTreeSet::new(), edge as u64));
        assert_eq!(matcher.stream(&[][..])?, (BTreeSet::new(), 0));
        Ok(())
    }
}
