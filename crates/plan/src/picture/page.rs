//! The page around the pictures.

use std::fmt::Write;

use super::{
    matrices, memory,
    parts::{facts, paragraph, Table},
    svg::escape,
    timeline, Page,
};
use crate::{
    ranking::{row, why, HEADER},
    words::size,
    Estimate, Found,
};

pub(super) const STYLE: &str = include_str!("style.css");

/// The pattern of what ranks wait for: once a page.
pub(super) const PATTERN: &str = concat!(
    r#"<defs><pattern id="hatch" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">"#,
    r#"<line x1="0" y1="0" x2="0" y2="5" style="stroke:var(--hatch);stroke-width:2.4" /></pattern></defs>"#,
    "\n",
);

/// Writes the whole page.
pub(super) fn html(page: &Page) -> String {
    let title = escape(&page.title);
    let mut text = format!(
        concat!(
            "<!DOCTYPE html>\n<html xmlns=\"http://www.w3.org/1999/xhtml\" lang=\"en\">\n<head>\n<meta charset=\"utf-8\" />\n",
            "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\" />\n",
            "<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n",
            "<svg width=\"0\" height=\"0\" style=\"position:absolute\" aria-hidden=\"true\">{pattern}</svg>\n",
            "<main>\n<h1>{title}</h1>\n",
        ),
        title = title,
        style = STYLE,
        pattern = PATTERN,
    );
    text += &page.notes.iter().map(|note| paragraph(note)).collect::<String>();
    text += &facts(&page.facts());
    text += &section("A step in time", &timeline::html(&page.timeline, page.clock));
    text += &section("Memory of each rank", &memory::html(&page.memory, page.limit, &page.counted));
    text += &section("Where the matrices lie", &matrices::html(&page.plan, &page.timeline.stages));
    if let Some(found) = &page.found {
        text += &layouts(found);
    }
    text + "</main>\n</body>\n</html>\n"
}

fn section(title: &str, body: &str) -> String {
    format!("<section>\n<h2>{}</h2>\n{body}</section>\n", escape(title))
}

/// Writes the best layouts, and what would be faster.
fn layouts(found: &Found) -> String {
    let mut text = String::new();
    if !found.layouts.is_empty() {
        let why = |index: usize, layout: &Estimate| match found.layouts.get(index + 1) {
            Some(next) => why(layout, next),
            None => "-".to_owned(),
        };
        text += &section("The best layouts", &table("best first", &found.layouts, "why it beats the next", why));
    }
    if !found.misses.is_empty() {
        let lacks = |_: usize, layout: &Estimate| match layout.largest().total().checked_sub(layout.limit) {
            Some(lacking) if lacking > 0 => size(lacking),
            _ => "-".to_owned(),
        };
        let title =
            if found.layouts.is_empty() { "No layout fits; these lack least" } else { "Faster, and does not fit" };
        text += &section(title, &table(title, &found.misses, "lacks", lacks));
    }
    let mut counts = String::new();
    // Writing to a string cannot fail.
    let _ = write!(counts, "{} layouts considered, {} estimated in full.", found.considered, found.estimated);
    text + &paragraph(&counts)
}

fn table(caption: &str, layouts: &[Estimate], last: &str, of: impl Fn(usize, &Estimate) -> String) -> String {
    let mut table = Table::new(caption, HEADER).with_words(last);
    for (index, layout) in layouts.iter().enumerate() {
        let mut cells = Vec::from(row(index + 1, layout, false));
        cells.push(of(index, layout));
        table.row(cells);
    }
    table.html()
}
