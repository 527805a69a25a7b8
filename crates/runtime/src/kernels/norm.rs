//! The norm of long vectors, to double precision's accuracy whatever they are stored in.

use crate::{Kind, Result, Tensor};

/// Elements that are summed in the vector's own precision before double takes over: short enough to lose nothing that
/// matters, long enough that the second pass costs nothing.
const PIECE: i64 = 4096;

/// Computes `Σ x²` of a contiguous vector.
///
/// One sum over millions of elements in single precision is off by 10⁻⁴, which is more than layouts may differ by; pieces of
/// it are summed in the vector's precision, the pieces in double.
///
/// # Shapes
/// - `x`: `[n]`
///
/// # Errors
/// [`Error::Torch`](crate::Error::Torch) where `x` is no vector.
pub fn sum_of_squares(x: &Tensor) -> Result<f64> {
    let whole = x.size1()? / PIECE * PIECE;
    let pieces = x.f_narrow(0, 0, whole)?.f_view([-1, PIECE])?;
    let pieces = pieces.f_norm_scalaropt_dim(2.0, [1i64].as_slice(), false)?;
    let rest = x.f_narrow(0, whole, x.size1()? - whole)?.f_to_kind(Kind::Double)?;
    let squares = |x: Tensor| -> Result<f64> {
        Ok(x.f_to_kind(Kind::Double)?.f_square()?.f_sum(Kind::Double)?.f_double_value(&[])?)
    };
    Ok(squares(pieces)? + squares(rest)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;
    use crate::Device;

    /// A sum in pieces of 4096 loses at most 4096/8 roundings of 2⁻²⁴ in eight lanes each: 3·10⁻⁵ if all fell on one side,
    /// and as they fall on both, about their root, 1.4·10⁻⁶; over many pieces the mean of it, which is far less.
    #[test]
    fn a_long_vector_in_single_precision_keeps_its_norm() {
        let values: Vec<f32> = Stream::new(3, "norm", 0).normals(0..3_000_001).iter().map(|&x| x as f32).collect();
        let exact: f64 = values.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        let found = sum_of_squares(&Tensor::f_from_slice(&values).unwrap()).unwrap();
        assert!((found - exact).abs() < 1e-7 * exact, "{found} for {exact}");
    }

    #[test]
    fn short_and_empty_vectors_have_norms() {
        let x = Tensor::f_from_slice(&[3.0f64, 4.0]).unwrap();
        assert_eq!(sum_of_squares(&x).unwrap(), 25.0);
        let empty = Tensor::f_zeros([0i64], (Kind::Float, Device::Cpu)).unwrap();
        assert_eq!(sum_of_squares(&empty).unwrap(), 0.0);
    }
}
