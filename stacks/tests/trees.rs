//! Detection on a corpus of trees as people have them: which stack, and the reason in words (PROJ-4).

use std::collections::BTreeSet;

use stacks::Stacks;

/// Names at a root, and the reason.
fn corpus() -> Vec<(Vec<&'static str>, &'static str)> {
    let lines = include_str!("trees.txt").lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let lines: Vec<&str> = lines.collect();
    let (pairs, rest) = lines.as_chunks::<2>();
    assert!(rest.is_empty(), "a tree without a reason");
    pairs
        .iter()
        .map(|[names, reason]| {
            let reason = reason.strip_prefix("> ").unwrap_or_else(|| panic!("no reason: {reason}"));
            (names.split_whitespace().collect(), reason)
        })
        .collect()
}

#[test]
fn the_corpus_is_decided_as_it_says() {
    let stacks = Stacks::builtin();
    let corpus = corpus();
    assert!(corpus.len() >= 40, "{} trees", corpus.len());
    let mut chosen = BTreeSet::new();
    for (names, reason) in corpus {
        let found = stacks.detect(&names);
        assert_eq!(found.to_string(), reason, "{names:?}");
        // The reason is what is done.
        let first = reason.split([':', ';']).next().unwrap_or_default();
        assert_eq!(found.stack().map_or("no stack", |stack| stack.as_str()), first);
        chosen.extend(found.stack().cloned());
    }
    assert!(chosen.iter().eq(stacks.names()), "every stack is chosen for some tree");
}

/// With every file of a stack that is preferred to another, the other is never chosen.
#[test]
fn the_order_is_the_same_for_any_pair() {
    let stacks = Stacks::builtin();
    let ordered: Vec<_> = stacks.by_preference().collect();
    for (index, first) in ordered.iter().enumerate() {
        for second in &ordered[index + 1..] {
            for a in first.patterns() {
                for b in second.patterns() {
                    let names = [b.to_string().replace('*', "x"), a.to_string().replace('*', "x")];
                    let found = stacks.detect(&names);
                    assert_eq!(found.stack(), Some(first.name()), "{names:?}");
                    let others: Vec<_> = found.others.iter().map(|other| &other.stack).collect();
                    assert_eq!(others, [second.name()], "{names:?}");
                }
            }
        }
    }
}
