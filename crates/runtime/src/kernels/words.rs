//! The words of a random stream drawn by tensor operations, where the tensors lie: bit for bit those of [`Stream::words`].
//!
//! Words are 32 bits wide and held in 64-bit integers, which have room for half of a product: every product with a
//! 32-bit constant is put together from those of the word's two halves of 16 bits.

use crate::rng::{Stream, MULTIPLIERS, ROUNDS, WEYL};
use crate::{Device, Kind, Result, Tensor};

/// The low 32 bits of a word.
const WORD: i64 = 0xFFFF_FFFF;
/// The low half of a word.
const HALF: i64 = 0xFFFF;

/// Draws the words of rows of one width, each from a first index of its own on.
///
/// # Shapes
/// - returns `[rows, width]`, 64-bit integers from 0 to 2³² − 1 on `device`
///
/// # Errors
/// [`Error::Torch`](crate::Error::Torch) where libtorch refuses.
pub fn rows(stream: &Stream, first: &[u64], width: usize, device: Device) -> Result<Tensor> {
    let (count, width) = (first.len() as i64, width as i64);
    // A quarter of an index is below 2⁶², so that a signed integer holds it.
    let starts: Vec<i64> = first.iter().map(|index| (index / 4) as i64).collect();
    // With up to three words of its first block left out, a row reaches into one more block.
    let skips = first.iter().any(|index| index % 4 != 0);
    let blocks = (width + if skips { 3 } else { 0 } + 3) / 4;
    let within = Tensor::f_arange(blocks, (Kind::Int64, device))?;
    let counters = Tensor::f_from_slice(&starts)?.f_to_device(device)?.f_unsqueeze(1)?.f_add(&within)?;
    let words = Tensor::f_stack(&philox(stream, &counters)?, -1)?.f_view([count, 4 * blocks])?;
    if !skips {
        return Ok(words.f_narrow(1, 0, width)?);
    }
    let skipped: Vec<i64> = first.iter().map(|index| (index % 4) as i64).collect();
    let column = Tensor::f_arange(width, (Kind::Int64, device))?;
    let columns = Tensor::f_from_slice(&skipped)?.f_to_device(device)?.f_unsqueeze(1)?.f_add(&column)?;
    Ok(words.f_gather(1, &columns, false)?)
}

/// Computes the blocks of these numbers; [`crate::rng::philox`] element by element.
fn philox(stream: &Stream, blocks: &Tensor) -> Result<[Tensor; 4]> {
    let (mut key, high) = (stream.key(), stream.high().map(i64::from));
    let like = |word: i64| blocks.f_full_like(word);
    let (low, next) = (blocks.f_bitwise_and(WORD)?, blocks.f_bitwise_right_shift_tensor_scalar(32)?);
    let mut counter = [low, next, like(high[0])?, like(high[1])?];
    for _ in 0..ROUNDS {
        let [c0, c1, c2, c3] = counter;
        let (first_high, first_low) = product(&c0, MULTIPLIERS[0])?;
        let (second_high, second_low) = product(&c2, MULTIPLIERS[1])?;
        counter = [mixed(second_high, &c1, key[0])?, second_low, mixed(first_high, &c3, key[1])?, first_low];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    Ok(counter)
}

fn mixed(mut high: Tensor, counter: &Tensor, key: u32) -> Result<Tensor> {
    Ok(high.f_bitwise_xor_tensor_(counter)?.f_bitwise_xor_(i64::from(key))?)
}

/// Multiplies words by a constant: the high and the low 32 bits.
fn product(words: &Tensor, constant: u32) -> Result<(Tensor, Tensor)> {
    let constant = i64::from(constant);
    // Each below 2⁴⁸, and so is their sum with the carry.
    let mut lower = words.f_bitwise_and(HALF)?.f_mul_scalar_(constant)?;
    let mut upper = words.f_bitwise_right_shift_tensor_scalar(16)?.f_mul_scalar_(constant)?;
    let mut upper = upper.f_add_(&lower.f_bitwise_right_shift_tensor_scalar(16)?)?;
    let mut low = upper.f_bitwise_and(HALF)?;
    let mut low = low.f_bitwise_left_shift_tensor_scalar_(16)?;
    let low = low.f_bitwise_or_tensor_(&lower.f_bitwise_and_(HALF)?)?;
    Ok((upper.f_bitwise_right_shift_tensor_scalar_(16)?, low))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn drawn(stream: &Stream, first: &[u64], width: usize) -> Vec<i64> {
        let words = rows(stream, first, width, Device::Cpu).unwrap();
        assert_eq!(words.size(), [first.len() as i64, width as i64]);
        Vec::<i64>::try_from(words.f_reshape([-1]).unwrap()).unwrap()
    }

    fn expected(stream: &Stream, first: &[u64], width: usize) -> Vec<i64> {
        let row = |&index: &u64| {
            let mut words = vec![0; width];
            stream.words(index, &mut words);
            words.into_iter().map(i64::from)
        };
        first.iter().flat_map(row).collect()
    }

    #[test]
    fn the_highest_words_do_not_overflow() {
        let stream = Stream::new(u64::MAX, "words", u64::MAX);
        for first in [0, (1 << 34) - 4, 1 << 34, (1 << 62) + 5, u64::MAX - 63] {
            assert_eq!(drawn(&stream, &[first], 60), expected(&stream, &[first], 60), "{first}");
        }
    }

    proptest! {
        #[test]
        fn words_are_the_hosts(
            seed: u64,
            number: u64,
            first in proptest::collection::vec(0..u64::MAX - 64, 1..6),
            aligned: bool,
            width in 1usize..40,
        ) {
            let stream = Stream::new(seed, "words", number);
            let first: Vec<u64> = first.into_iter().map(|index| if aligned { index / 4 * 4 } else { index }).collect();
            prop_assert_eq!(drawn(&stream, &first, width), expected(&stream, &first, width));
        }
    }
}
