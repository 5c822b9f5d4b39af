//! A person's home on the host: the state directory, and the projects' files.

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::ffi::OsStrExt as _,
    path::Path,
};

use anyhow::{Context as _, Result};

use super::{Area, Find, Kind, Matcher, forbidden, matcher, register, register_key};

/// How the private keys begin that OpenSSH writes.
const KEY: &[u8] = b"-----BEGIN OPENSSH PRIVATE KEY-----";

/// Tells of the secrets that a gateway has made for itself.
pub fn learn(state: &Path) -> Result<()> {
    if let Some(session) = there(fs::read(state.join("matrix/session.json")))? {
        let session: serde_json::Value = serde_json::from_slice(&session).context("the bot's session is JSON")?;
        register(Kind::MatrixToken, session["access_token"].as_str().context("a session has a token")?);
    }
    let Some(projects) = there(fs::read_dir(state.join("projects")))? else { return Ok(()) };
    for project in projects {
        let project = project?.path();
        for (folder, kind) in [("ssh", Kind::DoorKey), ("ssh/door", Kind::HostKey)] {
            for file in there(fs::read_dir(project.join(folder)))?.into_iter().flatten() {
                let file = file?;
                let Some(bytes) = file.file_type()?.is_file().then(|| fs::read(file.path())) else { continue };
                let Some(bytes) = there(bytes)?.filter(|bytes| bytes.starts_with(KEY)) else { continue };
                register_key(kind, &String::from_utf8(bytes)?).with_context(|| format!("{}", file.path().display()))?;
            }
        }
    }
    Ok(())
}

/// What must not be in the files below `folder`, in their names and in what links say; the state directory in it is `state`.
pub fn in_folder(folder: &Path, state: &Path) -> Result<Vec<Find>> {
    learn(state)?;
    let mut finds = Vec::new();
    walk(&*matcher()?, folder, state, &mut finds)?;
    Ok(finds)
}

fn walk(matcher: &Matcher, folder: &Path, state: &Path, finds: &mut Vec<Find>) -> Result<()> {
    for entry in there(fs::read_dir(folder))?.into_iter().flatten() {
        let path = entry?.path();
        let (area, shown) = (area(&path, state), path.display().to_string());
        finds.extend(forbidden(Area::Elsewhere, "the name of a file", &matcher.bytes(path.as_os_str().as_bytes())));
        let Some(meta) = there(fs::symlink_metadata(&path))? else { continue };
        if meta.is_dir() {
            walk(matcher, &path, state, finds)?;
        } else if meta.is_symlink() {
            let Some(to) = there(fs::read_link(&path))? else { continue };
            finds.extend(forbidden(area, &shown, &matcher.bytes(to.as_os_str().as_bytes())));
        } else if meta.is_file() {
            let Some(file) = there(fs::File::open(&path))? else { continue };
            let (found, _) = matcher.stream(file).with_context(|| shown.clone())?;
            finds.extend(forbidden(area, &shown, &found));
        }
    }
    Ok(())
}

/// Which secrets a file may have.
fn area(path: &Path, state: &Path) -> Area {
    let Ok(own) = path.strip_prefix(state) else { return Area::Elsewhere };
    let parts: Vec<&str> = own.iter().map(|part| part.to_str().unwrap_or_default()).collect();
    match parts[..] {
        ["bot.toml"] => Area::Settings,
        ["secrets", _] => Area::Store,
        ["matrix", "session.json"] => Area::Session,
        ["projects", _, "ssh", "id_ed25519"] => Area::DoorKey,
        ["projects", _, "ssh", "door", _] => Area::ContainerDoor,
        _ => Area::Elsewhere,
    }
}

/// What may have gone since it was listed, and what a test has closed to its own owner, is not there.
fn there<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{
        product,
        secrets::{Form, mint},
    };

    #[test]
    fn a_secret_is_found_in_every_file_but_where_it_belongs() -> Result<()> {
        let folder = product::scratch()?;
        let state = folder.path().join("state");
        let write = |path: &str, text: &str| -> Result<()> {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().context("it has one")?)?;
            fs::write(path, text).map_err(Into::into)
        };
        let (key, password, token) = (mint(Kind::ModelKey), mint(Kind::MatrixPassword), mint(Kind::GitToken));
        let own = format!("a-token-{}", uuid::Uuid::new_v4());
        write("state/secrets/model-key", &key)?;
        write("state/bot.toml", &format!("password = \"{password}\""))?;
        write("state/matrix/session.json", &serde_json::json!({ "access_token": own }).to_string())?;
        assert_eq!(in_folder(folder.path(), &state)?, []);

        write("state/journal.db", &format!("x{key}x"))?;
        write("state/logs/log", &own)?;
        write("musher/app/deep/file", &hex::encode(&token))?;
        write(&format!("musher/{token}"), "x")?;
        std::os::unix::fs::symlink(format!("/{password}"), folder.path().join("link"))?;
        let finds: BTreeSet<_> = in_folder(folder.path(), &state)?
            .into_iter()
            .map(|find| (find.place.replace(&folder.path().display().to_string(), ""), find.kind, find.form))
            .collect();
        let expected = [
            ("/link", Kind::MatrixPassword, Form::Plain),
            ("/musher/app/deep/file", Kind::GitToken, Form::Hex),
            ("/state/journal.db", Kind::ModelKey, Form::Plain),
            ("/state/logs/log", Kind::MatrixToken, Form::Plain),
            ("the name of a file", Kind::GitToken, Form::Plain),
        ];
        assert_eq!(finds, expected.map(|(place, kind, form)| (place.to_owned(), kind, form)).into());
        Ok(())
    }
}
