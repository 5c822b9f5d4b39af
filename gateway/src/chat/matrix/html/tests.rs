use std::fmt::Write as _;

use proptest::prelude::*;

use super::{MAX_HTML, to_matrix_html};

/// The tags that the Matrix specification allows and that are written here.
const ALLOWED: [&str; 19] = [
    "a",
    "blockquote",
    "br",
    "code",
    "del",
    "em",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "hr",
    "li",
    "ol",
    "p",
    "pre",
    "strong",
    "ul",
];

/// Reads HTML as strictly as it is written: says what is wrong with it.
fn check(html: &str) -> Result<(), String> {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = html;
    while let Some(at) = rest.find(['<', '>', '&']) {
        let (text, from) = rest.split_at(at);
        if text.contains(['"', '\'']) {
            return Err(format!("a quote in text: {text:?}"));
        }
        if let Some(entity) = from.strip_prefix('&') {
            rest = ["amp;", "lt;", "gt;", "quot;", "#39;"]
                .iter()
                .find_map(|known| entity.strip_prefix(known))
                .ok_or_else(|| format!("a stray & before {entity:?}"))?;
            continue;
        }
        let tag = from.strip_prefix('<').ok_or("a stray >")?;
        let (tag, after) = tag.split_once('>').ok_or("a tag without end")?;
        rest = after;
        if let Some(name) = tag.strip_prefix('/') {
            if open.pop() != Some(name) {
                return Err(format!("</{name}> ends nothing"));
            }
            continue;
        }
        let (name, attribute) = tag.split_once(' ').unwrap_or((tag, ""));
        if !ALLOWED.contains(&name) {
            return Err(format!("<{name}> is not allowed"));
        }
        let fits =
            match (name, attribute.split_once("=\"").and_then(|(key, value)| Some((key, value.strip_suffix('"')?)))) {
                (_, None) => attribute.is_empty(),
                ("a", Some(("href", url))) => {
                    !url.contains(['"', '<', '\''])
                        && ["http://", "https://", "mailto:"].iter().any(|scheme| url.starts_with(scheme))
                }
                ("code", Some(("class", class))) => {
                    class.starts_with("language-") && !class.contains(['"', ' ', '<', '&'])
                }
                ("ol", Some(("start", number))) => number.parse::<u64>().is_ok(),
                _ => false,
            };
        if !fits {
            return Err(format!("<{name}> has {attribute:?}"));
        }
        if name == "a" && open.contains(&"a") {
            return Err("a link in a link".to_owned());
        }
        if !matches!(name, "br" | "hr") {
            open.push(name);
        }
        if open.len() > 60 {
            return Err("nested too deep".to_owned());
        }
    }
    if open.is_empty() { Ok(()) } else { Err(format!("left open: {open:?}")) }
}

