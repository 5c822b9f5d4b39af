//! The corpus, input by input: what was once found stays mended.

use std::fs;
use std::path::Path;

#[test]
fn every_input_of_the_corpus_keeps_the_rules() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (name, target) in fuzz::TARGETS {
        let mut inputs = 0;
        for entry in fs::read_dir(corpus.join(name)).expect("each target has a corpus") {
            let path = entry.expect("the corpus can be read").path();
            let input = fs::read(&path).expect("an input can be read");
            let kept = std::panic::catch_unwind(|| target(&input));
            assert!(kept.is_ok(), "{name} breaks on {}", path.display());
            inputs += 1;
        }
        assert!(inputs >= 10, "{name} has {inputs} inputs");
    }
}
