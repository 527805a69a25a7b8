//! A measured machine as a file: a head that says what was measured, and points row by row.

use std::fmt::Write;

use mp_plan::cluster::measured::{ByPrecision, Points, Product};
use mp_plan::Cluster;

/// Writes a measured machine as TOML, for `--cluster` and `parallel.cluster`.
///
/// # Panics
/// Never: a tree of plain values is TOML.
pub fn text(cluster: &Cluster, ranks: usize, when: &str) -> String {
    let rates =
        toml::to_string(&Cluster { measured: None, ..cluster.clone() }).expect("a tree of plain values is TOML");
    let points = cluster.measured.as_ref().map_or_else(String::new, rows);
    head(cluster, ranks, when) + &rates + &points
}

/// Says what the numbers are, and which of them nobody has measured.
fn head(cluster: &Cluster, ranks: usize, when: &str) -> String {
    let (node, started) = (&cluster.node, mp_plan::words::counted(ranks, "rank"));
    let mut text = format!(
        "# Measured {when} by `mp-cli` on {started}, {} on a node, all of them at work.\n\
         # device.peak is the best rate of any product, node.memory_bytes what was free then, efficiency.launch what an\n\
         # operation of a training step takes beside its work. Points below go before the rates here.\n",
        node.devices
    );
    text += &longest(cluster.measured.as_ref());
    text += match (ranks, node.count) {
        (1, _) => {
            "# One rank has no links: those of node and network are a guess. Measure on more ranks to know them.\n"
        }
        (_, 1) => "# One node has no network: network is taken to be as the link inside the node.\n",
        _ => "",
    };
    text + "\n"
}

/// Says up to which length products were measured; longer ones take as long as their work at the rate of these.
fn longest(points: Option<&Points>) -> String {
    let mut said = Vec::new();
    each(&points.map(|points| points.products.clone()).unwrap_or_default(), |name, products: &[Product]| {
        let longest = products.iter().map(|&Product(m, n, k, _)| m.max(n).max(k)).max();
        said.extend(longest.map(|longest| format!("{longest} in {name}")));
    });
    match said.is_empty() {
        true => String::new(),
        false => format!("# Products are measured up to lengths of {}.\n", said.join(", ")),
    }
}

/// Writes points, a row a line.
fn rows(points: &Points) -> String {
    let Points { products, attention, memory, collectives, messages } = points;
    let mut text = String::from("\n[measured]\n");
    pairs(&mut text, "memory", "bytes read and written, bytes/s", memory);
    text += "\n[measured.products] # [m, n, k, FLOP/s]\n";
    each(products, |name, products| {
        let row = |&Product(m, n, k, rate): &Product| format!("[{m}, {n}, {k}, {}]", number(rate));
        list(&mut text, name, "", products.iter().map(row));
    });
    text += "\n[measured.attention] # [FLOP of a pass, FLOP/s]\n";
    each(attention, |name, points| pairs(&mut text, name, "", points));
    text += "\n[measured.messages] # [bytes, seconds]\n";
    pairs(&mut text, "inside", "", &messages.inside);
    pairs(&mut text, "outside", "", &messages.outside);
    for group in collectives {
        let what = toml::Value::try_from(group.what).expect("a name is TOML");
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "\n[[measured.collectives]]\nwhat = {what}\nranks = {}\nneighbours = {}\n",
            group.ranks, group.neighbours
        );
        pairs(&mut text, "points", "bytes of the whole buffer, seconds", &group.points);
    }
    text
}

fn each<T>(points: &ByPrecision<T>, mut write: impl FnMut(&str, &[T])) {
    for (name, points) in [("bf16", &points.bf16), ("fp32", &points.fp32), ("fp64", &points.fp64)] {
        write(name, points);
    }
}

fn pairs(text: &mut String, name: &str, comment: &str, points: &[[f64; 2]]) {
    list(text, name, comment, points.iter().map(|&[one, other]| format!("[{}, {}]", number(one), number(other))));
}

/// Writes a list, where it has items.
fn list(text: &mut String, name: &str, comment: &str, items: impl Iterator<Item = String>) {
    let lines: Vec<String> = items.map(|item| format!("    {item},\n")).collect();
    if lines.is_empty() {
        return;
    }
    let comment = if comment.is_empty() { String::new() } else { format!(" # {comment}") };
    *text += &format!("{name} = [{comment}\n{}]\n", lines.concat());
}

/// Writes a number with four digits, as a float of TOML.
fn number(value: f64) -> String {
    format!("{value:.3e}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_to_four_digits() {
        let mut cluster = Cluster::preset("cpu").unwrap();
        let points: Points = toml::from_str(
            "memory = [[1024.0, 2e9], [4096.0, 3.5e9]]\nproducts.fp32 = [[16, 16, 16, 1e9]]\nattention.fp64 = [[1e6, 2e9]]\n\
             messages.inside = [[64.0, 1e-6]]\n\
             collectives = [{ what = 'all-to-all', ranks = 4, neighbours = 2, points = [[64.0, 1.25e-5]] }]",
        )
        .unwrap();
        cluster.measured = Some(points);
        let text = text(&cluster, 1, "today");
        assert!(text.starts_with("# Measured today by `mp-cli` on 1 rank, 8 on a node"), "{text}");
        assert!(text.contains("\n# Products are measured up to lengths of 16 in fp32.\n"), "{text}");
        assert_eq!(toml::from_str::<Cluster>(&text).unwrap(), cluster, "{text}");
        assert_eq!([number(12345.6), number(0.5)], ["1.235e4", "5.000e-1"]);
    }
}
