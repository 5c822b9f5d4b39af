//! What the gateway's sources say of failpoints: each is killed at by a test of the module above, and whatever changes
//! something at the engine, a sled or a room has one.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Result, ensure};
use tests::product;

/// A way on which the gateway changes the world.
struct Way {
    /// The sources that offer it.
    sources: &'static str,
    /// What a line begins with there that offers something.
    opens: &'static str,
    /// What the gateway calls whoever stands at its end.
    behind: &'static str,
    /// What changes something, and the point around it.
    effects: &'static [(&'static str, &'static str)],
    /// What only looks, or has no point for a reason that docs/durability.md gives.
    others: &'static [&'static str],
}

const WAYS: [Way; 3] = [
    Way {
        sources: "docker/src",
        opens: "    pub async fn ",
        behind: "engine",
        effects: &[
            ("ensure_image", "ensure_image"),
            ("ensure_network", "ensure_network"),
            ("remove_network", "remove_network"),
            ("create", "create_container"),
            ("start", "start_container"),
            ("unpause", "unpause_container"),
            ("stop", "stop_container"),
            ("remove", "remove_container"),
            ("remove_image", "remove_image"),
            ("exec", "exec"),
        ],
        others: &["ping", "info", "list", "inspect", "image_exists", "exit_code"],
    },
    Way {
        sources: "link/src/client.rs",
        opens: "    pub async fn ",
        behind: "sled",
        effects: &[
            ("put_turn", "put_turn"),
            ("stop_turn", "stop_turn"),
            ("answer_permission", "answer_permission"),
            ("git", "git"),
            ("undo", "undo"),
        ],
        others: &["status", "diff", "logs", "erase", "git_fetching"],
    },
    Way {
        sources: "gateway/src/chat/mod.rs",
        // Of the surface's trait; the inbox's in the same file is the other way.
        opens: "    fn ",
        behind: "surface",
        effects: &[("send", "send"), ("send", "send_draft"), ("edit", "edit_draft"), ("take_back", "take_back")],
        others: &["find", "mark", "typing", "kind", "edit_interval", "is_instant", "longest", "health"],
    },
];

/// The sources beneath a folder, or in a file, without their tests.
fn sources(of: &Path) -> Result<Vec<String>> {
    let (mut texts, mut left) = (Vec::new(), vec![of.to_owned()]);
    while let Some(path) = left.pop() {
        if path.file_stem().is_some_and(|name| name == "tests") {
            continue;
        }
        if path.is_dir() {
            for entry in fs::read_dir(path)? {
                left.push(entry?.path());
            }
            continue;
        }
        let text = fs::read_to_string(&path)?;
        texts.push(text.split("#[cfg(test)]").next().unwrap_or_default().to_owned());
    }
    Ok(texts)
}

/// What begins each word after `before`, up to `end`.
fn following<'a>(text: &'a str, before: &str, end: char) -> Vec<&'a str> {
    text.split(before).skip(1).filter_map(|rest| rest.split(end).next()).collect()
}

/// What the gateway's sources can append, and each of their points, is killed at here.
#[test]
fn no_point_is_missing() -> Result<()> {
    let (mut found, mut before, mut after) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for text in sources(&product::repository()?.join("gateway/src"))? {
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ").replace("( ", "(");
        let own = |points: Vec<&str>| points.into_iter().map(str::to_owned).collect::<Vec<_>>();
        before.extend(own(following(&text, "failpoint::reach(\"before\", \"", '"')));
        after.extend(own(following(&text, "failpoint::reach(\"after\", \"", '"')));
        found.extend(own(following(&text, "failpoint::around(\"", '"')));
        for kinds in following(&text, "const KINDS: &'static [&'static str] =", ';') {
            found.extend(kinds.split('"').skip(1).step_by(2).map(str::to_owned));
        }
    }
    // The homeserver's position is kept by its client, when we return.
    after.insert("position".to_owned());
    ensure!(before == after, "points on one side alone: {:?}", before.symmetric_difference(&after));
    found.extend(before);
    ensure!(found.len() > 40, "the sources are read: {found:?}");
    let here = include_str!("../failpoints.rs");
    let killed_at = |point: &&String| ["", "before "].iter().any(|when| here.contains(&format!("\"{when}{point}\"")));
    let missing: Vec<_> = found.iter().filter(|point| !killed_at(point)).collect();
    ensure!(missing.is_empty(), "no test ends the gateway at {missing:?}");
    Ok(())
}

/// Whatever can be done on the ways to engine, sleds and rooms is told apart here, and is done between points.
#[test]
fn no_effect_is_without_a_point() -> Result<()> {
    let repository = product::repository()?;
    let gateway = sources(&repository.join("gateway/src"))?;
    for Way { sources: at, opens, behind, effects, others } in WAYS {
        let mut known: BTreeSet<&str> =
            effects.iter().map(|(effect, _)| *effect).chain(others.iter().copied()).collect();
        let mut new = Vec::new();
        for text in sources(&repository.join(at))? {
            let text = text.split_once("pub trait Surface").map_or(text.as_str(), |(_, of_it)| of_it);
            for line in text.lines().filter_map(|line| line.strip_prefix(opens)) {
                let name = line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or_default();
                if !effects.iter().any(|(effect, _)| *effect == name) && !others.contains(&name) {
                    new.push(name.to_owned());
                }
                known.remove(name);
            }
        }
        ensure!(new.is_empty(), "{at}: is there to be a point around {new:?}?");
        ensure!(known.is_empty(), "{at} has no {known:?}");
        for (effect, _) in effects {
            let call = format!("{behind}.{effect}(");
            for text in &gateway {
                for (place, _) in text.match_indices(&call) {
                    let near: Vec<&str> = text[..place].lines().rev().take(3).collect();
                    let of_it = effects.iter().filter(|(other, _)| other == effect);
                    let points: Vec<String> = of_it.map(|(_, point)| format!("\"{point}\"")).collect();
                    let held = near.iter().any(|line| {
                        line.contains("failpoint::") && points.iter().any(|point| line.contains(point.as_str()))
                    });
                    ensure!(held, "`{call}` is called without one of {points:?}:\n{near:#?}");
                }
            }
        }
    }
    Ok(())
}
