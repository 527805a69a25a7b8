//! Reductions over threads against a plain loop, for any values, lengths and sizes.

use half::bf16;
use mp_comm::{threads, Buffer, BufferMut, Element, Error, ReduceOp};
use proptest::prelude::*;

/// The plain loop: folds from rank 0 upwards.
fn plain<T: Copy>(rows: &[Vec<T>], add: impl Fn(T, T) -> T) -> Vec<T> {
    let mut result = rows[0].clone();
    for row in &rows[1..] {
        result.iter_mut().zip(row).for_each(|(r, x)| *r = add(*r, *x));
    }
    result
}

fn all_reduced<T: Element>(rows: &[Vec<T>], op: ReduceOp) -> Vec<Vec<T>> {
    threads::run(rows.len(), |comm| {
        let mut blocking = rows[comm.rank().0].clone();
        comm.all_reduce(BufferMut::new(&mut blocking), op)?;
        let started = comm.start_all_reduce(rows[comm.rank().0].clone().into(), op)?.wait()?;
        assert_eq!(Some(bytemuck::cast_slice::<T, u8>(&blocking)), started.as_buffer().bytes());
        Ok::<_, Error>(blocking)
    })
}

fn rows<T: Clone + std::fmt::Debug>(element: impl Strategy<Value = T> + 'static) -> impl Strategy<Value = Vec<Vec<T>>> {
    let element = std::rc::Rc::new(element.boxed());
    (1usize..5, 0usize..40)
        .prop_flat_map(move |(size, len)| prop::collection::vec(prop::collection::vec((*element).clone(), len), size))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn sums_of_floats_are_bit_for_bit(rows in rows(-1e6f32..1e6)) {
        let expected = plain(&rows, |a, b| a + b);
        for result in all_reduced(&rows, ReduceOp::Sum) {
            prop_assert_eq!(&result, &expected);
        }
    }

    #[test]
    fn sums_of_integers_wrap(rows in rows(any::<i64>())) {
        let expected = plain(&rows, i64::wrapping_add);
        for result in all_reduced(&rows, ReduceOp::Sum) {
            prop_assert_eq!(&result, &expected);
        }
    }

    #[test]
    fn extremes(rows in rows(any::<i32>())) {
        let (largest, smallest) = (plain(&rows, i32::max), plain(&rows, i32::min));
        for (max, min) in all_reduced(&rows, ReduceOp::Max).into_iter().zip(all_reduced(&rows, ReduceOp::Min)) {
            prop_assert_eq!(&max, &largest);
            prop_assert_eq!(&min, &smallest);
        }
    }

    #[test]
    fn bfloat16_rounds_once(rows in rows(-100f32..100.0)) {
        let narrow: Vec<Vec<bf16>> = rows.iter().map(|row| row.iter().map(|x| bf16::from_f32(*x)).collect()).collect();
        let wide: Vec<Vec<f32>> = narrow.iter().map(|row| row.iter().map(|x| x.to_f32()).collect()).collect();
        let expected: Vec<bf16> = plain(&wide, |a, b| a + b).into_iter().map(bf16::from_f32).collect();
        for result in all_reduced(&narrow, ReduceOp::Sum) {
            prop_assert_eq!(&result, &expected);
        }
    }

    #[test]
    fn reduce_scatter_is_a_slice_of_all_reduce(rows in rows(-1f64..1.0)) {
        let size = rows.len();
        let len = rows[0].len() / size * size;
        let cut: Vec<Vec<f64>> = rows.iter().map(|row| row[..len].to_vec()).collect();
        let whole = all_reduced(&cut, ReduceOp::Avg);
        let parts = threads::run(size, |comm| {
            let mut part = vec![0f64; len / size];
            comm.reduce_scatter(Buffer::new(&cut[comm.rank().0]), BufferMut::new(&mut part), ReduceOp::Avg)?;
            Ok::<_, Error>(part)
        });
        prop_assert_eq!(parts.concat(), whole[0].clone());
    }
}
