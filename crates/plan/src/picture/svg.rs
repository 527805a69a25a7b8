//! The elements that pictures are made of, as text: rectangles, lines, words, and what a reader of the page hears of them.
//!
//! What is written is well-formed XML, so that a page is read by parsers of HTML and XML alike.

use std::fmt::{Display, Write};

/// A picture on its way.
pub(super) struct Svg {
    size: [f64; 2],
    id: String,
    title: String,
    description: String,
    body: String,
}

/// Where a word stands about its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// Takes out of a text what markup would read as its own.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // XML has no place for them.
            control if control.is_control() => escaped.push(' '),
            plain => escaped.push(plain),
        }
    }
    escaped
}

/// Writes a coordinate with two digits behind the point, and none that says nothing.
pub(super) fn number(value: f64) -> String {
    let text = format!("{value:.2}");
    let short = text.trim_end_matches('0').trim_end_matches('.');
    if short == "-0" { "0" } else { short }.to_owned()
}

impl Svg {
    /// Opens a picture of `width × height`; `id` tells it from others of its page.
    pub fn new(id: &str, size: [f64; 2], title: &str, description: &str) -> Self {
        Self { size, id: id.to_owned(), title: escape(title), description: escape(description), body: String::new() }
    }

    /// Draws a rectangle `[x, y, width, height]`, with what it stands for.
    pub fn rect(&mut self, class: &str, place: [f64; 4], title: &str) {
        let [x, y, width, height] = place.map(number);
        let shape = format!(r#"<rect class="{class}" x="{x}" y="{y}" width="{width}" height="{height}""#);
        self.titled(&shape, "rect", title);
    }

    /// Draws rectangles of one meaning as one shape.
    pub fn rects(&mut self, class: &str, places: &[[f64; 4]], title: &str) {
        if places.is_empty() {
            return;
        }
        let mut path = String::new();
        for [x, y, width, height] in places.iter().map(|place| place.map(number)) {
            // Writing to a string cannot fail.
            let _ = write!(path, "M{x} {y}h{width}v{height}h-{width}z");
        }
        self.titled(&format!(r#"<path class="{class}" d="{path}""#), "path", title);
    }

    fn titled(&mut self, shape: &str, name: &str, title: &str) {
        let _ = match title {
            "" => writeln!(self.body, "{shape} />"),
            title => writeln!(self.body, "{shape}><title>{}</title></{name}>", escape(title)),
        };
    }

    /// Draws a line from the first place to the second.
    pub fn line(&mut self, class: &str, from: [f64; 2], to: [f64; 2]) {
        let ([x1, y1], [x2, y2]) = (from.map(number), to.map(number));
        let _ = writeln!(self.body, r#"<line class="{class}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" />"#);
    }

    /// Writes a word.
    pub fn text(&mut self, class: &str, place: [f64; 2], anchor: Anchor, text: impl Display) {
        let [x, y] = place.map(number);
        let anchor = match anchor {
            Anchor::Start => "",
            Anchor::Middle => r#" text-anchor="middle""#,
            Anchor::End => r#" text-anchor="end""#,
        };
        let text = escape(&text.to_string());
        let _ = writeln!(self.body, r#"<text class="{class}" x="{x}" y="{y}"{anchor}>{text}</text>"#);
    }

    /// Closes the picture.
    pub fn finish(self) -> String {
        let Self { size, id, title, description, body } = self;
        let [width, height] = size.map(number);
        format!(
            concat!(
                r#"<svg xmlns="http://www.w3.org/2000/svg" id="{id}" viewBox="0 0 {width} {height}" role="img" "#,
                r#"aria-labelledby="{id}-title {id}-desc">"#,
                "\n<title id=\"{id}-title\">{title}</title>\n<desc id=\"{id}-desc\">{description}</desc>\n{body}</svg>\n",
            ),
            id = id,
            width = width,
            height = height,
            title = title,
            description = description,
            body = body,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_in_words_is_words() {
        assert_eq!(escape("a<b> & \"c\" 'd'\n"), "a&lt;b&gt; &amp; &quot;c&quot; &#39;d&#39; ");
    }

    #[test]
    fn numbers_are_short() {
        let words = [0.0, -0.001, 1.5, 10.0, 12.346].map(number);
        assert_eq!(words, ["0", "0", "1.5", "10", "12.35"]);
    }

    #[test]
    fn a_picture_is_its_elements() {
        let mut svg = Svg::new("p", [10.0, 5.0], "a & b", "");
        svg.rect("f", [0.0, 1.0, 2.5, 3.0], "one");
        svg.rects("g", &[[0.0, 0.0, 1.0, 1.0], [2.0, 0.0, 1.0, 0.5]], "");
        svg.text("t", [1.0, 2.0], Anchor::End, 7);
        let expected = r#"<svg xmlns="http://www.w3.org/2000/svg" id="p" viewBox="0 0 10 5" role="img" aria-labelledby="p-title p-desc">
<title id="p-title">a &amp; b</title>
<desc id="p-desc"></desc>
<rect class="f" x="0" y="1" width="2.5" height="3"><title>one</title></rect>
<path class="g" d="M0 0h1v1h-1zM2 0h1v0.5h-1z" />
<text class="t" x="1" y="2" text-anchor="end">7</text>
</svg>
"#;
        assert_eq!(svg.finish(), expected);
    }
}
