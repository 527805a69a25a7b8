//! What work takes on a machine that was measured: between its points, and where there are none, what its rates say.
//!
//! Sizes and times are interpolated by their logarithms: a product over the cell of the grid that its shape lies in,
//! everything else along a line. Beyond the largest size, times grow in proportion; below the smallest they stay, but for
//! operations element by element, whose points have no start. A time that falls as a size grows, as noise has it, is
//! raised to that of the smaller size, so that more work never takes less.
//!
//! A group that was not measured takes what the most similar measured one takes, times how much more it has to do: of the
//! smallest size in hops, of the largest in bytes, between them step by step. Rates are not asked, for points go before them:
//! they would say that a faster link leaves more of a large group's hops beside a small one's, and make it slower.

use super::{collective::Shares, Analytic, Collective, CostModel, Group};
use crate::{cluster::measured::Product, Cluster, Precision};

/// What was measured of a machine.
#[derive(Debug, Clone)]
pub struct Measured {
    /// What is asked where there is no point.
    plain: Analytic,
    /// By [`place`].
    products: [Option<Grid>; 3],
    attention: [Option<Curve>; 3],
    memory: Option<Curve>,
    collectives: Vec<(Collective, (Group, Curve))>,
    inside: Option<Curve>,
    outside: Option<Curve>,
    /// What starting one operation takes, in seconds.
    launch: f64,
    /// The share of the points' rates that operations reach within a step.
    program: f64,
}

/// Chooses what a machine is known by: its points where its file has some, else its rates.
///
/// # Examples
///
/// ```
/// use mp_plan::{cost, Cluster, Precision};
///
/// let cluster = Cluster::preset("h100")?;
/// assert_eq!(cost::of(&cluster).peak(Precision::Bf16), Some(989e12));
/// # Ok::<(), mp_plan::Error>(())
/// ```
pub fn of(cluster: &Cluster) -> Box<dyn CostModel> {
    match cluster.measured {
        Some(_) => Box::new(Measured::new(cluster)),
        None => Box::new(Analytic::new(cluster)),
    }
}

impl Measured {
    /// Takes a machine. One without points is known by its rates.
    pub fn new(cluster: &Cluster) -> Self {
        let points = cluster.measured.clone().unwrap_or_default();
        let each = [Precision::Bf16, Precision::Fp32, Precision::Fp64];
        let seconds = |points: &[[f64; 2]]| points.iter().map(|&[size, rate]| [size, size / rate]).collect::<Vec<_>>();
        let groups = points.collectives.iter().filter_map(|group| {
            let curve = Curve::new(&group.points, Below::Stays)?;
            Some((group.what, (Group { size: group.ranks, neighbours: group.neighbours }, curve)))
        });
        Self {
            plain: Analytic::new(cluster),
            products: each.map(|precision| Grid::new(points.products.of(precision))),
            attention: each.map(|precision| Curve::new(&seconds(points.attention.of(precision)), Below::Stays)),
            memory: Curve::new(&seconds(&points.memory), Below::Shrinks),
            collectives: groups.collect(),
            inside: Curve::new(&points.messages.inside, Below::Stays),
            outside: Curve::new(&points.messages.outside, Below::Stays),
            launch: cluster.efficiency.launch,
            program: cluster.efficiency.program,
        }
    }
}

/// Returns a precision's place in lists of them.
fn place(precision: Precision) -> usize {
    match precision {
        Precision::Bf16 => 0,
        Precision::Fp32 => 1,
        Precision::Fp64 => 2,
    }
}

impl CostModel for Measured {
    fn peak(&self, precision: Precision) -> Option<f64> {
        self.plain.peak(precision)
    }

    fn product(&self, count: usize, shape: [usize; 3], precision: Precision) -> f64 {
        let Some(grid) = &self.products[place(precision)] else { return self.plain.product(count, shape, precision) };
        // Of several that are started as one, all but the first are spared what the smallest takes: its start. That has
        // work in it too, so that none takes less than at the best rate.
        let one = grid.at(shape);
        let flop = 2.0 * shape.iter().map(|&length| length as f64).product::<f64>();
        let further = (one - grid.least()).max(flop / grid.best);
        (one + count.saturating_sub(1) as f64 * further) / self.program + self.launch
    }

    fn attention(&self, flop: f64, precision: Precision) -> Option<f64> {
        match &self.attention[place(precision)] {
            Some(curve) => Some(curve.at(flop) / self.program + self.launch),
            None => self.plain.attention(flop, precision),
        }
    }

    fn memory(&self, bytes: f64, starts: usize) -> f64 {
        let Some(curve) = &self.memory else { return self.plain.memory(bytes, starts) };
        // Each sweeps its part, which small caches may hold.
        let parts = starts.max(1) as f64;
        parts * curve.at(bytes / parts) / self.program + starts as f64 * self.launch
    }

