//! Markdown as the HTML that Matrix allows (MTX-9).
//!
//! A writer of its own over pulldown-cmark's events: raw HTML in the Markdown is shown as text, tables
//! become preformatted text, and only tags of the Matrix specification's list are written. It never
//! copies an attribute from the Markdown without checking it, and never opens a tag that it does not close.

use pulldown_cmark::{Alignment, CodeBlockKind, CowStr, Event, HeadingLevel, LinkType, Options, Parser, Tag, TagEnd};
use url::Url;

use crate::text::is_unsafe_in_prose;

/// Markdown longer than this, in bytes, is not formatted: it would not fit into an event anyway.
const MAX_MARKDOWN: usize = 64 * 1024;
/// HTML that would be longer than this, in bytes, is not given.
const MAX_HTML: usize = 128 * 1024;
/// How many tags may be open at once. What is nested deeper keeps its text and loses its tags;
/// the Matrix specification lets clients stop at 100.
const MAX_DEPTH: usize = 40;
/// The widest column, in characters, that a table is padded to.
const MAX_COLUMN: usize = 48;
/// How many cells a table may have.
const MAX_CELLS: usize = 4096;

/// The plain text and, where there is anything to format, the HTML of a message in Markdown.
///
/// The plain text is the Markdown itself without characters that change direction, hide, or control anything. The HTML is `None` for text that
/// looks the same without it, and for text that is too long to be formatted.
pub(super) fn to_matrix_html(markdown: &str) -> (String, Option<String>) {
    let kept: String = markdown.chars().filter(|&c| !is_unsafe_in_prose(c)).collect();
    let plain = kept.trim_end().to_owned();
    if plain.len() > MAX_MARKDOWN {
        return (plain, None);
    }
    let options = Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH | Options::ENABLE_TASKLISTS;
    let mut writer = Writer::default();
    for event in Parser::new_ext(&plain, options) {
        writer.event(event);
        if writer.overflow || writer.html.len() > MAX_HTML {
            return (plain, None);
        }
    }
    let html = writer.finish();
    let formatted = writer.formatted || writer.literal.trim_end() != plain;
    (plain, formatted.then_some(html))
}

/// A tag that waits for its end.
struct Open {
    /// What ends it; empty where its start was not written.
    close: &'static str,
    /// How much text had been shown when it was opened.
    shown: usize,
    /// What is shown when it turns out to have no text.
    if_empty: Option<String>,
}

/// A table as it is read.
struct Table {
    /// How many tags were open around it.
    depth: usize,
    alignments: Vec<Alignment>,
    rows: Vec<Vec<String>>,
    cells: usize,
}

#[derive(Default)]
struct Writer {
    html: String,
    /// The text as it would be seen without any formatting.
    literal: String,
    /// Whether anything was met that plain text does not show.
    formatted: bool,
    open: Vec<Open>,
    /// How much text was shown so far, in bytes.
    shown: usize,
    /// Whether an `<a>` is open; they do not nest.
    in_link: bool,
    table: Option<Table>,
    /// Whether the text is inside a code block, where line ends stay as they are.
    preformatted: bool,
    overflow: bool,
}

