//! Mentions as clients write them: a name at the beginning of the text, or a link in the HTML.

/// What stands after a leading mention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Separator {
    /// `:` or `,`: the name is an address.
    Mark,
    /// White space or nothing: the name may be just the first word.
    Space,
}

/// Takes the longest of `names` from the beginning of `text`, in any case of letters.
///
/// The name must end there: `:` or `,` with white space after it, white space, or the end of the text.
pub(super) fn strip_leading<'a>(text: &'a str, names: &[String]) -> Option<(&'a str, Separator)> {
    let text = text.trim();
    let mut best: Option<(&str, Separator)> = None;
    for name in names.iter().filter(|name| !name.trim().is_empty()) {
        let Some(rest) = strip_prefix(text, name.trim()) else { continue };
        let (rest, separator) = match rest.strip_prefix([':', ',']) {
            Some(rest) => (rest, Separator::Mark),
            None => (rest, Separator::Space),
        };
        let ends = rest.is_empty() || rest.starts_with(char::is_whitespace);
        if ends && best.is_none_or(|(shortest, _)| rest.len() < shortest.len()) {
            best = Some((rest, separator));
        }
    }
    best.map(|(rest, separator)| (rest.trim_start(), separator))
}

fn strip_prefix<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut rest = text.chars();
    for expected in name.chars() {
        let found = rest.next()?;
        if found != expected && !found.to_lowercase().eq(expected.to_lowercase()) {
            return None;
        }
    }
    Some(rest.as_str())
}

/// A link in HTML, both parts as they stand there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link<'a> {
    pub(super) url: &'a str,
    pub(super) label: &'a str,
}

/// The links in HTML.
pub(super) fn pills(html: &str) -> impl Iterator<Item = Link<'_>> {
    html.split("<a ").skip(1).filter_map(link)
}

/// The link that HTML begins with, if it does, after a reply's fallback and an opening paragraph.
pub(super) fn leading_pill(html: &str) -> Option<Link<'_>> {
    let html = html.split_once("</mx-reply>").map_or(html, |(_, after)| after).trim_start();
    let html = html.strip_prefix("<p>").unwrap_or(html).trim_start();
    link(html.strip_prefix("<a ")?)
}

/// Reads a link whose `<a ` was taken off.
fn link(html: &str) -> Option<Link<'_>> {
    let (attributes, content) = html.split_once('>')?;
    let (_, value) = attributes.split_once("href=")?;
    let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let (url, _) = value.get(1..)?.split_once(quote)?;
    let (label, _) = content.split_once("</a>")?;
    Some(Link { url, label })
}

/// The plain text of a piece of HTML without tags.
pub(super) fn text(html: &str) -> String {
    html.replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", "\"")
        .replace("&#39;", "'")
        .replace("&nbsp;", " ")
        .replace("&amp;", "&")
}
