//! The pieces of a page that are no picture: tables, legends, figures.

use std::fmt::Write;

use super::svg::escape;

/// A table; the first cell of each row is its head.
pub(super) struct Table {
    caption: String,
    head: Vec<String>,
    rows: Vec<Vec<String>>,
    /// Whether the last cell of a row is a sentence.
    words: bool,
}

impl Table {
    pub fn new<const N: usize>(caption: &str, head: [&str; N]) -> Self {
        Self { caption: caption.to_owned(), head: head.map(str::to_owned).into(), rows: Vec::new(), words: false }
    }

    /// Adds a last column of sentences.
    pub fn with_words(mut self, name: &str) -> Self {
        self.column(name);
        self.words = true;
        self
    }

    /// Adds a column.
    pub fn column(&mut self, name: &str) {
        self.head.push(name.to_owned());
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Writes the table, in a frame that scrolls where a screen is narrow.
    pub fn html(&self) -> String {
        let mut text = format!(
            "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{caption}\">\n<table>\n<caption>{caption}</caption>\n<thead><tr>",
            caption = escape(&self.caption)
        );
        for name in &self.head {
            // Writing to a string cannot fail.
            let _ = write!(text, "<th scope=\"col\">{}</th>", escape(name));
        }
        text += "</tr></thead>\n<tbody>\n";
        for row in &self.rows {
            text += "<tr>";
            for (index, cell) in row.iter().enumerate() {
                let (open, close) = match index {
                    0 => ("<th scope=\"row\">", "</th>"),
                    last if self.words && last + 1 == row.len() => ("<td class=\"why\">", "</td>"),
                    _ => ("<td>", "</td>"),
                };
                let _ = write!(text, "{open}{}{close}", escape(cell));
            }
            text += "</tr>\n";
        }
        text + "</tbody>\n</table>\n</div>\n"
    }
}

/// Writes what colours stand for, by class and name.
pub(super) fn legend(keys: &[(&str, &str)]) -> String {
    let mut text = "<ul class=\"legend\">\n".to_owned();
    for (class, name) in keys {
        let _ = writeln!(
            text,
            "<li><svg viewBox=\"0 0 12 12\" aria-hidden=\"true\"><rect class=\"{class}\" width=\"12\" height=\"12\" /></svg>{}</li>",
            escape(name)
        );
    }
    text + "</ul>\n"
}

/// Writes a paragraph.
pub(super) fn paragraph(text: &str) -> String {
    format!("<p>{}</p>\n", escape(text))
}

/// Writes a picture in a frame that scrolls where a screen is narrow.
pub(super) fn wide(svg: &str, label: &str) -> String {
    let label = escape(label);
    format!("<div class=\"scroll wide\" tabindex=\"0\" role=\"region\" aria-label=\"{label}\">\n{svg}</div>\n")
}

/// Writes a list of facts: name and value.
pub(super) fn facts(facts: &[(&str, String)]) -> String {
    let mut text = "<dl class=\"facts\">\n".to_owned();
    for (name, value) in facts {
        let _ = writeln!(text, "<div><dt>{}</dt><dd>{}</dd></div>", escape(name), escape(value));
    }
    text + "</dl>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_escaped_and_rows_have_heads() {
        let mut table = Table::new("c", ["a", "b"]);
        table.row(vec!["<1>".into(), "&".into()]);
        let html = table.html();
        assert!(html.contains("<tr><th scope=\"row\">&lt;1&gt;</th><td>&amp;</td></tr>"), "{html}");
    }
}