    fn collective(&self, what: Collective, bytes: f64, group: Group) -> f64 {
        if group.size <= 1 {
            return 0.0;
        }
        let group = Group { neighbours: group.neighbours.clamp(1, group.size), ..group };
        match self.nearest(what, group) {
            Some((known, curve)) if *known == group => curve.at(bytes),
            Some((known, curve)) => curve.scaled(&Shares::of(what, group, *known)).at(bytes),
            None => self.plain.collective(what, bytes, group),
        }
    }

    fn message(&self, bytes: f64, inside_node: bool) -> f64 {
        match if inside_node { &self.inside } else { &self.outside } {
            Some(curve) => curve.at(bytes),
            None => self.plain.message(bytes, inside_node),
        }
    }

    fn overlap(&self) -> f64 {
        self.plain.overlap()
    }
}

impl Measured {
    /// Finds the measured group that is most like another, of those that lie within a node as it does, or over several.
    fn nearest(&self, what: Collective, group: Group) -> Option<&(Group, Curve)> {
        let inside = |group: &Group| group.neighbours == group.size;
        let ratio = |one: usize, other: usize| (one as f64 / other as f64).ln().abs();
        let unlike = |known: &Group| ratio(known.size, group.size) + ratio(known.neighbours, group.neighbours);
        let known =
            self.collectives.iter().filter(|(kind, (known, _))| *kind == what && inside(known) == inside(&group));
        known.map(|(_, known)| known).min_by(|one, other| unlike(&one.0).total_cmp(&unlike(&other.0)))
    }
}

/// What becomes of times below the smallest size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Below {
    /// They stay: a start is in them.
    Stays,
    /// They shrink in proportion.
    Shrinks,
}

/// Times by size.
#[derive(Debug, Clone)]
struct Curve {
    /// Logarithms of sizes, ascending, and of times, which never fall.
    points: Vec<[f64; 2]>,
    below: Below,
}

impl Curve {
    /// Takes sizes with their times, in any order; `None` without any.
    fn new(points: &[[f64; 2]], below: Below) -> Option<Self> {
        let mut points: Vec<[f64; 2]> = points.iter().map(|point| point.map(f64::ln)).collect();
        points.sort_by(|one, other| one[0].total_cmp(&other[0]));
        (!points.is_empty()).then(|| Self { points, below }.raised())
    }

    /// Raises times that fall.
    fn raised(mut self) -> Self {
        let mut longest = f64::NEG_INFINITY;
        for point in &mut self.points {
            longest = longest.max(point[1]);
            point[1] = longest;
        }
        self
    }

    /// Returns what takes so many times as long: by hops at the smallest size, by bytes at the largest, and between them what
    /// lies on the line between the logarithms. Of one size it is not known which counts: the larger does.
    fn scaled(&self, shares: &Shares) -> Self {
        let (few, many) = (shares.hops.ln(), shares.bytes.ln());
        let (first, last) = (self.points[0][0], self.points[self.points.len() - 1][0]);
        let factor = |size: f64| match last > first {
            true => few + (many - few) * (size - first) / (last - first),
            false => few.max(many),
        };
        // Numbers of the sizes alone: a point that is better makes no time longer.
        let point = |&[size, time]: &[f64; 2]| [size, time + factor(size)];
        Self { points: self.points.iter().map(point).collect(), ..*self }.raised()
    }

    /// Returns the time of a size, in seconds; of nothing as [`Below`] says, 0 or that of the least.
    fn at(&self, size: f64) -> f64 {
        let (size, [first, last]) = (size.ln(), [self.points[0], self.points[self.points.len() - 1]]);
        if size <= first[0] {
            return match self.below {
                Below::Stays => first[1].exp(),
                Below::Shrinks => (first[1] + size - first[0]).exp(),
            };
        }
        if size >= last[0] {
            return (last[1] + size - last[0]).exp();
        }
        let next = self.points.partition_point(|point| point[0] <= size);
        let [[from, start], [to, end]] = [self.points[next - 1], self.points[next]];
        (start + (end - start) * (size - from) / (to - from)).exp()
    }
}

/// Times of products by shape.
#[derive(Debug, Clone)]
struct Grid {
    /// Logarithms of the lengths along each dim, ascending.
    lengths: [Vec<f64>; 3],
    /// Logarithms of times, the last dim fastest; they never fall along any dim.
    times: Vec<f64>,
    /// The best rate, FLOP a second.
    best: f64,
}