impl Writer {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Start(tag) => self.start(tag),
            Event::End(tag) => {
                self.preformatted &= tag != TagEnd::CodeBlock;
                self.end();
            }
            Event::Text(text) => {
                self.literal.push_str(&text);
                self.text(&text);
            }
            // Math and footnotes are not enabled; their source is shown should they ever be.
            Event::Code(code) | Event::InlineMath(code) | Event::DisplayMath(code) => self.code_span(&code),
            Event::Html(html) | Event::InlineHtml(html) => {
                self.formatted = true;
                self.text(&html);
            }
            Event::FootnoteReference(name) => self.text(&name),
            Event::SoftBreak => {
                self.literal.push('\n');
                self.line_break();
            }
            Event::HardBreak => {
                self.formatted = true;
                self.line_break();
            }
            Event::Rule => {
                self.formatted = true;
                self.html.push_str("<hr>");
            }
            Event::TaskListMarker(done) => self.text(if done { "☑ " } else { "☐ " }),
        }
    }

    fn start(&mut self, tag: Tag<'_>) {
        self.formatted |= !matches!(tag, Tag::Paragraph);
        match tag {
            Tag::Paragraph => {
                if !self.literal.is_empty() {
                    self.literal.push_str("\n\n");
                }
                self.push("<p>", "</p>");
            }
            Tag::Heading { level, .. } => {
                let (open, close) = heading(level);
                self.push(open, close);
            }
            Tag::BlockQuote(_) => self.push("<blockquote>", "</blockquote>"),
            Tag::CodeBlock(kind) => {
                let class = language(&kind).map(|name| format!(r#" class="language-{name}""#)).unwrap_or_default();
                self.preformatted = true;
                self.push(&format!("<pre><code{class}>"), "</code></pre>");
            }
            Tag::HtmlBlock => self.push("<p>", "</p>"),
            Tag::List(None) => self.push("<ul>", "</ul>"),
            Tag::List(Some(1)) => self.push("<ol>", "</ol>"),
            Tag::List(Some(first)) => self.push(&format!(r#"<ol start="{first}">"#), "</ol>"),
            Tag::Item => self.push("<li>", "</li>"),
            Tag::Table(alignments) => {
                self.table = Some(Table { depth: self.open.len(), alignments, rows: Vec::new(), cells: 0 });
                self.push("", "");
            }
            Tag::TableHead | Tag::TableRow => {
                if let Some(table) = &mut self.table {
                    table.rows.push(Vec::new());
                }
                self.push("", "");
            }
            Tag::TableCell => {
                if let Some(table) = &mut self.table {
                    table.cells += 1;
                    self.overflow |= table.cells > MAX_CELLS;
                    if let Some(row) = table.rows.last_mut() {
                        row.push(String::new());
                    }
                }
                self.push("", "");
            }
            Tag::Emphasis => self.push("<em>", "</em>"),
            Tag::Strong => self.push("<strong>", "</strong>"),
            Tag::Strikethrough => self.push("<del>", "</del>"),
            Tag::Link { link_type, dest_url, .. } => self.link(link_type, &dest_url),
            Tag::Image { dest_url, .. } => self.link(LinkType::Inline, &dest_url),
            // Not enabled: their text is shown.
            Tag::FootnoteDefinition(_)
            | Tag::DefinitionList
            | Tag::DefinitionListTitle
            | Tag::DefinitionListDefinition
            | Tag::Superscript
            | Tag::Subscript
            | Tag::MetadataBlock(_) => self.push("", ""),
        }
    }

    /// Opens a tag, unless that would nest too deep or stand in a table, whose cells are plain text.
    fn push(&mut self, open: &str, close: &'static str) {
        let close = if self.may_open() {
            self.html.push_str(open);
            close
        } else {
            ""
        };
        self.open.push(Open { close, shown: self.shown, if_empty: None });
    }

    fn may_open(&self) -> bool {
        self.open.len() < MAX_DEPTH && self.table.is_none()
    }

    fn link(&mut self, link_type: LinkType, destination: &str) {
        let target = match link_type {
            LinkType::Email => Url::parse(&format!("mailto:{destination}")).ok(),
            _ => Url::parse(destination).ok(),
        };
        let target = target.filter(|url| matches!(url.scheme(), "http" | "https" | "mailto"));
        match target {
            Some(url) if !self.in_link && self.may_open() => {
                self.in_link = true;
                self.push(&format!(r#"<a href="{}">"#, escaped(url.as_str())), "</a>");
            }
            _ => self.push("", ""),
        }
        if let Some(open) = self.open.last_mut() {
            open.if_empty = Some(destination.to_owned());
        }
    }

    fn end(&mut self) {
        let Some(open) = self.open.pop() else { return };
        if let Some(text) = open.if_empty
            && self.shown == open.shown
        {
            self.text(&text);
        }
        self.in_link &= open.close != "</a>";
        self.html.push_str(open.close);
        if let Some(table) = self.table.take_if(|table| table.depth == self.open.len()) {
            self.push("<pre><code>", "</code></pre>");
            self.html.push_str(&escaped(&table.layout()));
            self.end();
        }
    }

    fn text(&mut self, text: &str) {
        self.shown += text.len();
        if let Some(cell) = self.cell() {
            cell.push_str(text);
        } else if self.preformatted {
            self.html.push_str(&escaped(text));
        } else {
            self.html.push_str(&escaped(text).replace('\n', "<br>"));
        }
    }

    fn code_span(&mut self, code: &CowStr<'_>) {
        self.formatted = true;
        if self.table.is_some() {
            self.text(code);
        } else {
            self.push("<code>", "</code>");
            self.text(code);
            self.end();
        }
    }

    fn line_break(&mut self) {
        match self.cell() {
            Some(cell) => cell.push(' '),
            None => self.html.push_str("<br>"),
        }
    }

    /// The cell that is being read.
    fn cell(&mut self) -> Option<&mut String> {
        self.table.as_mut()?.rows.last_mut()?.last_mut()
    }

    fn finish(&mut self) -> String {
        while !self.open.is_empty() {
            self.end();
        }
        std::mem::take(&mut self.html)
    }
}

impl Table {
    /// The table as lines of aligned text, its head underlined.
    fn layout(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let mut widths = vec![0; columns];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.chars().count().clamp(*width, MAX_COLUMN);
            }
        }
        let mut lines = String::new();
        for (index, row) in self.rows.iter().enumerate() {
            let cells: Vec<String> = row
                .iter()
                .zip(&widths)
                .enumerate()
                .map(|(column, (cell, &width))| match self.alignments.get(column) {
                    Some(Alignment::Right) => format!("{cell:>width$}"),
                    Some(Alignment::Center) => format!("{cell:^width$}"),
                    _ => format!("{cell:<width$}"),
                })
                .collect();
            lines.push_str(cells.join(" | ").trim_end());
            lines.push('\n');
            if index == 0 {
                let rules: Vec<String> = widths.iter().map(|&width| "-".repeat(width)).collect();
                lines.push_str(&rules.join("-+-"));
                lines.push('\n');
            }
        }
        lines
    }
}

fn heading(level: HeadingLevel) -> (&'static str, &'static str) {
    match level {
        HeadingLevel::H1 => ("<h1>", "</h1>"),
        HeadingLevel::H2 => ("<h2>", "</h2>"),
        HeadingLevel::H3 => ("<h3>", "</h3>"),
        HeadingLevel::H4 => ("<h4>", "</h4>"),
        HeadingLevel::H5 => ("<h5>", "</h5>"),
        HeadingLevel::H6 => ("<h6>", "</h6>"),
    }
}

/// The name of a code block's language, if it is one that can stand in a class.
fn language<'a>(kind: &'a CodeBlockKind<'_>) -> Option<&'a str> {
    let CodeBlockKind::Fenced(info) = kind else { return None };
    let name = info.split([' ', '\t', ',']).next()?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '#' | '_' | '.');
    (!name.is_empty() && name.len() <= 32 && name.chars().all(allowed)).then_some(name)
}

/// The text with every character that means something in HTML replaced. What an entity in the Markdown stood for may be
/// unsafe again, and is left out.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars().filter(|&c| !is_unsafe_in_prose(c)) {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests;