#[test]
fn the_checker_sees_what_is_wrong() {
    for bad in [
        "<b>x</b>",
        "<p>",
        "</p>",
        "<p><em></p></em>",
        "a & b",
        "a > b",
        r#"<a href="javascript:x">x</a>"#,
        r#"<p onclick="x">x</p>"#,
        "say \"x\"<br>",
    ] {
        assert!(check(bad).is_err(), "{bad} passed");
    }
    assert_eq!(check(r#"<p>a &lt; <a href="https://e.org/">b</a><br></p>"#), Ok(()));
}

#[test]
fn cases() {
    let cases = [
        "just text",
        "two lines\nof text\n\nand a paragraph",
        "an escape \\* of nothing",
        "*a* **b** ~~c~~ `d<e>`",
        "# One\n###### Six",
        "> quoted\n> > twice",
        "- a\n- b\n  1. c\n  2. d\n\n7. seven",
        "- [ ] open\n- [x] done",
        "```rust\nlet v: Vec<&str> = \"x\";\n\n```",
        "```c++ title=\"x\"\n1\n```",
        "```\"onclick=x\n1\n```",
        "    indented <code>",
        "<b>bold</b> and <script>alert(1)</script>",
        "<details>\n<summary>more</summary>\n</details>\n",
        "<!-- hidden -->",
        "[text](https://example.org/?a=1&b=\"2\") <https://matrix.to/#/@a:b.c> <me@example.org>",
        "[no](javascript:alert(1)) [rel](src/main.rs) [](https://example.org)",
        "![a picture](https://example.org/x.png) ![](https://example.org/y.png) [![badge](https://e.org/b.svg)](https://e.org)",
        "[x](https://example.org/\" onmouseover=\"alert(1))",
        "| name | size |\n|:--|--:|\n| `a<b>` | 1 |\n| **long name** | 1000 |\n| [l](https://e.org) | x |",
        "a  \nb\n\n---\nc",
        "bell \u{7} escape \u{1b}[31m end",
        "R&D \"quoted\" it's",
        "line<br>break",
        "@room @ann:example.org",
    ];
    let mut seen = String::new();
    for case in cases {
        let (plain, html) = to_matrix_html(case);
        if let Some(html) = &html {
            assert_eq!(check(html), Ok(()), "{html}");
        }
        writeln!(seen, "{plain:?}\n  {}", html.map_or("-".to_owned(), |html| html.replace('\n', "⏎")))
            .expect("a string takes it");
    }
    insta::assert_snapshot!(seen, @r##"
    "just text"
      -
    "two lines\nof text\n\nand a paragraph"
      -
    "an escape \\* of nothing"
      <p>an escape * of nothing</p>
    "*a* **b** ~~c~~ `d<e>`"
      <p><em>a</em> <strong>b</strong> <del>c</del> <code>d&lt;e&gt;</code></p>
    "# One\n###### Six"
      <h1>One</h1><h6>Six</h6>
    "> quoted\n> > twice"
      <blockquote><p>quoted</p><blockquote><p>twice</p></blockquote></blockquote>
    "- a\n- b\n  1. c\n  2. d\n\n7. seven"
      <ul><li>a</li><li>b<ol><li>c</li><li>d</li></ol></li></ul><ol start="7"><li>seven</li></ol>
    "- [ ] open\n- [x] done"
      <ul><li>☐ open</li><li>☑ done</li></ul>
    "```rust\nlet v: Vec<&str> = \"x\";\n\n```"
      <pre><code class="language-rust">let v: Vec&lt;&amp;str&gt; = &quot;x&quot;;⏎⏎</code></pre>
    "```c++ title=\"x\"\n1\n```"
      <pre><code class="language-c++">1⏎</code></pre>
    "```\"onclick=x\n1\n```"
      <pre><code>1⏎</code></pre>
    "    indented <code>"
      <pre><code>indented &lt;code&gt;</code></pre>
    "<b>bold</b> and <script>alert(1)</script>"
      <p>&lt;b&gt;bold&lt;/b&gt; and &lt;script&gt;alert(1)&lt;/script&gt;</p>
    "<details>\n<summary>more</summary>\n</details>"
      <p>&lt;details&gt;<br>&lt;summary&gt;more&lt;/summary&gt;<br>&lt;/details&gt;</p>
    "<!-- hidden -->"
      <p>&lt;!-- hidden --&gt;</p>
    "[text](https://example.org/?a=1&b=\"2\") <https://matrix.to/#/@a:b.c> <me@example.org>"
      <p><a href="https://example.org/?a=1&amp;b=%222%22">text</a> <a href="https://matrix.to/#/@a:b.c">https://matrix.to/#/@a:b.c</a> <a href="mailto:me@example.org">me@example.org</a></p>
    "[no](javascript:alert(1)) [rel](src/main.rs) [](https://example.org)"
      <p>no rel <a href="https://example.org/">https://example.org</a></p>
    "![a picture](https://example.org/x.png) ![](https://example.org/y.png) [![badge](https://e.org/b.svg)](https://e.org)"
      <p><a href="https://example.org/x.png">a picture</a> <a href="https://example.org/y.png">https://example.org/y.png</a> <a href="https://e.org/">badge</a></p>
    "[x](https://example.org/\" onmouseover=\"alert(1))"
      -
    "| name | size |\n|:--|--:|\n| `a<b>` | 1 |\n| **long name** | 1000 |\n| [l](https://e.org) | x |"
      <pre><code>name      | size⏎----------+-----⏎a&lt;b&gt;      |    1⏎long name | 1000⏎l         |    x⏎</code></pre>
    "a  \nb\n\n---\nc"
      <p>a<br>b</p><hr><p>c</p>
    "bell  escape [31m end"
      -
    "R&D \"quoted\" it's"
      -
    "line<br>break"
      <p>line&lt;br&gt;break</p>
    "@room @ann:example.org"
      -
    "##);
}

#[test]
fn what_is_hostile_becomes_text() {
    use crate::text::{code, code_block, hostile, is_unsafe_in_prose};
    for hostile in hostile() {
        for markdown in [
            hostile.clone(),
            format!("**{hostile}** *{hostile}* ~~{hostile}~~"),
            format!("- {hostile}\n- {hostile}"),
            format!("# {hostile}"),
            format!("> {hostile}"),
            format!("[{hostile}](https://example.org/)"),
            format!("[x]({hostile})"),
            format!("[x](<{hostile}>)"),
            format!("[x](https://example.org/{hostile})"),
            format!("<{hostile}>"),
            format!("![{hostile}]({hostile} \"{hostile}\")"),
            format!("| a | b |\n|---|---|\n| {hostile} | x |"),
            format!("```{hostile}\nx\n```"),
            format!("<div {hostile}>\n{hostile}\n</div>"),
            format!("{}: {}\n{}", hostile.len(), code(&hostile), code_block(&hostile)),
        ] {
            let (plain, html) = to_matrix_html(&markdown);
            assert!(!plain.contains(is_unsafe_in_prose), "{plain:?}");
            let Some(html) = html else { continue };
            assert_eq!(check(&html), Ok(()), "{markdown:?}\n{html}");
            // An entity in the Markdown is such a character only now.
            assert!(!html.contains(is_unsafe_in_prose), "{markdown:?}\n{html:?}");
        }
    }
}

#[test]
fn what_is_too_long_or_too_deep_stays_bounded() {
    let long = "*a* ".repeat(100_000);
    assert!(to_matrix_html(&long).1.is_none());

    let wide = format!("{}\n{}\n{}", "|a".repeat(2000), "|-".repeat(2000), "|x|\n".repeat(5000));
    assert!(to_matrix_html(&wide).1.is_none());

    for deep in
        [">".repeat(5000) + "x", "- ".repeat(2000) + "x", format!("{}x{}", "*a ".repeat(3000), "*".repeat(3000))]
    {
        let html = to_matrix_html(&deep).1.expect("it is formatted");
        assert_eq!(check(&html), Ok(()));
        assert!(html.contains('x') && html.len() < MAX_HTML);
    }
}

/// Pieces that mean something to Markdown or HTML, so that random text is not all prose.
fn markdown() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        2 => "\\PC{0,8}",
        1 => any::<String>(),
        6 => prop::sample::select(vec![
            "*", "**", "_", "~~", "`", "```", "```rust\n", "\n", "\n\n", "> ", "- ", "1. ", "7) ", "# ", "[", "](", ")", "](https://e.org/", "](javascript:",
            "![", "<", ">", "</", "<b>", "<a href=\"x\">", "<https://e.org>", "<a@b.c>", "<!--", "-->", "&", "&lt;", "&#60;", "\"", "'", "|", "|-|-|\n", "| a | b |\n",
            "- [ ] ", "- [x] ", "    ", "\\", "---\n", "===\n", "$", "[^1]", "\t", "\r\n",
        ]).prop_map(str::to_owned),
    ];
    prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_becomes_balanced_html_of_allowed_tags(text in markdown()) {
        let (plain, html) = to_matrix_html(&text);
        prop_assert!(plain.chars().all(|c| !c.is_control() || c == '\n' || c == '\t'));
        if let Some(html) = html {
            prop_assert_eq!(check(&html), Ok(()), "{}", html);
        }
    }
}