impl Grid {
    /// Takes the rates of a grid of shapes; `None` without any.
    ///
    /// # Panics
    /// If the shapes are no grid, which [`Cluster::check`] refuses.
    fn new(products: &[Product]) -> Option<Self> {
        let first = products.first()?;
        let mut lengths = [vec![first.0], vec![first.1], vec![first.2]];
        for (dim, known) in lengths.iter_mut().enumerate() {
            known.extend(products.iter().map(|&Product(m, n, k, _)| [m, n, k][dim]));
            known.sort_unstable();
            known.dedup();
        }
        let mut times = vec![f64::NAN; lengths.iter().map(Vec::len).product()];
        for &Product(m, n, k, rate) in products {
            let [i, j, l] = [(0, m), (1, n), (2, k)].map(|(dim, length)| lengths[dim].partition_point(|&l| l < length));
            let flop = 2.0 * m as f64 * n as f64 * k as f64;
            times[(i * lengths[1].len() + j) * lengths[2].len() + l] = (flop / rate).ln();
        }
        assert!(times.iter().all(|time| time.is_finite()), "measured products make no grid");
        let lengths = lengths.map(|lengths| lengths.iter().map(|&length| (length as f64).ln()).collect());
        let best = products.iter().map(|product| product.3).fold(0.0, f64::max);
        let mut grid = Self { lengths, times, best };
        grid.raise();
        Some(grid)
    }

    /// Raises times that fall along a dim.
    fn raise(&mut self) {
        let [_, columns, depth] = self.lengths.each_ref().map(Vec::len);
        let strides = [columns * depth, depth, 1];
        for index in 0..self.times.len() {
            let place = [index / strides[0], index / strides[1] % columns, index % depth];
            for (place, stride) in place.into_iter().zip(strides) {
                if place > 0 {
                    self.times[index] = self.times[index].max(self.times[index - stride]);
                }
            }
        }
    }

    /// Returns the time of the smallest product, in seconds.
    fn least(&self) -> f64 {
        self.times[0].exp()
    }

    /// Returns the time of a product, in seconds.
    fn at(&self, shape: [usize; 3]) -> f64 {
        let [_, columns, depth] = self.lengths.each_ref().map(Vec::len);
        // Of each dim the cell, the way into it, and what is beyond the last length.
        let mut cells = [(0, 0.0, 0.0); 3];
        for ((cell, lengths), length) in cells.iter_mut().zip(&self.lengths).zip(shape) {
            *cell = locate(lengths, (length as f64).ln());
        }
        let beyond: f64 = cells.iter().map(|cell| cell.2).sum();
        let mut time = beyond;
        for corner in 0..8 {
            let (mut weight, mut places) = (1.0, [0; 3]);
            for (dim, &(cell, way, _)) in cells.iter().enumerate() {
                let upper = corner >> dim & 1;
                weight *= if upper == 1 { way } else { 1.0 - way };
                places[dim] = (cell + upper).min(self.lengths[dim].len() - 1);
            }
            time += weight * self.times[(places[0] * columns + places[1]) * depth + places[2]];
        }
        time.exp()
    }
}

/// Finds a length among others: the cell, the share of it that lies below, and how far it is beyond the last.
fn locate(lengths: &[f64], length: f64) -> (usize, f64, f64) {
    let last = lengths.len() - 1;
    if length <= lengths[0] {
        return (0, 0.0, 0.0);
    }
    if length >= lengths[last] {
        return (last, 0.0, length - lengths[last]);
    }
    let next = lengths.partition_point(|&known| known <= length);
    (next - 1, (length - lengths[next - 1]) / (lengths[next] - lengths[next - 1]), 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_met_and_the_way_between_them_is_straight_in_logarithms() {
        let curve = Curve::new(&[[100.0, 4.0], [1.0, 1.0], [10.0, 0.5]], Below::Stays).unwrap();
        let near = |size: f64, seconds: f64| assert!((curve.at(size) / seconds - 1.0).abs() < 1e-12, "{size}");
        near(1.0, 1.0);
        // The time that fell is raised.
        near(10.0, 1.0);
        near(100.0, 4.0);
        near(1000f64.sqrt(), 2.0);
        near(1e4, 400.0);
        near(0.1, 1.0);
        assert_eq!(Curve::new(&[[10.0, 1.0]], Below::Shrinks).unwrap().at(0.0), 0.0);
    }

    #[test]
    fn products_are_met_at_points_and_grow_in_proportion_beyond() {
        let point = |m: usize, n: usize, k: usize, seconds: f64| Product(m, n, k, 2.0 * (m * n * k) as f64 / seconds);
        let lengths = [2, 8];
        let all = lengths.map(|m| lengths.map(|n| lengths.map(|k| point(m, n, k, (m * n) as f64 + k as f64))));
        let grid = Grid::new(all.as_flattened().as_flattened()).unwrap();
        let near = |shape, seconds: f64| assert!((grid.at(shape) / seconds - 1.0).abs() < 1e-12, "{shape:?}");
        near([2, 8, 2], 18.0);
        near([8, 2, 8], 24.0);
        near([4, 8, 2], (18.0 * 66.0f64).sqrt());
        near([16, 8, 8], 2.0 * 72.0);
        near([1, 1, 1], 6.0);
    }
}
